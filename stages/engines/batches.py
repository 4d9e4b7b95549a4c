"""Owns how trajectories become batches: examples, micro-batches with little padding, and what of them a model must see.

Attention is causal and padding stands on the right, so a padded row needs no attention mask: what comes later cannot
change a hidden state that came before. For the same reason the tokens after the last kept one are not fed at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False, slots=True)
class Example:
    """One trajectory to learn from.

    Attributes:
      tokens: int32 [T], prompt and response.
      kept: int64 [M], rising positions in `tokens` that the mask keeps; each at least 1 (something comes before it).
      advantages: floating [M], before whitening.
      old: floating [M] log-probabilities of the policy that sampled; None where that is the policy as it is now.
      reference: likewise of the reference policy; None where no KL is asked for or it is the policy as it is now.
      response_tokens, segments, reward: what the metrics count.
    """

    tokens: NDArray[np.int32]
    kept: NDArray[np.int64]
    advantages: NDArray[np.floating]
    old: NDArray[np.floating] | None = None
    reference: NDArray[np.floating] | None = None
    response_tokens: int = 0
    segments: int = 1
    reward: float = float("nan")

    @property
    def fed(self) -> int:
        """Tokens the model must read: all that come before the last kept one."""
        return int(self.kept[-1]) if self.kept.size else 0


@dataclass(frozen=True, eq=False, slots=True)
class MicroBatch:
    """What one forward pass needs.

    Attributes:
      input_ids: int64 [B, L], padded on the right with token 0.
      positions: int64 [M], indices into the flattened [B · L] of the hidden states that predict the kept tokens.
      targets: int64 [M], the kept tokens; example after example.
    """

    input_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    targets: NDArray[np.int64]


def micro_batches(examples: Sequence[Example], size: int) -> list[list[int]]:
    """Indices of the examples with something to learn, grouped by length: the longest first, at most `size` a group.

    The longest come first so that a batch too large for the memory fails at once.
    """
    filled = [index for index, example in enumerate(examples) if example.kept.size]
    filled.sort(key=lambda index: -examples[index].fed)
    return [filled[start : start + size] for start in range(0, len(filled), size)]


def collate(examples: Sequence[Example]) -> MicroBatch:
    """Pad examples, each with at least one kept token, into one micro-batch."""
    length = max(example.fed for example in examples)
    input_ids = np.zeros((len(examples), length), np.int64)
    for row, example in enumerate(examples):
        input_ids[row, : example.fed] = example.tokens[: example.fed]
    positions = [row * length + example.kept - 1 for row, example in enumerate(examples)]
    targets = [example.tokens[example.kept] for example in examples]
    return MicroBatch(input_ids, np.concatenate(positions), np.concatenate(targets).astype(np.int64))
