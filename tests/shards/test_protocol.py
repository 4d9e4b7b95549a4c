"""Tasks that start, commit, die, resume, overwrite and read in any order keep the promises of the contract on disk.

The state machine drives the real code. A task of it stands for a process; `kill` takes its lock away and lets it run
no further line, as SIGKILL does. Promises: what readers see is whole and comes from one work; committed chunks are
never lost; work that nothing stands in the way of is never refused.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stages.core.errors import FingerprintMismatch, IncompleteInput, Interrupted, UserError
from stages.shards import disk
from stages.shards.parts import open_artefact
from stages.shards.schemas import TRAJECTORIES
from stages.shards.writing import PartWriter, open_part
from tests.shards.samples import Notes, Settings, lineage, trajectories

ROWS, CHUNKS = 12, 2
TEMPERATURES, SPLITS = (0.5, 1.0), (1, 2)
Part = tuple[int, int]
"""Number of a part, and number of parts."""
Work = tuple[float, int]
"""Setting of the work, and number of parts."""


@cache
def table(temperature: float) -> pa.Table:
    """Return all rows of the work with one setting."""
    rows = trajectories(ROWS)
    text = pa.array([f"{temperature}: {text}" for text in rows["text"].to_pylist()])
    return rows.set_column(rows.schema.get_field_index("text"), "text", text).cast(TRAJECTORIES.arrow)


def rows_of(temperature: float, part: Part, chunk: int) -> pa.Table:
    """Return the rows of one chunk of a part."""
    index, count = part
    size = ROWS // count // CHUNKS
    return table(temperature).slice(index * ROWS // count + chunk * size, size)


@cache
def truth(temperature: float, part: Part) -> bytes:
    """Return the file of a part that one task writes alone."""
    with tempfile.TemporaryDirectory() as folder:
        with open_part(Path(folder), *part, lineage(Settings(temperature=temperature)), TRAJECTORIES) as writer:
            for i in writer.missing(KEYS):
                writer.commit(i, rows_of(temperature, part, i), {"rows": 1})
            writer.finish()
        return writer.path.read_bytes()


KEYS = [f"chunk {i}" for i in range(CHUNKS)]


@dataclass
class Task:
    """A process that writes a part: its open writer, the handle of its lock, and the chunks that it still has to do."""

    opened: AbstractContextManager[PartWriter]
    writer: PartWriter
    lock: int
    temperature: float
    part: Part
    left: list[int]


@dataclass
class Expected:
    """What the directory holds: the work of each visible part, and of the committed chunks of each unfinished one."""

    published: dict[Part, float] = field(default_factory=dict)
    committed: dict[Part, tuple[float, set[int]]] = field(default_factory=dict)

    def works(self) -> set[Work]:
        """Return all work that there is something of."""
        begun = {part: temperature for part, (temperature, chunks) in self.committed.items() if chunks}
        return {(temperature, part[1]) for part, temperature in [*self.published.items(), *begun.items()]}

    def drop_other_split(self, count: int) -> None:
        """Forget everything of another number of parts."""
        for parts in (self.published, self.committed):
            for part in [part for part in parts if part[1] != count]:
                del parts[part]


def check_that_it_waits(error: UserError) -> None:
    """Check that a task is refused because another one is at work."""
    assert "another process" in str(error)


class Protocol(RuleBasedStateMachine):
    """Up to three tasks on one artefact, with two settings, in one or two parts."""

    has_locks = True

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.out, self.expected = self.folder / "out", Expected()
        self.tasks: dict[int, Task] = {}
        self.dead: list[Task] = []
        self.locks: list[int] = []
        take = disk._take_lock

        def take_lock(directory: Path) -> tuple[int, bool]:
            handle, held = take(directory)
            self.locks.append(handle)
            return handle, held

        self.patch = patch.object(disk, "_take_lock", take_lock)
        self.patch.start()

    def teardown(self) -> None:
        for task in [*self.tasks.values(), *self.dead]:
            with suppress(Exception):
                task.opened.__exit__(None, None, None)
        self.patch.stop()
        shutil.rmtree(self.folder)

    @rule(
        slot=st.sampled_from([0, 1, 2]),
        temperature=st.sampled_from(TEMPERATURES),
        count=st.sampled_from(SPLITS),
        index=st.integers(0, 1),
        overwrite=st.sampled_from([False, False, True]),
    )
    def start(self, slot: int, temperature: float, count: int, index: int, overwrite: bool) -> None:
        """Start a task, or start a killed one again."""
        if slot in self.tasks:
            return
        part, work = (index % count, count), (temperature, count)
        others = self.expected.works() - {work}
        is_locked = any(task.part == part for task in self.tasks.values())
        splits_in_use = any(task.part[1] != count for task in self.tasks.values())
        opened = open_part(
            self.out, *part, lineage(Settings(temperature=temperature)), TRAJECTORIES, overwrite=overwrite,
            progress=Notes(),
        )  # fmt: skip
        try:
            writer = opened.__enter__()
        except FingerprintMismatch:
            assert others
            assert not overwrite
            return
        except UserError as error:
            check_that_it_waits(error)
            assert is_locked or (overwrite and splits_in_use)
            if self.expected.published.get(part) == temperature and overwrite:
                self._forget_removed()
            return
        if writer.up_to_date:
            assert self.expected.published[part] == temperature
            self.expected.committed.pop(part, None)
            if overwrite:
                self.expected.drop_other_split(count)
            opened.__exit__(None, None, None)
            return
        assert not is_locked
        assert overwrite or not others & {(other, count) for other in TEMPERATURES}
        found, done = self.expected.committed.get(part, (temperature, set[int]()))
        if found != temperature:  # overwritten
            done = set[int]()
        left = list(writer.missing(KEYS))
        assert left == [i for i in range(CHUNKS) if i not in done], "a committed chunk is lost, or not known"
        self.expected.committed[part] = temperature, set(done)
        self.tasks[slot] = Task(opened, writer, self.locks[-1], temperature, part, left)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        """Let a task commit its next chunk."""
        task = self.tasks[data.draw(st.sampled_from(sorted(self.tasks)))]
        if task.left:
            chunk = task.left.pop(0)
            task.writer.commit(chunk, rows_of(task.temperature, task.part, chunk), {"rows": 1})
            self.expected.committed[task.part][1].add(chunk)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        """Let a task without missing chunks publish its part."""
        slot = data.draw(st.sampled_from(sorted(self.tasks)))
        task = self.tasks[slot]
        if task.left:
            return
        del self.tasks[slot]
        try:
            task.writer.finish()
        except UserError as error:
            check_that_it_waits(error)
            assert any(other.part[1] != task.part[1] for other in self.tasks.values())
            self._forget_removed()
            with pytest.raises(UserError):
                task.opened.__exit__(type(error), error, error.__traceback__)
            return
        self.expected.published[task.part] = task.temperature
        self.expected.committed.pop(task.part, None)
        self.expected.drop_other_split(task.part[1])
        task.opened.__exit__(None, None, None)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data(), torn=st.sampled_from(["", ".chunk-00000.parquet.tmp", ".whole.tmp"]))
    def kill(self, data: st.DataObject, torn: str) -> None:
        """Kill a task, perhaps in the middle of a write."""
        task = self.tasks.pop(data.draw(st.sampled_from(sorted(self.tasks))))
        if torn:
            (self._chunks(task.part) / torn).write_bytes(b"PAR1 torn")
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, task.lock)  # closes the lock's file, and keeps the number from being used again
        os.close(null)
        self.dead.append(task)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def interrupt(self, data: st.DataObject) -> None:
        """Send a signal to a task."""
        task = self.tasks.pop(data.draw(st.sampled_from(sorted(self.tasks))))
        error = Interrupted("stopped by SIGTERM")
        with pytest.raises(Interrupted, match="chunks committed"):
            task.opened.__exit__(Interrupted, error, None)

    @precondition(lambda self: any(chunks for _, chunks in self.expected.committed.values()))
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """Damage a committed chunk of a part that no task works on."""
        in_use = {task.part for task in self.tasks.values()}
        candidates = [
            (part, i)
            for part, (_, chunks) in sorted(self.expected.committed.items())
            for i in sorted(chunks)
            if part not in in_use
        ]
        if candidates:
            part, chunk = data.draw(st.sampled_from(candidates))
            file = self._chunks(part) / f"chunk-{chunk:05d}.parquet"
            file.write_bytes(file.read_bytes()[:-20])
            self.expected.committed[part][1].discard(chunk)

    @rule()
    def read(self) -> None:
        """Read the artefact: all rows of one work, or a refusal."""
        parts = self.expected.published
        whole = len({(t, part[1]) for part, t in parts.items()}) == 1 and len(parts) == next(iter(parts))[1]
        try:
            found = open_artefact(self.out, TRAJECTORIES).read_all(TRAJECTORIES.names)
        except (IncompleteInput, UserError):
            assert not whole
        else:
            assert whole
            assert found.equals(table(next(iter(parts.values()))))

    @invariant()
    def readers_see_whole_parts_only(self) -> None:
        found = {path.name: path.read_bytes() for path in self.out.glob("part-*")}
        names = {f"part-{i:05d}-of-{n:05d}.parquet": truth(t, (i, n)) for (i, n), t in self.expected.published.items()}
        assert found == names

    def _chunks(self, part: Part) -> Path:
        return self.out / f".part-{part[0]:05d}-of-{part[1]:05d}"

    def _forget_removed(self) -> None:
        """Forget what an overwriting task removed before it met the lock of another task."""
        for part in [part for part in self.expected.published if not self._file(part).exists()]:
            del self.expected.published[part]
        for part, (_, chunks) in self.expected.committed.items():
            chunks &= {i for i in range(CHUNKS) if (self._chunks(part) / f"chunk-{i:05d}.parquet").exists()}

    def _file(self, part: Part) -> Path:
        return self.out / f"part-{part[0]:05d}-of-{part[1]:05d}.parquet"


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(max_examples=6, stateful_step_count=25)
