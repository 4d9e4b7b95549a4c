r"""Solutions with names and with parameters: `x=2, y=3`, `x_1=1, x_2=4`, `\frac{\pi}{4}+\pi n, n \in \mathbb Z`.

All functions work on normalized text (`maths_normalization`).
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from stages.tasks.maths_normalization import NAME, compact, parse_collection
from stages.tasks.maths_values import approximate

_SEPARATOR = re.compile(r"[,;]|\\text\s*\{\s*,?\s*(?:and|or)\s*\}|\b(?:and|or)\b")
_ASSIGNMENT = re.compile(rf"\s*(?P<name>{NAME})\s*=(?P<value>[^=<>]+)")
_INDEX = re.compile(r"_\{?\s*[0-9]+\s*\}?$")
_INTEGER = re.compile(
    r"\s*[,;(]?\s*"
    r"(?:\\text\s*\{\s*,?\s*(?:where|with|for(?:\s+(?:all|any|every|some))?)?\s*(?:an?\s+)?(?:integers?\s*)?\}"
    r"|where|with|for)?\s*(?:\\forall\s*)?(?P<name>[a-z])\s*"
    r"(?:\\in\s*(?:\\mathbb\s*)?Z|\\text\s*\{\s*(?:is|are)?\s*(?:an?|any)?\s*integers?\s*\}"
    r"|(?:is|are)?\s*(?:an?|any)?\s*integers?)\s*\)?\s*\.?$"
)
_FOR_INTEGER = re.compile(
    r"\s*[,;(]?\s*(?:\\text\s*\{\s*)?(?:where|with|for)\s+(?:any\s+|all\s+|some\s+|an\s+)?integers?\s*\}?\s*(?P<name>[a-z])\s*\)?\.?$"
)
_MAX_FAMILIES = 48
_DECIMALS = 8


class Solutions(NamedTuple):
    """Several named values.

    Attributes:
      points: for each solution, its values by name.
      names: the names in the order in which they are written first.
      indexed: the names with their indexes, if the values are those of one name with an index each: `x_1`, `x_2`.
    """

    points: list[dict[str, str]]
    names: list[str]
    indexed: frozenset[str] = frozenset()

    def as_texts(self, in_written_order: bool) -> list[str]:
        """Return each solution as one value or a tuple, its values by name in written or in alphabetical order."""
        names = self.names if in_written_order else sorted(self.names)
        values = [[point[name] for name in names] for point in self.points]
        return [one[0] if len(one) == 1 else f"({','.join(one)})" for one in values]


def read_solutions(text: str) -> Solutions | None:
    r"""Return the solutions that a list of equations states: `p=5,q=2;p=7,q=2` two points, `x_1=1, x_2=4` two values.

    Return None if the text contains anything but such equations, or names one value only.
    """
    matches = [_ASSIGNMENT.fullmatch(part) for part in _SEPARATOR.split(text)]
    pairs = [(compact(match["name"]), match["value"].strip()) for match in matches if match]
    if len(pairs) < 2 or len(pairs) != len(matches):
        return None
    bases = {_INDEX.sub("", name) for name, _ in pairs}
    if len(bases) == 1:  # x_1=1, x_2=4, or x=1, x=4
        indexed = frozenset(name for name, _ in pairs if _INDEX.search(name))
        return Solutions([{bases.copy().pop(): value} for _, value in pairs], list(bases), indexed)
    names = list(dict.fromkeys(name for name, _ in pairs))
    groups = [pairs[i : i + len(names)] for i in range(0, len(pairs), len(names))]
    points = [dict(group) for group in groups]
    return Solutions(points, names) if all(point.keys() == set(names) for point in points) else None


def align_solutions(answer: str, reference: str) -> tuple[str, str]:
    """Return two answers with named values as tuples or lists where both sides have, or can be given, the same form.

    Beside a tuple, the values are in alphabetical order of their names; beside a bare list, in the written order.
    """
    left, right = read_solutions(answer), read_solutions(reference)
    if left is None and right is None:
        return answer, reference
    if left and right:
        has_other_indexes = left.indexed and right.indexed and left.indexed != right.indexed
        if set(left.names) != set(right.names) or has_other_indexes:
            return answer, reference
        return ",".join(left.as_texts(False)), ",".join(right.as_texts(False))
    if left:
        return _match_form(left, reference)
    assert right is not None
    expected, stated = _match_form(right, answer)
    return stated, expected


def _match_form(solutions: Solutions, other: str) -> tuple[str, str]:
    """Return the values without names, and the other side, both as a tuple or both as a list."""
    collection = parse_collection(other)
    is_bare = bool(collection) and collection is not None and not collection.brackets
    if len(solutions.names) > 1 and len(solutions.points) == 1 and is_bare and not other.startswith("("):
        return solutions.as_texts(True)[0], f"({other})"
    return ",".join(solutions.as_texts(False)), other


def compare_families(answer: str, reference: str) -> bool | None:
    r"""Compare solutions with an integer parameter as sets: `\frac{\pi}{4}+\pi n` and `\frac{5\pi}{4}-\pi k`.

    Return None unless one side says that its parameter is an integer and both are linear in it.
    """
    (left, left_name), (right, right_name) = _split_domain(answer), _split_domain(reference)
    name = left_name or right_name
    if name is None:
        return None
    first, second = _families(left, left_name), _families(right, right_name)
    if first is None or second is None:
        return None
    period = first[0][1]
    multiples = [Fraction(one / period).limit_denominator(60) for _, one in [*first, *second]]
    if any(
        abs(float(m) * period - one) > 10**-9 * abs(one)
        for m, (_, one) in zip(multiples, [*first, *second], strict=True)
    ):
        return False
    common = 1
    for multiple in multiples:
        common = _least_common(common, abs(multiple))
    whole = float(common) * abs(period)
    return _offsets(first, whole) == _offsets(second, whole)


def _split_domain(text: str) -> tuple[str, str | None]:
    """Return a text without `n \\in \\mathbb Z` at its end, and the parameter; None if it names none."""
    match = _INTEGER.search(text) or _FOR_INTEGER.search(text)
    return (text[: match.start()], match["name"]) if match else (text, None)


def _families(text: str, name: str | None) -> list[tuple[float, float]] | None:
    """Return (offset, period) of each item of a list that is linear in the parameter; None if an item is not."""
    text = text.strip().rstrip(",;")
    items = [one.partition("=")[2] if re.match(r"\s*[A-Za-z]\s*=", one) else one for one in _items(text)]
    if name is None:
        letters = set(re.findall(r"(?<![\\A-Za-z])[a-z](?![A-Za-z])", " ".join(items))) - {"e", "i"}
        if len(letters) != 1:
            return None
        name = letters.pop()
    found = []
    for item in items[:_MAX_FAMILIES]:
        at = [approximate(re.sub(rf"(?<![\\A-Za-z]){name}(?![A-Za-z])", f"({n})", item)) for n in range(3)]
        if any(value is None or abs(value.imag) > 10**-9 for value in at):
            return None
        zero, one, two = (value.real for value in at if value is not None)
        if one == zero or abs(two - 2 * one + zero) > 10**-9 * max(abs(two), 1):
            return None
        found.append((zero, one - zero))
    return found or None


def _items(text: str) -> list[str]:
    collection = parse_collection(text)
    return collection.items if collection and collection.brackets in ("", r"\{\}") else [text]


def _offsets(families: list[tuple[float, float]], whole: float) -> set[float]:
    """Return all offsets within a common period, as fractions of it."""
    found = set()
    for offset, period in families:
        for n in range(min(round(whole / abs(period)), _MAX_FAMILIES)):
            found.add(round((offset + n * period) / whole % 1, _DECIMALS) % 1)
    return found


def _least_common(a: Fraction | int, b: Fraction) -> Fraction:
    """Return the least common multiple of two positive rational numbers."""
    a = Fraction(a)
    below = a.denominator * b.denominator
    x, y = int(a * below), int(b * below)
    product = x * y
    while y:
        x, y = y, x % y
    return Fraction(product // x, below)
