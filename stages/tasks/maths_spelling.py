r"""Owns one spelling for mathematical answers: LaTeX without layout, units and needless marks; and its structure.

Text only, linear in the length of an answer (of which callers give no more than a few thousand characters).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from stages.tasks.maths_relations import as_point, as_union, ascend
from stages.tasks.numbers import UNITS, read_exact_number

_REMEMBERED = 16_384
_SYMBOLS = str.maketrans(
    {
        "−": "-", "–": "-", "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "÷": r"\div ", "π": r"\pi ",
        "∞": r"\infty ", "°": r"^\circ ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ",
        "∈": r"\in ", "±": r"\pm ", "∅": r"\emptyset ", "θ": r"\theta ", "√": r"\sqrt ", "²": "^2", "³": "^3",
        "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
        "\u200b": "", "`": "",
    }
)  # fmt: skip
_ESCAPED_TWICE = re.compile(r"(?<!\\)\\\\(?=[A-Za-z])")
_SPELLINGS = [
    (re.compile(pattern), spelling)
    for pattern, spelling in (
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
        (r"\\frac\s*\{\s*(\\text\s*\{[^{}]*\}\s*)\}\s*\{\s*\\text\s*\{[^{}]*\}\s*\}", r"\1"),  # a unit: m/s
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
_AROUND = re.compile(
    r"^(?:(?:\\approx|\\sim)(?![A-Za-z])|\\text\s*\{[^{}]*(?:\bis|[:=])\s*\}|[=:\s])+|(?<!\\)(?:\\$|[\s.,;:]+$)"
)
_BEHIND = r"(?<=[^\s{(\[,=])"
_POWER = r"(?:\^\s*\{?\s*[0-9]\s*\}?)?"
_UNIT = re.compile(
    rf"{_BEHIND}\s*\\text\s*\{{(?!\s*(?:(?i:[ap])\.?\s?(?i:m)\b|and\b|or\b))[^{{}}]*\}}\s*{_POWER}$"
    rf"|{_BEHIND}\s+(?:(?:square|sq\.?|cubic|cu\.?)\s+)?(?:{UNITS}|(?<=[0-9] )[mg])\s*{_POWER}$"
)
_NUMBER_ENCLOSED = re.compile(r"^\(([-+]?[0-9]+(?:\.[0-9]+)?)\)$")
_DEGREES = re.compile(rf"{_BEHIND}\s*\^\s*\\circ\s*[CF]?$")
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


class Things(NamedTuple):
    """What a tuple, an interval, a set or a bare list is made of; `brackets` are `()`, `[)`, `\\{\\}` …, or empty."""

    brackets: str
    things: list[str]


@lru_cache(_REMEMBERED)
def spell(answer: str) -> str:
    """An answer in our spelling."""
    text = unicodedata.normalize("NFKC", answer.translate(_SYMBOLS)).strip()
    if r"\begin" not in text:  # rows of a matrix end in \\
        text = _ESCAPED_TWICE.sub(r"\\", text)
    for pattern, spelling in _SPELLINGS:
        text = pattern.sub(spelling, text)
    text = _AROUND.sub("", text)
    while text.startswith("{") and _closing(text) == len(text):
        text = _AROUND.sub("", text[1:-1])
    if (written := _TEXT.fullmatch(text)) and (not is_words(text) or read_exact_number(written["text"])):
        text = _AROUND.sub("", written["text"])  # 5 hours, all of it as text
    text = _NUMBER_ENCLOSED.sub(r"\1", _UNIT.sub("", text))
    if not _TRIGONOMETRY.search(text):  # sin 30° is not sin 30
        text = _DEGREES.sub("", text)
    return _AROUND.sub("", text)


def unname(mine: str, theirs: str) -> tuple[str, str]:
    """Two answers in our spelling without what only names: beside 4, `x = 4` is 4; beside (1,2), `x=1, y=2` is (1,2).

    Inequalities are turned round, and written as intervals, where that makes the two comparable.
    """
    mine, theirs = ascend(mine), ascend(theirs)
    if r"\cup" in mine + theirs:
        mine, theirs = as_union(mine) or mine, as_union(theirs) or theirs
    if theirs.startswith("(") or mine.startswith("("):
        mine, theirs = as_point(mine) or mine, as_point(theirs) or theirs
    left, right = _named(mine), _named(theirs)
    if left and right:
        return (left[1], right[1]) if tight(left[0]) == tight(right[0]) else (mine, theirs)
    if left and not _RELATION.search(theirs):
        return left[1], theirs
    if right and not _RELATION.search(mine):
        return mine, right[1]
    return mine, theirs


@lru_cache(_REMEMBERED)
def tight(text: str) -> str:
    """An answer in our spelling without spaces that say nothing, and braces around one character."""
    if is_words(text):
        return " ".join(_TEXT.sub(r"\g<text>", text).split())
    text = re.sub(r"\s+", " ", _TEXT.sub(r"\g<text>", text)).rstrip(". ")
    text = re.sub(r"(?<![A-Za-z]) | (?![A-Za-z])", "", text)
    return re.sub(r"\{([0-9A-Za-z])\}", r"\1", text)


def is_words(text: str) -> bool:
    """Whether an answer in our spelling is words alone."""
    match = _TEXT.fullmatch(text)
    return bool(match and re.search("[A-Za-z]", match["text"]))


def words(text: str) -> str:
    """Words in lower case, without brackets, punctuation and a first article."""
    plain = re.sub(r"[^\w\s+-]", " ", _TEXT.sub(r" \g<text> ", text).replace(".", "")).lower()
    plain = re.sub(r"(?<=[0-9])(?=[a-z])", " ", plain)
    return re.sub(r"^(?:the|an?) (?=.)", "", " ".join(plain.split()))


def is_list(text: str) -> bool:
    """Whether an answer in our spelling names several things: by ±, or by separators outside brackets or in a set's."""
    if text.startswith(r"\{") and text.endswith(r"\}"):
        text = text[2:-2]
    return any(depth == 0 for depth, _ in _walk(text, _SEPARATOR)) or bool(_PLUS_MINUS.search(text))


