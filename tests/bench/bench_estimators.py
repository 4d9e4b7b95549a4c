"""Measure bias, spread and cost of estimators on a known problem: `python -m tests.bench.bench_estimators [groups]`.

Responses are paths of a Markov chain of 3 tokens, 12 tokens long, cut into segments of 4, and correct if they end in
the last token, so V of every state is an entry of a power of its matrix. Printed for the state after the first segment
and for the advantage of that segment: the mean error of V̂ and its standard error, the root of its mean square; the
slope of Â over the true A, which is 1 where E[Â | state] = A and less where Â is drawn towards 0, its standard error,
the root of the mean squared error; and tokens sampled per valued segment. No model runs, only numpy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.maths.advantages import Baseline, sibling_advantages
from stages.maths.allocation import additional_rollouts
from stages.maths.prefixes import responses_with_prefix, shared_prefixes
from stages.maths.trees import node_values, start_states

CHAIN = np.array([[0.80, 0.15, 0.05], [0.30, 0.40, 0.30], [0.02, 0.08, 0.90]])
"""Transition probabilities; a path begins as if after token 1."""
LENGTH, SEGMENT = 12, 4


def true_value(token: NDArray[np.int64], drawn: int) -> NDArray[np.float64]:
    """Return V of the state after `drawn` tokens, the last of them `token` (1 before the first)."""
    return np.linalg.matrix_power(CHAIN, LENGTH - drawn)[token, 2]


def paths(start: NDArray[np.int64], count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Return [N, count] tokens that follow the tokens [N]."""
    found = np.empty((start.size, count), np.int64)
    for t in range(count):
        start = (random.random(start.size)[:, None] > CHAIN.cumsum(axis=1)[start]).sum(axis=1)
        found[:, t] = start
    return found


class Estimates(NamedTuple):
    """N estimates of V after the first segment and of its advantage, the true values, and tokens per segment.

    `state` is the last token of that segment.
    """

    state: NDArray[np.int64]
    value: NDArray[np.float64]
    true_value: NDArray[np.float64]
    advantage: NDArray[np.float64]
    true_advantage: NDArray[np.float64]
    tokens: float


Estimator = Callable[[int, np.random.Generator], Estimates]


def monte_carlo(rollouts: int) -> Estimator:
    """Draw the same number of rollouts from every state where a segment begins."""
    return adaptive(rollouts, rollouts, 1.0)


def adaptive(least: int, most: int, width: float) -> Estimator:
    """Draw rollouts from every state where a segment begins, more where the Wilson interval is wider than `width`."""

    def estimate(groups: int, random: np.random.Generator) -> Estimates:
        path = paths(np.ones(groups, np.int64), LENGTH, random)
        values, tokens = [], float(LENGTH)
        for drawn in range(0, LENGTH, SEGMENT):
            state = path[:, drawn - 1] if drawn else np.ones(groups, np.int64)
            value, count = _rollouts(state, LENGTH - drawn, least, most, width, random)
            values.append(value)
            tokens += count.mean() * (LENGTH - drawn)
        return _estimates(path[:, SEGMENT - 1], values[1], values[1] - values[0], tokens / (LENGTH / SEGMENT))

    return estimate


