"""`spo eval --regrade`: saved responses get new verdicts, nothing else changes, nothing is sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from stages import evaluate
from stages.core.errors import IncompleteInput, UserError
from stages.core.progress import Summary
from stages.evaluation import regrading
from stages.evaluation.artefacts import read_evaluation, read_settings
from tests.chains import footer, make_constant, rows
from tests.evaluation.responses import graded, write_evaluation
from tests.shards.samples import files

PART = "part-00000-of-00001.parquet"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model that samples 1, 2 and spaces independently of the prompt."""
    return make_constant(tmp_path_factory.mktemp("model") / "model", {"1": 0.4, "2": 0.3, " ": 0.2}, end=0.1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of four questions whose answers are 1, 2, 11 and 12."""
    path = tmp_path_factory.mktemp("data") / "test.jsonl"
    answers = ("1", "2", "11", "12")
    path.write_text("".join(f'{{"question": "question {i}", "answer": "{a}"}}\n' for i, a in enumerate(answers)))
    return path


@pytest.fixture
def saved(model: Path, data: Path, tmp_path: Path) -> Path:
    """Return an evaluation with two parts, two budgets and six responses to each question."""
    for shard in ("0/2", "1/2"):
        evaluate.run(
            evaluate.Config(
                out=tmp_path / "saved",
                model=str(model),
                task=("gsm8k",),
                data=(str(data),),
                num_generations=6,
                temperature=1.0,
                max_tokens=(4, 24),
                threads=1,
                shard=shard,
            )
        )
    return tmp_path / "saved"


def regrade(saved: Path, out: Path, **options: Any) -> Summary:
    return regrading.run(regrading.Config(regrade=saved, out=out, **options))


def test_the_same_verifier_gives_the_same_rows_part_by_part(saved: Path, tmp_path: Path):
    summary = regrade(saved, tmp_path / "again")
    assert rows(tmp_path / "again") == rows(saved)
    assert 0 < sum(row["reward"] for row in rows(saved)) < len(rows(saved))
    assert summary.tokens_sampled == 0
    assert summary.rows == 48
    assert regrade(saved, tmp_path / "again").up_to_date


def test_the_lineage_names_the_original_evaluation_and_its_model(saved: Path, tmp_path: Path):
    regrade(saved, tmp_path / "below" / "again")
    for part in ("part-00000-of-00002.parquet", "part-00001-of-00002.parquet"):
        after, before = footer(tmp_path / "below" / "again" / part), footer(saved / part)
        assert after["inputs"][0] == {"path": "../../saved", "fingerprint": before["fingerprint"], "stage": "eval"}
        assert after["model"]["fingerprint"] == before["model"]["fingerprint"]
        assert (tmp_path / "below" / "again" / after["model"]["path"]).is_dir()
        assert after["config"]["task"] == ["gsm8k"]
        assert after["summary"] == before["summary"]
    read = read_evaluation(tmp_path / "below" / "again")
    assert (read.settings["temperature"], read.settings["num_generations"]) == (1.0, 6)
    regrade(tmp_path / "below" / "again", tmp_path / "twice")
    assert read_settings(read_evaluation(tmp_path / "twice").artefact)["temperature"] == 1.0


def test_another_grader_gives_other_verdicts_to_the_same_responses(saved: Path, tmp_path: Path):
    regrade(saved, tmp_path / "exact", task_arg=("grader=exact",))
    before, after = rows(saved), rows(tmp_path / "exact")
    kept = [name for name in before[0] if name not in ("answer", "reward")]
    assert [[row[name] for name in kept] for row in after] == [[row[name] for name in kept] for row in before]
    for row in after:
        right = row["finish_reason"] == "stop" and row["text"].strip() == row["reference"]
        assert row["reward"] == float(right)
    assert [row["answer"] for row in after] != [row["answer"] for row in before]
    assert footer(tmp_path / "exact" / "part-00000-of-00002.parquet")["config"]["task_arg"] == ["grader=exact"]


def test_new_budgets_give_the_rows_of_an_evaluation_with_these_budgets(
    saved: Path, model: Path, data: Path, tmp_path: Path
):
    regrade(saved, tmp_path / "cut", max_tokens=(12, 4, 2))
    config = evaluate.Config(
        out=tmp_path / "sampled",
        model=str(model),
        task=("gsm8k",),
        data=(str(data),),
        num_generations=6,
        temperature=1.0,
        max_tokens=(2, 4, 12),
        threads=1,
    )
    evaluate.run(config)
    assert rows(tmp_path / "cut") == rows(tmp_path / "sampled")


def test_chunks_do_not_change_a_byte(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    regrade(saved, tmp_path / "one")
    monkeypatch.setattr(regrading, "_ROWS", 5)
    regrade(saved, tmp_path / "many")
    assert files(tmp_path / "many") == files(tmp_path / "one")


def test_a_shard_grades_its_own_parts(saved: Path, tmp_path: Path):
    regrade(saved, tmp_path / "out", shard="1/2")
    with pytest.raises(IncompleteInput, match="part 0 of 2 is missing"):
        read_evaluation(tmp_path / "out")
    regrade(saved, tmp_path / "out", shard="0/2")
    assert rows(tmp_path / "out") == rows(saved)


def test_the_model_is_needed_only_to_decode_truncated_responses(saved: Path, tmp_path: Path, model: Path):
    hidden = model.with_name("hidden")
    model.rename(hidden)
    try:
        regrade(saved, tmp_path / "out")
        assert rows(tmp_path / "out") == rows(saved)
        with pytest.raises(UserError, match="pass --tokenizer PATH"):
            regrade(saved, tmp_path / "cut", max_tokens=(8,))
        regrade(saved, tmp_path / "cut", max_tokens=(8,), tokenizer=str(hidden))
    finally:
        hidden.rename(model)


def test_responses_of_another_tool_are_graded_if_their_task_is_given(tmp_path: Path):
    table = graded(("q1", "Ab"), ("q2", "b"), task=None, text=["it is 5", "it is 6", "7"], reference=["5", "5", "7"])
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    pq.write_table(table.drop_columns(["max_tokens", "subject", "level", "task"]), foreign / "mine.parquet")
    with pytest.raises(UserError, match="do not record their task: name it with --task"):
        regrade(foreign, tmp_path / "out")
    summary = regrade(foreign, tmp_path / "out", task=("gsm8k",))
    assert [(row["task"], row["answer"], row["reward"]) for row in rows(tmp_path / "out")] == [
        ("gsm8k", "5", 1.0),
        ("gsm8k", "6", 0.0),
        ("gsm8k", "7", 1.0),
    ]
    assert summary.figures["avg@2"] == 0.75
    assert summary.notes == (f"{foreign} has no lineage: another tool wrote it",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": (25,)}, "were sampled up to 24 tokens; --max-tokens requests 25"),
        ({"task": ("math500",)}, "are of gsm8k; --task names math500"),
        ({"task_arg": ("nonsense=1",)}, "no option 'nonsense'"),
    ],
)
def test_wrong_options_are_refused_before_any_work(saved: Path, tmp_path: Path, options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        regrade(saved, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_artefact_of_another_stage_is_refused(chain: Path, tmp_path: Path):
    with pytest.raises(UserError, match="holds trajectories, made by `spo rollout`"):
        regrade(chain / "trajectories", tmp_path / "out")


def test_an_evaluation_in_place_is_not_overwritten_by_its_own_regrade(tmp_path: Path):
    saved = write_evaluation(tmp_path / "saved", graded(("q1", "A"), task="gsm8k"))
    with pytest.raises(UserError, match="--out must differ from --regrade"):
        regrade(saved, saved / ".." / "saved", overwrite=True)
