"""The batch in flight: rows of distinct sequences, each shared by the samples that have drawn the same tokens so far.

Samples of one state begin in one row. When they draw different tokens, the first group keeps the row and the others
continue in copies of it. Common tokens are thus computed once: a large part of a tree, and of the rollouts of a model
with low entropy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch

from stages.maths.randomness import uniforms
from stages.models.split import Split
from stages.sampling.draws import draw_tokens, entropies
from stages.sampling.embedded.forward import Forward, Spans
from stages.sampling.embedded.invariance import ROWS, whole_blocks
from stages.sampling.embedded.kv_cache import KeyValueRows
from stages.sampling.protocol import SamplingParams

_LOGITS = 2**24  # maximum number of logits in memory
ARRANGE_EVERY = 8  # steps between calls of `Batch.arrange`
_ROW_WORK = 96  # keys whose attention costs as much as the rest of a row's pass; measured on the tiny preset
_COPY_WORK = 4  # keys whose attention costs as much as copying one


@dataclass
class SampleQueue:
    """Samples that wait for a place in the batch; samples of the same state are adjacent.

    Attributes:
      sample: [Q] index of the sample in the call.
      key: uint64 [Q], key of its random numbers.
      start: [Q] length of its prefix.
      limit: [Q] maximum number of tokens.
      state: [Q] index of its state in `hidden`.
      row: [Q] row of the store that holds its prefix.
      hidden: [S, H], the hidden state of each state's last token.
      taken: number of samples that have left the queue.
    """

    sample: np.ndarray
    key: np.ndarray
    start: np.ndarray
    limit: np.ndarray
    state: np.ndarray
    row: np.ndarray
    hidden: torch.Tensor
    taken: int = 0

    def __len__(self) -> int:
        return len(self.sample) - self.taken


class Batch:
    """Samples in flight, and the rows that compute them.

    On the host, per sample: `sample` (its index), `key`, `limit`, `row`. On the host, per row: `start` (prefix length),
    `drawn` (tokens so far), `last` (the last token). On the device, per row: keys and values, the additive mask `bias`,
    `hidden` (the hidden state that the next token is drawn from), `tokens`, `logprobs`, and `entropies` if they are
    requested. There are as many rows as
    samples may be in flight; the first `rows` of them are computed. A row without samples is never read.
    """

    def __init__(
        self,
        model: Any,
        forward: Forward,
        split: Split,
        rows: int,
        capacity: int,
        length: int,
        max_drawn: int,
        params: SamplingParams,
    ) -> None:
        """Make an empty batch.

        Args:
          split: gives the logits of hidden states.
          rows: number of rows to fill.
          capacity: maximum number of samples in flight.
          length: maximum number of tokens of prefix and sample.
          max_drawn: maximum number of tokens of a sample.
        """
        self.forward, self.head, self.params = forward, split.logits, params
        self.device: torch.device = model.device
        self.vocabulary = split.vocabulary
        config = model.get_decoder().config
        self.rows_to_fill, self.capacity, self.rows, max_rows = rows, capacity, 0, whole_blocks(capacity)
        self.sample, self.limit, self.row = (np.zeros(0, np.int64) for _ in range(3))
        self.key = np.zeros(0, np.uint64)
        self.start, self.drawn = np.zeros(max_rows, np.int64), np.zeros(max_rows, np.int64)
        length = self.forward.plan.attention.key_length(length)
        self.cache = KeyValueRows(config, max_rows, length, self.device, model.dtype)
        self.bias = torch.full((max_rows, length), float("-inf"), device=self.device, dtype=model.dtype)
        self.bias[:, 0] = 0  # the softmax of a row without visible keys would be NaN
        self.hidden = torch.zeros(max_rows, split.width, device=self.device, dtype=model.dtype)
        self.tokens = torch.zeros(max_rows, max_drawn, device=self.device, dtype=torch.int32)
        self.logprobs = torch.zeros(max_rows, max_drawn, device=self.device)
        self.entropies = torch.zeros_like(self.logprobs) if params.entropies else None
        self.last = np.zeros(max_rows, np.int64)

    def __len__(self) -> int:
        """Return the number of samples in flight."""
        return len(self.sample)

    @property
    def room(self) -> int:
        """Number of samples that can be added even if each needs a row of its own in the end."""
        return min(self.capacity - len(self), self.rows_to_fill - int(self._used().sum()))

    def admit(self, queue: SampleQueue, store: KeyValueRows) -> None:
        """Add the next samples of the queue; those of the same state share a row."""
        taken = slice(queue.taken, queue.taken + min(self.room, len(queue)))
        queue.taken = taken.stop
        state = queue.state[taken]
        first = np.flatnonzero(np.diff(state, prepend=-1))
        rows = self._free(len(first))
        for name in ("sample", "key", "limit"):
            setattr(self, name, np.concatenate([getattr(self, name), getattr(queue, name)[taken]]))
        self.row = np.concatenate([self.row, np.repeat(rows, np.diff(first, append=len(state)))])
        self.start[rows], self.drawn[rows] = queue.start[taken][first], 0
        places, start = self._on_device(rows), self._on_device(self.start[rows])
        self.cache.copy(places, store, self._on_device(queue.row[taken][first]), int(self.start[rows].max()))
        visible = torch.arange(self.bias.shape[1], device=self.device) < start[:, None]
        self.bias[places] = torch.where(visible, 0.0, float("-inf")).to(self.bias.dtype)
        self.hidden[places] = queue.hidden[self._on_device(state[first])]

    def draw(self) -> np.ndarray:
        """Draw the next token of every sample and append it to its row; split rows whose samples drew different tokens.

        Returns:
          The tokens, int64 [N], in the order of the samples in flight.
        """
        rank = _ranks(self.row)
        numbers = np.zeros((self.rows, int(rank.max()) + 1))
        numbers[self.row, rank] = uniforms(self.key, self.drawn[self.row])
        on_device = torch.from_numpy(numbers).to(self.device)
        size = max(ROWS, _LOGITS // self.vocabulary // ROWS * ROWS)
        parts = zip(self.hidden[: self.rows].split(size), on_device.split(size), strict=True)
        drawn = [self._draw(self.head(hidden), uniform) for hidden, uniform in parts]
        tokens, *figures = (torch.cat(column).cpu().numpy()[self.row, rank] for column in zip(*drawn, strict=True))
        self._append(tokens, figures)
        return tokens

    def _draw(self, logits: torch.Tensor, uniform: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the tokens drawn from some rows and what is recorded of each (`_figures`): [B, K] each."""
        tokens, logprobs = draw_tokens(logits, uniform, self.params)
        if self.entropies is None:
            return tokens, logprobs
        return tokens, logprobs, entropies(logits, self.params)[:, None].expand(uniform.shape)

    @property
    def _figures(self) -> tuple[torch.Tensor, ...]:
        """What is recorded of each drawn token, per row: log-probabilities, and entropies if they are requested."""
        return (self.logprobs,) if self.entropies is None else (self.logprobs, self.entropies)

    def _append(self, tokens: np.ndarray, figures: Sequence[np.ndarray]) -> None:
        """Append the drawn tokens [N] to the samples' rows, and copy the rows whose samples drew different tokens.

        Args:
          figures: of each token, [N] each, in the order of `_figures`.
        """
        _, first, which = np.unique(self.row * self.vocabulary + tokens, return_index=True, return_inverse=True)
        source = self.row[first]
        rows = source.copy()
        moves = np.diff(source, prepend=-1) == 0  # sorted by row: the first group of a row stays in it
        if moves.any():
            rows[moves] = self._free(int(moves.sum()))
            self._copy(source[moves], rows[moves])
        self.row = rows[which]
        places, step = self._on_device(rows), self._on_device(self.drawn[rows])
        self.tokens[places, step] = self._on_device(tokens[first].astype(np.int32))
        for column, values in zip(self._figures, figures, strict=True):
            column[places, step] = self._on_device(values[first])
        self.last[rows] = tokens[first]
        self.drawn[rows] += 1

    def advance(self) -> None:
        """Run the drawn tokens through the model, so that the next ones can be drawn."""
        place = np.maximum(self.start + self.drawn - 1, 0)[: self.rows]
        position = self._on_device(place)[:, None]
        self.bias[: self.rows].scatter_(1, position, 0)
        spans = self._spans(np.where(self._used(), place + 1, 1))
        length = max(keys for _, keys in spans)
        self.cache.aim(slice(0, self.rows), position, length)
        bias = self.bias[: self.rows, None, None, :length]
        last = self._on_device(self.last[: self.rows])[:, None]
        self.hidden[: self.rows] = self.forward(last, bias, self.cache, spans)[:, 0]

    def release(self, ended: np.ndarray) -> list[tuple[int, np.ndarray, list[np.ndarray]]]:
        """Remove samples from the batch.

        Args:
          ended: positions of the samples among those in flight.

        Returns:
          The index and token ids int32 [T] of each sample, and what is recorded of its tokens, float32 [T] each:
          log-probabilities, and entropies if they are requested.
        """
        rows = self.row[ended]
        longest = int(self.drawn[rows].max())
        index = self._on_device(rows)
        tokens = self.tokens[index, :longest].cpu().numpy()
        figures = [column[index, :longest].cpu().numpy() for column in self._figures]
        found = [
            (
                int(self.sample[one]),
                tokens[i, : self.drawn[row]].copy(),
                [values[i, : self.drawn[row]].copy() for values in figures],
            )
            for i, (one, row) in enumerate(zip(ended, rows, strict=True))
        ]
        for name in ("sample", "key", "limit", "row"):
            setattr(self, name, np.delete(getattr(self, name), ended))
        return found

    def arrange(self) -> None:
        """Sort the rows into blocks of similar length and drop blocks without samples, if that saves work.

        Attention of a block spans its longest row. Rows that are in their block already stay where they are.
        """
        length = np.where(self._used(), (self.start + self.drawn)[: self.rows], 0)
        rows = whole_blocks(int((length > 0).sum()))
        order = np.argsort(-length, kind="stable")[:rows]
        stays = order // ROWS == np.arange(rows) // ROWS
        places, moved = np.setdiff1d(np.arange(rows), order[stays]), order[~stays]
        places, moved = places[length[moved] > 0], moved[length[moved] > 0]
        gain = _work(length) - _work(length[order])
        if gain * ARRANGE_EVERY <= _COPY_WORK * length[moved].sum():
            return
        if len(moved):
            self._copy(moved, places)
            where = np.arange(self.rows)
            where[moved] = places
            self.row = where[self.row]
        self.rows = rows

    def _copy(self, source: np.ndarray, target: np.ndarray) -> None:
        """Copy rows; all are read before any is written, so a row may be source and target."""
        length = (self.start + self.drawn)[source]
        for column in (self.start, self.drawn, self.last):
            column[target] = column[source]
        targets, sources = self._on_device(target), self._on_device(source)
        for column in (self.bias, self.tokens, *self._figures, self.hidden):
            column[targets] = column[sources]
        self.cache.copy(targets, self.cache, sources, int(length.max()))

    def _free(self, count: int) -> np.ndarray:
        """Return the first `count` rows without samples; they are computed from now on."""
        used = np.zeros(len(self.start), bool)
        used[self.row] = True
        rows = np.flatnonzero(~used)[:count]
        self.rows = max(self.rows, whole_blocks(int(rows[-1]) + 1))
        return rows

    def _used(self) -> np.ndarray:
        """Return which rows hold samples, bool [rows]."""
        used = np.zeros(self.rows, bool)
        used[self.row] = True
        return used

    def _spans(self, needed: np.ndarray) -> Spans:
        """Return the runs of rows that attend to the same number of keys; one run on a GPU, where launches cost more.

        Args:
          needed: [rows] number of keys that each row needs. A run consists of whole blocks.
        """
        block = self.rows if self.device.type == "cuda" else ROWS
        longest = [self.forward.plan.attention.key_length(int(keys)) for keys in needed.reshape(-1, block).max(axis=1)]
        runs = [(keys, len(list(run))) for keys, run in groupby(longest)]
        ends = np.cumsum([0, *(count for _, count in runs)]).tolist()
        return [
            (slice(first * block, last * block), keys)
            for (first, last), (keys, _) in zip(pairwise(ends), runs, strict=True)
        ]

    def _on_device(self, column: np.ndarray) -> torch.Tensor:
        return torch.tensor(column, device=self.device)


def _ranks(rows: np.ndarray) -> np.ndarray:
    """Return for each entry the number of earlier entries with the same value."""
    order = np.argsort(rows, kind="stable")
    first = np.flatnonzero(np.diff(rows[order], prepend=-1))
    ranks = np.empty_like(rows)
    ranks[order] = np.arange(len(rows)) - np.repeat(first, np.diff(first, append=len(rows)))
    return ranks


def _work(lengths: np.ndarray) -> int:
    """Return the cost of a pass over rows of these lengths, in units of the attention to one key."""
    return int((lengths.reshape(-1, ROWS).max(axis=1) + _ROW_WORK).sum() * ROWS)
