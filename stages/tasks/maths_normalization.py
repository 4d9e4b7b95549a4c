r"""Normalization of mathematical answers to one notation, and the structure of a normalized answer.

The notation is LaTeX without layout, units and superfluous marks. All functions work on text, without algebra, in time
linear in its length; callers pass a few thousand characters at most.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from stages.tasks.maths_relations import as_point, as_union, ascending
from stages.tasks.numbers import UNITS, read_exact_number

_CACHE_SIZE = 16_384
_SYMBOLS = str.maketrans(
    {
        "−": "-", "–": "-", "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "÷": r"\div ", "π": r"\pi ",
        "∞": r"\infty ", "°": r"^\circ ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ",
        "∈": r"\in ", "±": r"\pm ", "∅": r"\emptyset ", "θ": r"\theta ", "√": r"\sqrt ", "²": "^2", "³": "^3",
        "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
        "\u200b": "", "`": "",
    }
)  # fmt: skip
"""Unicode symbols → LaTeX. A command ends in a space, so that it does not merge with a letter after it."""
_ESCAPED_TWICE = re.compile(r"(?<!\\)\\\\(?=[A-Za-z])")
"""`\\\\frac` for `\\frac`, as in data that was escaped once too often."""
# The order matters: a later pattern relies on the notation that earlier ones produce.
_REPLACEMENTS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\!\s*|\\(?:left|right)\s*\.|\\(?:text)?color\s*\{[^{}]*\}", ""),
        (r"\\(?:(?:display|text|script)style|boxed|fbox|underline|bf|rm|it)(?![A-Za-z])", ""),
        (r"(?<!\\)(?:\\[,;:> ]|\\q?quad(?![A-Za-z])|~|\\[()\[\]])", " "),
        (r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\s*", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*\\pi\s*(?=[0-9{])", r"\\frac{\\pi}"),
        (r"\\langle(?![A-Za-z])", "("),
        (r"\\rangle(?![A-Za-z])", ")"),
        (r"\\(?:mathrm|text)\s*\{\s*([ei])\s*\}", r"\1"),
        (r"\\(?:[mh]box|text[a-z]+|emph|operatorname|math(?:rm|bf|it|sf|tt))\s*(?=\{)", r"\\text"),
        (r"\\(ge|le|ne)q(?:slant)?(?![A-Za-z])", r"\\\1"),
        (r"\\degrees?(?![A-Za-z])|\^\s*\{\s*\\circ\s*\}", r"^\\circ "),
        (r"\\text\s*\{\s*(?:percent(?:age)?|pct)\s*\}|\bpercent(?:age)?\b|\\%", "%"),
        (r"\{\s*([,:])\s*\}", r"\1"),
        (r"\\frac\s*\{\s*(\\text\s*\{[^{}]*\}\s*)\}\s*\{\s*\\text\s*\{[^{}]*\}\s*\}", r"\1"),  # unit: m/s
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r"\^\s*(?:\{\s*)?\\text\s*\{\s*(?:st|nd|rd|th)\s*\}(?:\s*\})?", ""),
        (r"(?<=[\w)}])\*\*(?=[-\w({])", "^"),
        (r"\*\*([^*]+)\*\*", r"\1"),
        (r"(?<![A-Za-z\\])(?=(?:sqrt|pi|sin|cos|tan|ln|log)(?![A-Za-z]))", r"\\"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\^\s*(-\s*(?:[0-9]+|[A-Za-z]))", r"^{\1}"),
        (r"\\\$|[$£€¥¢₹]", ""),
    )
]
# What surrounds an answer: "approximately", a text that introduces it, relation signs; punctuation and a final `\`.
_SURROUNDINGS = re.compile(
    r"^(?:(?:\\approx|\\sim)(?![A-Za-z])|\\text\s*\{[^{}]*(?:\bis|[:=])\s*\}|[=:\s])+|(?<!\\)(?:\\$|[\s.,;:]+$)"
)
_AFTER_A_TERM = r"(?<=[^\s{(\[,=])"
"""A unit needs a quantity before it: `cm` alone is a product of unknowns."""
_POWER = r"(?:\^\s*\{?\s*[0-9]\s*\}?)?"
# A unit as text, unless the text is a.m., p.m., "and" or "or"; or a known unit after a space.
_UNIT = re.compile(
    rf"{_AFTER_A_TERM}\s*\\text\s*\{{(?!\s*(?:(?i:[ap])\.?\s?(?i:m)\b|and\b|or\b))[^{{}}]*\}}\s*{_POWER}$"
    rf"|{_AFTER_A_TERM}\s+(?:(?:square|sq\.?|cubic|cu\.?)\s+)?(?:{UNITS}|(?<=[0-9] )[mg])\s*{_POWER}$"
)
_NUMBER_IN_PARENTHESES = re.compile(r"^\(([-+]?[0-9]+(?:\.[0-9]+)?)\)$")
_DEGREES = re.compile(rf"{_AFTER_A_TERM}\s*\^\s*\\circ\s*[CF]?$")
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_TEXT = re.compile(r"\\text\s*\{(?P<text>[^{}]*)\}")
_SEPARATOR = re.compile(r"[,;]|\b(?:and|or)\b")
_PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])")
_BRACKET = re.compile(r"\\?[()\[\]{}]")
_NAMED = re.compile(
    r"(?P<name>(?:\\?[A-Za-z]+(?:_(?:\w|\{[^{}=]*\}))?|\\text\s*\{[^{}]*\}|\((?:[A-Za-z],\s*)+[A-Za-z]\))(?:\([A-Za-z]\))?)"
    r"\s*(?:=|\\in(?![A-Za-z]))(?P<value>.*)",
    re.S,
)
_RELATION = re.compile(r"[=<>]|\\(?:le|ge|ne|in)(?![A-Za-z])")


class Collection(NamedTuple):
    """A tuple, an interval, a set or a bare list.

    Attributes:
      brackets: `()`, `[)`, `\\{\\}` …; empty for a bare list.
      items: its items, normalized.
    """

    brackets: str
    items: list[str]


@lru_cache(_CACHE_SIZE)
def normalize(answer: str) -> str:
    """Return an answer in normalized notation: `$\\dfrac12\\text{ cm}$.` → `\\frac12`."""
    text = unicodedata.normalize("NFKC", answer.translate(_SYMBOLS)).strip()
    if r"\begin" not in text:  # the rows of a matrix end in \\
        text = _ESCAPED_TWICE.sub(r"\\", text)
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    text = _SURROUNDINGS.sub("", text)
    while text.startswith("{") and _end_of_brackets(text) == len(text):
        text = _SURROUNDINGS.sub("", text[1:-1])
    if (whole := _TEXT.fullmatch(text)) and (not is_words(text) or read_exact_number(whole["text"])):
        text = _SURROUNDINGS.sub("", whole["text"])  # `\text{5 hours}` is a number with a unit, not words
    text = _NUMBER_IN_PARENTHESES.sub(r"\1", _UNIT.sub("", text))
    if not _TRIGONOMETRY.search(text):  # \sin 30° differs from \sin 30, while an angle of 30° is stated as 30
        text = _DEGREES.sub("", text)
    return _SURROUNDINGS.sub("", text)


def align(answer: str, reference: str) -> tuple[str, str]:
    """Return normalized answer and reference in comparable notation.

    A name is removed if the other side has none: compared with 4, `x = 4` becomes 4; compared with (1,2), `x=1, y=2`
    becomes (1,2). Inequalities are put in ascending order, and become intervals if the other side has a union.
    """
    answer, reference = ascending(answer), ascending(reference)
    if r"\cup" in answer + reference:
        answer, reference = as_union(answer) or answer, as_union(reference) or reference
    if reference.startswith("(") or answer.startswith("("):
        answer, reference = as_point(answer) or answer, as_point(reference) or reference
    left, right = _split_name(answer), _split_name(reference)
    if left and right:
        same_name = compact(left[0]) == compact(right[0])
        return (left[1], right[1]) if same_name else (answer, reference)
    if left and not _RELATION.search(reference):
        return left[1], reference
    if right and not _RELATION.search(answer):
        return answer, right[1]
    return answer, reference


@lru_cache(_CACHE_SIZE)
def compact(text: str) -> str:
    """Return a normalized answer without meaningless spaces and without braces around one character."""
    if is_words(text):
        return " ".join(_TEXT.sub(r"\g<text>", text).split())
    text = re.sub(r"\s+", " ", _TEXT.sub(r"\g<text>", text)).rstrip(". ")
    text = re.sub(r"(?<![A-Za-z]) | (?![A-Za-z])", "", text)
    return re.sub(r"\{([0-9A-Za-z])\}", r"\1", text)


def is_words(text: str) -> bool:
    """Return whether a normalized answer is one `\\text{…}` with a letter in it."""
    match = _TEXT.fullmatch(text)
    return bool(match and re.search("[A-Za-z]", match["text"]))


def normalize_words(text: str) -> str:
    """Return words in lower case, without brackets, punctuation and a leading article."""
    plain = re.sub(r"[^\w\s+-]", " ", _TEXT.sub(r" \g<text> ", text).replace(".", "")).lower()
    plain = re.sub(r"(?<=[0-9])(?=[a-z])", " ", plain)
    return re.sub(r"^(?:the|an?) (?=.)", "", " ".join(plain.split()))


def is_list(text: str) -> bool:
    """Return whether a normalized answer has several values: it contains ±, or a separator outside brackets.

    The braces of a set do not count as brackets.
    """
    if text.startswith(r"\{") and text.endswith(r"\}"):
        text = text[2:-2]
    return any(depth == 0 for depth, _ in _find_with_depth(text, _SEPARATOR)) or bool(_PLUS_MINUS.search(text))


def nesting_depth(text: str) -> int:
    """Return how deep brackets are nested in an answer."""
    return max((depth for depth, _ in _find_with_depth(text, _BRACKET)), default=0)


def parse_collection(text: str) -> Collection | None:
    """Return a normalized tuple, interval, set or bare list with its items; None if the text is none of these.

    In a set or a bare list, `1 \\pm 2` is two items.
    """
    opening = _BRACKET.match(text)
    enclosed = opening and opening[0] != "{" and _end_of_brackets(text) == len(text)
    width = len(opening[0]) if opening and enclosed else 0
    inside, brackets = text[width : len(text) - width], text[:width] + text[len(text) - width :]
    separators = [match for depth, match in _find_with_depth(inside, _SEPARATOR) if depth == 0]
    # Start and end of each item in turn: items lie between the ends of one separator and the start of the next.
    bounds = [0, *(bound for match in separators for bound in match.span()), len(inside)]
    items = [inside[start:end].strip() for start, end in zip(bounds[::2], bounds[1::2], strict=True)]
    if brackets in ("", r"\{\}"):
        items = [one for item in items for one in _expand_plus_minus(item)]
    if not inside.strip() or (len(items) == 1 and brackets != r"\{\}"):
        return None
    items = [item for item in items if item]
    return Collection(brackets, list(dict.fromkeys(items)) if brackets == r"\{\}" else items)


def _expand_plus_minus(text: str) -> list[str]:
    """Return the two values of a text with one ±; any other text as the only one."""
    if len(_PLUS_MINUS.findall(text)) != 1:
        return [text]
    return [_PLUS_MINUS.sub(sign, text).removeprefix("+").strip() for sign in "+-"]


def _split_name(text: str) -> tuple[str, str] | None:
    """Return the name and the value of `name = value` or `name \\in value`; None if the value has a relation, too."""
    match = _NAMED.fullmatch(text)
    if not match or _RELATION.search(match["value"]):
        return None
    return match["name"], match["value"].strip()


def _end_of_brackets(text: str) -> int:
    """Return the position after the bracket that closes the first one of a text; -1 if none closes it."""
    return next((match.end() for depth, match in _find_with_depth(text, _BRACKET) if depth == 0), -1)


def _find_with_depth(text: str, pattern: re.Pattern[str]) -> Iterator[tuple[int, re.Match[str]]]:
    """Yield each match of a pattern with the depth of brackets at its end."""
    depth, position = 0, 0
    for match in pattern.finditer(text):
        for bracket in _BRACKET.finditer(text, position, match.end()):
            depth += 1 if bracket[0][-1] in "([{" else -1
        position = match.end()
        yield depth, match
