"""Where keys and values lie while a call runs: rows of one preallocated tensor, read and written in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import Cache, PreTrainedConfig


class Rows(Cache):
    """Keys and values of many sequences, one a row, at their own positions.

    Attributes:
      data: [rows, layers, 2, key heads, length, head width]; zeros where nothing was written (never a NaN, which a
        mask would not hide).
    """

    def __init__(self, config: PreTrainedConfig, rows: int, length: int, device: torch.device, dtype: torch.dtype):
        super().__init__(layers=[])
        layers, heads, width = _shape(config)
        self.data = torch.zeros(rows, layers, 2, heads, length, width, device=device, dtype=dtype)
        self.aim(slice(0, 0), torch.empty(0, 0, dtype=torch.int64), 0)

    def aim(self, rows: slice, positions: torch.Tensor, length: int) -> None:
        """Says where the next forward pass writes (positions int64 [B, T] of these B rows) and reads (up to length)."""
        self._rows, self._positions, self._length = rows, positions, length
        self._index = torch.arange(len(positions), device=positions.device)[:, None]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes [B, heads, T, width] and returns views [B, heads, length, width]."""
        keys, values = self.data[self._rows, layer_idx].unbind(1)
        for stored, new in ((keys, key_states), (values, value_states)):
            stored.transpose(1, 2)[self._index, self._positions] = new.transpose(1, 2)
        return keys[:, :, : self._length], values[:, :, : self._length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._length, 0

    def copy(self, targets: torch.Tensor, source: Rows, rows: torch.Tensor, length: int) -> None:
        """Copies the first `length` positions of the source's rows [N] to rows `targets` [N] of this one."""
        self.data[..., :length, :].index_copy_(0, targets, source.data[..., :length, :].index_select(0, rows))

    def move(self, moves: Sequence[tuple[np.ndarray, np.ndarray, int]]) -> None:
        """Copies rows (from, to, how many positions), as if all at once: a row may be left and taken."""
        on_device = [[torch.from_numpy(rows).to(self.data.device) for rows in move[:2]] for move in moves]
        lengths = [move[2] for move in moves]
        held = [
            self.data[..., :length, :].index_select(0, of) for (of, _), length in zip(on_device, lengths, strict=True)
        ]
        for (_, to), length, copied in zip(on_device, lengths, held, strict=True):
            self.data[..., :length, :].index_copy_(0, to, copied)


def bytes_per_token(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Memory of one position of one row."""
    layers, heads, width = _shape(config)
    return layers * 2 * heads * width * dtype.itemsize


def heads_per_key_head(config: PreTrainedConfig) -> int:
    """Query heads that share one head of keys and values."""
    return config.num_attention_heads // _shape(config)[1]


def _shape(config: PreTrainedConfig) -> tuple[int, int, int]:
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.num_hidden_layers, getattr(config, "num_key_value_heads", None) or heads, width
