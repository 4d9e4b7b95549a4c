"""Runs prefixes through the model, each distinct token once, and keeps what sampling from them needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stages.engines.invariance import ROWS, key_length, whole_blocks
from stages.engines.keyvalues import Rows
from stages.engines.prefixes import Edge, Path, State, windows

_TOKENS = {"cpu": 4096, "cuda": 16384}  # of one forward pass, padding included
_LENGTH = 512  # most tokens of one row in one forward pass


@dataclass(frozen=True)
class Ready:
    """States to sample from: which, the store's row of each, and the hidden state of their last token [S, width]."""

    states: list[State]
    rows: np.ndarray
    hidden: torch.Tensor


class PrefixStore:
    """Keys and values of the prefixes of one window at a time.

    Attributes:
      rows: the keys and values.
      prefilled: tokens run through the model so far, padding not counted.
    """

    def __init__(self, model: Any, all_paths: Sequence[Path], capacity: int, context_length: int) -> None:
        self.model, self.decoder = model, model.get_decoder()
        self.device: torch.device = model.device
        longest = max(len(path.token_ids) for path in all_paths)
        length = key_length(longest, ROWS) + 1  # the last position takes what padding writes
        self.rows = Rows(self.decoder.config, capacity + 1, length, self.device, model.dtype)
        self.last_position = context_length - 1
        self.prefilled = 0
        self._windows = windows(all_paths, capacity)

    def next(self) -> Ready | None:
        """Prefills the next window, over the one before; None when there is none left."""
        window = next(self._windows, None)
        if window is None:
            return None
        found: list[tuple[State, int, torch.Tensor]] = []
        for level in window.levels:
            for edges in _batches(level, _TOKENS["cuda" if self.device.type == "cuda" else "cpu"]):
                found += self._run(edges)
        last = torch.tensor([window.last_row], device=self.device)
        self.rows.copy(torch.zeros_like(last), self.rows, last, self.rows.data.shape[-2])
        return Ready(
            [state for state, _, _ in found],
            np.array([row for _, row, _ in found]),
            torch.stack([hidden for _, _, hidden in found]),
        )

    def _run(self, edges: list[Edge]) -> list[tuple[State, int, torch.Tensor]]:
        """Computes the own tokens of edges in consecutive rows; returns their states, with row and hidden state."""
        rows = slice(edges[0].row, edges[-1].row + 1)
        shared = np.array([edge.path.shared for edge in edges])
        ends = np.array([len(edge.path.token_ids) for edge in edges])
        if shared.any():
            targets, sources = (
                torch.tensor([getattr(edge, name) for edge in edges], device=self.device) for name in ("row", "source")
            )
            self.rows.copy(targets, self.rows, sources, int(shared.max()))
        found: list[tuple[State, int, torch.Tensor]] = []
        for offset in range(0, int((ends - shared).max()), _LENGTH):
            starts = shared + offset
            stops = np.minimum(starts + _LENGTH, ends)
            self.prefilled += int(np.maximum(stops - starts, 0).sum())
            hidden = self._forward(edges, rows, starts, stops)
            for i, edge in enumerate(edges):
                inside = (state for state in edge.path.states if starts[i] < state.length <= stops[i])
                found += [(state, edge.row, hidden[i, state.length - 1 - starts[i]]) for state in inside]
        return found

    def _forward(self, edges: list[Edge], rows: slice, starts: np.ndarray, stops: np.ndarray) -> torch.Tensor:
        """Hidden states [B, T, width] of the tokens starts … stops of each edge's path, padded to blocks of rows."""
        length = whole_blocks(int((stops - starts).max()))
        ids = np.zeros((len(edges), length), np.int64)
        for i, edge in enumerate(edges):
            own = edge.path.token_ids[starts[i] : stops[i]]
            ids[i, : len(own)] = own
        positions = torch.from_numpy(starts[:, None] + np.arange(length)).to(self.device)
        keys = key_length(int(stops.max()), ROWS)
        visible = torch.arange(keys, device=self.device) <= positions[:, :, None]
        bias = torch.where(visible, 0.0, float("-inf")).to(self.model.dtype)[:, None]
        self.rows.aim(rows, positions.clamp(max=self.rows.data.shape[-2] - 1), keys)
        output = self.decoder(
            input_ids=torch.from_numpy(ids).to(self.device),
            attention_mask=bias,
            position_ids=positions.clamp(max=self.last_position),
            past_key_values=self.rows,
            use_cache=True,
        )
        return output.last_hidden_state


def _batches(level: list[Edge], most_tokens: int) -> Iterator[list[Edge]]:
    """Consecutive edges, the longest first, as many as fit one forward pass when padded to the longest."""
    first = 0
    while first < len(level):
        path = level[first].path
        length = min(_LENGTH, whole_blocks(len(path.token_ids) - path.shared))
        count = max(1, most_tokens // length)
        yield level[first : first + count]
        first += count
