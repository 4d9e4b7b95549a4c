"""Compare the log-probabilities of the trainer with those that the sampler recorded; see `stages.maths.mismatch`."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from stages.maths.losses import kl_estimate

TRUNCATION_CAP = 2.0
"""C where the user sets no `--importance-cap`; mismatch is then still measured against this value."""


class MismatchSums(NamedTuple):
    """Hold statistics of the tokens of a micro-batch, each 0-d float64 and detached.

    Attributes:
      difference: sum of |d|.
      kl: sum of the k3 estimates.
      truncated: number of tokens with e^d > C.
      largest: maximum of |d|; 0 without tokens.
    """

    difference: Tensor
    kl: Tensor
    truncated: Tensor
    largest: Tensor


def mismatch_sums(trainer: Tensor, sampler: Tensor, cap: float = TRUNCATION_CAP) -> MismatchSums:
    """Compare the two log-probabilities of each token.

    Args:
      trainer: [M] floating, natural logs; M may be 0.
      sampler: [M] floating, natural logs at the same temperature.
      cap: C ≥ 1.

    Raises:
      ValueError: the shapes differ or are not [M].
    """
    # float64, because small differences of large numbers are summed.
    trainer, sampler = trainer.detach().double(), sampler.detach().double()
    kl = kl_estimate(sampler, trainer, "k3").sum()
    difference = trainer - sampler
    size = difference.abs()
    largest = size.max() if size.numel() else size.new_zeros(())
    return MismatchSums(size.sum(), kl, (difference > math.log(cap)).sum().to(size), largest)
