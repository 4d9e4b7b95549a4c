"""Limits of the machine, and files made to exceed them, end a command with one line and exit code 2."""

from __future__ import annotations

import errno
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spo_cli.limits import limit_message
from stages.core import parquet
from stages.core.errors import UserError
from stages.shards import files
from stages.shards.parts import open_artefact
from stages.shards.schemas import TRAJECTORIES
from stages.tasks.data import read_rows
from tests.shards.samples import trajectories, write_part

SPARE_MEMORY = 200 * 2**20
"""Address space beside what the modules of spo take, and not enough for the rows of the test below."""


def bomb_of_texts(path: Path) -> None:
    """Write 4,000 rows with one text of 100 kB each, which take 400 MB in memory and a thousandth of it on disk."""
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 4000, pa.int32()), pa.array(["x" * 100_000]))
    pq.write_table(pa.table({"text": texts}), path, store_schema=False)


def bomb_of_lists(path: Path) -> None:
    """Write one row with 4 million token ids, which take 32 MB in memory and a thousandth of it on disk."""
    ids = pa.nulls(4_000_000, pa.null())
    offsets = pa.array([0, len(ids)], pa.int32())
    pq.write_table(pa.table({"token_ids": pa.ListArray.from_arrays(offsets, ids)}), path, compression="zstd")


@pytest.mark.parametrize("bomb", [bomb_of_texts, bomb_of_lists])
def test_a_small_file_of_huge_values_is_refused(
    bomb: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(parquet, "_SURELY_HARMLESS", 2**20)  # a bomb that fills a real memory takes seconds to write
    path = tmp_path / "bomb.parquet"
    bomb(path)
    assert path.stat().st_size < 30_000
    with pytest.raises(UserError, match="it would fill the memory"):
        files.read_columns(path, None, TRAJECTORIES)
    with pytest.raises(UserError, match="it would fill the memory"):
        read_rows(path)


def test_rows_of_long_texts_are_read_whole(tmp_path: Path):
    table = trajectories(700).set_column(
        TRAJECTORIES.names.index("text"), "text", pa.array([f"{n}" + "y" * 5000 for n in range(700)])
    )
    path = tmp_path / "long.parquet"
    pq.write_table(table.replace_schema_metadata(), path, row_group_size=300)
    assert open_artefact(path, TRAJECTORIES).read_all(["text"])["text"].to_pylist() == table["text"].to_pylist()


def test_too_little_memory_is_one_line(tmp_path: Path):
    table = pa.table({"text": ["z" * 10**7] * 40, "answer": ["1"] * 40})
    pq.write_table(table, tmp_path / "large.parquet", use_dictionary=False, compression="zstd")
    script = f"""
        import resource, stages.grade
        from spo_cli.app import main
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + {SPARE_MEMORY}, used + {SPARE_MEMORY}))
        main()
    """
    result = run(script, "grade", tmp_path / "large.parquet")
    assert result.returncode == 2, result.stderr
    assert "not enough memory" in result.stderr
    assert "Traceback" not in result.stderr


def test_no_more_processes_is_one_line(tmp_path: Path):
    part = write_part(tmp_path / "t", table=trajectories(4))
    # The limit of processes does not hold for root; a thread that cannot start is what it does to others.
    script = """
        import threading
        from spo_cli.app import main
        def refuse(thread):
            raise RuntimeError("can't start new thread")
        threading.Thread.start = refuse
        main()
    """
    result = run(script, "show", part)
    assert result.returncode == 2, result.stderr
    assert "a limit of processes, threads or open files is reached" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (MemoryError(), "not enough memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "not enough memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
            "not enough memory",
        ),
        (ImportError("libtorch.so: failed to map segment from shared object"), "not enough memory"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "a limit of processes"),
        (OSError(errno.EMFILE, "Too many open files"), "a limit of processes"),
        (RuntimeError("can't start new thread"), "a limit of processes"),
        (RuntimeError("Symlink loop from 'x'"), "without circular links"),
    ],
)
def test_errors_of_limits_are_recognized(error: Exception, problem: str):
    assert problem in (limit_message(error) or "")


def test_other_errors_are_no_limits():
    assert limit_message(RuntimeError("boom")) is None
    assert limit_message(OSError(errno.EIO, "Input/output error")) is None


def run(script: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a script that calls `spo` with the given words, in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True)
