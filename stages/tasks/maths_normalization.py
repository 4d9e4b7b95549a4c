r"""Normalization of mathematical answers to one notation, and the structure of a normalized answer.

The notation is LaTeX without layout and superfluous marks; `quantities` reads the units. All functions work on text,
without algebra, in time linear in its length; callers pass a few thousand characters at most.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from stages.tasks.maths_relations import as_union, ascending, conjunction, in_symbols, without_set_builder

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
_COUNTERS = "个|個|页|頁|颗|顆|本|只|件|人|天|元|美元|公斤|千克|米|厘米|分钟|小时|岁|次|种|块|张|条|名|円|년|개|명|원"
"""Chinese, Japanese and Korean units and counters after a number."""
_ESCAPED_TWICE = re.compile(r"(?<!\\)\\\\(?=[A-Za-z])")
"""`\\\\frac` for `\\frac`, as in data that was escaped once too often."""
# The order matters: a later pattern relies on the notation that earlier ones produce.
_REPLACEMENTS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\!\s*|\\(?:left|right)\s*\.|\\(?:text)?color\s*\{[^{}]*\}", ""),
        (r"\\(?:(?:display|text|script)style|boxed|fbox|underline|bf|rm|it)(?![A-Za-z])", ""),
        (r"(?<!\\)\\q?quad", "  "),  # also \quadx, an error of some data
        (r"(?<!\\)(?:\\[,;:> ]|~|\\[()\[\]])", " "),
        (r"\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\s*", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*\\pi\s*(?=[0-9{])", r"\\frac{\\pi}"),
        (r"\\langle(?![A-Za-z])", "("),
        (r"\\rangle(?![A-Za-z])", ")"),
        (r"\\(?:mathrm|text)\s*\{\s*([ei])\s*\}", r"\1"),
        (r"\\(?:[mh]box|text[a-z]+|emph|operatorname|math(?:rm|bf|it|sf|tt))\s*(?=\{)", r"\\text"),
        (r"\\(ge|le|ne)q(?:slant)?(?![A-Za-z])", r"\\\1"),
        (r"\\degrees?(?![A-Za-z])|\^\s*\{\s*\\circ\s*\}", r"^\\circ "),
        (r"\\text\s*\{\s*(?:percent(?:age)?|pct)\s*\}|\bper\s?cent(?:age)?\b|\\%", "%"),
        (r"\{\s*([,:])\s*\}", r"\1"),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r"\^\s*(?:\{\s*)?\\text\s*\{\s*(?:st|nd|rd|th)\s*\}(?:\s*\})?", ""),
        (r"(?<=[\w)}])\*\*(?=[-\w({])", "^"),
        (r"\*\*([^*]+)\*\*", r"\1"),
        (r"(?<![A-Za-z\\])(?=(?:sqrt|pi|sin|cos|tan|ln|log)(?![A-Za-z]))", r"\\"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\^\s*(-\s*(?:[0-9]+|[A-Za-z])|[0-9]{2,})", r"^{\1}"),  # x^12: a person means x^{12}
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"!=", r"\\ne "),
        (r"\.([0-9]{0,6}?)([0-9]{1,6}?)\2{2,40}(?:\.{3}|\\[cl]?dots(?![A-Za-z]))", r".\1\\overline{\2}"),  # 0.333...
        (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
        (r"\{\s*([^{}\\]+?)\s*\\choose\s*([^{}\\]+?)\s*\}", r"\\binom{\1}{\2}"),
        (r"^([0-9.]+)\s*(?:\\text\s*\{\s*to\s*\}|to)\s*([0-9.]+)$", r"\1:\2"),  # a ratio
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\mathbb\s*\{?\s*([A-Z])\s*\}?", r"\\mathbb \1"),
        (r"\\\$|[$£€¥¢₹]", ""),
        (rf"(?<=[0-9])\s*(?:{_COUNTERS})$", ""),
    )
]
_ABOUT = r"(?:just\s+)?(?:about|approximately|approx\.|roughly|around|exactly|just|only)"
# What surrounds an answer: "approximately", a text that introduces it, relation signs; punctuation and a final `\`.
_SURROUNDINGS = re.compile(
    r"^(?:(?:\\approx|\\sim)(?![A-Za-z])|\\text\s*\{[^{}]*(?:\bis|[:=])\s*\}|[=:\s]"
    rf"|\\text\s*\{{\s*{_ABOUT}\s*\}}|{_ABOUT}(?=\s+[-0-9\\(]))+|(?<!\\)(?:\\$|[\s.,;:]+$)",
    re.I,
)
_ROUNDED = re.compile(
    r"(?<=[^\s{(\[,])\s*\\approx(?![A-Za-z])\s*[-0-9.][0-9.]*\s*(?P<unit>[A-Za-z]+|%|\\text\s*\{[^{}]*\})?$"
)
"""`\\frac13 \\approx 0.33 \\text{ cm}`: the exact value counts, with the unit."""
_CURRENCIES = {r"\$": "dollars", "$": "dollars", "£": "sterling", "€": "euros", "¥": "yen", "₹": "rupees", "¢": "cents"}
_SUM_OF_MONEY = re.compile(
    r"\s*(?P<sign>[-−+]?)\s*(?:(?P<before>\\\$|[$£€¥₹])\s*(?P<minus>[-−]?))?\s*(?P<number>[0-9.][0-9.,{}\\! ]*?)"
    r"\s*(?P<after>\\\$|[$£€¥¢₹])?(?P<words>\s*(?:\\text\s*\{\s*)?(?:thousand|million|billion|trillion)\s*\}?)?\s*[.]?\s*"
)
"""An amount with a sign of its currency on one side."""
_NUMBER_IN_PARENTHESES = re.compile(r"^\(([-+]?[0-9]+(?:\.[0-9]+)?)\)$")
_TEXT = re.compile(r"\\text\s*\{(?P<text>[^{}]*)\}")
_SEPARATOR = re.compile(r"[,;]|\\text\s*\{\s*,?\s*(?:and|or)\s*\}|\b(?:and|or)\b")
_PLUS_MINUS = re.compile(r"\\pm(?![A-Za-z])")
_BRACKET = re.compile(r"\\?[()\[\]{}]")
NAME = (
    r"(?:\\?[A-Za-z]+(?:_(?:\w|\{[^{}=]*\}))?'*|\\text\s*\{[^{}]*\}|\((?:[A-Za-z],\s*)+[A-Za-z]\))"
    r"(?:\((?:\w+,\s*)*\w+\))?"
)
"""What an equation may define: a letter or word, with an index or arguments; a tuple of letters."""
_NAMED = re.compile(rf"(?P<name>{NAME}(?:\s*:\s*{NAME})*)\s*(?:=|\\in(?![A-Za-z]))(?P<value>.*)", re.S)
_NAMED_AT_END = re.compile(rf"(?P<value>[^=]*[^=\s])\s*=\s*(?P<name>{NAME})", re.S)
_NAME_ABOUT = re.compile(rf"(?P<name>{NAME})\s*\\approx(?![A-Za-z])")
_VECTOR = re.compile(r"\\begin\s*\{[bp]?matrix\}(?P<items>[^&]*|(?:(?!\\\\).)*)\\end\s*\{[bp]?matrix\}", re.S)
_FUNCTIONS = re.compile(r"\\(?:frac|sqrt|sin|cos|tan|cot|sec|csc|log|ln|pi|infty|emptyset|cdot|times|pm)(?![A-Za-z])")
_RELATION = re.compile(r"[=<>]|\\(?:le|ge|ne|in)(?![A-Za-z])")


PLAIN_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
"""An integer that is its own canonical form. Most answers are; they skip the rules for all other notations."""


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
    """Return an answer in normalized notation: `$\\dfrac12\\text{ cm}$.` → `\\frac12 \\text{ cm}`."""
    if PLAIN_INTEGER.fullmatch(answer):
        return answer
    money = _SUM_OF_MONEY.fullmatch(answer) if len(answer) <= 80 else None
    if money and (money["before"] or money["after"]) and not (money["before"] == money["after"] == "$"):
        currency = _CURRENCIES[money["before"] or money["after"]]
        words = money["words"] or ""
        answer = f"{money['sign']}{money['minus'] or ''}{money['number']}{words}" + rf"\text{{ {currency}}}"
    text = unicodedata.normalize("NFKC", answer.translate(_SYMBOLS)).strip()
    if r"\begin" not in text:  # the rows of a matrix end in \\
        text = _ESCAPED_TWICE.sub(r"\\", text)
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    if (about := _NAME_ABOUT.match(text)) and about["name"] not in ("e", "i") and not _FUNCTIONS.match(about["name"]):
        text = f"{about['name']}={text[about.end() :]}"
    text = _ROUNDED.sub(r" \g<unit>", _SURROUNDINGS.sub("", text)).strip()
    while text.startswith("{") and _end_of_brackets(text) == len(text):
        text = _SURROUNDINGS.sub("", text[1:-1])
    if (whole := _TEXT.fullmatch(text)) and (not is_words(text) or re.match(r"\s*[-+]?[0-9.]", whole["text"])):
        text = _SURROUNDINGS.sub("", whole["text"])  # `\text{5 hours}` is a number with a unit, not words
    return _SURROUNDINGS.sub("", _NUMBER_IN_PARENTHESES.sub(r"\1", text))


def align(answer: str, reference: str) -> tuple[str, str]:
    """Return normalized answer and reference in comparable notation.

    A name is removed if the other side has none or the same: compared with 4, `x = 4` becomes 4. A set in set-builder
    notation becomes its condition. Inequalities are put in ascending order, and become intervals if the other side has
    a union.
    """
    answer, reference = (ascending(conjunction(without_set_builder(in_symbols(one)))) for one in (answer, reference))
    if r"\cup" in answer + reference or r"\setminus" in answer + reference:
        answer, reference = as_union(answer) or answer, as_union(reference) or reference
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
    # A space between digits separates numbers, and one between letters words.
    text = re.sub(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])|(?<=[0-9]) (?=[A-Za-z])|(?<=[A-Za-z]) (?=[0-9])", "", text)
    return re.sub(r"\{([0-9A-Za-z])\}", r"\1", text)


def is_words(text: str) -> bool:
    """Return whether a normalized answer is one `\\text{…}` with a letter in it."""
    match = _TEXT.fullmatch(text)
    return bool(match and re.search("[A-Za-z]", match["text"]))


def normalize_words(text: str) -> str:
    """Return words in lower case, without brackets, punctuation and a leading article."""
    plain = re.sub(r"[^\w\s.+-]", " ", re.sub(r"\.(?![0-9])", "", _TEXT.sub(r" \g<text> ", text))).lower()
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


def vector_items(text: str) -> list[str] | None:
    """Return the items of a matrix with one row or one column; None for any other text."""
    match = _VECTOR.fullmatch(text)
    return [item.strip() for item in re.split(r"\\\\|&", match["items"]) if item.strip()] if match else None


def _expand_plus_minus(text: str) -> list[str]:
    """Return the two values of a text with one ±; any other text as the only one."""
    if len(_PLUS_MINUS.findall(text)) != 1:
        return [text]
    return [_PLUS_MINUS.sub(sign, text).removeprefix("+").strip() for sign in "+-"]


def _split_name(text: str) -> tuple[str, str] | None:
    """Return the name and the value of `name = value`, `value = name` or `name \\in value`.

    Return None if the value has a relation, too, or contains the name.
    """
    match = _NAMED.fullmatch(text)
    if not match or _FUNCTIONS.match(match["name"]):
        match = _NAMED_AT_END.fullmatch(text)
    if not match or _RELATION.search(match["value"]) or _FUNCTIONS.match(match["name"]):
        return None
    if len(match["name"]) == 1 and re.search(rf"(?<![\\A-Za-z]){match['name']}(?![A-Za-z])", match["value"]):
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
