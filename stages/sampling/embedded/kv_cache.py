"""Keys and values of a call, in rows of preallocated tensors that are read and written in place."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from transformers import Cache, PreTrainedConfig

_ALIGNED = 64  # bytes: the alignment of torch's own allocations


class KeyValueRows(Cache):
    """Keys and values of many sequences, one per row, at their own positions.

    Attributes:
      keys: [layers, rows, key heads, head width, length], the layout that the product with the queries reads fastest.
      values: [layers, rows, key heads, length, head width]. Both hold zeros where nothing was written: a NaN would pass
        through the mask.
      length: number of positions in a row.
      positions: int64 [B, T], where the next forward pass writes.
    """

    def __init__(self, config: PreTrainedConfig, rows: int, length: int, device: torch.device, dtype: torch.dtype):
        super().__init__(layers=[])
        layers, heads, width = _shape(config)
        self.length = length
        self.keys = _zeros((layers, rows, heads, width, length), device, dtype)
        self.values = _zeros((layers, rows, heads, length, width), device, dtype)
        self.aim(slice(0, 0), torch.empty(0, 0, dtype=torch.int64), 0)

    def aim(self, rows: slice, positions: torch.Tensor, length: int) -> None:
        """Set where the next pass writes (positions int64 [B, T] of these B rows) and reads (up to `length`)."""
        self._rows, self.positions, self._read = rows, positions, length
        self._index = torch.arange(len(positions), device=positions.device)[:, None]

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write keys and values, both [B, T, heads, width].

        Returns:
          Keys [B, heads, width, length] and values [B, heads, length, width] of the same rows.
        """
        all_keys, all_values = self.keys[layer, self._rows], self.values[layer, self._rows]
        all_keys[self._index, :, :, self.positions] = keys
        all_values[self._index, :, self.positions] = values
        return all_keys[..., : self._read], all_values[:, :, : self._read]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Do `write` as transformers' modules call it: [B, heads, T, width] in, [B, heads, length, width] out."""
        keys, values = self.write(layer_idx, key_states.transpose(1, 2), value_states.transpose(1, 2))
        return keys.transpose(-1, -2), values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._read

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._read, 0

    def copy(self, targets: torch.Tensor, source: KeyValueRows, rows: torch.Tensor, length: int) -> None:
        """Copy the first `length` positions of rows [N] of the source to rows `targets` [N] of this cache.

        All rows are read before any is written, so the source may be this cache and rows may be both.
        """
        self.keys[..., :length].index_copy_(1, targets, source.keys[:, rows, ..., :length])
        self.values[..., :length, :].index_copy_(1, targets, source.values[:, rows, :, :length])


def bytes_per_token(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Return the bytes of one position of one row."""
    layers, heads, width = _shape(config)
    return layers * 2 * heads * width * dtype.itemsize


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return zeros; on a CPU they take no memory until they are written to, unlike those of `torch.zeros`."""
    if device.type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    size = math.prod(shape) * dtype.itemsize
    held = np.zeros(size + _ALIGNED, np.uint8)
    first = -held.ctypes.data % _ALIGNED
    return torch.from_numpy(held[first : first + size]).view(dtype).view(shape)


def _shape(config: PreTrainedConfig) -> tuple[int, int, int]:
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.num_hidden_layers, getattr(config, "num_key_value_heads", None) or heads, width
