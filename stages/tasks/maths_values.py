r"""Values of formulas: exact where only rational numbers occur, otherwise approximate.

    evaluate("(x-2)(x+2)") == evaluate("x^2-4")     # for every value of x
    evaluate(r"\sqrt{2}")                          # a complex number, about twelve digits

Every unknown has a fixed rational value, so that `x + 1` and `x + 2` have different values. Only sums, products,
quotients, powers and roots are evaluated. The value of any other formula, and of one with two readings, is None.
"""

from __future__ import annotations

import cmath
import hashlib
import math
import re
from fractions import Fraction
from functools import lru_cache

_MAX_NESTING = 20
_MAX_BITS = 20_000
"""An exact number with more bits in its numerator or denominator is not computed."""
_POINTS = 3
"""Two formulas that are rational in their unknowns are the same if they agree at this many random points."""
_CONSTANTS = {r"\pi": cmath.pi, "e": cmath.e, "i": 1j}
_FUNCTIONS = {
    r"\sin": cmath.sin,
    r"\cos": cmath.cos,
    r"\tan": cmath.tan,
    r"\cot": lambda x: 1 / cmath.tan(x),
    r"\sec": lambda x: 1 / cmath.cos(x),
    r"\csc": lambda x: 1 / cmath.sin(x),
    r"\ln": cmath.log,
    r"\sinh": cmath.sinh,
    r"\cosh": cmath.cosh,
    r"\exp": cmath.exp,
}
_GREEK = re.compile(r"\\(?:alpha|beta|gamma|delta|(?:var)?epsilon|theta|lambda|mu|rho|sigma|tau|(?:var)?phi|omega)")
_TOKENS = re.compile(
    r"\s*(?:(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)|(?P<name>\\[A-Za-z]+|[A-Za-z])(?P<index>_(?:[0-9A-Za-z]|\{\w+\}))?"
    r"|(?P<sign>[-+*/^()\[\]{}!]))"
)
_TIMES_SIGNS = ("*", r"\cdot", r"\times")
_DIVISION_SIGNS = ("/", r"\div")

Value = Fraction | complex
"""Exact, or approximate."""


class _NotEvaluableError(Exception):
    """The formula cannot be evaluated here."""


@lru_cache(maxsize=16_384)
def evaluate(text: str, point: int = 0) -> Value | None:
    """Return the value of a normalized formula; None if it cannot be evaluated.

    Args:
      text: the formula.
      point: number of the assignment of values to the unknowns.
    """
    try:
        value = _Evaluator(text, point).value()
    except (_NotEvaluableError, OverflowError, ZeroDivisionError, ValueError):
        return None
    return value if isinstance(value, Fraction) or cmath.isfinite(value) else None


def approximate(text: str) -> complex | None:
    """Return the value of a normalized formula to about twelve digits; None if it cannot be evaluated."""
    return to_complex(evaluate(text))


def to_complex(value: Value | None) -> complex | None:
    """Return a value as a complex number; None if it is None or too large for one."""
    try:
        return None if value is None else complex(value)
    except OverflowError:
        return None


def compare_exactly(first: str, second: str) -> bool | None:
    """Return whether two formulas are equal for all values of their unknowns; None unless both are exactly known."""
    for point in range(_POINTS):
        a, b = evaluate(first, point), evaluate(second, point)
        if not isinstance(a, Fraction) or not isinstance(b, Fraction):
            return None
        if a != b:
            return False
    return True


