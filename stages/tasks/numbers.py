"""Exact rational numbers read from text, and the canonical form in which they are written.

`read_leading_number` and `read_last_number` find a number in running text (GSM8K); `read_exact_number` reads a whole
answer, in LaTeX or plain. Responses are untrusted, so every function looks at a bounded number of characters and takes
linear time.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

_HEAD_CHARACTERS = 200
"""`read_leading_number` looks at this much of the start of a text."""
_TAIL_CHARACTERS = 2_000
"""`read_last_number` looks at this much of the end of a text."""
# Every repetition in these patterns is possessive (`++`, `*+`, `?+`), so that no text makes them backtrack.
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})++|[0-9]++)(?:\.[0-9]*+)?+|\.[0-9]++"
_NOT_CONTINUED = r"(?![0-9]|[,.][0-9]|[ \t]*+[-+*^×÷=/][ \t]*+[0-9(]|[eE][-+0-9])"
"""What follows must not continue the number: `5 - 3` and `18e5` are not plain numbers."""
_LEADING = re.compile(
    r"[: \t*]*+(?P<sign>[-+−]?+)[ \t]*+\\?+\$?+[ \t]*+(?P<inner>[-−]?+)"
    rf"(?P<digits>{_DIGITS})(?:[ \t]*+/[ \t]*+(?P<below>[0-9]++))?+{_NOT_CONTINUED}"
)
_ANYWHERE = re.compile(
    rf"(?<![0-9A-Za-z_.])(?P<sign>(?<![0-9)] )(?<![0-9)])[-−]?+)\$?+(?P<inner>)"
    rf"(?P<digits>{_DIGITS})(?:/(?P<below>[0-9]++))?+(?![0-9])"
)
_OTHER_DIGIT = re.compile(r"(?![0-9])\d")
_MAX_EXACT_CHARACTERS = 300
_MAX_POWER = 1_000
"""Largest absolute exponent of ten: `1e999999999` would fill the memory with digits."""
_THOUSANDS_SEPARATORS = str.maketrans("", "", ", ")
_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?: [0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_ARGUMENT = r"\{\s*-?[0-9]+\s*\}|[0-9]"
_DECIMAL_COMMA = re.compile(
    r"(?P<sign>-?)(?:(?P<whole>[0-9]+|[0-9]{1,3}(?:\.[0-9]{3})+),(?P<decimals>[0-9]+)"
    r"|(?P<grouped>[0-9]{1,3}(?:\.[0-9]{3}){2,}))"
)
_NUMBER = re.compile(r"(?P<sign>[-+]?)(?P<body>(?:\\[a-z]+|[eE][-+]?[0-9]|[^%A-Za-z\\])+)(?P<percent>%?)")


class ExactNumber(NamedTuple):
    """A rational number as an answer states it.

    Attributes:
      value: the number before the percent sign, if there is one: 20 for `20%`.
      decimal: whether it is written with a decimal point, so that it may have been rounded.
      percent: whether a percent sign follows it.
    """

    value: Fraction
    decimal: bool
    percent: bool


def ascii_digits(text: str) -> str:
    """Return a text with the decimal digits of every script as `0` to `9`: `٥`, `５` and `५` become 5."""
    if text.isascii():
        return text
    return _OTHER_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0])), text)


def read_leading_number(text: str) -> str | None:
    """Return the number at the start of a text in canonical form: `$1,018.50 dollars` → `1018.5`, `36/2` → `18`.

    Return None if no plain number starts within the first 200 characters, or two signs precede it.
    """
    match = _LEADING.match(text[:_HEAD_CHARACTERS])
    return _canonical(match) if match and not (match["sign"] and match["inner"]) else None


def read_last_number(text: str) -> str | None:
    """Return the last number of a text's last 2,000 characters in canonical form; None if there is none."""
    found = find_last_number(text)
    return found[2] if found else None


def find_last_number(text: str) -> tuple[int, int, str] | None:
    """Return the start, the end and the canonical form of the last number of a text; None if there is none."""
    last = None
    for match in _ANYWHERE.finditer(text, max(len(text) - _TAIL_CHARACTERS, 0)):
        last = match
    number = _canonical(last) if last else None
    return (last.start(), last.end(), number) if last and number is not None else None


def format_number(value: Fraction) -> str:
    """Return a rational number in canonical form: a terminating decimal if it has one, else a fraction in lowest terms.

    A fraction in lowest terms terminates if and only if its denominator is 2^a · 5^b; it then has max(a, b) decimals.
    """
    below, twos, fives = value.denominator, 0, 0
    while below % 2 == 0:
        below, twos = below // 2, twos + 1
    while below % 5 == 0:
        below, fives = below // 5, fives + 1
    if below != 1:
        return f"{value.numerator}/{value.denominator}"
    places = max(twos, fives)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)


