"""The line that says that there is nothing to learn: its cause and remedy, and exit code 5 for scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from stages.core.errors import NoSignal
from stages.responses.signal import describe_lack_of_signal
from tests.chains import cut, rows, sample, value
from tests.estimators.handmade import estimate_rows, responses, write_trajectories


def table(*kinds: str) -> pa.Table:
    """Return questions with these responses: `r` right, `w` wrong, `n` no answer, `t` truncated, `?` ungradable."""
    letters = [(f"q{i}", kind) for i, responses in enumerate(kinds) for kind in responses]
    return pa.table(
        {
            "question_id": [question for question, _ in letters],
            "finish_reason": ["length" if kind == "t" else "stop" for _, kind in letters],
            "answer": pa.array(["5" if kind in "rw" else None for _, kind in letters], pa.string()),
            "reward": pa.array([{"r": 1.0, "?": None}.get(kind, 0.0) for _, kind in letters], pa.float32()),
        }
    )


@pytest.mark.parametrize(
    ("kinds", "line"),
    [
        (("rw", "rr"), None),
        (("rwnt", "ww?n"), None),
        (
            ("tt", "tt"),
            "nothing to learn: 100% of the responses are truncated. Raise --max-tokens within the context",
        ),
        (("nn", "nt"), "nothing to learn: 75% of the responses state no answer and 25% are truncated. Ask for"),
        (("rr", "rr"), "nothing to learn: every response has the reward 1. Choose harder questions"),
        (("wwn", "wwt"), "nothing to learn: every response has the reward 0 (17% state no answer, 17% are truncated)."),
        (("??", "?"), "nothing to learn: no response could be graded."),
        (("rr", "ww"), "nothing to learn: the responses to each question have equal rewards. Raise --num-generations"),
        (("r" + "n" * 30, "t" * 10), "next to nothing to learn: 73% of the responses state no answer and 24% are"),
        ((), "nothing to learn: there are no responses"),
    ],
)
def test_the_line_names_the_cause_and_the_remedy(kinds: tuple[str, ...], line: str | None):
    found = describe_lack_of_signal(table(*kinds))
    assert found == line if line is None else str(found).startswith(line)


def test_rollout_reports_it_after_and_estimate_before_its_work(policy: Path, tmp_path: Path):
    line = "nothing to learn: 100% of the responses are truncated. Raise --max-tokens within the context"
    assert sample(tmp_path / "t", policy, max_tokens=2).notes == (line,)
    with pytest.raises(NoSignal, match="100% of the responses are truncated"):
        sample(tmp_path / "again", policy, max_tokens=2, fail_on_no_signal=True)
    assert rows(tmp_path / "again") == rows(tmp_path / "t"), "what was sampled is kept"
    with pytest.raises(NoSignal):
        sample(tmp_path / "again", policy, max_tokens=2, fail_on_no_signal=True)  # up to date
    cut(tmp_path / "c", tmp_path / "t")
    with pytest.raises(NoSignal):
        value(tmp_path / "a", tmp_path / "c", fail_on_no_signal=True)
    assert not (tmp_path / "a").exists()
    assert value(tmp_path / "a", tmp_path / "c").notes == (line,)


@pytest.mark.parametrize(("rewards", "is_reported"), [([0.0, 0.0], True), ([1.0, 0.0], False)])
def test_trajectories_of_another_tool_need_no_answers(tmp_path: Path, rewards: list[float], is_reported: Any):
    cut(tmp_path / "c", write_trajectories(tmp_path / "t", responses({"a": rewards})), partition="trajectory")
    _, summary = estimate_rows(tmp_path / "out", tmp_path / "c", estimator="grpo")
    assert any("nothing to learn" in note for note in summary.notes) == is_reported