class _Evaluator:
    """Evaluates a formula by recursive descent; each method consumes the tokens of one rule of the grammar."""

    def __init__(self, text: str, point: int) -> None:
        self._tokens = _tokens(text)
        self._point = point
        self._next = 0
        self._depth = 0

    def value(self) -> Value:
        value = self._sum()
        if self._next != len(self._tokens):
            raise _NotEvaluableError
        return value

    def _sum(self) -> Value:
        self._depth += 1
        if self._depth > _MAX_NESTING:
            raise _NotEvaluableError
        sign = self._take("+", "-")
        value = -self._product() if sign == "-" else self._product()
        while sign := self._take("+", "-"):
            term = self._product()
            value = _plus(value, term if sign == "+" else -term)
        self._depth -= 1
        return value

    def _product(self) -> Value:
        value, divided = self._power(), False
        while True:
            if self._take(*_TIMES_SIGNS):
                value = _times(value, self._factor_after_sign())
            elif self._take(*_DIVISION_SIGNS):
                value, divided = _over(value, self._factor_after_sign()), True
            elif self._begins_factor():
                # Two readings each: 1/2x, 2 3, 1\frac{1}{2}.
                if divided or self._is_number(self._next) or self._is_mixed():
                    raise _NotEvaluableError
                value = _times(value, self._power())
            else:
                return value

    def _factor_after_sign(self) -> Value:
        """Evaluate a factor, which may have its own sign: 2 * -3."""
        sign = self._take("+", "-")
        value = self._power()
        return -value if sign == "-" else value

    def _power(self) -> Value:
        base = self._atom()
        while self._take("!"):
            base = _factorial(base)
        if not self._take("^"):
            return base
        # TeX reads x^12 as x^1 2, a person as x^{12}.
        if self._is_number(self._next) and len(self._tokens[self._next]) > 1:
            raise _NotEvaluableError
        exponent = self._argument()
        if self._peek() == "^":
            raise _NotEvaluableError
        return _power(base, exponent)

    def _atom(self) -> Value:
        token = self._pop()
        if token in ("(", "{"):
            value = self._sum()
            if not self._take({"(": ")", "{": "}"}[token]):
                raise _NotEvaluableError
            return value
        if token == r"\frac":
            above, below = self._argument(), self._argument()
            return _over(above, below)
        if token == r"\sqrt":
            degree = self._degree()
            return _root(self._argument(), degree)
        if token in _FUNCTIONS:
            return self._function(token)
        return self._single(token)

    def _function(self, name: str) -> Value:
        """Evaluate a function with an optional power, `\\sin^2 x`, of a group or of all factors that follow."""
        exponent: Value = Fraction(1)
        if self._take("^"):
            exponent = self._argument()
            if exponent == -1:
                raise _NotEvaluableError  # the inverse function
        is_group = self._peek() in ("(", "{")
        argument = self._atom() if is_group else self._factors()
        if is_group and self._peek() in ("^", "("):
            raise _NotEvaluableError  # \\sin(x)^2 has two readings
        return complex(_FUNCTIONS[name](complex(argument))) ** complex(exponent)

    def _factors(self) -> Value:
        """Evaluate the factors after a function up to a sign or another function."""
        value = self._power()
        while self._begins_factor() and self._peek() not in _FUNCTIONS:
            if self._peek() in ("(", "{"):
                raise _NotEvaluableError
            value = _times(value, self._power())
        return value

    def _degree(self) -> Value:
        if not self._take("["):
            return Fraction(2)
        degree = self._sum()
        if not self._take("]"):
            raise _NotEvaluableError
        return degree

    def _argument(self) -> Value:
        """Evaluate the argument of a command: a group in braces, or one token; of a number, TeX takes one digit."""
        if self._take("{"):
            value = self._sum()
            if not self._take("}"):
                raise _NotEvaluableError
            return value
        token = self._pop()
        if token.isdigit() and len(token) > 1:
            self._next -= 1
            self._tokens[self._next] = token[1:]
            token = token[0]
        return self._single(token)

    def _single(self, token: str) -> Value:
        """Return the value of a number, a constant or an unknown.

        An unknown gets a value in [1, 2) from a digest of its name.
        """
        if token[0] in ".0123456789":
            return Fraction(token.strip(".") if token.endswith(".") else token)
        if (constant := _CONSTANTS.get(token)) is not None:
            return constant
        name, _, index = token.partition("_")
        if not (name.isalpha() or _GREEK.fullmatch(name)):
            raise _NotEvaluableError
        label = f"{name}_{index.strip('{}')}#{self._point}"
        number = hashlib.blake2b(label.encode(), digest_size=3).digest()
        return 1 + Fraction(int.from_bytes(number), 2**24)

    def _begins_factor(self) -> bool:
        token = self._peek()
        return token is not None and token not in "+-*/^)]}!" and token not in (*_TIMES_SIGNS, *_DIVISION_SIGNS, "[")

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


def _checked(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_BITS:
        raise _NotEvaluableError
    return value


def _plus(a: Value, b: Value) -> Value:
    return _checked(a + b) if isinstance(a, Fraction) and isinstance(b, Fraction) else complex(a) + complex(b)


def _times(a: Value, b: Value) -> Value:
    return _checked(a * b) if isinstance(a, Fraction) and isinstance(b, Fraction) else complex(a) * complex(b)


def _over(a: Value, b: Value) -> Value:
    return _checked(a / b) if isinstance(a, Fraction) and isinstance(b, Fraction) else complex(a) / complex(b)


def _power(base: Value, exponent: Value) -> Value:
    """Return a power; exact if the base is rational and the exponent an integer."""
    if abs(exponent) > 10_000:
        raise _NotEvaluableError
    if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if bits * abs(exponent.numerator) > _MAX_BITS:
            raise _NotEvaluableError
        return base**exponent.numerator
    return complex(base) ** complex(exponent)


def _root(value: Value, degree: Value) -> Value:
    """Return the root with the given degree; exact for the square root of a square, the cube root of a cube, …"""
    if isinstance(value, Fraction) and value >= 0 and degree in (2, 3, 4, 5):
        n = int(abs(degree))
        above, below = (_integer_root(part, n) for part in (value.numerator, value.denominator))
        if above**n == value.numerator and below**n == value.denominator:
            return Fraction(above, below)
    return complex(value) ** (1 / complex(degree))


def _integer_root(number: int, degree: int) -> int:
    """Return the largest integer whose power is at most a number, exactly up to 2^52 and for all squares."""
    if degree == 2:
        return math.isqrt(number)
    return round(number ** (1 / degree)) if number < 2**52 else 0


def _factorial(value: Value) -> Value:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= 1_000:
        raise _NotEvaluableError
    return Fraction(math.factorial(value.numerator))
