r"""Inequalities and set-builder notation, rewritten to one form each.

All functions work on text that `maths_normalization` has normalized.
"""

from __future__ import annotations

import re

_ALTERNATIVES = re.compile(r"\\text\s*\{\s*,?\s*or\s*\}|,|;|\bor\b|\\(?:cup|lor|vee)(?![A-Za-z])")
_ORDER = re.compile(r"\s*([<>]|\\(?:le|ge)(?![A-Za-z]))\s*")
_REVERSED = {">": "<", r"\ge": r"\le", "<": ">", r"\le": r"\ge"}
_UNKNOWN = re.compile(r"[A-Za-z]")
_SET_BUILDER = re.compile(
    r"\\\{\s*(?P<element>[^{}|:]*?)\s*(?:\\in\s*(?:\\mathbb\s*)?R\s*)?(?:\\mid(?![A-Za-z])|\||:)\s*(?P<condition>.*)\\\}",
    re.S,
)


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
    alternatives = [_interval(alternative) for alternative in _ALTERNATIVES.split(text)]
    unknowns = {unknown for unknown, _ in filter(None, alternatives)}
    if None in alternatives or len(unknowns) != 1:
        return None
    return r"\cup".join(interval for _, interval in filter(None, alternatives))


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