@lru_cache(maxsize=16_384)
def read_exact_number(text: str) -> ExactNumber | None:
    """Return the number that a whole text states, in LaTeX or plain, without a unit; None for any other text.

    Accepts decimals (thousands separated by commas or spaces), fractions, mixed numbers, repeating decimals and
    scientific notation, up to 300 characters and a power of ten of ±1,000.
    """
    match = _NUMBER.fullmatch(text.strip()) if len(text) <= _MAX_EXACT_CHARACTERS else None
    if not match:
        return None
    body = match["body"].strip()
    value = _evaluate(body)
    if value is None:
        return None
    return ExactNumber(-value if match["sign"] == "-" else value, "." in body, bool(match["percent"]))


def read_decimal_comma(text: str) -> Fraction | None:
    """Return the number that a text states with a decimal comma, or with several points between thousands.

    `3,14` → 3.14, `1.234,5` → 1234.5, `1.234.567` → 1234567. Return None for `1,234`, which may have thousands, and for
    any other text.
    """
    match = _DECIMAL_COMMA.fullmatch(text) if len(text) <= _MAX_EXACT_CHARACTERS else None
    if not match:
        return None
    whole, decimals = match["whole"] or match["grouped"], match["decimals"] or ""
    if len(decimals) == 3 and "." not in whole and whole != "0":
        return None
    value = Fraction(f"{whole.replace('.', '')}.{decimals or 0}")
    return -value if match["sign"] else value


def _evaluate(body: str) -> Fraction | None:
    """Return the value of an unsigned number in the first notation that fits; None if none fits."""
    for pattern, evaluate in _NOTATIONS:
        if number := pattern.fullmatch(body):
            return evaluate(number)
    return None


def _canonical(match: re.Match[str]) -> str | None:
    """Return the number of a match of `_LEADING` or `_ANYWHERE` in canonical form; None if it divides by zero."""
    below = int(match["below"] or 1)
    if not below:
        return None
    number = Fraction(Decimal(match["digits"].replace(",", ""))) / below
    return format_number(-number if match["inner"] or match["sign"] in ("-", "−") else number)


def _decimal(number: re.Match[str]) -> Fraction:
    return Fraction(number["decimal"].translate(_THOUSANDS_SEPARATORS))


def _scientific(number: re.Match[str]) -> Fraction | None:
    power = int(number["power"])
    if abs(power) > _MAX_POWER:
        return None
    return Fraction((number["decimal"] or "1").translate(_THOUSANDS_SEPARATORS)) * Fraction(10) ** power


def _fraction(number: re.Match[str]) -> Fraction | None:
    above, below = int(number["above"].strip("{ }")), int(number["below"].strip("{ }"))
    whole = int(number["whole"] or 0)
    if not below or (number["whole"] and (above < 0 or below < 0)):
        return None
    return whole + Fraction(above, below)


def _repeating(number: re.Match[str]) -> Fraction:
    """Evaluate 0.1\\overline{36} as (1 + 36/99) / 10."""
    fixed, repeated = number["fixed"], number["repeated"].strip("{}")
    value = int(number["whole"] + fixed or 0) + Fraction(int(repeated), 10 ** len(repeated) - 1)
    return value / 10 ** len(fixed)


_NOTATIONS = [
    (re.compile(rf"(?P<decimal>{_DECIMAL})"), _decimal),
    (re.compile(rf"(?P<whole>[0-9]+)?\s*\\frac\s*(?P<above>{_ARGUMENT})\s*(?P<below>{_ARGUMENT})"), _fraction),
    (re.compile(r"(?:(?P<whole>[0-9]+)\s+)?(?P<above>[0-9]+)\s*/\s*(?P<below>[0-9]+)"), _fraction),
    (
        re.compile(
            rf"(?:(?P<decimal>{_DECIMAL})\s*(?:\\times|\\cdot|\*)\s*)?10\s*\^\s*(?P<brace>\{{\s*)?(?P<power>[-+]?[0-9]+)\s*(?(brace)\}})"
        ),
        _scientific,
    ),
    (re.compile(rf"(?P<decimal>{_DECIMAL})[eE](?P<power>[-+]?[0-9]+)"), _scientific),
    (
        re.compile(r"(?P<whole>[0-9]*)\.(?P<fixed>[0-9]*)\\(?:overline|bar|dot)\s*(?P<repeated>\{[0-9]+\}|[0-9])"),
        _repeating,
    ),
]
