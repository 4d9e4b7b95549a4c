"""Find cutpoints, the tokens at which a response could have continued differently, and partition responses.

Every partition covers every response exactly and in order, with half-open token ranges. Only a response without tokens
has an empty segment (exactly one). `lengths` is [N], the number of tokens of each response; flat arrays over tokens are
[V], V = Σ lengths, responses end to end. Paper: arXiv 2505.23564, segment partition.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.core.errors import UserError
from stages.maths.ragged import Ragged, offsets_of

_MAX_LOGPROB = 0.01
"""Rounding may lift the log-probability of a certain token a little above 0; larger values are not accepted."""

_MAX_STARTS_SHOWN = 12
"""Segment starts that an error message lists at most."""


@dataclass(frozen=True, eq=False)
class Segments:
    """Hold S segments, sorted by (trajectory, start); every trajectory 0 … N − 1 has at least one.

    Attributes:
      trajectory: [S] int64, row of `lengths` that each segment belongs to.
      start, end: [S] int64; the segment consists of the tokens start … end − 1 of the response.
    """

    trajectory: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]

    def __len__(self) -> int:
        return self.trajectory.size

    @property
    def is_first(self) -> NDArray[np.bool_]:
        """[S] bool, whether each segment is the first of its trajectory."""
        first = np.ones(len(self), np.bool_)
        np.not_equal(self.trajectory[1:], self.trajectory[:-1], out=first[1:])
        return first

    @property
    def is_last(self) -> NDArray[np.bool_]:
        """[S] bool, whether each segment is the last of its trajectory."""
        last = np.ones(len(self), np.bool_)
        np.not_equal(self.trajectory[1:], self.trajectory[:-1], out=last[:-1])
        return last

    @property
    def number(self) -> NDArray[np.int64]:
        """[S] int64, the index of each segment within its trajectory: 0, 1, 2 …"""
        firsts = np.flatnonzero(self.is_first)
        return _count_up(np.diff(firsts, append=len(self)))


def find_cutpoints(logprobs: Ragged, rho: float) -> NDArray[np.bool_]:
    """Return the cutpoints U = { t : p_t < ρ }, with a strict inequality.

    This is the only comparison of a probability with ρ; all other code reads its result. The result is that of
    log p_t < log ρ in float64, also for log-probabilities of lower precision.

    Args:
      logprobs: N ragged rows of floats, natural logs; −inf is a probability of 0.
      rho: ρ, in (0, 1].

    Returns:
      [V] bool over the tokens of all rows, end to end.

    Raises:
      ValueError: ρ is outside (0, 1], or the values are not floats.
      UserError: a value is NaN or clearly above 0 (for example a probability instead of its logarithm).
    """
    if not 0 < rho <= 1:
        raise ValueError(f"rho must be in (0, 1]; got {rho}")
    values = logprobs.flat
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"expected floating log-probabilities; got {values.dtype}")
    if values.size == 0:
        return np.zeros(0, np.bool_)
    highest = values.max()
    if not highest <= _MAX_LOGPROB:  # not `>`: a NaN fails every comparison
        token = int(np.flatnonzero(~(values <= _MAX_LOGPROB))[0]) + int(logprobs.offsets[0])
        row = int(np.searchsorted(logprobs.offsets, token, side="right")) - 1
        raise UserError(
            f"log-probabilities must be natural logs, at most 0; found {logprobs.values[token]} at token"
            f" {token - int(logprobs.offsets[row])} of row {row}"
        )
    return values < _round_up(np.log(rho), values.dtype)


def partition_by_cutpoints(lengths: ArrayLike, is_cutpoint: NDArray[np.bool_], interval: int) -> Segments:
    """Partition at every k-th cutpoint: segments begin at cutpoints 1, k + 1, 2k + 1 … (SPO-chain).

    The partition minimizes Σ_s |U ∩ s|² among those whose segments, except the last, contain at least k cutpoints. The
    tokens before the first cutpoint form a segment of their own, without cutpoints.

    Args:
      lengths: [N].
      is_cutpoint: [V] bool, from `find_cutpoints`.
      interval: k ≥ 1.

    Raises:
      ValueError: k is less than 1, or the number of flags is not V.
    """
    lengths, offsets = _with_offsets(lengths)
    _check_positive(interval, "interval")
    _check_flags(is_cutpoint, offsets)
    positions = np.flatnonzero(is_cutpoint)
    per_row = np.diff(np.searchsorted(positions, offsets))
    return _segments_from_positions(positions[_count_up(per_row) % interval == 0], lengths, offsets)


def partition_by_length(lengths: ArrayLike, size: int) -> Segments:
    """Partition into segments of `size` tokens; the last segment of a response has the remaining tokens.

    Raises:
      ValueError: size is less than 1.
    """
    lengths, _ = _with_offsets(lengths)
    _check_positive(size, "size")
    counts = np.maximum(-(-lengths // size), 1)  # rounded up
    trajectory, start = _rows_and_indices(counts)
    start *= size
    end = start + size
    end[np.cumsum(counts) - 1] = lengths
    return Segments(trajectory, start, end)


def partition_by_count(lengths: ArrayLike, segments: int) -> Segments:
    """Partition into K = `segments` segments of equal length: T = qK + r tokens make r of q + 1 tokens, K − r of q.

    The longer segments come first. A response with fewer tokens than K has one segment per token.

    Raises:
      ValueError: segments is less than 1.
    """
    lengths, _ = _with_offsets(lengths)
    _check_positive(segments, "segments")
    quotient, remainder = np.divmod(lengths, segments)
    trajectory, number = _rows_and_indices(np.clip(lengths, 1, segments))
    quotient, remainder = quotient[trajectory], remainder[trajectory]
    start = number * quotient + np.minimum(number, remainder)
    return Segments(trajectory, start, start + quotient + (number < remainder))


def partition_by_token(lengths: ArrayLike) -> Segments:
    """Partition into single tokens."""
    return partition_by_length(lengths, 1)


def partition_by_trajectory(lengths: ArrayLike) -> Segments:
    """Partition into whole responses: one segment each."""
    return partition_by_count(lengths, 1)


def partition_at_boundaries(lengths: ArrayLike, starts: Ragged) -> Segments:
    """Partition at given token offsets, for example from delimiters or a user's function.

    Args:
      lengths: [N].
      starts: N ragged rows of integers in [0, T), strictly increasing within a row; 0 may be omitted.

    Raises:
      UserError: the number of rows is not N, or a row is not increasing or outside [0, T). The message shows the row.
    """
    lengths, offsets = _with_offsets(lengths)
    if len(starts) != lengths.size:
        raise UserError(f"expected segment starts for {lengths.size} responses; got {len(starts)}")
    values = starts.flat
    if values.size and not np.issubdtype(values.dtype, np.integer):
        raise UserError(f"segment starts must be integers (token offsets); got {values.dtype}")
    values = values.astype(np.int64)
    row = np.repeat(np.arange(lengths.size), starts.lengths)
    invalid = (values < 0) | (values >= lengths[row])
    invalid[1:] |= (row[1:] == row[:-1]) & (values[1:] <= values[:-1])
    if invalid.any():
        i = int(row[np.argmax(invalid)])
        raise UserError(
            f"segment starts must increase and be in [0, {lengths[i]}), the tokens of response {i};"
            f" got {_shorten(starts[i].tolist())}"
        )
    return _segments_from_positions(values + offsets[row], lengths, offsets)


def delimiter_starts(token_texts: Sequence[str], pattern: re.Pattern[str]) -> list[int]:
    """Return the segment starts of one response that is split after every match of a regular expression.

    A segment starts at the first token that begins at or after the end of a match. A token that contains the end of a
    match and text behind it therefore belongs to the left segment.

    Args:
      token_texts: the text of each token; the pattern is searched in their concatenation.
      pattern: matches the end of a segment, for example a line break.

    Returns:
      Increasing offsets in (0, T): a row for `partition_at_boundaries`.
    """
    matches = pattern.finditer("".join(token_texts))
    begins = list(accumulate(map(len, token_texts), initial=0))[:-1]
    starts = {bisect_left(begins, match.end()) for match in matches}
    return sorted(starts - {0, len(begins)})


def segment_cutpoints(segments: Segments, lengths: ArrayLike, is_cutpoint: NDArray[np.bool_]) -> Ragged:
    """Return the cutpoints of each segment, as token offsets in the response: the probability mask.

    Args:
      segments: S segments that cover the responses.
      lengths: [N].
      is_cutpoint: [V] bool.

    Returns:
      S ragged rows, int32.

    Raises:
      ValueError: the number of flags is not V.
    """
    lengths, offsets = _with_offsets(lengths)
    _check_flags(is_cutpoint, offsets)
    positions = np.flatnonzero(is_cutpoint)
    borders = np.append(offsets[segments.trajectory] + segments.start, offsets[-1])
    per_row = np.diff(np.searchsorted(positions, offsets))
    values = (positions - np.repeat(offsets[:-1], per_row)).astype(np.int32)
    return Ragged(values, np.searchsorted(positions, borders))


def _segments_from_positions(
    positions: NDArray[np.int64], lengths: NDArray[np.int64], offsets: NDArray[np.int64]
) -> Segments:
    """Return the segments that begin at the first token of each response and at the given flat token positions."""
    is_start = np.zeros(int(offsets[-1]), np.bool_)
    is_start[positions] = True
    is_start[offsets[:-1][lengths > 0]] = True
    positions = np.flatnonzero(is_start)
    per_row = np.diff(np.searchsorted(positions, offsets))
    trajectory = np.repeat(np.arange(lengths.size), np.maximum(per_row, 1))
    start = np.zeros(trajectory.size, np.int64)
    start[lengths[trajectory] > 0] = positions - np.repeat(offsets[:-1], per_row)
    end = np.roll(start, -1)
    end[np.cumsum(np.maximum(per_row, 1)) - 1] = lengths
    return Segments(trajectory, start, end)


def _rows_and_indices(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the row, and the index within the row, of each of Σ counts items: [2, 1] → [0, 0, 1], [0, 1, 0]."""
    return np.repeat(np.arange(counts.size), counts), _count_up(counts)


