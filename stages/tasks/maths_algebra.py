"""Equality of mathematical answers by algebra, with math-verify and sympy.

A call may take unbounded time and memory, so `stages.tasks.sandbox` runs it in processes with limits. Only these
processes and tests import this file, because importing sympy is slow.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations
from typing import cast

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from sympy import (
    Basic,
    E,
    Eq,
    Expr,
    Float,
    I,
    Integer,
    MatrixBase,
    Mod,
    Pow,
    Rational,
    Tuple,
    ceiling,
    exp,
    factorial,
    floor,
    frac,
    sign,
    simplify,
    solve,
)
from sympy.sets import FiniteSet

from stages.tasks.maths_normalization import Collection, parse_collection
from stages.tasks.maths_shortcuts import compare

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns at every call without its own time limit

_MAX_DIGITS = 20_000
"""A number with more digits is not evaluated: it equals only the same expression."""
_DECIMAL_PLACES = 9
"""Precision to which math-verify compares numeric values."""
_POINTS = 3
_INTEGERS = 40
_STEP_FUNCTIONS = (floor, ceiling, frac, Mod, sign)
_DIGITS = 50
"""Expressions that agree in so many digits at so many points are equal."""
_LATEX = LatexExtractionConfig(
    normalization_config=NormalizationConfig(units=False, malformed_operators=True, nits=True)
)
_IMAGINARY = re.compile(r"(?<=[0-9])i(?![A-Za-z])")
"""The imaginary unit after a digit. math-verify recognizes it only if it stands alone, else it reads an unknown i."""
_ONE_EXPRESSION = re.compile(r"(?:[0-9a-z+*/^(){}. -]|\\(?:frac|sqrt|cdot|pi)(?![A-Za-z]))*")
"""One expression of numbers, letters, fractions and roots. The parser reads all of it or nothing."""
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_DEGREES = re.compile(r"([0-9]+)\s*\^\s*\\circ(?![A-Za-z])")
"""Angles in degrees, which math-verify reads as plain numbers."""
_Parsed = Basic | MatrixBase | str


def compare_by_algebra(answer: str, reference: str) -> bool | None:
    """Return whether a normalized answer equals a normalized reference; None if they are too deep for sympy."""
    try:
        return _compare(answer, reference)
    except RecursionError:
        return None


def _compare(answer: str, reference: str) -> bool:
    if any(
        one.strip() == r"\emptyset" and re.search("[0-9]", other) for one, other in permutations((answer, reference))
    ):
        return False  # a vector between words is read as an empty set, too
    if _equal_as_read(answer, reference):
        is_read_whole = _ONE_EXPRESSION.fullmatch(answer) and _ONE_EXPRESSION.fullmatch(reference)
        return bool(is_read_whole) or not _ignores_difference(answer, reference)
    left, right = parse_collection(answer), parse_collection(reference)
    if left is None or right is None or left.brackets != right.brackets:
        return False
    return _equal_items(left, right)


def _equal_as_read(answer: str, reference: str) -> bool:
    # math-verify returns several readings of a text: sympy expressions, and the string that they were parsed from.
    return any(_equal(a, b) for a in _parse(answer) for b in _parse(reference))


def _ignores_difference(answer: str, reference: str) -> bool:
    """Return whether the parser skips the part of an answer in which it differs from the reference.

    The parser may read a part of a text only, such as the last of several equations. A further digit at either end of
    the part that differs then leaves the answer equal.
    """
    start = _common_length(answer, reference)
    end = len(answer) - _common_length(answer[start:][::-1], reference[start:][::-1])
    # A digit before a bracket would be a factor of an interval, which the parser drops.
    # A digit after `^\circ` would merge with the angle's conversion to radians.
    touches = re.compile(r"(?<!\\circ)(?:(?=[\w+-])|(?<=[\w+-]))")
    positions = [at for at in {start, end} if touches.match(answer, at)]
    return any(_equal_as_read(f"{answer[:at]}7{answer[at:]}", reference) for at in positions)


def _common_length(first: str, second: str) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def _equal_items(answer: Collection, reference: Collection) -> bool:
    """Compare two collections item by item: sets and bare lists in any order, tuples and intervals in theirs."""
    if len(answer.items) != len(reference.items):
        return False
    unmatched = list(reference.items)
    is_ordered = answer.brackets not in ("", r"\{\}")
    for item in answer.items:
        candidates = unmatched[:1] if is_ordered else unmatched
        found = next((one for one in candidates if _equal_item(item, one)), None)
        if found is None:
            return False
        unmatched.remove(found)
    return True


def _equal_item(answer: str, reference: str) -> bool:
    compared = compare(answer, reference)
    if compared.is_equal is not None:
        return compared.is_equal
    return _compare(compared.answer, compared.reference)


def warm_up() -> None:
    """Fill the caches of the parser and of sympy, so that forked processes share them."""
    for latex in (
        r"\frac{1}{2}x",
        r"\sqrt{3}",
        "(1,2)",
        "x=3",
        r"[0,\pi)\cup(4,\infty)",
        r"\begin{pmatrix} 1 \end{pmatrix}",
    ):
        compare_by_algebra(latex, r"2\sqrt{x}+1")


@lru_cache(maxsize=1024)
def _parse(latex: str) -> list[_Parsed]:
    if r"\pm" in latex and (values := parse_collection(latex)) and not values.brackets:
        latex = ",".join(values.items)  # math-verify reads ± between two terms, but not inside a fraction
    latex = _IMAGINARY.sub(" i", latex)
    if _TRIGONOMETRY.search(latex):
        latex = _DEGREES.sub(r"\\frac{\1 \\pi}{180}", latex)
    parsed = parse(rf"\boxed{{{latex}}}", [_LATEX], parsing_timeout=0)
    return [_simplify_statement(one) for one in parsed]


def _simplify_statement(parsed: _Parsed) -> _Parsed:
    """Return the value of an equation without unknowns (`2+2=4` → 4), and the symbol i as imaginary unit.

    Items of sets and tuples likewise.
    """
    if isinstance(parsed, FiniteSet | Tuple):
        # The parser's sets keep the written order in `_unsorted_args`.
        return parsed.func(*map(_simplify_statement, getattr(parsed, "_unsorted_args", parsed.args)))
    if isinstance(parsed, Eq) and not parsed.free_symbols:
        return parsed.rhs
    if isinstance(parsed, Expr | MatrixBase):
        return parsed.subs({symbol: I for symbol in parsed.free_symbols if str(symbol) == "i"})
    return parsed


def _equal(answer: _Parsed, gold: _Parsed) -> bool:
    """Return math-verify's verdict, except where it errs: huge numbers, exact rationals, unsolvable equations."""
    if not isinstance(answer, Basic) or not isinstance(gold, Basic):
        return _verify(answer, gold)
    if max(_digit_bound(answer), _digit_bound(gold)) > _MAX_DIGITS:
        return answer == gold
    if _is_exact_rational(answer) and _is_exact_rational(gold):
        return answer.doit() == gold.doit()
    if _verify(answer, gold):
        return not _is_vacuous(answer, gold)
    return isinstance(answer, Expr) and isinstance(gold, Expr) and _agree(answer, gold)


