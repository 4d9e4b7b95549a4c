"""Owns what is told of the mismatch of sampler and trainer (`stages.maths.mismatch`): over a call, and as a warning.

It is measured on the kept tokens that the policy itself sampled: those of older policies under replay, or of another
model that was named, differ for a reason that is no fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stages.maths.mismatch import TOLERATED_ERROR, multiplicative_error

ERROR = "mismatch/error"
_LARGEST = "mismatch/logp_difference_max"
_MEAN = "mismatch/logp_difference_mean"
_MEANS = (_MEAN, "mismatch/kl", "mismatch/truncated")
_REMEDY = (
    "the sampler is not the policy that is trained. Let both compute in one --dtype (float32 tells if it is that); "
    "see that --temperature is the trajectories'; that the log-probabilities of an engine from elsewhere are of the "
    "whole vocabulary at that temperature, not of what top-p or top-k left; and that the sampler held the policy's "
    "newest weights. --old-logprobs recorded takes ratios to the sampler's, truncated"
)


def summarise(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mismatch over all steps, by tokens; empty where nothing was compared."""
    lines = [line for line in metrics if "mismatch/tokens" in line]
    tokens = sum(line["mismatch/tokens"] for line in lines)
    if not tokens:
        return {}
    figures = {name: sum(line[name] * line["mismatch/tokens"] for line in lines) / tokens for name in _MEANS}
    figures[_LARGEST] = max(line[_LARGEST] for line in lines)
    return {ERROR: multiplicative_error(figures[_MEAN])} | figures


def warn(figures: Mapping[str, float]) -> tuple[str, ...]:
    """A line for the reader where the mean multiplicative error, of a step or a call, passes `TOLERATED`."""
    error = figures.get(ERROR, 1.0)
    if error <= TOLERATED_ERROR:
        return ()
    return (
        f"sampler and trainer disagree: a token's probability is off by a factor of {error:.4f} on average (at most "
        f"{TOLERATED_ERROR} is expected), {figures['mismatch/truncated']:.1%} of the ratios beyond the cap: {_REMEDY}",
    )
