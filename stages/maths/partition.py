"""Owns the partition: where a response could have gone another way (cutpoints), and how it is cut into segments.

Every partition covers every response exactly, in order, with half-open token ranges; only a response of no tokens has
an empty segment (its one). `lengths` is [N], the tokens of each response; flat arrays over tokens are [V],
V = Σ lengths, responses end to end. Paper: arXiv 2505.23564, segment partition.
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


@dataclass(frozen=True, eq=False)
class Segments:
    """S segments ordered by (trajectory, start); every trajectory 0 … N − 1 has at least one.

    Attributes:
      trajectory: [S] int64, the row of `lengths` it belongs to.
      start, end: [S] int64, tokens start … end − 1 of the response.
    """

    trajectory: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]

    def __len__(self) -> int:
        return self.trajectory.size

    @property
    def is_first(self) -> NDArray[np.bool_]:
        """[S] whether the segment begins its trajectory."""
        first = np.ones(len(self), np.bool_)
        np.not_equal(self.trajectory[1:], self.trajectory[:-1], out=first[1:])
        return first

    @property
    def is_last(self) -> NDArray[np.bool_]:
        """[S] whether the segment ends its trajectory."""
        last = np.ones(len(self), np.bool_)
        np.not_equal(self.trajectory[1:], self.trajectory[:-1], out=last[:-1])
        return last

    @property
    def number(self) -> NDArray[np.int64]:
        """[S] int64, 0, 1, 2 … within each trajectory."""
        firsts = np.flatnonzero(self.is_first)
        return _count_up(np.diff(firsts, append=len(self)))


def find_cutpoints(logprobs: Ragged, rho: float) -> NDArray[np.bool_]:
    """U = { t : p_t < ρ }, strictly: the one place where a probability meets ρ.

    The comparison is exact, log p_t < log ρ as in float64, whatever the width of the log-probabilities.

    Args:
      logprobs: N ragged rows of floats, natural logs; −inf is a probability of 0.
      rho: in (0, 1].

    Returns:
      [V] bool over the tokens of all rows, end to end.

    Raises:
      ValueError: rho outside (0, 1].
      UserError: a NaN, or a value clearly above 0 (probabilities instead of their logs).
    """
    if not 0 < rho <= 1:
        raise ValueError(f"rho must lie in (0, 1]; got {rho}")
    values = logprobs.flat
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"expected floating log-probabilities; got {values.dtype}")
    if values.size == 0:
        return np.zeros(0, np.bool_)
    highest = values.max()
    if not highest <= 0.01:  # rounding may lift certainty a little above 0; NaN fails the comparison as well
        token = int(np.flatnonzero(~(values <= 0.01))[0]) + int(logprobs.offsets[0])
        row = int(np.searchsorted(logprobs.offsets, token, side="right")) - 1
        raise UserError(
            f"log-probabilities must be natural logs, at most 0; found {logprobs.values[token]} at token"
            f" {token - int(logprobs.offsets[row])} of row {row}"
        )
    return values < _round_up(np.log(rho), values.dtype)


def partition_by_cutpoints(lengths: ArrayLike, is_cutpoint: NDArray[np.bool_], interval: int) -> Segments:
    """Boundaries immediately before cutpoint 1, k + 1, 2k + 1 …: the cutpoint-based partition of SPO-chain.

    It minimises Σ_s |U ∩ s|² among the partitions whose segments, but for the last, hold at least k cutpoints. The
    stretch before the first cutpoint is a segment of its own, without cutpoints.

    Args:
      lengths: [N]. is_cutpoint: [V] from `find_cutpoints`. interval: k ≥ 1.

    Raises:
      ValueError: interval below 1, or as many flags as tokens are not given.
    """
    lengths, offsets = _lengths(lengths)
    _positive(interval, "interval")
    _one_flag_per_token(is_cutpoint, offsets)
    positions = np.flatnonzero(is_cutpoint)
    per_row = np.diff(np.searchsorted(positions, offsets))
    return _cut_before(positions[_count_up(per_row) % interval == 0], lengths, offsets)


def partition_by_length(lengths: ArrayLike, size: int) -> Segments:
    """Every segment holds `size` tokens, the last of a response what is left.

    Raises:
      ValueError: size below 1.
    """
    lengths, _ = _lengths(lengths)
    _positive(size, "size")
    counts = np.maximum(-(-lengths // size), 1)
    trajectory, start = _enumerate(counts)
    start *= size
    end = start + size
    end[np.cumsum(counts) - 1] = lengths
    return Segments(trajectory, start, end)


def partition_by_count(lengths: ArrayLike, segments: int) -> Segments:
    """`segments` segments of equal length: T = qK + r tokens make r segments of q + 1, then K − r of q.

    A response of fewer tokens than segments has one segment per token.

    Raises:
      ValueError: segments below 1.
    """
    lengths, _ = _lengths(lengths)
    _positive(segments, "segments")
    quotient, remainder = np.divmod(lengths, segments)
    trajectory, number = _enumerate(np.clip(lengths, 1, segments))
    quotient, remainder = quotient[trajectory], remainder[trajectory]
    start = number * quotient + np.minimum(number, remainder)
    return Segments(trajectory, start, start + quotient + (number < remainder))


def partition_by_token(lengths: ArrayLike) -> Segments:
    """Every token is a segment."""
    return partition_by_length(lengths, 1)


def partition_by_trajectory(lengths: ArrayLike) -> Segments:
    """Every response is one segment."""
    return partition_by_count(lengths, 1)


def partition_at_boundaries(lengths: ArrayLike, starts: Ragged) -> Segments:
    """Segments that begin where the caller says: delimiters, a user's own function.

    Args:
      lengths: [N].
      starts: N ragged rows of integers, rising within a row, each in [0, T); 0 may be left out.

    Raises:
      UserError: not one row per response, or a row that does not rise or leaves [0, T): naming row and found starts.
    """
    lengths, offsets = _lengths(lengths)
    if len(starts) != lengths.size:
        raise UserError(f"expected segment starts for {lengths.size} responses; got {len(starts)}")
    values = starts.flat
    if values.size and not np.issubdtype(values.dtype, np.integer):
        raise UserError(f"segment starts are token offsets, integers; got {values.dtype}")
    values = values.astype(np.int64)
    row = np.repeat(np.arange(lengths.size), starts.lengths)
    wrong = (values < 0) | (values >= lengths[row])
    wrong[1:] |= (row[1:] == row[:-1]) & (values[1:] <= values[:-1])
    if wrong.any():
        i = int(row[np.argmax(wrong)])
        raise UserError(
            f"segment starts must rise and lie in [0, {lengths[i]}), the tokens of response {i};"
            f" got {_shorten(starts[i].tolist())}"
        )
    return _cut_before(values + offsets[row], lengths, offsets)


def delimiter_starts(token_texts: Sequence[str], pattern: re.Pattern[str]) -> list[int]:
    """Where the segments of one response begin if it is cut after every match of a regular expression.

    Aligned to token borders: a segment starts at the first token that begins at or after the end of a match, so a token
    that holds both sides of the border stays with the left segment.

    Args:
      token_texts: the text of each token; together they are the text that is searched.
      pattern: what ends a segment, e.g. a line break.

    Returns:
      Rising offsets in (0, T), 0 left out: a row for `at_boundaries`.
    """
    matches = pattern.finditer("".join(token_texts))
    begins = list(accumulate(map(len, token_texts), initial=0))[:-1]
    starts = {bisect_left(begins, match.end()) for match in matches}
    return sorted(starts - {0, len(begins)})


def segment_cutpoints(segments: Segments, lengths: ArrayLike, is_cutpoint: NDArray[np.bool_]) -> Ragged:
    """The cutpoints of each segment, as token offsets in the response: the probability mask.

    Args:
      segments: S segments that cover the responses. lengths: [N]. is_cutpoint: [V].

    Returns:
      S ragged rows, int32.

    Raises:
      ValueError: as many flags as tokens are not given.
    """
    lengths, offsets = _lengths(lengths)
    _one_flag_per_token(is_cutpoint, offsets)
    positions = np.flatnonzero(is_cutpoint)
    borders = np.append(offsets[segments.trajectory] + segments.start, offsets[-1])
    per_row = np.diff(np.searchsorted(positions, offsets))
    values = (positions - np.repeat(offsets[:-1], per_row)).astype(np.int32)
    return Ragged(values, np.searchsorted(positions, borders))


def _cut_before(positions: NDArray[np.int64], lengths: NDArray[np.int64], offsets: NDArray[np.int64]) -> Segments:
    """Segments that begin at each response's first token and at the given rising positions of the flat tokens."""
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


