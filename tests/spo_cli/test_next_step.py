"""The summary of a stage ends with the command that continues its work."""

from __future__ import annotations

from pathlib import Path

import pytest

from spo_cli import console
from spo_cli.next_step import next_command
from stages.core.progress import Summary


def parts(directory: Path, *names: str) -> str:
    directory.mkdir(parents=True)
    for name in names:
        (directory / name).touch()
    return str(directory)


@pytest.mark.parametrize(
    ("stage", "next_stage", "name"),
    [
        ("rollout", "segment", "cutpoints"),
        ("import", "segment", "cutpoints"),
        ("segment", "estimate", "advantages"),
        ("estimate", "train", "checkpoint"),
    ],
)
def test_a_complete_artefact_goes_to_the_stage_that_reads_it(stage: str, next_stage: str, name: str, tmp_path: Path):
    out = parts(tmp_path / "000" / "made", "part-00000-of-00002.parquet", "part-00001-of-00002.parquet")
    expected = f"spo {next_stage} {out} --out {tmp_path / '000' / name}"
    assert next_command(Summary(stage, out, rows=4, seconds=1.0)) == expected


def test_an_artefact_whose_other_parts_are_missing_goes_nowhere(tmp_path: Path):
    out = parts(tmp_path / "made", "part-00000-of-00002.parquet")
    assert next_command(Summary("rollout", out, rows=4, seconds=1.0)) is None


def test_a_path_with_a_space_is_quoted(tmp_path: Path):
    out = parts(tmp_path / "my run", "part-00000-of-00001.parquet")
    command = next_command(Summary("rollout", out, rows=4, seconds=1.0))
    assert command == f"spo segment '{out}' --out {tmp_path / 'cutpoints'}"


@pytest.mark.parametrize(
    ("stage", "command"),
    [
        ("train", "spo eval -m runs/x/000/checkpoint --task NAME --out runs/x/000/eval"),
        ("run", "spo show runs/x/000/checkpoint"),
        ("report", None),
    ],
)
def test_models_are_measured_and_runs_are_shown(stage: str, command: str | None):
    assert next_command(Summary(stage, "runs/x/000/checkpoint", rows=4, seconds=1.0)) == command


def test_the_summary_ends_with_it(capsys: pytest.CaptureFixture[str]):
    console.print_summary(Summary("run", "runs/x", rows=4, seconds=1.0))
    assert capsys.readouterr().out.splitlines()[-1] == "next: spo show runs/x"


def test_a_run_that_is_up_to_date_is_one_line(capsys: pytest.CaptureFixture[str]):
    console.print_summary(Summary("run", "runs/x", rows=4, seconds=1.0, up_to_date=True, figures={"iterations": 2}))
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == ["spo run → runs/x  up to date"]
