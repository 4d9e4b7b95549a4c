r"""Inequalities and set-builder notation, rewritten to one form each.

All functions work on text that `maths_normalization` has normalized.
"""

from __future__ import annotations

import re
from itertools import pairwise

from stages.tasks.maths_values import approximate

_ALTERNATIVES = re.compile(r"\\text\s*\{\s*,?\s*or\s*\}|,|;|\bor\b|\\(?:cup|lor|vee)(?![A-Za-z])")
_ORDER = re.compile(r"\s*([<>]|\\(?:le|ge)(?![A-Za-z]))\s*")
_REVERSED = {">": "<", r"\ge": r"\le", "<": ">", r"\le": r"\ge"}
_UNKNOWN = re.compile(r"[A-Za-z]")
_CONJUNCTION = re.compile(r"\\text\s*\{\s*and\s*\}|\band\b|\\(?:land|wedge)(?![A-Za-z])")
_ALL_REALS = r"(-\infty,\infty)"
_WORDS = [
    (re.compile(pattern), symbols)
    for pattern, symbols in (
        (r"(?:the )?(?:empty|null) set|(?:there (?:is|are) )?no (?:real )?solutions?(?: exists?)?", r"\emptyset"),
        (
            r"(?:the set of )?(?:all )?(?:the )?real(?: number)?s|all real (?:values of )?[a-z]|\\mathbb r",
            r"(-\infty,\infty)",
        ),
        (r"(?:positive |\+\s*)?infinity", r"\infty"),
        (r"(?:negative |minus |-\s*)infinity", r"-\infty"),
        (r"dne|(?:the limit )?does not exist", r"\text{does not exist}"),
    )
]
"""Words for sets and limits → the symbols."""
_ALL_BUT = re.compile(
    r"(?:\\mathbb\s*R|\(-\\infty,\s*\\infty\))\s*(?:\\setminus|\\backslash|-|\\)\s*\\\{(?P<items>[^{}]*)\\\}"
)
_UNEQUAL = re.compile(r"(?P<unknown>[A-Za-z])\s*\\ne\s*(?P<items>[^=<>,;]+)")
_SET_BUILDER = re.compile(
    r"\\\{\s*(?P<element>[^{}|:]*?)\s*(?:\\in\s*(?:\\mathbb\s*)?R\s*)?(?:\\mid(?![A-Za-z])|\||:)\s*(?P<condition>.*)\\\}",
    re.S,
)


def in_symbols(text: str) -> str:
    r"""Return the symbols for words that name a set or infinity: `\text{all real numbers}` → `(-\infty,\infty)`.

    Any other text is returned unchanged.
    """
    words = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", text).strip(" .").lower() if len(text) <= 60 else text
    return next((symbols for pattern, symbols in _WORDS if pattern.fullmatch(words)), text)


def conjunction(text: str) -> str:
    r"""Return two bounds that "and" connects as a chain: `x>3 \text{ and } x<5` → `3<x<5`; any other text unchanged."""
    parts = _CONJUNCTION.split(text)
    terms = [_ORDER.split(part.strip()) for part in parts]
    if len(parts) != 2 or any(len(one) != 3 for one in terms):
        return text
    for one in terms:
        if _UNKNOWN.fullmatch(one[2]):
            one[:] = [one[2], _REVERSED[one[1]], one[0]]
    low, high = terms if terms[0][1] in (">", r"\ge") else reversed(terms)
    if low[0] != high[0] or not _UNKNOWN.fullmatch(low[0]) or low[1] not in (">", r"\ge") or high[1] in (">", r"\ge"):
        return text
    return f"{low[2]} {_REVERSED[low[1]]} {low[0]} {high[1]} {high[2]}"


def without_set_builder(text: str) -> str:
    r"""Return the condition of a set of reals: `\{x \mid x > 3\}` → `x > 3`. Any other text is returned unchanged."""
    match = _SET_BUILDER.fullmatch(text)
    if not match or r"\in" in match["element"] or not _UNKNOWN.fullmatch(match["element"]):
        return text
    return re.sub(r"[,;]\s*[A-Za-z]\s*\\in\s*\\mathbb\s*R\s*$", "", match["condition"]).strip()


def ascending(text: str) -> str:
    """Return a chain of inequalities in ascending order (`c > b > a` → `a < b < c`), and any other text unchanged."""
    terms = _ORDER.split(text)  # terms and signs in turn
    if len(terms) < 5 or not {">", r"\ge"}.issuperset(terms[1::2]):
        return text
    return " ".join(_REVERSED.get(term, term) for term in reversed(terms))


def as_union(text: str) -> str | None:
    r"""Return alternative inequalities as a union of intervals: `x<1 or 2 \le x<3` → `(-\infty,1)\cup[2,3)`.

    Return None if an alternative is not an inequality, or they have different unknowns.
    """
    if (without := _ALL_BUT.fullmatch(text) or _UNEQUAL.fullmatch(text)) is not None:
        return _all_but(without["items"])
    alternatives = [_interval(alternative) for alternative in _ALTERNATIVES.split(text)]
    unknowns = {unknown for unknown, _ in filter(None, alternatives)}
    if None in alternatives or len(unknowns) != 1:
        return None
    return r"\cup".join(interval for _, interval in filter(None, alternatives))


def _all_but(items: str) -> str | None:
    """Return the reals without some points as a union of intervals; None if the value of a point is unknown."""
    points = [item.strip() for item in items.split(",")]
    values = [approximate(point) for point in points]
    if any(value is None or value.imag for value in values):
        return None
    ordered = [point for _, point in sorted(zip([v.real for v in values if v is not None], points, strict=True))]
    bounds = [r"-\infty", *ordered, r"\infty"]
    return r"\cup".join(f"({low},{high})" for low, high in pairwise(bounds))


def _interval(inequality: str) -> tuple[str, str] | None:
    r"""Return the unknown of `x < a`, `a \le x` or `a < x \le b` and its interval; None for any other text."""
    terms = _ORDER.split(inequality.strip())
    if len(terms) == 3 and _UNKNOWN.fullmatch(terms[2]):
        terms = [terms[2], _REVERSED[terms[1]], terms[0]]
    if len(terms) == 3:
        is_upper_bound = terms[1] in ("<", r"\le")
        if is_upper_bound:
            terms = [r"-\infty", "<", *terms]
        else:
            terms = [terms[2], _REVERSED[terms[1]], terms[0], "<", r"\infty"]
    else:
        terms = _ORDER.split(ascending(inequality.strip()))
    if len(terms) != 5 or not _UNKNOWN.fullmatch(terms[2]) or not {"<", r"\le"}.issuperset(terms[1::2]):
        return None
    low, low_sign, unknown, high_sign, high = terms
    return unknown, f"{'(' if low_sign == '<' else '['}{low},{high}{')' if high_sign == '<' else ']'}"