def _enumerate(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[N] counts → row and number within the row of each of Σ counts things."""
    return np.repeat(np.arange(counts.size), counts), _count_up(counts)


def _count_up(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """[2, 3] → [0, 1, 0, 1, 2]."""
    offsets = offsets_of(counts)
    numbers = np.arange(offsets[-1])
    numbers -= np.repeat(offsets[:-1], counts)
    return numbers


def _round_up(value: float, dtype: np.dtype) -> np.floating:
    """The smallest number of a float type that is not below the value: x < value and x < it then agree for every x."""
    rounded = dtype.type(value)
    return rounded if float(rounded) >= value else np.nextafter(rounded, dtype.type(np.inf))


def _lengths(lengths: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    lengths = np.asarray(lengths, np.int64)
    if lengths.ndim != 1 or np.any(lengths < 0):
        raise ValueError(f"expected lengths [N], none negative; got shape {lengths.shape}")
    return lengths, offsets_of(lengths)


def _positive(value: int, name: str) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1; got {value}")


def _one_flag_per_token(is_cutpoint: NDArray[np.bool_], offsets: NDArray[np.int64]) -> None:
    if is_cutpoint.dtype != np.bool_ or is_cutpoint.shape != (offsets[-1],):
        raise ValueError(f"expected {offsets[-1]} flags, one per token; got {is_cutpoint.dtype} {is_cutpoint.shape}")


def _shorten(starts: list[int]) -> str:
    return f"{starts}" if len(starts) <= 12 else f"[{', '.join(map(str, starts[:12]))}, …]"
