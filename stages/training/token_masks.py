"""Masks that choose tokens without the probability of the sampled token: those of highest entropy, or random ones.

The entropy mask trains the tokens at which the policy is least certain (arXiv 2506.01939, "Beyond the 80/20 rule"); the
random mask of the same size is its control.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stages.core.progress import Progress
from stages.maths.randomness import random_key, uniforms
from stages.optimization.batches import Example, Layout
from stages.optimization.ranks import Ranks
from stages.optimization.step import Scorer, score_all


def random_tokens(ids: Sequence[str], examples: Sequence[Example], fraction: float, seed: int) -> list[Example]:
    """Keep each token with probability `fraction`, drawn by the name of its example and its position."""
    return [
        thin(example, uniforms(random_key(seed, "mask", name), example.kept) < fraction)
        for name, example in zip(ids, examples, strict=True)
    ]


def uncertain_tokens(examples: Sequence[Example], entropies: NDArray[np.floating], fraction: float) -> list[Example]:
    """Keep the tokens whose entropy is in the upper `fraction` of all tokens of the call.

    Args:
      entropies: [sum of M] of the kept tokens of all examples, end to end.
    """
    if not entropies.size:
        return list(examples)
    threshold = np.quantile(entropies, 1.0 - fraction)
    ends = np.cumsum([example.kept.size for example in examples])
    own = np.split(entropies >= threshold, ends[:-1])
    return [thin(example, kept) for example, kept in zip(examples, own, strict=True)]


def measure_entropies(
    scorer: Scorer,
    examples: Sequence[Example],
    size: int,
    temperature: float,
    layout: Layout,
    ranks: Ranks,
    progress: Progress,
) -> NDArray[np.floating]:
    """Return the entropy of the policy at each kept token of all examples, end to end; each rank computes a part."""
    progress.start("score (entropy)", len(examples), "trajectories")
    found: dict[int, NDArray[np.floating]] = {}
    for index, entropy in score_all(scorer, examples, size, temperature, layout, ranks, entropy=True):
        found[index] = entropy
        progress.advance(1, examples[index].tokens.size)
    for others in ranks.gather(found):
        found |= others
    empty = np.empty(0, np.float32)
    return np.concatenate([empty, *(found.get(index, empty) for index in range(len(examples)))])


def thin(example: Example, chosen: NDArray[np.bool_]) -> Example:
    """Return an example whose kept tokens are the chosen ones."""
    names = ("kept", "advantages", "old", "reference", "sampled", "recorded", "segment_ids")
    columns = {name: getattr(example, name) for name in names}
    return dataclasses.replace(
        example, **{name: column[chosen] for name, column in columns.items() if column is not None}
    )
