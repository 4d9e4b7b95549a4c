"""The output of every form of `spo eval`: figures over all parts, equal in every format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from spo_cli.app import main
from tests.evaluation.responses import graded, write_evaluation


def spo(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exited:
        main(["eval", *map(str, arguments)])
    captured = capsys.readouterr()
    assert isinstance(exited.value.code, int)
    return exited.value.code, captured.out, captured.err


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    code, out, err = spo(capsys, *arguments)
    assert code == 0, err
    return out


@pytest.fixture
def evaluations(tmp_path: Path) -> tuple[Path, Path]:
    """Write `a` (2 parts, 4 questions, 2 budgets, subjects, levels) and `b` (3 of these questions and a new one)."""
    few = graded(("q1", "A"), ("q2", "b"), subject="Algebra", level=["1", "2"])
    more = graded(("q3", "b"), ("q4", "?"), subject="Geometry", level="2")
    parts = [
        pa.concat_tables([part, part.set_column(6, "max_tokens", pa.array([16] * 2, pa.int32()))])
        for part in (few, more)
    ]
    a = write_evaluation(tmp_path / "a", *parts)
    other = graded(("q1", "A"), ("q2", "A"), ("q3", "A"), ("q5", "A"), max_tokens=16)
    return a, write_evaluation(tmp_path / "b", other, settings={"temperature": 0.6})


def test_the_table_covers_all_parts_with_groups_and_ungradable_responses(evaluations, capsys):
    out = printed(capsys, "--table", evaluations[0])
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "task max tokens questions avg@1 length truncated ungradable" in lines
    assert "t 8 4 33.3 ± 33.3 2.0 ± 0.0 0.0 (0.0 to 49.0) 1" in lines
    assert "t 16 Algebra 2 50.0 ± 50.0 2.0 ± 0.0 0.0 (0.0 to 65.8) 0" in lines
    assert "t 16 1 1 100.0 2.0 0.0 0" in lines
    assert "2 responses could not be graded; the accuracies exclude them" in lines


def test_json_contains_the_same_figures_at_full_precision(evaluations, capsys):
    report = json.loads(printed(capsys, "--table", evaluations[0], "--format", "json"))
    first = report["results"][0]
    assert (first["task"], first["max_tokens"], first["questions"], first["ungradable"]) == ("t", 8, 4, 1)
    assert first["accuracies"]["avg@1"] == pytest.approx({"mean": 1 / 3, "standard_error": 1 / 3, "questions": 3})
    assert [(result["max_tokens"], result["group"]) for result in report["by_subject"]] == [
        (8, "Algebra"),
        (8, "Geometry"),
        (16, "Algebra"),
        (16, "Geometry"),
    ]
    assert report["by_level"][0]["accuracies"]["avg@1"] == {"mean": 1.0, "standard_error": None, "questions": 1}
    assert len(report["notes"]) == 2


def test_several_evaluations_are_listed_under_their_given_names(evaluations, capsys):
    a, b = evaluations
    out = printed(capsys, "--table", f"SPO={a}", b, "--format", "markdown")
    assert out.splitlines()[2:] == [
        "| evaluation | t 8 | t 16 |",
        "| :--- | ---: | ---: |",
        "| SPO | 33.3 ± 33.3 | 33.3 ± 33.3 |",
        f"| {b} |  | 100.0 (51.0 to 100.0) |",
    ]
    by_name = json.loads(printed(capsys, "--table", f"SPO={a}", f"GRPO={b}", "--format", "json"))["evaluations"]
    assert by_name["GRPO"][0]["accuracies"]["avg@1"]["mean"] == 1.0


def test_a_comparison_covers_common_questions_and_reports_differing_settings(evaluations, capsys):
    a, b = evaluations
    out = printed(capsys, "--compare", a, b)
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "task max tokens accuracy questions A B B − A p B won B lost tied" in lines
    assert "t 16 avg@1 3 33.3 ± 33.3 100.0 (43.9 to 100.0) 66.7 ± 33.3 0.5000 2 0 1" in lines
    assert "t: excluded 1 questions to which only A has graded responses" in lines
    assert "t: excluded 1 questions to which only B has graded responses" in lines
    assert f"temperature differs: 0.0 in {a}, 0.6 in {b}" in lines
    report = json.loads(printed(capsys, "--compare", a, b, "--format", "json"))
    assert report["comparisons"][0]["difference"] == pytest.approx(
        {"mean": 2 / 3, "standard_error": 1 / 3, "questions": 3}
    )
    _, out, err = spo(capsys, "--compare", a, b, "--format", "latex")
    assert out.startswith("% Accuracy")
    assert "temperature differs" in err, "notes go to stderr, so that a redirected table does not contain them"


def test_evaluating_prints_the_table_and_marks_partial_results(policy: Path, tmp_path: Path, capsys):
    arguments: list[Any] = ["-m", policy, "--task", "arithmetic", "--task-arg", "operations=1", "--num-questions", 4]
    arguments += ["--max-tokens", 8, 24, "--threads", 1, "--out", tmp_path / "out"]
    out = printed(capsys, *arguments, "--shard", "0/2")
    assert "these are the results of part 0/2 only" in " ".join(out.split())
    assert [line.split()[:3] for line in out.splitlines() if line.startswith("arithmetic")] == [
        ["arithmetic", "8", "2"],
        ["arithmetic", "24", "2"],
    ]
    report = json.loads(printed(capsys, *arguments, "--shard", "1/2", "--format", "json"))
    assert [result["questions"] for result in report["results"]] == [4, 4], "all parts exist, so all are counted"
    regraded = json.loads(
        printed(capsys, "--regrade", tmp_path / "out", "--out", tmp_path / "again", "--format", "json")
    )
    assert regraded["results"] == report["results"]
    assert json.loads(printed(capsys, "--table", tmp_path / "out", "--format", "json"))["results"] == report["results"]


@pytest.mark.parametrize(
    ("form", "description"),
    [
        ("", "Measure a model's accuracy"),
        ("--regrade", "Grade the saved responses"),
        ("--compare", "paired by question"),
        ("--table", "side by side."),
    ],
)
def test_each_form_has_its_own_help(form: str, description: str, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    code, out, _ = spo(capsys, *([form] if form else []), "--help")
    assert code == 0
    assert description in " ".join(out.partition("Required:")[0].split())
    assert "--format" in out
    assert ("--temperature" in out) == (not form)
    assert "--compare A B pairs two evaluations by question" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--compare", "a"), 2, "--compare takes two evaluations; got 1"),
        (("--compare", "a", "b", "c"), 2, "--compare takes two evaluations; got 3"),
        (("--table", "nowhere"), 3, "nowhere does not exist"),
        (("--table", "a", "a"), 2, "--table must name each evaluation once"),
        (("--compare", "a", "other"), 2, "have no question of the same task and budget in common"),
        (("--table", "a", "--num-questions", "2"), 2, "No such option"),
    ],
)
def test_user_errors_are_reported_in_one_line(tmp_path: Path, monkeypatch, capsys, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    write_evaluation(Path("a"), graded(("q1", "A")))
    write_evaluation(Path("other"), graded(("q1", "A"), task="u"))
    found, out, err = spo(capsys, *arguments)
    assert (found, out) == (code, "")
    assert message in " ".join(err.split())


def test_show_reports_each_budget_and_draws_a_full_response(tmp_path: Path, capsys):
    short = graded(("q1", "bb"), max_tokens=1, token_ids=[[2], [2]], logprobs=[[-1.0], [-1.0]], finish_reason="length")
    whole = graded(("q1", "Ab"), max_tokens=8)
    rows = pa.concat_tables([short.slice(0, 1), whole.slice(0, 1), short.slice(1), whole.slice(1)])
    write_evaluation(tmp_path / "run" / "eval", rows)
    with pytest.raises(SystemExit):
        main(["show", str(tmp_path / "run" / "eval"), "--trajectory", "q1/0"])
    out = capsys.readouterr().out
    assert "1/avg@2" in out
    assert "8/avg@2" in out
    assert "q1/0  reward 1  answer a  reference r  finish reason stop" in out
    with pytest.raises(SystemExit):
        main(["show", str(tmp_path / "run"), "--json"])
    assert json.loads(capsys.readouterr().out)[0]["reward"] == 0.5
