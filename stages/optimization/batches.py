"""Turn trajectories into micro-batches: examples, layouts with little padding, and the tokens that a model must read.

Attention is causal and padding is on the right, so padded rows need no attention mask: later tokens cannot change an
earlier hidden state. For the same reason the tokens after the last kept one are not fed to the model.
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
    """One training sequence of a policy: a whole response, or a segment of a tree after the prefix that it continues.

    Attributes:
      tokens: int32 [T], prompt and response up to the end of the segment.
      kept: int64 [M], rising positions in `tokens` that the probability mask keeps; each at least 1, because the
        hidden state of the token before it predicts it.
      advantages: floating [M], before whitening.
      old: floating [M], log-probabilities of the policy that sampled; None if that is the current policy.
      reference: floating [M], log-probabilities of the reference policy; None without a KL term, or if the reference is
        the current policy.
      sampled: floating [M], log-probabilities that the sampling engine recorded. They are compared with those of the
        policy at the start of the call (`old`, or its own before the first step); None: nothing to compare.
      recorded: floating [M], what the sampling engine recorded, for the record of the kept tokens alone; None: nothing.
      segment_ids: int64 [M], non-decreasing: the segment of each kept token; None: there is one segment.
      response_tokens: length of the response or tree segment, for metrics.
      segments, reward: further values for metrics.
    """

    tokens: NDArray[np.int32]
    kept: NDArray[np.int64]
    advantages: NDArray[np.floating]
    old: NDArray[np.floating] | None = None
    reference: NDArray[np.floating] | None = None
    sampled: NDArray[np.floating] | None = None
    recorded: NDArray[np.floating] | None = None
    segment_ids: NDArray[np.int64] | None = None
    response_tokens: int = 0
    segments: int = 1
    reward: float = float("nan")

    @property
    def forward_tokens(self) -> int:
        """Number of tokens that the model must read: all before the last kept one."""
        return int(self.kept[-1]) if self.kept.size else 0

    @property
    def segment_starts(self) -> NDArray[np.int64]:
        """[S] indices into `kept`: the first kept token of each segment that has one."""
        if self.segment_ids is None:
            return np.arange(min(self.kept.size, 1))
        return np.flatnonzero(np.diff(self.segment_ids, prepend=-1))


@dataclass(frozen=True, eq=False, slots=True)
class MicroBatch:
    """The inputs of one forward pass.

    Attributes:
      input_ids: int64 [B, L], padded on the right with token 0.
      positions: int64 [M], indices into the flattened [B · L] of the hidden states that predict the kept tokens.
      targets: int64 [M], the kept tokens, example after example.
      tree: attention structure of rows that hold trees; None: every token sees all tokens before it in its row.
    """

    input_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    targets: NDArray[np.int64]
    tree: TokenTree | None = None


@dataclass(frozen=True, eq=False, slots=True)
class TokenTree:
    """Rows that are trees of tokens in pre-order: a token sees its ancestors and itself.

    Token j is an ancestor of token i, or i itself, exactly if j ≤ i < ends[j].

    Attributes:
      depth: int64 [B, L], number of ancestors: the token's position in every sequence that contains it.
      ends: int64 [B, L], index after the last descendant of each token.
    """

    depth: NDArray[np.int64]
    ends: NDArray[np.int64]


@dataclass(frozen=True)
class RankSubset:
    """The examples of a batch that one rank processes: subset `index` of `count`, from 0."""

    index: int = 0
    count: int = 1


ALL_EXAMPLES = RankSubset()


class Layout(Protocol):
    """A way to arrange examples in forward passes that need about as much memory as `size` examples.

    The subsets of a batch are disjoint, cover it, and take about equally long to read.
    """

    def __call__(
        self, examples: Sequence[Example], size: int, subset: RankSubset = ALL_EXAMPLES, /
    ) -> Iterator[tuple[list[int], MicroBatch]]:
        """Yield the passes of one subset: indices of their examples, and the inputs."""
        ...


def padded(
    examples: Sequence[Example], size: int, subset: RankSubset = ALL_EXAMPLES, /
) -> Iterator[tuple[list[int], MicroBatch]]:
    """Lay out one example per row, at most `size` rows per pass; see `Layout`."""
    filled = [index for index, example in enumerate(examples) if example.kept.size]
    chosen = balanced_groups([examples[index].forward_tokens for index in filled], subset.count)[subset.index]
    own = [filled[number] for number in chosen]
    for group in micro_batches([examples[index] for index in own], size):
        indices = [own[number] for number in group]
        yield indices, collate([examples[index] for index in indices])


def padded_fixed_batches(
    examples: Sequence[Example], size: int, subset: RankSubset = ALL_EXAMPLES, /
) -> Iterator[tuple[list[int], MicroBatch]]:
    """Lay out like `padded`, with the same micro-batches for any number of ranks.

    Needed if results depend on the micro-batches (`whiten="micro-batch"`): the micro-batches of the whole batch are
    distributed over the ranks undivided.
    """
    groups = micro_batches(examples, size)
    lengths = [len(group) * examples[group[0]].forward_tokens for group in groups]
    for number in balanced_groups(lengths, subset.count)[subset.index]:
        yield groups[number], collate([examples[index] for index in groups[number]])


def padded_pairs(
    examples: Sequence[Example], size: int, subset: RankSubset = ALL_EXAMPLES, /
) -> Iterator[tuple[list[int], MicroBatch]]:
    """Lay out like `padded`, with examples 2k and 2k + 1 in one pass, since a loss of pairs compares them.

    A pass has at least one pair, even if `size` is 1.
    """
    pairs = [[i for i in (first, first + 1) if i < len(examples)] for first in range(0, len(examples), 2)]
    pairs = [kept for pair in pairs if (kept := [i for i in pair if examples[i].kept.size])]
    length = [max(examples[i].forward_tokens for i in pair) for pair in pairs]
    own = balanced_groups(length, subset.count)[subset.index]
    own.sort(key=lambda number: -length[number])  # the longest first, as in `micro_batches`
    step = max(1, size // 2)
    for start in range(0, len(own), step):
        indices = [i for number in own[start : start + step] for i in pairs[number]]
        yield indices, collate([examples[i] for i in indices])


def micro_batches(examples: Sequence[Example], size: int) -> list[list[int]]:
    """Group the indices of the examples with kept tokens by length: the longest first, at most `size` per group.

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
