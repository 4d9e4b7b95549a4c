"""A writer that is killed at any moment loses no committed work, exposes no partial part, and resumes correctly."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas
import pytest

from stages.core.errors import IncompleteInput
from stages.shards.parts import open_artefact
from stages.shards.schemas import TRAJECTORIES
from tests.shards.crash_writer import write
from tests.shards.samples import files

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[[Path, int, float], int]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Run the writer in a separate process; return the signal that ended it (0: none)."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.shards.crash_writer"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        requests, answers = process.stdin, process.stdout
        assert requests
        assert answers

        def ask(directory: Path, event: int, seconds: float) -> int:
            requests.write(json.dumps([str(directory), event, seconds]) + "\n")
            requests.flush()
            return int(answers.readline())

        yield ask
        requests.close()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    directory = tmp_path_factory.mktemp("uninterrupted")
    write(directory)
    return files(directory)


def test_a_kill_at_any_change_to_the_disk_leaves_whole_parts_and_resumes_to_the_same_bytes(
    tmp_path: Path, run: Run, uninterrupted: dict[str, bytes]
) -> None:
    event = 0
    while True:
        event += 1
        directory = tmp_path / f"{event:03d}"
        ended_by = run(directory, event, 0)
        if ended_by == 0:
            break
        assert ended_by == signal.SIGKILL
        visible = list(directory.glob("*.parquet"))
        assert all(pandas.read_parquet(path).shape[0] == 23 for path in visible), "readers see complete parts only"
        write(directory)
        assert files(directory) == uninterrupted, f"killed at change {event}"
    assert event > 40, "six chunks and the part change the disk more often than that"


def test_repeated_kills_at_random_moments_end_with_the_same_bytes(
    tmp_path: Path, run: Run, uninterrupted: dict[str, bytes]
) -> None:
    choose = random.Random(0)
    for trial in range(10):
        directory = tmp_path / str(trial)
        for _ in range(3):
            assert run(directory, 0, choose.uniform(0.001, 0.03)) in (0, signal.SIGKILL)
        write(directory)
        assert files(directory) == uninterrupted


def test_a_killed_array_task_leaves_an_incomplete_artefact(tmp_path: Path, run: Run) -> None:
    assert run(tmp_path / "out", 30, 0) == signal.SIGKILL
    with pytest.raises(IncompleteInput, match="only unfinished work"):
        open_artefact(tmp_path / "out", TRAJECTORIES)


SIGNALLED = """
    import signal, sys, time
    from pathlib import Path
    from stages.core.errors import Interrupted
    from stages.shards.schemas import TRAJECTORIES
    from stages.shards.sharding import ignore_signals, interruptible
    from stages.shards.writing import open_part
    from tests.shards.samples import lineage, trajectories

    table = trajectories(23)
    try:
        with interruptible(), open_part(Path(sys.argv[1]), 1, 2, lineage(), TRAJECTORIES) as part:
            keys = [f"rows {start}-{start + 4}" for start in range(0, 23, 4)]
            for i in part.missing(keys):
                part.commit(i, table.slice(4 * i, 4), {"rows": table.slice(4 * i, 4).num_rows})
                if i == 2:
                    print("three", flush=True)
                    while True:
                        time.sleep(0.01)
    except Interrupted as error:
        ignore_signals()
        print(error, flush=True)
        sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_keeps_what_was_committed(
    tmp_path: Path, number: signal.Signals, uninterrupted: dict[str, bytes]
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SIGNALLED), tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "three\n"
        for again in (number, signal.SIGTERM, signal.SIGINT):  # schedulers send several; the later ones are ignored
            process.send_signal(again)
        output = process.stdout.read()
    assert process.returncode == 4
    assert "3 of 6 chunks committed" in output
    assert "same command resumes" in output
    assert sorted(path.name for path in (tmp_path / ".part-00001-of-00002").iterdir() if path.suffix) == [
        "chunk-00000.parquet",
        "chunk-00001.parquet",
        "chunk-00002.parquet",
    ]
    write(tmp_path)
    assert files(tmp_path) == uninterrupted


FULL_DISK = """
    import os, sys
    from pathlib import Path
    from stages.core.errors import UserError
    from stages.shards.schemas import TRAJECTORIES
    from stages.shards.writing import open_part
    from tests.shards.samples import files, lineage, trajectories, write_part

    out, filler = Path(sys.argv[1], "out"), Path(sys.argv[1], "filler")
    table = trajectories(24)
    keys = [f"rows {start}-{start + 12}" for start in (0, 12)]

    def work(room_for):
        with open_part(out, 0, 1, lineage(), TRAJECTORIES) as part:
            for i in part.missing(keys):
                if i == 1 and room_for == "one chunk":
                    fill()
                part.commit(i, table.slice(12 * i, 12), {"rows": 12})
            if room_for == "chunks":
                fill()
            part.finish({"rows": 24})

    def fill():
        try:
            with filler.open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)
        except OSError:
            pass

    for room_for, kept in (("one chunk", 1), ("chunks", 2)):
        try:
            work(room_for)
            sys.exit("expected an error")
        except UserError as error:
            assert "No space left" in str(error) and "rerun the command" in str(error), error
        names = sorted(os.listdir(out / ".part-00000-of-00001"))
        assert names == [f"chunk-{i:05d}.parquet" for i in range(kept)] + ["lock"], names
        assert not list(out.glob("*.parquet"))
        filler.unlink()
    work("all")
    reference = Path(sys.argv[2])
    write_part(reference, table=table, chunk=12)
    assert files(out) == files(reference)
    print("held")
"""


def test_a_full_disk_is_one_clear_error_and_nothing_is_lost(tmp_path: Path) -> None:
    script, small = tmp_path / "script.py", tmp_path / "small"
    script.write_text(textwrap.dedent(FULL_DISK))
    small.mkdir()
    room = 50 * os.sysconf("SC_PAGE_SIZE")  # tmpfs allocates whole pages
    mount = ["unshare", "-Urm", "sh", "-c", f'mount -t tmpfs -o size={room} none {small} && exec "$0" "$@"']
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("needs permission to mount a small file system (unshare -Urm)")
    result = subprocess.run(
        [*mount, sys.executable, script, small, tmp_path / "reference"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.stdout == "held\n", result.stderr
