"""Run prefixes through the model, each distinct token once, and keep what sampling from them needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch

from stages.sampling.embedded.forward import Forward
from stages.sampling.embedded.invariance import whole_blocks
from stages.sampling.embedded.kv_cache import KeyValueRows
from stages.sampling.embedded.prefix_memory import PrefixMemory
from stages.sampling.prefix_tree import PathEdge, PrefixPath, PrefixState, split_windows

_TOKENS = {"cpu": 4096, "cuda": 16384}  # maximum of one forward pass, padding included
_LENGTH = 512  # maximum number of tokens of one row in one forward pass


@dataclass(frozen=True)
class Ready:
    """States to sample from, the row of the store of each, and the hidden states [S, H] of their last tokens."""

    states: list[PrefixState]
    rows: np.ndarray
    hidden: torch.Tensor


class PrefixStore:
    """Keys and values of the prefixes of one window at a time.

    Attributes:
      rows: the keys and values.
      prefilled: number of tokens that ran through the model so far, without padding.
    """

    def __init__(
        self,
        model: Any,
        forward: Forward,
        all_paths: Sequence[PrefixPath],
        capacity: int,
        memory: PrefixMemory | None,
        on_pass: Callable[[], None],
    ) -> None:
        """Plan the windows.

        Args:
          capacity: paths of a window.
          on_pass: called after each forward pass.
        """
        self.model, self.forward, self.memory = model, forward, memory
        self.device: torch.device = model.device
        longest = max(len(path.token_ids) for path in all_paths)
        length = self.forward.plan.attention.key_length(longest) + 1  # padding tokens write to the last position
        self.rows = KeyValueRows(model.get_decoder().config, capacity + 1, length, self.device, model.dtype)
        self.prefilled, self._on_pass = 0, on_pass
        self._windows = split_windows(memory.recall(all_paths) if memory else all_paths, capacity)

    def next(self) -> Ready | None:
        """Prefill the next window, which overwrites the previous one; return None after the last window."""
        window = next(self._windows, None)
        if window is None:
            return None
        states: list[PrefixState] = []
        rows: list[int] = []
        hidden: list[torch.Tensor] = []
        for level in window.levels:
            for edges in _batches(level, _TOKENS["cuda" if self.device.type == "cuda" else "cpu"]):
                self._copy(edges)
                for found, of_rows, of_states in self._run(edges):
                    states += found
                    rows += of_rows
                    hidden.append(of_states)
        last = self._on_device([window.last_row])
        self.rows.copy(torch.zeros_like(last), self.rows, last, self.rows.length)
        return Ready(states, np.array(rows), torch.cat(hidden))

    def _copy(self, edges: list[PathEdge]) -> None:
        """Copy the tokens that are computed already to the edges' rows."""
        recalled = [edge for edge in edges if edge.path.known > edge.path.shared]
        shared = [edge for edge in edges if 0 < edge.path.shared >= edge.path.known]
        for source, group in ((self.rows, shared), (self.memory and self.memory.rows, recalled)):
            if group and source is not None:
                of = [edge.source if source is self.rows else edge.path.known_row for edge in group]
                targets = self._on_device([edge.row for edge in group])
                self.rows.copy(targets, source, self._on_device(of), max(edge.path.start for edge in group))

    def _run(self, edges: list[PathEdge]) -> Iterator[tuple[list[PrefixState], list[int], torch.Tensor]]:
        """Compute the own tokens of edges in consecutive rows; yield states, their rows and their hidden states."""
        starts = np.array([edge.path.start for edge in edges])
        ends = np.array([len(edge.path.token_ids) for edge in edges])
        whole = [edge for edge, own in zip(edges, ends - starts, strict=True) if own == 0]
        if whole and self.memory:
            hidden = self.memory.hidden[self._on_device([edge.path.known_row for edge in whole])]
            yield [edge.path.states[-1] for edge in whole], [edge.row for edge in whole], hidden
        edges = edges[: len(edges) - len(whole)]
        starts, ends = starts[: len(edges)], ends[: len(edges)]
        for offset in range(0, int((ends - starts).max(initial=0)), _LENGTH):
            froms = starts + offset
            stops = np.minimum(froms + _LENGTH, ends)
            self.prefilled += int(np.maximum(stops - froms, 0).sum())
            hidden = self._forward(edges, froms, stops)
            self._on_pass()
            inside = [
                (state, edge.row, i * hidden.shape[1] + state.length - 1 - int(froms[i]))
                for i, edge in enumerate(edges)
                for state in edge.path.states
                if froms[i] < state.length <= stops[i]
            ]
            if inside:
                states, rows, places = (list(column) for column in zip(*inside, strict=True))
                yield states, rows, hidden.flatten(0, 1)[self._on_device(places)]

    def _forward(self, edges: list[PathEdge], starts: np.ndarray, stops: np.ndarray) -> torch.Tensor:
        """Return hidden states [B, T, H] of the tokens starts … stops of each edge's path, T padded to whole blocks."""
        length = whole_blocks(int((stops - starts).max()))
        ids = np.zeros((len(edges), length), np.int64)
        for i, edge in enumerate(edges):
            own = edge.path.token_ids[starts[i] : stops[i]]
            ids[i, : len(own)] = own
        positions = torch.from_numpy(starts[:, None] + np.arange(length)).to(self.device)
        keys = self.forward.plan.attention.key_length(int(stops.max()))
        visible = torch.arange(keys, device=self.device) <= positions[:, :, None]
        bias = torch.where(visible, 0.0, float("-inf")).to(self.model.dtype)[:, None]
        self.rows.aim(slice(edges[0].row, edges[-1].row + 1), positions.clamp(max=self.rows.length - 1), keys)
        return self.forward(torch.from_numpy(ids).to(self.device), bias, self.rows)

    def _on_device(self, numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, device=self.device)


def _padded(edge: PathEdge) -> int:
    """Return the padded number of an edge's tokens in one forward pass."""
    return min(_LENGTH, whole_blocks(len(edge.path.token_ids) - edge.path.start))


def _batches(level: list[PathEdge], most_tokens: int) -> Iterator[list[PathEdge]]:
    """Yield consecutive edges with the same padded length, as many as fit into one forward pass."""
    for length, run in groupby(level, _padded):
        edges, count = list(run), max(1, most_tokens // length)
        yield from (edges[first : first + count] for first in range(0, len(edges), count))
