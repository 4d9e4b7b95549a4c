"""Report the mismatch between sampler and trainer (`stages.maths.mismatch`): a summary of a call, and a warning.

Only kept tokens that the policy itself sampled are compared, unless a correction weights the loss. Tokens of older
policies (replay, stale samples) or of another model differ because those models differ, as expected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stages.maths.mismatch import TOLERATED_ERROR, multiplicative_error
from stages.training.starting_point import Iteration

ERROR = "mismatch/error"
STALENESS = "mismatch/staleness"
"""Iterations of training between the model that sampled and the policy; absent if there are none."""
_LARGEST = "mismatch/logp_difference_max"
_MEAN = "mismatch/logp_difference_mean"
_MEANS = (_MEAN, "mismatch/kl", "mismatch/truncated")
_REMEDY = (
    "the sampler is not the policy that is trained. Use one --dtype for both (float32 shows whether rounding is the "
    "cause); check that --temperature is the one of the trajectories, that log-probabilities of another engine are "
    "over the whole vocabulary at that temperature, not over the tokens that top-p or top-k kept, and that the sampler "
    "had the newest weights of the policy. --mismatch-correction tis weights the loss by truncated ratios of the two"
)


def samplers_differ(iterations: Sequence[Iteration], dtype: str) -> bool:
    """Return whether some trajectories come from another engine or number format than the trainer's.

    The embedded engine computes as the trainer does. A value that a file of another tool does not record does not count
    as a difference.

    Args:
      dtype: the value of `--dtype` of the trainer.
    """
    for iteration in iterations:
        sampled = iteration.trajectories.lineage
        if sampled and (sampled.config.get("engine") == "vllm" or sampled.config.get("dtype", dtype) != dtype):
            return True
    return False


def summarize(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mismatch over all steps, weighted by the compared tokens; empty if no token was compared."""
    lines = [line for line in metrics if "mismatch/tokens" in line]
    tokens = sum(line["mismatch/tokens"] for line in lines)
    stale = {STALENESS: metrics[0][STALENESS]} if metrics and STALENESS in metrics[0] else {}
    if not tokens:
        return stale
    figures = {name: sum(line[name] * line["mismatch/tokens"] for line in lines) / tokens for name in _MEANS}
    figures[_LARGEST] = max(line[_LARGEST] for line in lines)
    return {ERROR: multiplicative_error(figures[_MEAN])} | figures | stale


def describe_staleness(figures: Mapping[str, float], correction: str | None) -> tuple[str, ...]:
    """Return a line on the difference between the policy and the older one that sampled; nothing if it is the same.

    Args:
      figures: summary of a call.
      correction: the correction that weighted the loss; None: none did.
    """
    if STALENESS not in figures:
        return ()
    line = f"the samples are of the policy {figures[STALENESS]:.0f} iteration(s) before"
    if ERROR in figures:
        line += f", whose probability of a token differs by a factor of {figures[ERROR]:.4f} on average"
    return (f"{line}: " + (f"corrected by {correction}" if correction else "not corrected"),)


def warn(figures: Mapping[str, float]) -> tuple[str, ...]:
    """Return a warning if the mean multiplicative error of a step or call exceeds `TOLERATED_ERROR`; else nothing.

    Stale samples are of another policy, so no warning is due.
    """
    error = figures.get(ERROR, 1.0)
    if error <= TOLERATED_ERROR or STALENESS in figures:
        return ()
    return (
        f"sampler and trainer disagree: a token's probability is off by a factor of {error:.4f} on average (at most "
        f"{TOLERATED_ERROR} is expected), {figures['mismatch/truncated']:.1%} of the ratios exceed the cap: {_REMEDY}",
    )
