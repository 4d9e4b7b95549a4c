"""Every task passes through the stages with a tiny model: rollout, estimate without the data set, eval."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages import evaluate
from stages.tasks import TASKS, open_task
from tests.chains import cut, rows, sample, value

SAMPLE: dict[str, list[dict[str, Any]]] = {
    "gsm8k": [{"question": "Two ducks and three?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"}] * 2,
    "math": [{"problem": "$1+1$?", "level": "Level 1", "type": "Algebra", "solution": r"It is $\boxed{2}$."}] * 2,
    "math12k": [{"problem": "$2+2$?", "solution": r"$\boxed{4}$", "answer": "4", "subject": "Algebra", "level": 1}] * 2,
    "math500": [{"problem": "$2+2$?", "solution": r"$\boxed{4}$", "answer": "4", "subject": "Algebra", "level": 1}] * 2,
    "aime24": [{"id": 60, "problem": "Find $m+n$.", "solution": "It is 25.", "answer": "025"}] * 2,
    "amc23": [{"id": 0, "problem": "How far?", "answer": 27.0}] * 2,
    "olympiadbench": [{"question": "Find $N$.", "solution": ["2"], "final_answer": ["2"], "subfield": "Algebra"}] * 2,
    "minerva_math": [{"problem": "What is $f$?", "solution": r"$f=\boxed{1.6}$", "type": "Astronomy"}] * 2,
    "college_math": [{"question": "Simplify: $2x+x$", "answer": "$3 x$", "data_topic": "algebra"}] * 2,
    "custom": [{"prompt": "1 + 1?", "answer": "2"}] * 2,
    "game24": [{"Rank": 1, "Puzzles": "1 1 4 6"}, {"Rank": 2, "Puzzles": "1 1 11 11"}],
}


def run_through(name: str, data: Path | None, policy: Path, out: Path) -> None:
    """Sample, estimate and evaluate two questions; assert that every row belongs to its question."""
    data_option = str(data) if data else None
    task = open_task(name, data_option)
    split = "train" if data is None or data.name == "math12k" else "test"
    questions = {question.id: question for question in task.questions(split)[:2]}
    options: dict[str, Any] = {"task": name, "task_arg": (), "split": split, "num_questions": 2, "max_tokens": 12}
    sample(out / "trajectories", policy, data=data_option, num_generations=2, **options)
    found = rows(out / "trajectories")
    assert [row["question_id"] for row in found] == [name for name in questions for _ in range(2)]
    for row in found:
        question = questions[row["question_id"]]
        assert question.prompt in row["prompt"]
        assert row["reference"] == question.reference
        assert row["reward"] in (0.0, 1.0)
    cut(out / "cutpoints", out / "trajectories", partition="fixed", segment_tokens=6)
    value(out / "advantages", out / "cutpoints", rollouts=2)
    assert len(rows(out / "advantages")) >= 4
    budgets: dict[str, Any] = {**options, "task": (name,), "data": (data_option,) if data_option else ()}
    budgets["max_tokens"] = (6, 12)
    evaluate.run(evaluate.Config(out=out / "eval", model=str(policy), threads=1, **budgets))
    evaluated = rows(out / "eval")
    assert [row["question_id"] for row in evaluated if row["max_tokens"] == 12] == list(questions)
    assert all(row["subject"] == questions[row["question_id"]].metadata.get("subject") for row in evaluated)


@pytest.mark.parametrize("name", TASKS)
def test_a_sample_of_every_task(name: str, policy: Path, tmp_path: Path):
    data = None
    if name in SAMPLE:
        data = tmp_path / "sample.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in SAMPLE[name]))
    run_through(name, data, policy, tmp_path)


@pytest.mark.parametrize("name", sorted(set(SAMPLE) - {"custom"}))
def test_every_task_on_its_real_data(name: str, policy: Path, shared: Path, tmp_path: Path):
    run_through(name, shared / "data" / name, policy, tmp_path)


def test_game24_needs_no_data(policy: Path, tmp_path: Path):
    run_through("game24", None, policy, tmp_path)


@pytest.mark.slow
def test_the_example_of_a_custom_task_runs(tmp_path: Path):
    """Its reward function accepts correct responses only, and rollouts are graded without the data set."""
    root = Path(__file__).resolve().parents[1]
    script = root / "examples" / "own_task" / "run.sh"
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(
        ["bash", str(script), str(tmp_path / "out")],
        cwd=tmp_path,
        env={"PATH": path, "PYTHONPATH": str(root), "OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path / "out" / "trajectories")
    assert len(found) == 16
    assert set(json.loads(found[0]["reference"])) == {"number", "unit"}
    for row in found:
        expected = json.loads(row["reference"])
        if row["finish_reason"] == "stop" and row["text"].endswith(f" {expected['number']} {expected['unit']}"):
            assert row["reward"] == 1.0
    assert max(row["reward"] for row in found) == 1.0
    subjects = {row["subject"] for row in rows(tmp_path / "out" / "eval")}
    assert subjects == {"length", "weight", "time", "volume"}
