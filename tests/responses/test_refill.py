"""Dynamic sampling: every place gets its first question with a signal, whatever the chunks and parts."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.core.errors import UserError
from stages.core.progress import Silent
from stages.responses.chains import statistics
from stages.responses.prompts import Prompts
from stages.responses.refill import answer_with_signal, candidates, questions_with_signal
from stages.sampling.protocol import Usage
from stages.tasks import Question, open_task
from stages.tasks.selection import select_questions, select_replacements
from tests.chains import ARITHMETIC, footer, rows, sample
from tests.responses.test_trees import HAND, table
from tests.shards.samples import files


def rewards_by_question(path: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows(path):
        found[row["question_id"]].append(row["reward"])
    return dict(found)


def test_the_first_candidate_with_a_signal_takes_the_place_by_hand():
    rewards = {"a": (0, 1), "b": (1, 1), "c": (0, 0), "B": (0, 0), "C": (1, 0), "bb": (None, 1), "x": (0, 1)}
    asked: list[list[str]] = []

    def answer(questions: Any, prompts: Any):
        asked.append([question.id for question in questions])
        assert [len(prompt) for prompt in prompts] == [len(question.id) for question in questions]
        nodes = [(f"{q.id}/{i}", None, 1, "stop", value) for q in questions for i, value in enumerate(rewards[q.id])]
        return table(nodes), Usage(10 * len(questions), 3, 2)

    names = [["a", "b", "c"], ["x", "B", "C"], ["x", "bb"]]
    rounds = [
        candidates(Prompts([Question(n, "", "", "") for n in one], [np.zeros(len(n)) for n in one]), [4, 5, 6], 9)
        if len(one) == 3
        else {4 + i: (Question(n, "", "", ""), np.zeros(len(n))) for i, n in enumerate(one)}
        for one in names
    ]
    found = answer_with_signal(answer, rounds)
    assert asked == [["a", "b", "c"], ["B", "C"], ["bb"]]
    assert found.rows["trajectory_id"].to_pylist() == ["a/0", "a/1", "C/0", "C/1"]
    assert found.counts == {"questions_replaced": 3, "places_empty": 1}  # b, c and B; no candidate of place 5 is left
    assert found.usage == Usage(60, 9, 6)
    assert found.untried == 2  # x twice: a keeps the first place
    assert statistics(found.rows)["frac_reward_zero_std"] == 0


def test_prompts_without_room_are_no_candidates():
    prompts = Prompts([Question(name, "", "", "") for name in "ab"], [np.zeros(8), np.zeros(9)])
    assert list(candidates(prompts, [0, 1], 9)) == [0]


def test_inner_nodes_of_trees_have_no_say():
    assert questions_with_signal(table(HAND)) == {"q"}


def test_replacements_are_the_questions_that_follow():
    task = open_task("arithmetic", None, ("operations=1", "train_questions=10"))
    ids = [question.id for question in task.questions("train")]
    rounds = select_replacements(task, "train", 3, 2, None, 3)
    assert [[q.id for q in one] for one in rounds] == [ids[5:8], ids[8:10], []]
    chosen = [q.id for q in select_questions(task, "train", 3, 2, 7)]
    shuffled = [q.id for one in select_replacements(task, "train", 3, 2, 7, 5) for q in one]
    assert len(shuffled) == 7
    assert set(shuffled) == set(ids) - set(chosen)


def test_a_refilled_batch_has_signal_everywhere_and_equal_bytes_for_every_division(policy: Path, tmp_path: Path):
    options: dict[str, Any] = {"num_questions": 6, "num_generations": 3, "temperature": 0.8, "refill": 2}
    summary = sample(tmp_path / "whole", policy, **options)
    again = sample(tmp_path / "plain", policy, **options | {"refill": None, "num_questions": 18})
    plain, refilled = (rewards_by_question(tmp_path / name) for name in ("plain", "whole"))
    names = list(plain)
    first = [next((n for n in names[i::6] if len(set(plain[n])) > 1), None) for i in range(6)]
    assert list(refilled) == [name for name in first if name]
    assert refilled == {name: plain[name] for name in refilled}, "a question's responses do not depend on its place"
    tried = [names[i::6][: names[i::6].index(found) + 1 if found else None] for i, found in enumerate(first)]
    counts = footer(next((tmp_path / "whole").glob("*.parquet")))["counts"]
    assert counts["places_empty"] == first.count(None)
    assert counts["questions_replaced"] == sum(len(one) - 1 for one in tried) > 0
    assert summary.tokens_sampled < again.tokens_sampled
    assert any("questions without a signal were replaced" in line for line in summary.notes)
    for shard in range(2):
        sample(tmp_path / "parts", policy, **options, shard=f"{shard}/2", chunk_questions=2)
    assert sorted(rows(tmp_path / "parts"), key=str) == sorted(rows(tmp_path / "whole"), key=str)
    sample(tmp_path / "chunks", policy, **options, chunk_questions=1)
    assert rows(tmp_path / "chunks") == rows(tmp_path / "whole")
    before = files(tmp_path / "chunks")
    assert sample(tmp_path / "chunks", policy, **options).up_to_date
    assert files(tmp_path / "chunks") == before


class _Bar(Silent):
    """Adds up what a stage reports as done."""

    total = done = 0

    def start(self, label: str, total: int, unit: str, most_tokens: int | None = None) -> None:
        self.total += total

    def advance(self, done: int = 0, tokens: int = 0, prefilled: int = 0, **figures: float) -> None:
        self.done += done


@pytest.mark.parametrize("shape", [{}, {"num_generations": None, "tree": "2-2", "segment_tokens": 3}], ids=str)
def test_the_progress_of_a_refilled_batch_ends_at_its_total(policy: Path, tmp_path: Path, shape: dict[str, Any]):
    bar = _Bar()
    options: dict[str, Any] = {"num_questions": 6, "temperature": 0.8, "refill": 2, "chunk_questions": 4} | shape
    sample(tmp_path / "out", policy, bar, **options)
    assert bar.total == 18 * (6 if shape else 3)
    assert bar.done == bar.total


def test_refill_without_a_number_of_questions_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="--refill takes the questions after the first --num-questions"):
        sample(tmp_path / "out", tmp_path / "no model", num_questions=None, refill=1, **ARITHMETIC)