def _agree(answer: Expr, gold: Expr) -> bool:
    """Return whether two expressions have the same fifty digits at three points: sympy cannot simplify all.

    Step functions (floor, ceiling, remainder, sign) agree near any point: they are compared at all integers from 1 to
    40, which also distinguish expressions that differ at powers or multiples only.
    """
    symbols = sorted(answer.free_symbols | gold.free_symbols, key=str)
    if symbols and (answer.has(*_STEP_FUNCTIONS) or gold.has(*_STEP_FUNCTIONS)):
        return all(
            _agree_at([(symbol, Integer(n + 3 * i)) for i, symbol in enumerate(symbols)], answer, gold)
            for n in range(1, _INTEGERS + 1)
        )
    return all(
        _agree_at(
            [(symbol, Rational(7 * i + 11 * point + 13, 5 * i + 17)) for i, symbol in enumerate(symbols)], answer, gold
        )
        for point in range(_POINTS if symbols else 1)
    )


def _agree_at(values: Sequence[tuple[Basic, Basic]], answer: Expr, gold: Expr) -> bool:
    a, b = (cast(Expr, one.subs(values)).evalf(_DIGITS + 10) for one in (answer, gold))
    if not (a.is_number and b.is_number and a.is_finite and b.is_finite):
        return False
    return not bool(abs(a - b) * Integer(10) ** _DIGITS > abs(b))


def _verify(answer: _Parsed, gold: _Parsed) -> bool:
    try:
        return verify(gold, answer, float_rounding=_DECIMAL_PLACES, allow_set_relation_comp=True, timeout_seconds=0)
    except NotImplementedError:  # sympy cannot solve the equations; their difference may still vanish
        if isinstance(answer, Eq) and isinstance(gold, Eq):
            return not simplify(_difference(answer) - _difference(gold))
        raise


def _is_exact_rational(expression: Basic) -> bool:
    """Return whether an expression is a rational number without decimals.

    math-verify would compare two such numbers to `_DECIMAL_PLACES` only: 1/2009! and 1/2004! would be equal.
    """
    is_rational = bool(getattr(expression, "is_rational", False))
    return not expression.free_symbols and not expression.has(Float) and is_rational


def _is_vacuous(answer: Basic, gold: Basic) -> bool:
    """Return whether two equations count as equal only because neither has a solution.

    They are equal nevertheless if they differ by a constant factor.
    """
    if not isinstance(answer, Eq) or not isinstance(gold, Eq) or answer == gold or solve(gold, gold.free_symbols):
        return False
    return bool(simplify(_difference(answer) / _difference(gold)).free_symbols)


def _difference(equation: Eq) -> Expr:
    return cast(Expr, equation.lhs) - cast(Expr, equation.rhs)


def _digit_bound(expression: Basic) -> float:
    """Return an upper bound on the decimal digits of any number in the evaluation of an expression.

    An unknown counts as one digit.
    """
    if isinstance(expression, Rational):
        return 1.0 + max(int(expression.p).bit_length(), int(expression.q).bit_length()) * math.log10(2)
    bounds = [_digit_bound(argument) for argument in expression.args] or [1.0]
    if isinstance(expression, Pow | exp):  # a number of d digits to the power n has at most d · n digits
        is_power = isinstance(expression, Pow)
        base, power = (expression.base, expression.exp) if is_power else (E, expression.args[0])
        return max(*bounds, _digit_bound(base) * _magnitude_bound(power, bounds[-1]))
    if isinstance(expression, factorial):  # n! <= n^n
        return max(bounds[0], bounds[0] * _magnitude_bound(expression.args[0], bounds[0]))
    return sum(bounds)


def _magnitude_bound(number: Basic, digits: float) -> float:
    """Return an upper bound on the absolute value of a number with at most `digits` digits; exact for an integer."""
    if isinstance(number, Integer):
        return float(abs(number.p))
    if (
        isinstance(number, Expr)
        and number.is_number
        and digits <= _DIGITS
        and (size := abs(number.evalf(3))).is_finite
        and size.is_Float
    ):
        return float(size) + 1
    return 10.0**digits if digits < 300 else math.inf