def _rollouts(
    state: NDArray[np.int64], left: int, least: int, most: int, width: float, random: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return mean and number of the rollouts from each state."""
    ends = paths(np.repeat(state, most), left, random)[:, -1]
    right = (ends == 2).reshape(state.size, most)
    count = np.full(state.size, least)
    while True:
        mean = (right & (np.arange(most) < count[:, None])).sum(axis=1) / count
        more, _ = additional_rollouts(mean, count, most, width, 0.95)
        if not more.any():
            return mean, count
        count = count + more


def tree(branches: tuple[int, ...], baseline: Baseline = "mean") -> Estimator:
    """Value the first child of a prompt in a tree that branches after every segment; the last level runs to the end."""

    def estimate(groups: int, random: np.random.Generator) -> Estimates:
        above, begin = np.full(groups, -1), np.ones(groups, np.int64)
        parents, ends, tokens = [], [], 0
        for depth, count in enumerate(branches):
            size = LENGTH - depth * SEGMENT if depth == len(branches) - 1 else SEGMENT
            parents.append(np.repeat(above, count))
            ends.append(paths(np.repeat(begin, count), size, random)[:, -1])
            above, begin = sum(map(len, parents[:-1])) + np.arange(ends[-1].size), ends[-1]
            tokens += ends[-1].size * size
        parent, end = np.concatenate(parents), np.concatenate(ends)
        question = np.zeros(parent.size, np.int64)  # read on the first level only: deeper nodes have a parent
        question[: groups * branches[0]] = np.arange(groups).repeat(branches[0])
        value = node_values(parent, end == 2)
        found = sibling_advantages(value, start_states(parent, question), baseline=baseline)
        first = np.arange(groups) * branches[0]
        return _estimates(end[first], value[first], found.advantage[first], tokens / parent.size)

    return estimate


def prefix_tree(responses: int, *, only_branching: bool = False) -> Estimator:
    """Value the state after the first segment of a group's first response by the responses that share it.

    Args:
      only_branching: keep only groups in which the responses that share this state continue differently.
    """

    def estimate(groups: int, random: np.random.Generator) -> Estimates:
        drawn = paths(np.ones(groups * responses, np.int64), LENGTH, random).reshape(groups, responses, LENGTH)
        rewards = drawn[:, :, -1] == 2
        value, kept = np.empty(groups), np.ones(groups, np.bool_)
        for i, group in enumerate(drawn):
            order, common = shared_prefixes([row.astype(np.int32) for row in group])
            place = np.argsort(order)[[0, 0]]
            first, count = responses_with_prefix(common, place, np.array([SEGMENT, SEGMENT + 1]))
            value[i] = rewards[i][order[first[0] : first[0] + count[0]]].mean()
            kept[i] = count[1] < count[0] or not only_branching
        state = drawn[kept, 0, SEGMENT - 1]
        return _estimates(state, value[kept], (value - rewards.mean(axis=1))[kept], SEGMENT)

    return estimate


def kept(rollouts: int, *, leave_own_out: bool) -> Estimator:
    """Estimate the advantage of the first rollout from the prompt, given the segment that it begins with.

    `value` is the estimate of V(prompt), `state` the token at the end of that segment.
    """

    def estimate(groups: int, random: np.random.Generator) -> Estimates:
        prompt = np.ones(groups, np.int64)
        drawn = paths(np.repeat(prompt, rollouts), LENGTH, random)
        found = sibling_advantages(
            drawn[:, -1] == 2,
            np.repeat(np.arange(groups), rollouts),
            baseline="leave-one-out" if leave_own_out else "mean",
        )
        first = np.arange(groups) * rollouts
        state, value = drawn[first, SEGMENT - 1], true_value(prompt, 0)
        truth = true_value(state, SEGMENT) - value
        return Estimates(state, found.value_start[first], value, found.advantage[first], truth, LENGTH)

    return estimate


def _estimates(
    state: NDArray[np.int64], value: NDArray[np.float64], advantage: NDArray[np.float64], tokens: float
) -> Estimates:
    truth = true_value(state, SEGMENT)
    return Estimates(state, value, truth, advantage, truth - true_value(np.ones_like(state), 0), tokens)


ESTIMATORS: dict[str, Estimator] = {
    "Monte Carlo, 4 rollouts": monte_carlo(4),
    "Monte Carlo, 9 rollouts": monte_carlo(9),
    "Monte Carlo, 32 rollouts": monte_carlo(32),
    "adaptive, 4..32, width 0.4": adaptive(4, 32, 0.4),
    "tree 4-4-4": tree((4, 4, 4)),
    "tree 4-4-4, leave-one-out": tree((4, 4, 4), "leave-one-out"),
    "tree 6-6-6": tree((6, 6, 6)),
    "tree 6-6-6, leave-one-out": tree((6, 6, 6), "leave-one-out"),
    "prefix tree of 8, a given state": prefix_tree(8),
    "prefix tree of 8, where it branches": prefix_tree(8, only_branching=True),
    "prefix tree of 64, a given state": prefix_tree(64),
}


def slope(found: Estimates) -> tuple[float, float]:
    """Return the least-squares slope of the estimated over the true advantage, and its standard error."""
    x = found.true_advantage - found.true_advantage.mean()
    fit = float(x @ found.advantage / (x @ x))
    rest = found.advantage - found.advantage.mean() - fit * x
    return fit, float(np.sqrt(np.square(x) @ np.square(rest)) / (x @ x))


def main(groups: int = 2000) -> None:
    """Print the table."""
    heads = ("bias V", "± s.e.", "rmse V", "slope A", "± s.e.", "rmse A", "tokens")
    spread = ESTIMATORS["tree 4-4-4"](groups, np.random.default_rng(0)).true_advantage.std()
    print(f"{groups} groups each; the true advantage has a standard deviation of {spread:.4f}")
    print(f"{'':36}" + "".join(f"{head:>9}" for head in heads))
    for name, estimator in ESTIMATORS.items():
        found = estimator(groups, np.random.default_rng(0))
        of_value, of_advantage = found.value - found.true_value, found.advantage - found.true_advantage
        error = of_value.std() / np.sqrt(of_value.size)
        cells = (of_value.mean(), error, np.sqrt(np.square(of_value).mean()), *slope(found))
        cells = (*cells, np.sqrt(np.square(of_advantage).mean()))
        print(f"{name:36}" + "".join(f"{cell:9.4f}" for cell in cells) + f"{found.tokens:9.1f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
