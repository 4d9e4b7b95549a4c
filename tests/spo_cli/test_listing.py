"""`spo show --where --question --sample`: which trajectories are selected, and how they are listed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spo_cli.app import main
from spo_cli.listing import select
from stages.core.errors import UserError
from stages.shards.parts import open_artefact
from stages.shards.schemas import TRAJECTORIES
from tests.spo_cli.artefacts import RESPONSES, write


def selected(path: Path, *where: str, question: str | None = None, sample: int | None = None) -> list[str]:
    return select(open_artefact(path), where, question, sample, None)["id"].to_pylist()


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (["reward=1"], ["q0/0"]),
        (["reward < 1"], ["q0/1", "q1/0", "q1/1"]),
        (["tokens>=6", "reward!=1"], ["q0/1"]),
        (["text~2+3"], ["q0/0", "q0/1"]),
        (["answer=3"], ["q1/0", "q1/1"]),
        (["finish_reason=length"], []),
    ],
)
def test_conditions_on_responses(run_directory: Path, where: list[str], expected: list[str]):
    assert selected(run_directory / "000" / "trajectories", *where) == expected


def test_conditions_on_segments_hold_together_for_one_segment(run_directory: Path):
    advantages = run_directory / "000" / "advantages"
    assert selected(advantages, "advantage=0.25") == ["q0/0", "q0/1"]  # a segment of each
    assert selected(advantages, "advantage=0.25", "segment_index=1") == ["q0/0"]
    assert selected(advantages, "advantage<0", "reward=0") == ["q0/1"]
    assert selected(advantages, question="q1") == ["q1/0", "q1/1"]


def test_a_sample_is_the_same_every_time_and_part_of_what_is_selected(run_directory: Path):
    trajectories = run_directory / "000" / "trajectories"
    (one,) = selected(trajectories, "reward=0", sample=1)
    assert one in selected(trajectories, "reward=0")
    assert selected(trajectories, "reward=0", sample=1) == [one]
    assert len(selected(trajectories, sample=3)) == 3


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("reward", "expected a column"),
        ("rewrd=1", "did you mean"),
        ("reward=much", "does not compare"),
        ("reward~1", "does not compare"),
        ("token_ids=1", "has no column"),
    ],
)
def test_wrong_conditions_are_refused(run_directory: Path, where: str, message: str):
    with pytest.raises(UserError, match=f"(?i){message}"):
        selected(run_directory / "000" / "trajectories", where)


def test_hostile_text_is_listed_and_never_obeyed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "120")
    hostile = "\x1b[2J\x1b]0;title\x07\u202eright\r\n<script>[bold]" + "x" * 500
    rows = [{**RESPONSES[0], "text": hostile, "answer": "\x1b[31m5"}]
    write(tmp_path / "t", TRAJECTORIES, [rows])
    with pytest.raises(SystemExit):
        main(["show", str(tmp_path / "t"), "--where", "reward=1"])
    out = capsys.readouterr().out
    assert not set(out) & {"\x1b", "\x07", "\r", "\u202e"}
    assert "\\x1b[2J" in out
    assert max(map(len, out.splitlines())) <= 120
    with pytest.raises(SystemExit):
        main(["show", str(tmp_path / "t"), "--sample", "1", "--json"])
    assert json.loads(capsys.readouterr().out)[0]["text"] == hostile


def test_a_sample_is_drawn_token_by_token(run_directory: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["show", str(run_directory / "000" / "advantages"), "--where", "advantage<-0.5", "--sample", "2"])
    out = capsys.readouterr().out
    assert "q0/1  reward 0" in out
    assert "-0.75" in out
    assert "q0/0" not in out


def test_selecting_and_drawing_one_exclude_each_other(run_directory: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exited:
        main(["show", str(run_directory / "000" / "advantages"), "--row", "1", "--question", "q0"])
    assert exited.value.code == 2
    assert "omit --trajectory, --row and --tree" in capsys.readouterr().err
