"""The batch in flight: rows of distinct sequences, each shared by the samples that have drawn the same tokens so far.

Samples of one state begin in one row. When they draw different tokens, all but the first to do so go on in copies. So
what samples have in common is computed once: much of a tree, and of the rollouts of a model that is sure of itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch

from stages.maths.randomness import uniforms
from stages.sampling.draws import draw_tokens
from stages.sampling.embedded.forward import Forward, Spans
from stages.sampling.embedded.invariance import ROWS, whole_blocks
from stages.sampling.embedded.kv_cache import KeyValueRows
from stages.sampling.protocol import SamplingParams

_LOGITS = 2**24  # most logits in hand
LOOK_EVERY = 8  # steps between looks at how the rows lie
_ROW_WORK = 96  # keys whose attention costs as much as the rest of a row's pass; measured on the tiny preset
_COPY_WORK = 4  # keys whose attention costs as much as copying one


@dataclass
class SampleQueue:
    """Samples that wait, one an entry, those of a state in a row; `hidden` holds a line per state.

    Attributes:
      sample: [Q] number of the sample in the call.
      key: uint64 [Q]. start: [Q] prefix length. limit: [Q] most tokens.
      state: [Q] line of `hidden`. row: [Q] row of the store that holds the prefix.
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

    On the host, per sample: `sample` (its number), `key`, `limit`, `row`. On the host, per row: `start` (prefix
    length), `drawn` (tokens so far). On the device, per row: keys and values, the additive mask `bias`, `hidden` (what
    the next token is drawn from), `tokens`, `logprobs`. There are as many rows as samples may be in flight, and the
    first `rows` of them are computed; nothing reads what a row without samples holds.
    """

    def __init__(
        self,
        model: Any,
        forward: Forward,
        rows: int,
        capacity: int,
        length: int,
        most_drawn: int,
        params: SamplingParams,
    ) -> None:
        """A batch that wants `rows` rows filled, by at most `capacity` samples, of at most `length` tokens."""
        self.forward, self.head, self.params = forward, model.get_output_embeddings(), params
        self.device: torch.device = model.device
        self.vocabulary: int = self.head.weight.shape[0]
        config = model.get_decoder().config
        self.wanted, self.capacity, self.rows, most_rows = rows, capacity, 0, whole_blocks(capacity)
        self.sample, self.limit, self.row = (np.zeros(0, np.int64) for _ in range(3))
        self.key = np.zeros(0, np.uint64)
        self.start, self.drawn = np.zeros(most_rows, np.int64), np.zeros(most_rows, np.int64)
        length = self.forward.plan.attention.key_length(length)
        self.cache = KeyValueRows(config, most_rows, length, self.device, model.dtype)
        self.bias = torch.full((most_rows, length), float("-inf"), device=self.device, dtype=model.dtype)
        self.bias[:, 0] = 0  # a row that sees nothing would be NaN
        self.hidden = torch.zeros(most_rows, config.hidden_size, device=self.device, dtype=model.dtype)
        self.tokens = torch.zeros(most_rows, most_drawn, device=self.device, dtype=torch.int32)
        self.logprobs = torch.zeros(most_rows, most_drawn, device=self.device)
        self.last = np.zeros(most_rows, np.int64)

    def __len__(self) -> int:
        """Samples in flight."""
        return len(self.sample)

    @property
    def room(self) -> int:
        """How many more samples can be taken, if each should come to need a row of its own."""
        return min(self.capacity - len(self), self.wanted - int(self._used().sum()))

    def admit(self, queue: SampleQueue, store: KeyValueRows) -> None:
        """Takes the next samples of the queue, those of one state into one row."""
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
        """Draws the next token of every sample, int64 [N], and appends it to the sample's row; samples of one row that
        drew different tokens part."""
        rank = _ranks(self.row)
        numbers = np.zeros((self.rows, int(rank.max()) + 1))
        numbers[self.row, rank] = uniforms(self.key, self.drawn[self.row])
        on_device = torch.from_numpy(numbers).to(self.device)
        size = max(ROWS, _LOGITS // self.vocabulary // ROWS * ROWS)
        parts = [
            draw_tokens(self.head(hidden), uniform, self.params)
            for hidden, uniform in zip(self.hidden[: self.rows].split(size), on_device.split(size), strict=True)
        ]
        tokens, logprobs = (torch.cat(column).cpu().numpy()[self.row, rank] for column in zip(*parts, strict=True))
        self._append(tokens, logprobs)
        return tokens

    def _append(self, tokens: np.ndarray, logprobs: np.ndarray) -> None:
        _, first, which = np.unique(self.row * self.vocabulary + tokens, return_index=True, return_inverse=True)
        source = self.row[first]
        rows = source.copy()
        parts = np.diff(source, prepend=-1) == 0  # sorted by row: the first of each stays
        if parts.any():
            rows[parts] = self._free(int(parts.sum()))
            self._copy(source[parts], rows[parts])
        self.row = rows[which]
        places, step = self._on_device(rows), self._on_device(self.drawn[rows])
        self.tokens[places, step] = self._on_device(tokens[first].astype(np.int32))
        self.logprobs[places, step] = self._on_device(logprobs[first])
        self.last[rows] = tokens[first]
        self.drawn[rows] += 1

    def advance(self) -> None:
        """Runs the tokens just drawn through the model, so that the next ones can be drawn."""
        place = np.maximum(self.start + self.drawn - 1, 0)[: self.rows]
        position = self._on_device(place)[:, None]
        self.bias[: self.rows].scatter_(1, position, 0)
        spans = self._spans(np.where(self._used(), place + 1, 1))
        length = max(keys for _, keys in spans)
        self.cache.aim(slice(0, self.rows), position, length)
        bias = self.bias[: self.rows, None, None, :length]
        last = self._on_device(self.last[: self.rows])[:, None]
        self.hidden[: self.rows] = self.forward(last, bias, self.cache, spans)[:, 0]

    def release(self, ended: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Lets go of samples (positions); of each its number, token ids int32 [T], log-probabilities float32 [T]."""
        rows = self.row[ended]
        longest = int(self.drawn[rows].max())
        index = self._on_device(rows)
        tokens = self.tokens[index, :longest].cpu().numpy()
        logprobs = self.logprobs[index, :longest].cpu().numpy()
        found = [
            (int(self.sample[one]), tokens[i, : self.drawn[row]].copy(), logprobs[i, : self.drawn[row]].copy())
            for i, (one, row) in enumerate(zip(ended, rows, strict=True))
        ]
        for name in ("sample", "key", "limit", "row"):
            setattr(self, name, np.delete(getattr(self, name), ended))
        return found

    def arrange(self) -> None:
        """Sorts the rows into blocks of like length and leaves out blocks without samples, if it is worth its while.

        Attention spans the longest row of a block. KeyValueRows that are in their block already stay where they are.
        """
        length = np.where(self._used(), (self.start + self.drawn)[: self.rows], 0)
        rows = whole_blocks(int((length > 0).sum()))
        order = np.argsort(-length, kind="stable")[:rows]
        stays = order // ROWS == np.arange(rows) // ROWS
        places, moved = np.setdiff1d(np.arange(rows), order[stays]), order[~stays]
        places, moved = places[length[moved] > 0], moved[length[moved] > 0]
        gain = _work(length) - _work(length[order])
        if gain * LOOK_EVERY <= _COPY_WORK * length[moved].sum():
            return
        if len(moved):
            self._copy(moved, places)
            where = np.arange(self.rows)
            where[moved] = places
            self.row = where[self.row]
        self.rows = rows

    def _copy(self, source: np.ndarray, target: np.ndarray) -> None:
        """Copies rows, as if all at once: a row may be left and taken."""
        length = (self.start + self.drawn)[source]
        for column in (self.start, self.drawn, self.last):
            column[target] = column[source]
        to, of = self._on_device(target), self._on_device(source)
        for column in (self.bias, self.tokens, self.logprobs, self.hidden):
            column[to] = column[of]
        self.cache.copy(to, self.cache, of, int(length.max()))

    def _free(self, count: int) -> np.ndarray:
        """The first rows without samples, which are computed from now on."""
        used = np.zeros(len(self.start), bool)
        used[self.row] = True
        rows = np.flatnonzero(~used)[:count]
        self.rows = max(self.rows, whole_blocks(int(rows[-1]) + 1))
        return rows

    def _used(self) -> np.ndarray:
        """bool [rows]: which rows hold samples."""
        used = np.zeros(self.rows, bool)
        used[self.row] = True
        return used

    def _spans(self, needed: np.ndarray) -> Spans:
        """Runs of rows, in blocks, that attend to the same number of keys; on a GPU one run, as launches cost more."""
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
    """For each entry, how many before it have the same value."""
    order = np.argsort(rows, kind="stable")
    first = np.flatnonzero(np.diff(rows[order], prepend=-1))
    ranks = np.empty_like(rows)
    ranks[order] = np.arange(len(rows)) - np.repeat(first, np.diff(first, append=len(rows)))
    return ranks


def _work(lengths: np.ndarray) -> int:
    """What a pass over rows of these lengths costs, in keys attended to."""
    return int((lengths.reshape(-1, ROWS).max(axis=1) + _ROW_WORK).sum() * ROWS)
