"""Numbers written in words: `twenty-five`, `three tenths`, `half a dozen`, `5 million`.

All functions take bounded text and linear time.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

_MAX_CHARACTERS = 100
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL = {word: n for n, word in enumerate(_ONES.split())} | {
    word: 10 * n for n, word in enumerate(_TENS.split(), start=2)
}
MULTIPLIERS = {
    "dozen": 12,
    "hundred": 100,
    "thousand": 1_000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
"""Words that multiply the number before them."""
_PARTS = {
    "half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7, "eighth": 8,
    "ninth": 9, "tenth": 10, "eleventh": 11, "twelfth": 12, "twentieth": 20, "hundredth": 100, "thousandth": 1_000,
    "millionth": 10**6,
}  # fmt: skip
"""Words for one part of so many."""
_DIGITS = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+")
_WORDS = re.compile(r"[0-9.,]*[0-9]|[a-z]+")
_IS_CANDIDATE = re.compile(rf"(?i)\b(?:{'|'.join([*_SMALL, *MULTIPLIERS, *_PARTS])})s?\b")


@lru_cache(maxsize=16_384)
def read_number_words(text: str) -> Fraction | None:
    """Return the number that a whole text states with at least one word; None for any other text.

    Accepts cardinal numbers (`one hundred and five`), multiples (`3.5 million`, `half a dozen`), parts (`three
    tenths`, `a quarter`) and a sign in words (`negative five`, `minus five`).
    """
    if len(text) > _MAX_CHARACTERS or not _IS_CANDIDATE.search(text):
        return None
    plain = text.lower().strip(" .$-")
    if re.sub(r"[0-9a-z.,\s-]", "", plain):
        return None
    words = _WORDS.findall(plain)
    if "".join(words) != re.sub(r"[\s-]", "", plain):
        return None
    sign = -1 if words and words[0] in ("negative", "minus") else 1
    value = _value(words[1:] if sign < 0 else words)
    return None if value is None else sign * value


def _value(words: list[str]) -> Fraction | None:
    """Return the value of words; "and" joins a whole number to a fraction or to the rest of a cardinal number."""
    if "and" in words:
        position = len(words) - 1 - words[::-1].index("and")
        whole, part = _value(words[:position]), _value(words[position + 1 :])
        is_fraction = part is not None and part < 1
        joins_hundreds = whole is not None and whole.denominator == 1 and whole % 100 == 0 and whole > 0
        if whole is None or part is None or not (is_fraction or (joins_hundreds and part < 100)):
            return None
        return whole + part
    if len(words) == 3 and words[:2] in (["half", "a"], ["half", "of"]) and words[2] in MULTIPLIERS:
        return Fraction(MULTIPLIERS[words[2]], 2)
    if words and (below := _PARTS.get(words[-1]) or _PARTS.get(words[-1].removesuffix("s"))):
        return _share(words[:-1], below)
    return _cardinal(words)


def _share(words: list[str], below: int) -> Fraction | None:
    """Return so many parts: `three` of 10 → 3/10, `a` of 4 → 1/4. Alone, only `half` and `quarter` are not ordinals."""
    if words in (["a"], ["an"]) or (not words and below in (2, 4)):
        return Fraction(1, below)
    above = _cardinal(words)
    return None if above is None else above / below


def _cardinal(words: list[str]) -> Fraction | None:
    """Return the value of `two hundred five thousand`, `3.5 million` or `a dozen`."""
    if not words:
        return None
    if len(words) > 1 and words[0] in ("a", "an") and words[1] in MULTIPLIERS:
        words = ["one", *words[1:]]
    total, group, before = Fraction(0), None, None
    for word in words:
        factor = MULTIPLIERS.get(word) or MULTIPLIERS.get(word.removesuffix("s"))
        if factor is not None:
            group = (Fraction(1) if before is None else group) or Fraction(0)
            if not group:  # "zero million", "million thousand"
                return None
            group *= factor
            if factor >= 1_000:
                total, group = total + group, Fraction(0)
        elif (value := _unit(word, before)) is not None:
            group = (group or Fraction(0)) + value
        else:
            return None
        before = word
    return total + (group or 0)


def _unit(word: str, before: str | None) -> Fraction | None:
    """Return the value of one word or number in digits; None if it cannot follow the word before it."""
    if _DIGITS.fullmatch(word):
        return Fraction(word.replace(",", "")) if before is None else None
    value = _SMALL.get(word)
    if value is None:
        return None
    after_tens = before in _SMALL and _SMALL[before] >= 20 and 0 < value < 10
    return Fraction(value) if before is None or before in MULTIPLIERS or after_tens else None
