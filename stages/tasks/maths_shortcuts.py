"""Owns the verdicts on mathematics that need no algebra: by spelling, exact numbers, words, and rough values."""

from __future__ import annotations

import re

from stages.tasks.maths_answers import LONGEST
from stages.tasks.maths_spelling import Things, is_list, is_words, nesting, take_apart, tight, unname, words
from stages.tasks.maths_values import approximate
from stages.tasks.numbers import read_exact_number

_ROUNDING = 10**9
"""A decimal states a number that it is as near to as one part in this: 0.3333333333 is 1/3, 0.333333 is not."""
_ROUGHLY = 10**6
_DECIMAL = re.compile(r"[0-9]\.[0-9]|(?<![0-9])\.[0-9]")
_DEEPEST = 30
"""Brackets within brackets that are read as mathematics; no reference comes near."""
_CHOICE = re.compile(r"\(?(?P<letter>[A-Za-z])(?:[).:](?!.*\([A-Za-z]\))|$)")
_TIME = re.compile(r"(?P<time>[0-9]{1,2}\s*:\s*[0-9]{2})\s*(?:\{?\s*(?P<half>[ap])\.?\s*m\.?\s*\}?)?", re.I)
_BASE = re.compile(
    r"\(?(?P<digits>-?[0-9A-Fa-f]+)\)?_(?:(?P<base>[0-9])|\{\s*(?:\\text\s*\{)?(?P<long>\w+)\s*\}?\s*\})"
)
_BASES = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_INFINITE = re.compile(r"[-+]?\s*\\infty")
_NAME = re.compile(r"\\?[A-Za-z]\w*(?:\{\w+\})?(?:\([A-Za-z]\))?\s*")


def decide(mine: str, theirs: str) -> bool | None:
    """Whether an answer is right, as far as can be told without algebra; None where that must tell.

    Args:
      mine, theirs: answer and reference as `maths_spelling.unname` gives them.
    """
    if not mine or len(mine) > LONGEST:
        return False
    if tight(mine) == tight(theirs):
        return True
    if nesting(mine) > _DEEPEST:
        return False
    for compare in (_same_number, _same_base, _same_time, _same_words, _same_things):
        if (verdict := compare(mine, theirs)) is not None:
            return verdict
    if theirs == "0" and "=" in mine and not _NAME.fullmatch(mine.partition("=")[0]):
        return False  # an equation whose right side is 0 does not state that something is 0
    return _same_value(mine, theirs)


def _same_number(mine: str, theirs: str) -> bool | None:
    """Equal, up to the rounding of a decimal; 50% is both 50 and 0.5 beside a number that is no percentage."""
    left, right = read_exact_number(mine), read_exact_number(theirs)
    if not left or not right:
        return None
    a, b = left.value, right.value
    pairs = [(a, b)]
    if left.percent != right.percent:
        pairs.append((a / 100, b) if left.percent else (a, b / 100))
    tolerance = _ROUNDING if left.decimal or right.decimal else None
    return any(a == b or (tolerance is not None and abs(a - b) * tolerance <= abs(b)) for a, b in pairs)


def _same_value(mine: str, theirs: str) -> bool | None:
    """A decimal beside a formula is right if it is near; formulas whose values are far apart are not equal."""
    a, b = approximate(mine), approximate(theirs)
    if a is None or b is None:
        return None
    if abs(a - b) > max(abs(a), abs(b)) / _ROUGHLY:
        return False
    return True if _DECIMAL.search(mine + " " + theirs) and abs(a - b) * _ROUNDING <= abs(b) else None


def _same_base(mine: str, theirs: str) -> bool | None:
    """Numbers in a base: the same digits, and the same base where both name one."""
    left, right = _BASE.fullmatch(mine), _BASE.fullmatch(theirs)
    if not left and not right:
        return None
    named = [match["base"] or match["long"] for match in (left, right) if match]
    bases = {str(_BASES.index(name) + 2) if name in _BASES else name for name in named}
    return len(bases) == 1 and (left["digits"] if left else mine) == (right["digits"] if right else theirs)


def _same_time(mine: str, theirs: str) -> bool | None:
    """Times of day, however a.m. and p.m. are written; they may be told where the reference does not."""
    left, right = (_TIME.fullmatch(re.sub(r"\\text\s*", "", text)) for text in (mine, theirs))
    if not left or not right or not left["half"]:
        return None
    halves = {match["half"].lower() for match in (left, right) if match["half"]}
    return tight(left["time"]) == tight(right["time"]) and len(halves) == 1


def _same_words(mine: str, theirs: str) -> bool | None:
    """Words, whatever their case and brackets; a choice by its letter. Undecided where no side is words alone."""
    if is_words(mine) and read_exact_number(theirs) and not re.search("[0-9]", mine):
        return False
    if not is_words(theirs) and not (is_words(mine) and re.fullmatch("[A-Za-z][A-Za-z ]+", theirs)):
        return None
    stated, expected = words(mine), words(theirs)
    choice = _CHOICE.match(re.sub(r"\\text\s*|[{}]", "", mine)) if len(expected) == 1 else None
    return stated == expected or bool(choice and choice["letter"].lower() == expected)


def _same_things(mine: str, theirs: str) -> bool | None:
    """Tuples, intervals, sets and lists, thing by thing; in any order if bare or in braces. A tuple is no bare list."""
    left, right = take_apart(mine), take_apart(theirs)
    if left is None and right is None:
        return None
    if left is None or right is None:
        one, several = (mine, right) if left is None else (theirs, left)
        return False if several and _is_one_beside(one, several) else None
    if {left.brackets, right.brackets} == {"", "()"} and (is_list(mine) or is_list(theirs)):
        return False
    if left.brackets != right.brackets:
        return None
    if len(left.things) != len(right.things):
        return False if left.brackets else None
    if left.brackets in ("", r"\{\}"):
        return _same_in_any_order(left.things, right.things)
    verdicts = [decide(*unname(a, b)) for a, b in zip(left.things, right.things, strict=True)]
    return False if False in verdicts else True if all(verdicts) else None


def _is_one_beside(text: str, several: Things) -> bool:
    """Whether a text is one number, and things are more than one: no algebra makes them equal."""
    known = all(approximate(thing) is not None or _INFINITE.fullmatch(thing) for thing in several.things)
    return len(several.things) > 1 and known and approximate(text) is not None


def _same_in_any_order(mine: list[str], theirs: list[str]) -> bool | None:
    """Undecided unless every thing of one side is like one of the other, or one is sure to be like none."""
    left = list(theirs)
    for thing in mine:
        verdicts = [decide(*unname(thing, other)) for other in left]
        if True in verdicts:
            left.pop(verdicts.index(True))
        elif all(verdict is False for verdict in verdicts):
            return False
        else:
            return None
    return True
