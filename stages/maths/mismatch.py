"""Owns how far a trainer's log-probabilities lie from those that a sampler recorded for the tokens it drew.

Both are meant to be of one policy. Where they differ the sampler is another policy than the trainer believes, and its
samples are off-policy from the first step on. With d = log π_trainer − log π_sampler of a sampled token:

    error      exp(mean |d|)        the factor by which a token's probability is off, on (geometric) average
    KL         mean of e^d − d − 1  k3, of KL(sampler ‖ trainer)
    truncated  share of e^d > C     tokens whose ratio truncated importance sampling would cut
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

TRUNCATION_CAP = 2.0
"""C, as `--importance-cap` is where nothing is said."""
TOLERATED_ERROR = 1.05
"""The mean multiplicative error above which a reader is warned: one probability in twenty parts off."""


class MismatchSums(NamedTuple):
    """Over some tokens, 0-d float64 and detached; all but the last are sums.

    Attributes:
      difference: of |d|. kl: of k3. truncated: tokens. largest: the greatest |d|; 0 where there is no token.
    """

    difference: Tensor
    kl: Tensor
    truncated: Tensor
    largest: Tensor


def mismatch_sums(trainer: Tensor, sampler: Tensor, cap: float = TRUNCATION_CAP) -> MismatchSums:
    """Compares two log-probabilities of each token.

    Args:
      trainer, sampler: floating [M], natural logs under the same temperature; M may be 0.
      cap: C ≥ 1.

    Raises:
      ValueError: shapes differ or are not [M].
    """
    from stages.maths.losses import kl_estimate  # brings torch, which who reads a saved figure does not need

    trainer, sampler = trainer.detach().double(), sampler.detach().double()  # small differences of large numbers
    kl = kl_estimate(sampler, trainer, "k3").sum()
    difference = trainer - sampler
    size = difference.abs()
    largest = size.max() if size.numel() else size.new_zeros(())
    return MismatchSums(size.sum(), kl, (difference > math.log(cap)).sum().to(size), largest)


def multiplicative_error(mean_difference: float) -> float:
    """exp(mean |d|): 1 where both agree."""
    return math.exp(mean_difference)
