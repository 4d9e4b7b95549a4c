"""Test replay: every example is used once in its replay window or counted as aged out, decided by its id alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.optimization.batches import Example
from stages.training.experience import Experience
from stages.training.replay import Selection, assign_ages, limit_questions, limit_samples, select_by_age

NOTHING = Example(np.arange(2, dtype=np.int32), np.array([1]), np.ones(1))


def experience(sizes: list[list[int]], iteration: int = 0) -> Experience:
    """Return questions with sibling groups of these sizes; questions and ids repeat every third iteration."""
    names = [
        (f"q{iteration % 3}.{question}", group, sample)
        for question, groups in enumerate(sizes)
        for group, size in enumerate(groups)
        for sample in range(size)
    ]
    return Experience(
        ids=[f"{question}/{group}.{sample}" for question, group, sample in names],
        questions=[question for question, _, _ in names],
        groups=[f"{question}/{group}/" for question, group, _ in names],
        examples=[NOTHING] * len(names),
        shares_prefixes=True,
        left_out={},
    )


def iterations(experiences: list[Experience], replay_window: int, cap: int) -> Iterator[list[Selection]]:
    """Yield the selections of each iteration from the artefacts in its replay window."""
    for now in range(len(experiences)):
        alive = range(max(0, now - replay_window + 1), now + 1)
        yield [select_by_age(experiences[born], now - born, replay_window, cap) for born in alive]


sizes = st.lists(st.lists(st.integers(1, 9), max_size=8), max_size=4)


@given(st.lists(sizes, min_size=20, max_size=20), st.integers(1, 8), st.integers(1, 12))
@settings(deadline=None, max_examples=40)
def test_over_20_iterations_every_example_is_used_once_or_counted(
    artefacts: list[list[list[int]]], replay_window: int, cap: int
) -> None:
    experiences = [experience(sizes, number) for number, sizes in enumerate(artefacts)]
    used: Counter[tuple[int, str]] = Counter()
    aged_out: Counter[int] = Counter()
    for now, picks in enumerate(iterations(experiences, replay_window, cap)):
        for one in picks:
            born = now - one.age
            assert max(Counter(one.experience.questions).values(), default=0) <= cap
            used.update((born, identifier) for identifier in one.experience.ids)
            aged_out[born] += one.aged_out
            unused = sum(age > one.age for age in ages_of(experiences[born], replay_window, cap))
            assert one.waiting + one.aged_out == unused
            assert not (one.waiting and one.age == replay_window - 1)
    assert all(times == 1 for times in used.values())
    for born, whole in enumerate(experiences[: 20 - replay_window + 1]):  # those whose replay window is over
        assert sum(first == born for first, _ in used) + aged_out[born] == len(whole.ids)


def ages_of(whole: Experience, replay_window: int, cap: int) -> list[int]:
    return assign_ages(whole.ids, whole.questions, whole.groups, replay_window, cap).tolist()


@given(sizes, st.integers(1, 8), st.integers(1, 12), st.randoms())
@settings(deadline=None)
def test_the_order_of_rows_changes_nothing(sizes: list[list[int]], replay_window: int, cap: int, random) -> None:
    whole = experience(sizes)
    shuffled = list(range(len(whole.ids)))
    random.shuffle(shuffled)
    again = whole.select(shuffled)
    expected = dict(zip(whole.ids, ages_of(whole, replay_window, cap), strict=True))
    assert dict(zip(again.ids, ages_of(again, replay_window, cap), strict=True)) == expected


@given(sizes, st.integers(1, 8), st.integers(1, 12))
@settings(deadline=None)
def test_examples_age_out_only_without_room_and_siblings_that_fit_have_one_age(
    sizes: list[list[int]], replay_window: int, cap: int
) -> None:
    whole = experience(sizes)
    ages = ages_of(whole, replay_window, cap)
    totals, unused = (
        Counter(whole.questions),
        Counter(q for q, t in zip(whole.questions, ages, strict=True) if t == replay_window),
    )
    for question, total in totals.items():
        assert unused[question] == max(0, total - replay_window * cap)
    of_group: dict[str, set[int]] = defaultdict(set)
    for group, age in zip(whole.groups, ages, strict=True):
        of_group[group].add(age)
    for question, groups in zip([f"q0.{i}" for i in range(len(sizes))], sizes, strict=True):
        if max(groups, default=0) <= cap and len(groups) <= replay_window:  # each could have an age of its own
            assert all(len(of_group[f"{question}/{group}/"]) == 1 for group in range(len(groups)))


def test_a_group_larger_than_the_cap_is_spread_over_the_next_ages() -> None:
    assert sorted(ages_of(experience([[7]]), replay_window=3, cap=3)) == [0, 0, 0, 1, 1, 1, 2]
    assert sorted(ages_of(experience([[7]]), replay_window=2, cap=3)) == [0, 0, 0, 1, 1, 1, 2]  # 2: never


def test_without_a_replay_window_everything_is_used() -> None:
    whole = experience([[3, 4], [5]])
    assert select_by_age(whole, 4, None, None).experience is whole


@given(st.lists(sizes, min_size=1, max_size=9), st.integers(1, 12))
@settings(deadline=None)
def test_the_cap_holds_for_a_question_that_was_sampled_several_times(
    artefacts: list[list[list[int]]], cap: int
) -> None:
    """The questions repeat every third iteration; questions that are in one artefact only lose no example."""
    picks = [
        select_by_age(experience(sizes, number), len(artefacts) - number, None, None)
        for number, sizes in enumerate(artefacts)
    ]
    limited, crowded = limit_questions(picks, cap)
    offered = Counter(question for one in picks for question in one.experience.questions)
    taken = Counter(question for one in limited for question in one.experience.questions)
    assert taken == {question: min(count, cap) for question, count in offered.items()}
    assert crowded == offered.total() - taken.total()
    assert [one.age for one in limited] == [one.age for one in picks]
    for one, whole in zip(limited, picks, strict=True):
        assert set(one.experience.ids) <= set(whole.experience.ids)


def test_siblings_are_crowded_out_together_if_the_cap_allows() -> None:
    picks = [Selection(experience([[3, 3]]), age) for age in (6, 3, 0)]  # three trees of one question, its groups of 3
    limited, crowded = limit_questions(picks, 9)
    assert crowded == 9
    assert all(size == 3 for one in limited for size in Counter(one.experience.groups).values())


@pytest.mark.parametrize("most", [1, 10, 24, 60])
def test_the_limit_of_samples_holds_and_the_rest_is_counted(most: int) -> None:
    picks = [Selection(experience([[4, 4], [4]], iteration), age) for age, iteration in ((1, 0), (0, 1))]
    limited, beyond = limit_samples(picks, most)
    taken = [identifier for one in limited for identifier in one.experience.ids]
    assert len(taken) == min(most, 24)
    assert beyond == 24 - len(taken)
    whole = [group for one in limited for group in Counter(one.experience.groups).values()]
    assert sum(size < 4 for size in whole) <= 1  # the last group may be split