def _count_up(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the indices within rows of the given sizes: [2, 3] → [0, 1, 0, 1, 2]."""
    offsets = offsets_of(counts)
    numbers = np.arange(offsets[-1])
    numbers -= np.repeat(offsets[:-1], counts)
    return numbers


def _round_up(value: float, dtype: np.dtype) -> np.floating:
    """Return the smallest number r ≥ value of a float type; x < r and x < value then agree for every x of that type."""
    rounded = dtype.type(value)
    return rounded if float(rounded) >= value else np.nextafter(rounded, dtype.type(np.inf))


def _with_offsets(lengths: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    lengths = np.asarray(lengths, np.int64)
    if lengths.ndim != 1 or np.any(lengths < 0):
        raise ValueError(f"expected non-negative lengths [N]; got shape {lengths.shape}")
    return lengths, offsets_of(lengths)


def _check_positive(value: int, name: str) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}")


def _check_flags(is_cutpoint: NDArray[np.bool_], offsets: NDArray[np.int64]) -> None:
    if is_cutpoint.dtype != np.bool_ or is_cutpoint.shape != (offsets[-1],):
        raise ValueError(f"expected {offsets[-1]} flags, one per token; got {is_cutpoint.dtype} {is_cutpoint.shape}")


def _shorten(starts: list[int]) -> str:
    if len(starts) <= _MAX_STARTS_SHOWN:
        return f"{starts}"
    return f"[{', '.join(map(str, starts[:_MAX_STARTS_SHOWN]))}, …]"