def nesting(text: str) -> int:
    """How deep brackets are nested in an answer."""
    return max((depth for depth, _ in _walk(text, _BRACKET)), default=0)


def take_apart(text: str) -> Things | None:
    """The things of a tuple, interval, set or bare list in our spelling; None if it is none of these.

    In a set or a bare list, `1 \\pm 2` is two things.
    """
    opening = _BRACKET.match(text)
    enclosed = opening and opening[0] != "{" and _closing(text) == len(text)
    width = len(opening[0]) if opening and enclosed else 0
    inside, brackets = text[width : len(text) - width], text[:width] + text[len(text) - width :]
    places = [match for depth, match in _walk(inside, _SEPARATOR) if depth == 0]
    ends = [0, *(place for match in places for place in match.span()), len(inside)]
    things = [inside[start:end].strip() for start, end in zip(ends[::2], ends[1::2], strict=True)]
    if brackets in ("", r"\{\}"):
        things = [one for thing in things for one in _both_signs(thing)]
    if not inside.strip() or (len(things) == 1 and brackets != r"\{\}"):
        return None
    things = [thing for thing in things if thing]
    return Things(brackets, list(dict.fromkeys(things)) if brackets == r"\{\}" else things)


def _both_signs(text: str) -> list[str]:
    if len(_PLUS_MINUS.findall(text)) != 1:
        return [text]
    return [_PLUS_MINUS.sub(sign, text).removeprefix("+").strip() for sign in "+-"]


def _named(text: str) -> tuple[str, str] | None:
    """The name and the value of `name = value` and `name \\in value`, where that is one statement."""
    match = _NAMED.fullmatch(text)
    if not match or _RELATION.search(match["value"]):
        return None
    return match["name"], match["value"].strip()


def _closing(text: str) -> int:
    """Where the bracket that a text begins with has been closed; -1 if it has not."""
    return next((match.end() for depth, match in _walk(text, _BRACKET) if depth == 0), -1)


def _walk(text: str, pattern: re.Pattern[str]) -> Iterator[tuple[int, re.Match[str]]]:
    """What a pattern finds, each with the depth of brackets behind it."""
    depth, position = 0, 0
    for match in pattern.finditer(text):
        for bracket in _BRACKET.finditer(text, position, match.end()):
            depth += 1 if bracket[0][-1] in "([{" else -1
        position = match.end()
        yield depth, match
