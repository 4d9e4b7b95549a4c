"""The reward of the real-model tests: an untrained chat model names a number, but in no fixed form."""

from __future__ import annotations

import re
from collections.abc import Sequence


def names_the_answer(completions: Sequence[str], answer: Sequence[str]) -> list[float]:
    """Return 1 for each response whose last number is the answer, else 0."""
    numbers = [re.findall(r"\d+", text) for text in completions]
    return [float(found[-1:] == [gold]) for found, gold in zip(numbers, answer, strict=True)]
