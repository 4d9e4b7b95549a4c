"""Report before training that sampled responses leave nothing to learn: one line with the cause and the remedy."""

# pyarrow.compute makes its functions at import time:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.core.errors import NoSignal
from stages.maths.outcomes import NEARLY_ALL, Signal, lacks_answer, measure_signal
from stages.shards.tables import encode_names

COLUMNS = ("question_id", "finish_reason", "answer", "reward")
"""Columns of the trajectories that the signal is measured from."""


def without_answer(responses: pa.Table) -> np.ndarray:
    """Return which responses (no inner nodes of trees) lack an answer, as `lacks_answer`: [N] bool.

    Args:
      responses: columns finish_reason, answer, reward.
    """
    finished = pc.equal(responses["finish_reason"], "stop").to_numpy()
    return lacks_answer(finished, pc.is_valid(responses["answer"]).to_numpy(), responses["reward"].to_numpy())


def describe_lack_of_signal(trajectories: pa.Table) -> str | None:
    """Return a line with the cause and the remedy if trajectories leave nothing to learn; None if they do.

    Args:
      trajectories: `COLUMNS`; inner nodes of trees (finish_reason "segment") are passed over.
    """
    responses = trajectories.filter(pc.not_equal(trajectories["finish_reason"], "segment"))
    if not responses.num_rows:
        return "nothing to learn: there are no responses"
    signal = measure_signal(
        responses["reward"].to_numpy(),
        encode_names(responses["question_id"]),
        pc.equal(responses["finish_reason"], "stop").to_numpy(),
        pc.is_valid(responses["answer"]).to_numpy(),
    )
    return _explain(signal) if signal.is_nothing else None


def check_signal(line: str | None, *, fail: bool) -> tuple[str, ...]:
    """Return the line as a note.

    Raises:
      NoSignal: there is a line, and `fail` is set (--fail-on-no-signal).
    """
    if line and fail:
        raise NoSignal(line)
    return (line,) if line else ()


def _explain(signal: Signal) -> str:
    amount = "nothing to learn" if signal.equal else "next to nothing to learn"
    if signal.ungradable == 1:
        return (
            f"{amount}: no response could be graded. Try the verifier on them: spo grade shows its reasons; a reward "
            "function must return numbers"
        )
    if signal.truncated >= NEARLY_ALL:
        return f"{amount}: {signal.truncated:.0%} of the responses are truncated. Raise --max-tokens within the context"
    if signal.no_answer + signal.truncated >= NEARLY_ALL:
        return (
            f"{amount}: {signal.no_answer:.0%} of the responses state no answer and {signal.truncated:.0%} are "
            "truncated. Ask for the answer in the form that the verifier reads (--prompt-template, --chat-template); "
            "spo grade shows what it reads"
        )
    if signal.reward is not None and signal.reward >= 1:
        return f"{amount}: every response has the reward {signal.reward:g}. Choose harder questions"
    if signal.reward is not None:
        return (
            f"{amount}: every response has the reward {signal.reward:g} ({signal.no_answer:.0%} state no answer, "
            f"{signal.truncated:.0%} are truncated). Check the verifier with spo grade; then choose easier questions, "
            "warm-start the model (spo sft), or sample more responses"
        )
    return (
        f"{amount}: the responses to each question have equal rewards. Raise --num-generations or --temperature, or "
        "choose questions that are neither too easy nor too hard"
    )
