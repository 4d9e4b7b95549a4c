"""Owns how trajectories become batches: examples, micro-batches with little padding, and what of them a model must see.

Attention is causal and padding stands on the right, so a padded row needs no attention mask: what comes later cannot
change a hidden state that came before. For the same reason the tokens after the last kept one are not fed at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stages.maths.balancing import balanced_groups


@dataclass(frozen=True, eq=False, slots=True)
class Example:
    """What a policy learns from at once: a whole response, or a stretch of a tree behind all that it continues.

    Attributes:
      tokens: int32 [T], prompt and response, as far as the stretch goes.
      kept: int64 [M], rising positions in `tokens` that the mask keeps; each at least 1 (something comes before it).
      advantages: floating [M], before whitening.
      old: floating [M] log-probabilities of the policy that sampled; None where that is the policy as it is now.
      reference: likewise of the reference policy; None where no KL is asked for or it is the policy as it is now.
      sampled: floating [M] log-probabilities as the sampler recorded them, to be compared with those of the policy as
        it is when the call starts (`old`, or its own while it has not moved); None where there is nothing to compare.
      segment_ids: int64 [M], never falling: the segment that each kept token belongs to; None: there is one segment.
      response_tokens: of the response, or of the stretch alone. segments, reward: what the metrics count beside them.
    """

    tokens: NDArray[np.int32]
    kept: NDArray[np.int64]
    advantages: NDArray[np.floating]
    old: NDArray[np.floating] | None = None
    reference: NDArray[np.floating] | None = None
    sampled: NDArray[np.floating] | None = None
    segment_ids: NDArray[np.int64] | None = None
    response_tokens: int = 0
    segments: int = 1
    reward: float = float("nan")

    @property
    def forward_tokens(self) -> int:
        """Tokens the model must read: all that come before the last kept one."""
        return int(self.kept[-1]) if self.kept.size else 0

    @property
    def segment_starts(self) -> NDArray[np.int64]:
        """[S] indices into `kept`: where each segment that has a kept token begins."""
        if self.segment_ids is None:
            return np.arange(min(self.kept.size, 1))
        return np.flatnonzero(np.diff(self.segment_ids, prepend=-1))


@dataclass(frozen=True, eq=False, slots=True)
class MicroBatch:
    """What one forward pass needs.

    Attributes:
      input_ids: int64 [B, L], padded on the right with token 0.
      positions: int64 [M], indices into the flattened [B · L] of the hidden states that predict the kept tokens.
      targets: int64 [M], the kept tokens; example after example.
      tree: where rows hold trees, what a token sees; None: every token sees all before it in its row.
    """

    input_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    targets: NDArray[np.int64]
    tree: TokenTree | None = None


@dataclass(frozen=True, eq=False, slots=True)
class TokenTree:
    """Rows that are trees of tokens in pre-order: a token sees itself and the tokens on the way to it.

    Token j is on the way to token i exactly if j ≤ i < ends[j].

    Attributes:
      depth: int64 [B, L], tokens on the way to this one: its position in each sequence that it is part of.
      ends: int64 [B, L], the place after the last token that continues this one.
    """

    depth: NDArray[np.int64]
    ends: NDArray[np.int64]


@dataclass(frozen=True)
class RankSubset:
    """LossAndMetrics `index` of `count`, from 0, of the examples of a batch."""

    index: int = 0
    count: int = 1


ALL_EXAMPLES = RankSubset()


class Layout(Protocol):
    """How examples are laid out in forward passes that cost as much memory as `size` of them: indices, and the pass.

    Of several parts each is about as much to read; together they are all the examples, each once.
    """

    def __call__(
        self, examples: Sequence[Example], size: int, part: RankSubset = ALL_EXAMPLES, /
    ) -> Iterator[tuple[list[int], MicroBatch]]:
        """The passes of one part."""
        ...


def padded(
    examples: Sequence[Example], size: int, part: RankSubset = ALL_EXAMPLES, /
) -> Iterator[tuple[list[int], MicroBatch]]:
    """The layout of one example a row, at most `size` a pass; see `Layout`."""
    filled = [index for index, example in enumerate(examples) if example.kept.size]
    share = balanced_groups([examples[index].forward_tokens for index in filled], part.count)[part.index]
    mine = [filled[place] for place in share]
    for group in micro_batches([examples[index] for index in mine], size):
        indices = [mine[place] for place in group]
        yield indices, collate([examples[index] for index in indices])


def padded_fixed_batches(
    examples: Sequence[Example], size: int, part: RankSubset = ALL_EXAMPLES, /
) -> Iterator[tuple[list[int], MicroBatch]]:
    """The same, where a pass must not depend on the number of parts: those of one part are dealt out whole."""
    groups = micro_batches(examples, size)
    for number in balanced_groups([len(group) * examples[group[0]].forward_tokens for group in groups], part.count)[
        part.index
    ]:
        yield groups[number], collate([examples[index] for index in groups[number]])


def micro_batches(examples: Sequence[Example], size: int) -> list[list[int]]:
    """Indices of the examples with something to learn, grouped by length: the longest first, at most `size` a group.

    The longest come first so that a batch too large for the memory fails at once.
    """
    filled = [index for index, example in enumerate(examples) if example.kept.size]
    filled.sort(key=lambda index: -examples[index].forward_tokens)
    return [filled[start : start + size] for start in range(0, len(filled), size)]


def collate(examples: Sequence[Example]) -> MicroBatch:
    """Pad examples, each with at least one kept token, into one micro-batch."""
    length = max(example.forward_tokens for example in examples)
    input_ids = np.zeros((len(examples), length), np.int64)
    for row, example in enumerate(examples):
        input_ids[row, : example.forward_tokens] = example.tokens[: example.forward_tokens]
    positions = [row * length + example.kept - 1 for row, example in enumerate(examples)]
    targets = [example.tokens[example.kept] for example in examples]
    return MicroBatch(input_ids, np.concatenate(positions), np.concatenate(targets).astype(np.int64))
