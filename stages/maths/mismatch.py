"""Define how far the log-probabilities of the trainer may be from those of the sampler.

Both should come from the same policy. If they differ, the samples are off-policy from the first step. The measures,
with d = log π_trainer − log π_sampler of a sampled token:

    error      exp(mean |d|)         geometric mean of the factor by which probabilities differ
    KL         mean of e^d − d − 1   k3 estimate of KL(sampler ‖ trainer)
    truncated  fraction of e^d > C   tokens whose ratio truncated importance sampling caps

`stages.maths.mismatch_sums` computes the sums. They are in a module of their own because it imports torch, which the
commands that only display recorded figures do not need.
"""

from __future__ import annotations

import math

TOLERATED_ERROR = 1.05
"""Error above which the user is warned: probabilities differ by 5 % on average."""


def multiplicative_error(mean_difference: float) -> float:
    """Return exp(mean |d|), which is 1 if trainer and sampler agree."""
    return math.exp(mean_difference)
