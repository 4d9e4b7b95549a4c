"""Test the streams: hostile text never reaches the terminal raw, and a lost stream ends nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spo_cli.app import main
from spo_cli.screen import one_line, visible
from stages.shards.lineage import Source
from stages.shards.schemas import ADVANTAGES, CUTPOINTS, TRAJECTORIES
from tests.spo_cli.artefacts import RESPONSES, SEGMENTS, write

REPOSITORY = Path(__file__).resolve().parents[2]
NASTY = "\x1b[31m\x1b]0;title\x07\r\b\x00\x9b2J\x7f\u202e\u2066\u200b\u2028\ufeff\U000e0041"
HOSTILE = st.text(st.characters(codec="utf-8"), max_size=8).map(lambda text: f"{text}{NASTY}") | st.text(
    st.sampled_from(f"a/{NASTY}[]"), min_size=1, max_size=12
)


def hidden(text: str) -> list[str]:
    """Return the characters that a terminal obeys or hides: controls but newline, marks of direction, separators."""
    joiners = "\u200c\u200d\u00ad"
    return [
        one
        for one in text
        if one != "\n"
        and (
            unicodedata.category(one) in {"Cc", "Zl", "Zp", "Cs"}
            or unicodedata.bidirectional(one) in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
            or (unicodedata.category(one) == "Cf" and unicodedata.bidirectional(one) == "BN" and one not in joiners)
        )
    ]


def run_spo(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[object, str]:
    with pytest.raises(SystemExit) as exited:
        main([str(one) for one in arguments])
    captured = capsys.readouterr()
    return exited.value.code, captured.out + captured.err


@given(HOSTILE, HOSTILE)
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_command_that_shows_an_artefact_prints_a_control_character(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str], first: str, second: str
):
    folder = tmp_path_factory.mktemp("hostile")
    here = folder / re.sub("[/\0]", "", f"run{first}")
    texts = {"question_id": f"q{first}", "prompt": first, "text": second, "answer": second, "reference": first}
    ids = [f"{texts['question_id']}/{number}" for number in range(2)]
    rows = [{**row, **texts, "trajectory_id": id} for row, id in zip(RESPONSES[:2], ids, strict=True)]
    cuts = [{**row, "trajectory_id": ids[number // 2]} for number, row in enumerate(SEGMENTS[:4])]
    source = Source(f"../trajectories{second}", "0" * 32, "rollout")
    try:
        trajectories = write(here / "trajectories", TRAJECTORIES, [rows], model=Source(f"model{second}", "0" * 32))
    except OSError:  # a name that this file system refuses
        return
    cutpoints = write(here / "cutpoints", CUTPOINTS, [cuts], inputs=(source,))
    advantages = write(here / "advantages", ADVANTAGES, [cuts], inputs=(source,))
    for arguments in (
        ("show", here),
        ("show", trajectories),
        ("show", trajectories, "--json"),
        ("show", trajectories, "--tree", texts["question_id"]),
        ("show", trajectories, "--row", "1"),
        ("show", trajectories, "--trajectory", second),
        ("show", cutpoints, "--trajectories", trajectories),
        ("show", advantages, "--trajectories", trajectories, "--row", "0"),
        ("show", advantages, "--trajectories", here / f"absent{second}".replace("\0", "")),
        ("segment", advantages, "--out", here / "other"),
        ("segment", trajectories, "--partition", second, "--out", here / "other"),
        ("run", f"{second}.toml".replace("\0", "")),
        (second,),
        ("show", f"--{second}"),
    ):
        code, text = run_spo(capsys, *arguments)
        assert code in (0, 2, 3), text
        assert not hidden(text), arguments
        if "--json" in arguments:
            assert json.loads(text)["lineage"]["model"]["path"] == f"model{second}"


@given(HOSTILE)
def test_escapes_read_back_as_the_same_text(text: str):
    assert not hidden(visible(text).replace("\t", ""))
    quoted = json.dumps(text, ensure_ascii=False)
    assert json.loads(visible(quoted)) == text


def test_messages_are_one_line_of_a_sensible_length():
    assert one_line("first\n  second\r\nthird\u2028fourth") == "first second third fourth"
    assert len(one_line("x" * 10**6)) < 500
    assert len(one_line("word " * 10**5)) < 2000
    message = "expected a number; got " + "9" * 5000 + ": pass another"
    assert one_line(message).endswith("999: pass another")


def start(*arguments: str, **options: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "spo_cli", *arguments]
    return subprocess.Popen(command, cwd=REPOSITORY, **options)  # type: ignore[call-overload]


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    rows = [{**row, "trajectory_id": f"é{row['trajectory_id']}"} for row in RESPONSES]
    return write(tmp_path / "trajectories", TRAJECTORIES, [rows])


@pytest.mark.parametrize("lost", ["2>/dev/full", "2> >(true)", "0<&- 1>&- 2>&-"])
def test_work_goes_on_without_stderr(lost: str, artefact: Path, tmp_path: Path):
    command = f"{sys.executable} -m spo_cli segment {artefact} --out {tmp_path}/cutpoints {lost}"
    assert subprocess.run(["bash", "-c", command], cwd=REPOSITORY, stdout=subprocess.DEVNULL).returncode == 0
    assert len(list((tmp_path / "cutpoints").glob("part-*.parquet"))) == 1


@pytest.mark.parametrize("command", ["rollout --help", "show {}"])
def test_a_reader_that_stops_reading_is_not_a_failure(command: str, artefact: Path):
    line = f"set -o pipefail; {sys.executable} -m spo_cli {command.format(artefact)} | true"
    result = subprocess.run(["bash", "-c", line], cwd=REPOSITORY, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_results_that_cannot_be_printed_are_one_line(artefact: Path):
    line = f"{sys.executable} -m spo_cli show {artefact} > /dev/full"
    result = subprocess.run(["bash", "-c", line], cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == ("spo show: cannot print the results: No space left on device; what was computed is kept\n")


def test_an_encoding_without_our_characters_will_do(artefact: Path):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for arguments in (["show", str(artefact)], ["show", str(artefact), "--json"], ["show", "é"]):
        process = start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
        out, err = process.communicate()
        assert process.returncode == (2 if arguments[-1] == "é" else 0), err
        assert b"Traceback" not in err
        if arguments[-1] == "--json":
            assert json.loads(out)["lineage"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_before_the_command_begins_ends_it_with_the_code_of_an_interruption(number: signal.Signals):
    program = (
        "import sys, time, spo_cli.__main__ as entry\n"
        "sys.argv = ['spo', '--version']\n"
        "class Slow:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'typer':\n"
        "            print('importing', flush=True); time.sleep(30)\n"
        "sys.meta_path.insert(0, Slow())\n"
        "entry.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    assert process.stdout.readline() == b"importing\n"
    time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 4
    assert err.decode().startswith(f"spo: stopped by {number.name}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_while_the_interpreter_ends_changes_no_exit_code(number: signal.Signals):
    program = (
        "import os, sys, spo_cli.__main__ as entry\n"
        "sys.argv = ['spo', 'segment', '/nowhere/trajectories', '--out', '/nowhere/cutpoints']\n"
        "class Late:\n"
        "    def __del__(self, kill=os.kill, pid=os.getpid(), write=os.write):\n"
        f"        kill(pid, {int(number)}); write(1, b'sent')\n"
        "late = Late()\n"
        "entry.main()"
    )
    process = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, check=False)
    assert process.stdout == b"sent"
    assert process.returncode == 3


def test_code_of_the_user_cannot_decide_the_exit_code(artefact: Path, tmp_path: Path):
    (tmp_path / "mine.py").write_text("import sys\nsys.exit(7)\n")
    (tmp_path / "yours.py").write_text("import sys\ndef cut(*columns):\n    sys.exit(7)\n")
    problems = (("mine:cut", "importing mine raised SystemExit: 7"), ("yours:cut", "yours:cut failed: SystemExit: 7"))
    for name, problem in problems:
        environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{tmp_path}"}
        arguments = ["segment", str(artefact), "--partition", name, "--out", str(tmp_path / "cutpoints")]
        process = start(*arguments, stderr=subprocess.PIPE, env=environment)
        _, err = process.communicate()
        assert process.returncode == 2, err
        assert problem in err.decode().splitlines()[-1]
