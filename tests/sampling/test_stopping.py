"""Test that a stop string is found at the same token in a whole sample and after each token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stages.models.presets import make_byte_tokenizer
from stages.sampling.protocol import Request
from stages.sampling.stopping import completes_stop_string, find_stop_string


def ids(text: str) -> np.ndarray:
    """Return the byte tokens of a text."""
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


TEXTS = st.text("ab日é", max_size=12).map(ids)


@pytest.fixture(scope="module")
def tokenizer():
    return make_byte_tokenizer()


@example(prefix=ids("ébbbb"), drawn=ids("bb"), cut=0, start=0, stop=["é"])
@given(
    prefix=TEXTS,
    drawn=TEXTS,
    cut=st.integers(0, 3),
    start=st.none() | st.integers(0, 30),
    stop=st.lists(st.sampled_from(["a", "bb", "é", "日", "a日b", "abab"]), max_size=3, unique=True),
)
def test_both_searches_find_the_same_token(
    tokenizer, prefix, drawn, cut: int, start: int | None, stop: list[str]
) -> None:
    """Cover characters split between tokens, and matches that begin or lie entirely in the prefix."""
    whole = np.concatenate([[33], prefix, drawn]).astype(np.int32)
    length = max(1, len(prefix) + 1 - cut)
    request = Request(whole[:length], (0,), 40, None if start is None else min(start, length))
    rest = whole[length:]
    one_by_one = (t for t in range(1, len(rest) + 1) if completes_stop_string(tokenizer, request, rest[:t], stop))
    assert find_stop_string(tokenizer, request, rest, stop) == (next(one_by_one, None) if stop else None)
