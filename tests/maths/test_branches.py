"""Branching points of a group: worked by hand, and checked by counting the responses that share each prefix."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.maths.branches import branch_starts
from stages.maths.partition import partition_at_boundaries
from stages.maths.ragged import Ragged


def starts(*groups: tuple[str, ...]) -> list[list[int]]:
    responses = [response for group in groups for response in group]
    numbers = [number for number, group in enumerate(groups) for _ in group]
    return [row.tolist() for row in branch_starts(Ragged.of([list(map(ord, r)) for r in responses], np.int32), numbers)]


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        # z differs from the others at 0, where every response begins; y from a at 2; c from d at 3
        (("xabc", "xabd", "xay", "z"), [[2, 3], [2, 3], [2], []]),
        (("xa", "xb"), [[1], [1]]),
        (("same", "same"), [[], []]),
        (("alone",), [[]]),
        (("ab", "abc"), [[], [2]]),  # the first response ends where the second continues
        (("ab.", "abc"), [[2], [2]]),
        (("", "a", "ab"), [[], [], [1]]),
    ],
)
def test_a_segment_begins_where_fewer_share_the_prefix(group: tuple[str, ...], expected: list[list[int]]):
    assert starts(group) == expected


def test_prefixes_are_not_shared_across_groups():
    assert starts(("abc", "abd"), ("abe", "x")) == [[2], [2], [], []]
    assert starts() == []


def test_a_missing_group_is_refused():
    with pytest.raises(ValueError, match="each of 2 responses"):
        branch_starts(Ragged.of([[1], [2]], np.int32), [0])


def test_token_ids_above_255_are_compared_as_numbers():
    found = branch_starts(Ragged.of([[256, 7], [256, 8], [1, 7]], np.int32), [0, 0, 0])
    assert [row.tolist() for row in found] == [[1], [1], []]


responses = st.lists(st.tuples(st.integers(0, 2), st.text("ab", max_size=6)), max_size=9)


@given(responses)
def test_starts_agree_with_counting(group: list[tuple[int, str]]):
    numbers, texts = [number for number, _ in group], [text for _, text in group]

    def sharers(row: int, length: int) -> int:
        prefix = texts[row][:length]
        return sum(g == numbers[row] and text.startswith(prefix) for g, text in group)

    ragged = Ragged.of([list(map(ord, text)) for text in texts], np.int32)
    found = branch_starts(ragged, np.array(numbers, np.int64))
    for row, text in enumerate(texts):
        assert found[row].tolist() == [t for t in range(1, len(text)) if sharers(row, t + 1) < sharers(row, t)]
    partition_at_boundaries(ragged.lengths, found)  # accepts them as a partition
