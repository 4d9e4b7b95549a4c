"""Read the reference of a question, and define the canonical form in which a mathematical answer is stored."""

from __future__ import annotations

from functools import lru_cache

from stages.tasks.answers import join_boxes
from stages.tasks.boxes import find_boxes
from stages.tasks.maths_normalization import PLAIN_INTEGER, compact, is_words, normalize
from stages.tasks.numbers import ascii_digits, format_number, read_exact_number
from stages.tasks.quantities import read_quantity, scale

_CACHE_SIZE = 16_384
_MAX_NUMBER_CHARACTERS = 40
"""A number whose canonical form is longer keeps its own notation, such as `1e400`."""


@lru_cache(_CACHE_SIZE)
def read_reference(reference: str) -> str:
    """Return the normalized answer of a reference: its last boxes if it is a worked solution, else the whole text."""
    reference = ascii_digits(reference)
    boxes, _ = find_boxes(reference)
    return normalize(join_boxes(reference, boxes) if boxes else reference)


@lru_cache(_CACHE_SIZE)
def canonical_form(answer: str) -> str:
    """Return the form in which an answer is stored: a number as `18`, `0.5`, `1/3`, any other answer compactly.

    Units are left out.
    """
    if PLAIN_INTEGER.fullmatch(answer):
        return answer
    text = normalize(answer)
    quantity = read_quantity(text)
    if quantity and not quantity.is_compound and not is_words(text):
        text = scale(quantity.body, quantity.unit.scale)
    if number := read_exact_number(text):
        written = format_number(number.value) + "%" * number.percent
        if len(written) <= _MAX_NUMBER_CHARACTERS:
            return written
    return compact(text)
