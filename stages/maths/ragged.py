"""Represent sequences of different lengths as one flat array and the offsets at which each sequence begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray


@dataclass(frozen=True, eq=False)
class Ragged:
    """Hold N sequences end to end: sequence i is `values[offsets[i] : offsets[i + 1]]`.

    `offsets[0]` may be above 0 and `offsets[-1]` below V, for rows of a larger table; `flat` is the range between them.

    Attributes:
      values: [V] of any dtype.
      offsets: [N + 1] int64, never decreasing.

    Raises:
      ValueError: the offsets are empty, decrease, or are out of the range of the values.
    """

    values: NDArray
    offsets: NDArray[np.int64]

    def __post_init__(self) -> None:
        values, offsets = np.asarray(self.values), np.asarray(self.offsets, dtype=np.int64)
        if values.ndim != 1 or offsets.ndim != 1 or offsets.size == 0:
            raise ValueError(f"expected values [V] and offsets [N + 1]; got {values.shape} and {offsets.shape}")
        if offsets[0] < 0 or offsets[-1] > values.size or np.any(offsets[1:] < offsets[:-1]):
            raise ValueError(
                f"expected non-decreasing offsets from 0 to {values.size}, the number of values; got {offsets}"
            )
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "offsets", offsets)

    @classmethod
    def of(cls, sequences: Sequence[ArrayLike], dtype: DTypeLike) -> Ragged:
        """Copy a list of sequences, for example `Ragged.of([[1, 2], []], np.int32)`."""
        rows = [np.asarray(sequence, dtype=dtype) for sequence in sequences]
        values = np.concatenate(rows) if rows else np.empty(0, dtype)
        return cls(values, offsets_of(np.array([row.size for row in rows], np.int64)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[N] int64, number of values of each sequence."""
        return np.diff(self.offsets)

    @property
    def flat(self) -> NDArray:
        """[Σ lengths], all sequences end to end, as a view."""
        return self.values[self.offsets[0] : self.offsets[-1]]

    def __len__(self) -> int:
        return self.offsets.size - 1

    def __getitem__(self, index: int) -> NDArray:
        """Return a view of sequence `index`; negative indices count from the end."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        index %= len(self)
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def __iter__(self) -> Iterator[NDArray]:
        return (self[index] for index in range(len(self)))


def offsets_of(lengths: ArrayLike) -> NDArray[np.int64]:
    """Return the offsets [N + 1] int64 of sequences with lengths [N]; the first is 0."""
    lengths = np.asarray(lengths, dtype=np.int64)
    offsets = np.zeros(lengths.size + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def gather_ranges(values: NDArray, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Ragged:
    """Copy N ranges of an array, which may overlap: sequence i is `values[starts[i] : starts[i] + lengths[i]]`."""
    offsets = offsets_of(lengths)
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    return Ragged(values[np.repeat(starts, lengths) + within], offsets)
