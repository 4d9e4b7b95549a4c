"""`spo show RUN`: one row per iteration, sparklines, costs; questions that change sides between evaluations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spo_cli.app import main
from spo_cli.console import print_wide
from spo_cli.learning_curve import draw_curve, sparkline
from stages.shards.schemas import EVALUATION
from tests.spo_cli.artefacts import RESPONSES, write


def show(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as exited:
        main(["show", *map(str, arguments)])
    captured = capsys.readouterr()
    assert (exited.value.code, captured.err) == (0, "")
    return captured.out


def evaluate(directory: Path, rewards: dict[str, list[float]]) -> None:
    """Write an evaluation with these rewards of each question."""
    extra = {"task": "t", "subject": None, "level": None, "max_tokens": 8}
    rows = [
        {**RESPONSES[0], **extra, "response_id": f"{name}/{i}", "question_id": name, "sample": i, "reward": reward}
        for name, values in rewards.items()
        for i, reward in enumerate(values)
    ]
    write(directory, EVALUATION, [rows])


@pytest.fixture
def run(run_directory: Path) -> Path:
    """Return the run of artefacts.py with evaluations: a is learned, b and d are forgotten, c stays at one half."""
    evaluate(run_directory / "000" / "eval", {"a": [0, 0], "b": [1, 0], "c": [1, 0], "d": [1, 1]})
    evaluate(run_directory / "001" / "eval", {"a": [1, 1], "b": [0, 0], "c": [0, 1], "d": [0, 0], "new": [1, 1]})
    return run_directory


def test_a_run_has_one_row_per_iteration(run: Path, capsys: pytest.CaptureFixture[str]):
    text = show(capsys, run)
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line[:1].isdigit()}
    # rewards of q0: 1 and 0, of q1: 0 and 0; accuracies of 000: 0, .5, .5, 1; tokens sampled are not recorded there
    assert rows["000"][1:3] == ["0.250±0.250", "0.500±0.204"]
    assert rows["001"][1] == "0.500±0.224"  # of 1, 0, .5, 0, 1
    assert rows["001"][-2:] == ["+1", "-2"]
    assert ["accuracy", "0.5", "▄▄", "0.5"] in [line.split() for line in text.splitlines()]


def test_the_files_and_the_json_of_a_run(run: Path, capsys: pytest.CaptureFixture[str]):
    files = show(capsys, run, "--files")
    assert "000/trajectories" in files
    assert "spo rollout" in files
    points = json.loads(show(capsys, run, "--json"))
    assert [point["iteration"] for point in points] == [0, 1]
    assert points[1]["changed"] == [1, 2]
    assert points[0]["reward"] == pytest.approx([0.25, 0.25])


def test_costs_come_from_footers_and_logs(run: Path, capsys: pytest.CaptureFixture[str]):
    logs, day = run / "000" / "_logs" / "trajectories", "2026-01-01T00:00:"
    (logs / "part-00001-of-00002.log").write_text(
        f"{day}00+00:00 started: b\n{day}02+00:00 chunk 1 of 1: 2 rows, gpus 0\n"
        f"{day}02+00:00 finished: 2 rows in 2.0 s\n"
    )
    (logs / "part-00000-of-00002.log").write_text(
        f"{day}00+00:00 started: a\n{day}03+00:00 chunk 1 of 2: 1 rows, sampled 10, prefilled 1000, gpus 0\n"
        f"{day}20+00:00 started: a\n{day}27+00:00 chunk 2 of 2: 1 rows, sampled 10, prefilled 234, gpus 0\n"
        f"{day}28+00:00 finished: 2 rows in 7.5 s\n"
    )
    text = show(capsys, run, "--cost")
    lines = [line.split() for line in text.splitlines()]
    # 3 s of the killed call, 7.5 s of the one that resumed it, 2 s of the other part, which overlaps the killed one
    assert ["000", "rollout", "1,234", "12.5", "10.5", "CPU"] in lines
    (total,) = [line for line in lines if line[:1] == ["all"]]
    assert total[1] == "1,234"
    assert "wall s: while one worked" in text


def test_every_call_on_a_part_counts_killed_ones_too(run: Path, capsys: pytest.CaptureFixture[str]):
    (run / "000" / "_logs" / "trajectories" / "part-00001-of-00002.log").write_text("")
    (run / "000" / "_logs" / "trajectories" / "part-00000-of-00002.log").write_text(
        "2026-01-01T00:00:00+00:00 started: spo rollout (host a, process 1), fingerprint f\n"
        "2026-01-01T00:00:40+00:00 chunk 1 of 3: 2 rows, sampled 20, prefilled 1000\n"
        "2026-01-02T00:00:00+00:00 started: spo rollout (host a, process 2), fingerprint f\n"
        "2026-01-02T00:00:05+00:00 chunk 2 of 3: 2 rows, sampled 20, prefilled 200\n"
        "2026-01-02T00:00:09+00:00 interrupted: SIGTERM\n"
        "2026-01-03T00:00:00+00:00 started: spo rollout (host a, process 3), fingerprint f\n"
        "2026-01-03T00:00:07+00:00 finished: 6 rows in 7.5 s\n"
    )
    lines = [line.split() for line in show(capsys, run, "--cost").splitlines()]
    assert ["000", "rollout", "1,200", "56.5", "56.5"] in lines


def test_no_number_is_broken_at_80_columns_or_fewer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    stage = {"sampled": 123_456_789, "seconds": 99_999.9}
    point = {
        "iteration": 999,
        "reward": [-0.123456, 0.123456],
        "accuracy": [0.987654, 0.012345],
        "entropy": 1.23456e-5,
        "kl": 1.2345e-7,
        "changed": [1000, 1000],
        "stages": {"rollout": stage},
    }
    for columns in (40, 80):
        monkeypatch.setenv("COLUMNS", str(columns))
        table = draw_curve([point, point])[-1]
        print_wide(table)
        (line, again) = capsys.readouterr().out.splitlines()[1:]
        expected = "999 -0.123±0.123 0.988±0.012 1.23e-05 1.2e-07 123M 100,000 +1000 -1000"
        assert line.split() == again.split() == expected.split()
        assert len(line.rstrip()) <= 80


def test_a_sparkline_has_one_bar_per_value_and_means_of_neighbors_in_a_long_run():
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([2.0, 2.0]) == "▄▄"
    assert sparkline([]) == ""
    assert sparkline([0.0, float("nan"), 1.0]) == "▁█"
    assert sparkline([0.0, 0.0, 1.0, 1.0], width=2) == "▁█"
    assert len(sparkline([float(i) for i in range(1000)])) == 48
