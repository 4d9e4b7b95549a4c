"""Verdicts on arithmetic puzzles: whether an expression uses each given number once and equals the target.

This file parses the expression in the last box and evaluates it in exact fractions. It never passes a response to
Python's `eval`. The task `game24` calls `verify_countdown(response, numbers, target=24)`.

    expression  →  term (("+" | "−") term)*            numbers are non-negative integers
    term        →  factor (("×" | "/") factor | "(" expression ")")*
    factor      →  number | "(" expression ")" | "[" … "]" | "{" … "}" | "\\frac{" expression "}{" expression "}"
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from stages.tasks.boxes import last_box
from stages.tasks.verdicts import Place, Reason, Step, Verdict, judge, no_answer

_MAX_CHARACTERS = 500
_MAX_NESTING = 50
_REPLACEMENTS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|[bB]igg?[lr]?|text|mathrm)(?![A-Za-z])|\\[,;:! ]|\$|\\[()\[\]]", ""),
        (r"\\(?:times|cdot|ast)(?![A-Za-z])|[×·⋅∗]", "*"),
        (r"\\div(?![A-Za-z])|[÷∕]", "/"),
        (r"[−–]", "-"),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    )
]
_BRACKETS = {"(": ")", "[": "]", "{": "}"}
_TOKENS = re.compile(r"\s*(?:(?P<number>[0-9]{1,9}(?![0-9.]))|(?P<sign>\\frac|[-+*/(){}\[\]]))")


class _InvalidExpressionError(Exception):
    """The text does not follow the grammar, divides by zero, or is too long or too deeply nested."""


def verify_countdown(response: str, numbers: Sequence[int], target: int = 24) -> Verdict:
    """Grade a response: its last box must contain an expression that uses each number once and equals the target.

    `= 24` or `24 =` next to the expression is ignored; any other equation is wrong. The answer of the verdict is the
    expression in ASCII without spaces.
    """
    box = last_box(response)
    if not box:
        return no_answer()
    text = _without_target(_normalize(box), target)
    try:
        value, used = _Evaluator(text).evaluate()
    except _InvalidExpressionError:
        return Verdict("".join(text[:_MAX_CHARACTERS].split()), 0.0, Reason.INVALID, Place.BOX, box)
    is_right = value == target and Counter(used) == Counter(numbers)
    steps = (Step("evaluate", str(value)), Step("collect the numbers", " ".join(map(str, used))))
    return judge("".join(text.split()), is_right, Place.BOX, box, *steps)


def _normalize(text: str) -> str:
    # LaTeX commands shrink to single characters, so a valid expression may be longer before than after.
    text = unicodedata.normalize("NFKC", text[: 4 * _MAX_CHARACTERS])
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    return text.strip()


def _without_target(text: str, target: int) -> str:
    """Return an equation's other side if one side is the target, and any other text unchanged."""
    left, equals, right = text.partition("=")
    if equals and right.strip() == str(target):
        return left.strip()
    if equals and left.strip() == str(target):
        return right.strip()
    return text


class _Evaluator:
    """Evaluates an expression by recursive descent and collects its numbers; one method per rule of the grammar."""

    def __init__(self, text: str) -> None:
        if len(text) > _MAX_CHARACTERS:
            raise _InvalidExpressionError
        self._tokens = _tokens(text)
        self._next = 0
        self._depth = 0
        self._used: list[int] = []

    def evaluate(self) -> tuple[Fraction, list[int]]:
        """Return the value and the numbers in the expression.

        Raises:
          _InvalidExpressionError: the text has no value.
        """
        value = self._sum()
        if self._next != len(self._tokens):
            raise _InvalidExpressionError
        return value, self._used

    def _sum(self) -> Fraction:
        value = self._product()
        while sign := self._take("+", "-"):
            value += self._product() if sign == "+" else -self._product()
        return value

    def _product(self) -> Fraction:
        value = self._factor()
        while sign := self._take("*", "/") or ("*" if self._at(*_BRACKETS) else None):  # (1 + 2)(3) is a product
            factor = self._factor()
            value = value * factor if sign == "*" else _divide(value, factor)
        return value

    def _factor(self) -> Fraction:
        if bracket := self._take(*_BRACKETS):
            return self._enclosed(_BRACKETS[bracket])
        if self._take("\\frac"):
            above, below = (self._argument() for _ in range(2))
            return _divide(above, below)
        if self._next == len(self._tokens) or not self._tokens[self._next].isdigit():
            raise _InvalidExpressionError
        number = int(self._tokens[self._next])
        self._next += 1
        self._used.append(number)
        return Fraction(number)

    def _argument(self) -> Fraction:
        if not self._take("{"):
            raise _InvalidExpressionError
        return self._enclosed("}")

    def _enclosed(self, end: str) -> Fraction:
        self._depth += 1
        if self._depth > _MAX_NESTING:
            raise _InvalidExpressionError
        value = self._sum()
        if not self._take(end):
            raise _InvalidExpressionError
        self._depth -= 1
        return value

    def _take(self, *accepted: str) -> str | None:
        """Consume and return the next token if it is one of these, else return None."""
        if not self._at(*accepted):
            return None
        self._next += 1
        return self._tokens[self._next - 1]

    def _at(self, *accepted: str) -> bool:
        return self._next < len(self._tokens) and self._tokens[self._next] in accepted


def _tokens(text: str) -> list[str]:
    tokens, position = [], 0
    while position < len(text):
        match = _TOKENS.match(text, position)
        if not match:
            raise _InvalidExpressionError
        tokens.append(match["number"] or match["sign"])
        position = match.end()
    return tokens


def _divide(above: Fraction, below: Fraction) -> Fraction:
    if not below:
        raise _InvalidExpressionError
    return above / below
