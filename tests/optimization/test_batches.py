"""Layouts on several ranks: subsets are disjoint, cover the batch, and take about equally long to read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.optimization.batches import Example, Layout, RankSubset, padded, padded_fixed_batches, padded_pairs
from stages.optimization.packing import packed

LAYOUTS = pytest.mark.parametrize("layout", [padded, padded_fixed_batches, padded_pairs, packed])


def example(tokens: list[int], kept: list[int]) -> Example:
    positions = np.array(sorted({position for position in kept if 1 <= position < len(tokens)}), np.int64)
    return Example(np.array(tokens, np.int32), positions, np.zeros(positions.size))


EXAMPLES = st.lists(
    st.builds(example, st.lists(st.integers(0, 3), min_size=2, max_size=20), st.lists(st.integers(1, 19), max_size=4)),
    max_size=12,
)


def seen(layout: Layout, examples: list[Example], size: int, subset: RankSubset) -> list[tuple[int, list[int]]]:
    """Return the examples in the passes of a subset, each with its target tokens."""
    found = []
    for indices, batch in layout(examples, size, subset):
        ends = np.cumsum([examples[index].kept.size for index in indices])
        found += [(i, t.tolist()) for i, t in zip(indices, np.split(batch.targets, ends[:-1]), strict=True)]
    return found


@LAYOUTS
@settings(max_examples=60, deadline=None)
@given(examples=EXAMPLES, size=st.integers(1, 4), count=st.integers(1, 4))
def test_subsets_hold_every_example_with_a_kept_token_once(
    layout: Layout, examples: list[Example], size: int, count: int
):
    found = sorted(one for index in range(count) for one in seen(layout, examples, size, RankSubset(index, count)))
    assert found == [(i, one.tokens[one.kept].tolist()) for i, one in enumerate(examples) if one.kept.size]


def many(count: int) -> list[Example]:
    generator = np.random.default_rng(1)
    lengths = generator.integers(10, 200, count)
    return [example(generator.integers(0, 50, n).tolist(), [int(n) - 1]) for n in lengths]


@LAYOUTS
def test_subsets_have_about_equally_many_tokens(layout: Layout):
    examples = many(64)
    loads = [
        sum(batch.input_ids.size for _, batch in layout(examples, 2, RankSubset(index, 4)))  # padding included
        for index in range(4)
    ]
    assert max(loads) <= 1.25 * min(loads)


def test_fixed_micro_batches_are_the_same_for_any_number_of_ranks():
    examples = many(13)
    whole = sorted(tuple(indices) for indices, _ in padded_fixed_batches(examples, 3))
    assert whole == sorted(tuple(i) for n in range(4) for i, _ in padded_fixed_batches(examples, 3, RankSubset(n, 4)))


def test_neighbors_in_a_tree_stay_together():
    """Four families share 40 tokens each: with four ranks, every rank reads the prefix of one family only."""
    families = [example([f] * 40 + [k, 4 + k], [41]) for f in range(4) for k in range(4)]
    reads = [sum(batch.input_ids.size for _, batch in packed(families, 4, RankSubset(index, 4))) for index in range(4)]
    assert reads == [40 + 4] * 4


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(2, 20), max_size=6), size=st.integers(1, 5), count=st.integers(1, 3))
def test_a_pair_is_never_divided(lengths: list[int], size: int, count: int):
    examples = [example([1] * n, [n - 1]) for length in lengths for n in (length, 2)]
    for index in range(count):
        for indices, _ in padded_pairs(examples, size, RankSubset(index, count)):
            assert len(indices) <= max(2, size)
            assert {i ^ 1 for i in indices} == set(indices)
