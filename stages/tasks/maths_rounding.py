r"""Compare the rounded values that answers state beside their exact values: `\frac23 \approx 0.667`."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from stages.tasks.maths_normalization import normalize
from stages.tasks.maths_values import approximate, evaluate

_MAX_CHARACTERS = 400
_ROUNDED = re.compile(
    r"(?P<exact>[^≈]*?[^\s{(\[,≈])\s*(?:\\approx(?![A-Za-z])|≈)\s*(?:\\?\$)?\s*"
    r"(?P<value>[-−]?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+))"
    r"\s*(?:[A-Za-z]+|\\(?:text|mathrm)\s*\{[^{}%]*\})?[\s.$]*",
    re.S,
)


class _Rounded(NamedTuple):
    """An exact value, normalized; its rounded value; and one unit of the last digit of that."""

    exact: str
    value: Fraction
    unit: Fraction


def is_misrounded(answer: str, reference: str) -> bool:
    r"""Return whether the rounded values of an answer and of its reference exclude each other.

    They may differ by one unit of the last digit that both have, as where digits are cut off. They do not exclude each
    other if the answer's is the rounding of the answer's exact value: the reference's is wrong then. An answer is not
    held to a rounded value that its reference does not state.

    Args:
      answer, reference: texts as they are stated.
    """
    stated, expected = _read_rounded(answer), _read_rounded(reference)
    if stated is None or expected is None or abs(expected.value - stated.value) <= max(expected.unit, stated.unit):
        return False
    exact = approximate(stated.exact)
    if exact is None or evaluate(stated.exact, 0) != evaluate(stated.exact, 1):  # the second: it has unknowns
        return True
    return abs(exact - complex(stated.value)) > float(stated.unit) * (1 + 1e-9)


def _read_rounded(text: str) -> _Rounded | None:
    match = _ROUNDED.fullmatch(text) if len(text) <= _MAX_CHARACTERS else None
    if not match:
        return None
    digits = match["value"].replace(",", "").replace("−", "-")
    exact = normalize(match["exact"].rpartition("=")[2].strip(" $").removeprefix(r"\$"))
    return _Rounded(exact, Fraction(digits), Fraction(1, 10 ** len(digits.partition(".")[2])))
