"""Compare ways to spend a budget of tokens on a tree: `python -m tests.bench.bench_growth [groups]`.

Responses are the paths of the Markov chain of `bench_estimators`, so the advantage of every token is known: what the
token adds to V. A node gives its tokens one advantage, V at its end minus V at its start as the tree estimates them.
Printed: tokens per tree; the correlation of the estimated with the true advantage over all tokens of all trees, each
node counting once, and its standard error over the trees; the root of the mean squared error of V at inner nodes.
Every way begins with two responses and branches after every 4 tokens. No model runs, only numpy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from stages.maths.advantages import sibling_advantages
from stages.maths.growth import Leaves, find_leaves, widest_state
from stages.maths.intervals import wilson_width
from stages.maths.trees import node_values, start_states
from tests.bench.bench_estimators import LENGTH, SEGMENT, paths, true_value

TRUE = np.array([[true_value(np.array([token]), drawn)[0] for drawn in range(LENGTH + 1)] for token in range(3)])
"""V by the last token and the number of tokens drawn; at the end, the reward."""


@dataclass
class Tree:
    """The responses to one question, as `stages.maths.growth` describes them."""

    random: np.random.Generator
    parent: list[int] = field(default_factory=list)
    offset: list[int] = field(default_factory=list)
    tokens: list[NDArray[np.int64]] = field(default_factory=list)

    @property
    def spent(self) -> int:
        return sum(LENGTH - offset for offset in self.offset)

    def branch(self, owner: int, place: int) -> None:
        """Sample a branch from a state to the end."""
        before = self.tokens[owner][:place] if owner >= 0 else np.empty(0, np.int64)
        start = before[-1:] if place else np.ones(1, np.int64)
        self.parent.append(owner)
        self.offset.append(place)
        self.tokens.append(np.concatenate([before, paths(start, LENGTH - place, self.random)[0]]))

    def states(self) -> list[tuple[int, int]]:
        """Return the prompt and the places of every response."""
        places = [(i, place) for i, own in enumerate(self.offset) for place in range(SEGMENT, LENGTH, SEGMENT)]
        return [(-1, 0), *((i, place) for i, place in places if place > self.offset[i])]

    def leaves(self, states: list[tuple[int, int]]) -> Leaves:
        """Return the leaves of states."""
        reward = np.array([tokens[-1] == 2 for tokens in self.tokens], np.float64)
        owner, place = np.array(states).T
        length = np.full(reward.size, LENGTH)
        return find_leaves(np.array(self.parent), np.array(self.offset), length, reward, owner, place)

    def nodes(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield (response, first token, end, number of the node before it) of each node."""
        ends: dict[tuple[int, int], int] = {(-1, 0): -1}
        for i, own in enumerate(self.offset):
            before = ends[self.parent[i], own]
            cuts = sorted({o for p, o in zip(self.parent, self.offset, strict=True) if p == i})
            for start, end in pairwise([own, *cuts, LENGTH]):
                yield i, start, end, before
                before = ends[i, end] = len(ends) - 1


Grow = Callable[[Tree, int], None]


def widest(tree: Tree, budget: int) -> None:
    """Sample one branch at a time from the widest interval, an upper confidence bound: `spo rollout --tree-budget`."""
    while True:
        states = tree.states()
        state = widest_state(tree.leaves(states), np.zeros(len(states)), budget - tree.spent)
        if state is None:
            return
        tree.branch(*states[state])


def halving(tree: Tree, budget: int) -> None:
    """Sequential halving: equal rounds over the states of the first responses, the narrower half of which drops out."""
    arms = tree.states()
    rounds = int(np.ceil(np.log2(len(arms))))
    for number in range(rounds):
        share, used, fits = (budget - tree.spent) / (rounds - number), 0, True
        while fits:
            fits = False
            for owner, place in arms:
                if used + LENGTH - place <= share:
                    tree.branch(owner, place)
                    used, fits = used + LENGTH - place, True
        leaves = tree.leaves(arms)
        widest = np.argsort(-wilson_width(leaves.mean, leaves.graded), kind="stable")[: (len(arms) + 1) // 2]
        arms = [arms[i] for i in sorted(widest.tolist())]


def uniform(tree: Tree, budget: int) -> None:
    """Branch at random: the control."""
    while fits := [state for state in tree.states() if LENGTH - state[1] <= budget - tree.spent]:
        tree.branch(*fits[int(tree.random.integers(len(fits)))])


def independent(tree: Tree, budget: int) -> None:
    """Sample responses without branches, as GRPO does."""
    while tree.spent + LENGTH <= budget:
        tree.branch(-1, 0)


WAYS: dict[str, Grow] = {
    "independent responses": independent,
    "branches at random": uniform,
    "sequential halving": halving,
    "widest interval first": widest,
}


def measure(grow: Grow, budget: int, groups: int) -> tuple[float, float, float, float]:
    """Return tokens per tree, correlation, its standard error, and the error of V."""
    random, estimated, true, spent, errors = np.random.default_rng(0), [], [], 0, []
    for _ in range(groups):
        tree = Tree(random)
        tree.branch(-1, 0)
        tree.branch(-1, 0)
        grow(tree, budget)
        spent += tree.spent
        response, start, end, before = np.array(list(tree.nodes())).T
        reward = np.array([tree.tokens[i][-1] == 2 for i in response], np.float64)
        value = node_values(before, reward)
        advantage = sibling_advantages(value, start_states(before, np.zeros_like(before))).advantage
        steps = [np.diff(TRUE[np.append(1, tokens), np.arange(LENGTH + 1)]) for tokens in tree.tokens]
        estimated.append(np.repeat(advantage, end - start))
        true.append(np.concatenate([steps[i][s:e] for i, s, e in zip(response, start, end, strict=True)]))
        ends = [TRUE[tree.tokens[i][e - 1], e] for i, e in zip(response, end, strict=True)]
        errors.append((value - ends)[end < LENGTH])
    products = np.array([a @ b for a, b in zip(estimated, true, strict=True)])
    scale = np.sqrt(np.square(np.concatenate(estimated)).sum() * np.square(np.concatenate(true)).sum())
    wrong = np.concatenate(errors)
    error = float(np.sqrt(np.square(wrong).mean())) if wrong.size else float("nan")
    return spent / groups, products.sum() / scale, products.std() * np.sqrt(groups) / scale, error


def main(groups: int = 400) -> None:
    """Print the table."""
    print(f"{'':8}{'':28}" + "".join(f"{head:>10}" for head in ("tokens", "corr. A", "± s.e.", "rmse V")))
    for budget in (48, 96, 192):
        for name, grow in WAYS.items():
            tokens, *figures = measure(grow, budget, groups)
            print(f"{budget:<8}{name:28}{tokens:10.1f}" + "".join(f"{figure:10.4f}" for figure in figures))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
