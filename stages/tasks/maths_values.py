r"""Approximate values of formulas: cheap to compute, and enough to distinguish most unequal answers.

Every unknown has a fixed value, so that `x + 1` and `x + 2` have different values. Only sums, products, quotients,
powers and roots are evaluated. The value of any other formula, and of one with two readings, is None.
"""

from __future__ import annotations

import cmath
import hashlib
import re
from functools import lru_cache

_MAX_NESTING = 20
_CONSTANTS = {r"\pi": cmath.pi, "e": cmath.e, "i": 1j}
_GREEK = re.compile(r"\\(?:alpha|beta|gamma|delta|(?:var)?epsilon|theta|lambda|mu|rho|sigma|tau|(?:var)?phi|omega)")
_TOKENS = re.compile(
    r"\s*(?:(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)|(?P<name>\\[A-Za-z]+|[A-Za-z])(?P<index>_(?:[0-9A-Za-z]|\{\w+\}))?"
    r"|(?P<sign>[-+*/^()\[\]{}]))"
)
_TIMES_SIGNS = ("*", r"\cdot", r"\times")
_DIVISION_SIGNS = ("/", r"\div")


class _NotEvaluableError(Exception):
    """The formula cannot be evaluated here."""


@lru_cache(maxsize=16_384)
def approximate(text: str) -> complex | None:
    """Return the value of a normalized formula to about twelve digits; None if it cannot be evaluated."""
    try:
        value = _Evaluator(text).value()
    except (_NotEvaluableError, OverflowError, ZeroDivisionError):
        return None
    return value if cmath.isfinite(value) else None


class _Evaluator:
    """Evaluates a formula by recursive descent; each method consumes the tokens of one rule of the grammar."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._next = 0
        self._depth = 0

    def value(self) -> complex:
        value = self._sum()
        if self._next != len(self._tokens):
            raise _NotEvaluableError
        return value

    def _sum(self) -> complex:
        self._depth += 1
        if self._depth > _MAX_NESTING:
            raise _NotEvaluableError
        sign = self._take("+", "-")
        value = -self._product() if sign == "-" else self._product()
        while sign := self._take("+", "-"):
            value += self._product() if sign == "+" else -self._product()
        self._depth -= 1
        return value

    def _product(self) -> complex:
        value, divided = self._power(), False
        while True:
            if self._take(*_TIMES_SIGNS):
                value *= self._power()
            elif self._take(*_DIVISION_SIGNS):
                value, divided = value / self._power(), True
            elif self._begins_factor():
                # Two readings each: 1/2x, 2 3, 1\frac{1}{2}.
                if divided or self._is_number(self._next) or self._is_mixed():
                    raise _NotEvaluableError
                value *= self._power()
            else:
                return value

    def _power(self) -> complex:
        base = self._atom()
        if not self._take("^"):
            return base
        # TeX reads x^12 as x^1 2, a person as x^{12}.
        if self._is_number(self._next) and len(self._tokens[self._next]) > 1:
            raise _NotEvaluableError
        exponent = self._argument()
        if self._peek() == "^" or abs(exponent) > 10_000:
            raise _NotEvaluableError
        return complex(base) ** exponent

    def _atom(self) -> complex:
        token = self._pop()
        if token in ("(", "{"):
            value = self._sum()
            if not self._take({"(": ")", "{": "}"}[token]):
                raise _NotEvaluableError
            return value
        if token == r"\frac":
            above, below = self._argument(), self._argument()
            return above / below
        if token == r"\sqrt":
            degree = self._degree()
            return complex(self._argument()) ** (1 / degree)
        return _single(token)

    def _degree(self) -> complex:
        if not self._take("["):
            return 2
        degree = self._sum()
        if not self._take("]"):
            raise _NotEvaluableError
        return degree

    def _argument(self) -> complex:
        """Evaluate the argument of a command: a group in braces, or one token; of a number, TeX takes one digit."""
        if self._take("{"):
            value = self._sum()
            if not self._take("}"):
                raise _NotEvaluableError
            return value
        token = self._pop()
        if self._is_number(self._next - 1) and len(token) > 1:
            self._next -= 1
            self._tokens[self._next] = token[1:]
            token = token[0]
        return _single(token)

    def _begins_factor(self) -> bool:
        token = self._peek()
        return token is not None and token not in "+-*/^)]}" and token not in (*_TIMES_SIGNS, *_DIVISION_SIGNS, "[")

    def _is_number(self, position: int) -> bool:
        return position < len(self._tokens) and self._tokens[position][0] in ".0123456789"

    def _is_mixed(self) -> bool:
        """Return whether a fraction follows a number."""
        return self._peek() == r"\frac" and self._is_number(self._next - 1)

    def _peek(self) -> str | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _pop(self) -> str:
        token = self._peek()
        if token is None:
            raise _NotEvaluableError
        self._next += 1
        return token

    def _take(self, *accepted: str) -> str | None:
        return self._pop() if self._peek() in accepted else None


def _tokens(text: str) -> list[str]:
    tokens, position, text = [], 0, text.rstrip()
    while position < len(text):
        match = _TOKENS.match(text, position)
        if not match:
            raise _NotEvaluableError
        tokens.append(match[0].strip())
        position = match.end()
    return tokens


def _single(token: str) -> complex:
    """Return the value of a number, a constant or an unknown.

    An unknown gets a value in [1, 2) from a digest of its name. Its case is ignored, as in math-verify.
    """
    if token[0] in ".0123456789":
        return float(token)
    if (constant := _CONSTANTS.get(token)) is not None:
        return constant
    name, _, index = token.partition("_")
    if not (name.isalpha() or _GREEK.fullmatch(name)):
        raise _NotEvaluableError
    number = hashlib.blake2b(f"{name.lower()}_{index.strip('{}')}".encode(), digest_size=4).digest()
    return 1 + int.from_bytes(number) / 2**32
