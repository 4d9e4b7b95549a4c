"""Every interleaving of two processes that write, finish and die in one directory keeps the promises of the protocol.

Each process opens its part, commits two chunks, and finishes; it may die between any two of these calls. All states of
the disk and of the processes that can be reached are visited, with real files and locks. The invariants: readers see at
most one split of one work, and never a torn part; two processes never write one part; committed chunks are kept; nobody
is refused without a reason; and a process that runs alone finishes. `tests/faults` kills within the calls.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from stages.core.errors import FingerprintMismatch, UserError
from stages.shards import writing
from stages.shards.files import lineage_of, read_columns, read_footer
from stages.shards.lineage import Lineage
from stages.shards.names import part_name
from stages.shards.schemas import TRAJECTORIES
from stages.shards.writing import PartWriter, open_part
from tests.shards.samples import Settings, lineage, trajectories

WORK, OTHER_WORK = lineage(), lineage(Settings(temperature=0.6))
FIRST_ROW = {WORK.fingerprint: 0, OTHER_WORK.fingerprint: 100}
KEYS = ["rows 0-6", "rows 6-12"]


@dataclass(frozen=True)
class Task:
    """A process that writes part 0 of a split."""

    work: Lineage
    count: int = 1
    overwrite: bool = False


TASKS = {
    "first": Task(WORK),
    "second": Task(WORK),
    "other work": Task(OTHER_WORK),
    "overwriting": Task(OTHER_WORK, overwrite=True),
    "split": Task(WORK, count=2, overwrite=True),
}


Actions = tuple[tuple[str, str], ...]
"""Actions in order: (process, what it does)."""
PAIRS = [
    ("first", "second"),
    ("first", "other work"),
    ("first", "overwriting"),
    ("first", "split"),
    ("overwriting", "split"),
]


class World:
    """One directory and its processes. `actions` says what can happen next, and `do` lets it happen and checks it."""

    def __init__(self, directory: Path, names: tuple[str, ...]) -> None:
        self.directory, self.names = directory, names
        self._open: dict[str, tuple[ExitStack, PartWriter, list[int]]] = {}
        self._kept: dict[tuple[int, str], int] = {}  # (split, fingerprint) → committed chunks that must stay

    def actions(self) -> list[tuple[str, str]]:
        return [
            (name, action) for name in self.names for action in (("step", "kill") if name in self._open else ("open",))
        ]

    def do(self, name: str, action: str) -> None:
        {"open": self._begin, "step": self._step, "kill": self._kill}[action](name)
        self._check_visible()

    def run_alone(self, name: str) -> None:
        """Kill every process and let one run, which must succeed or be refused for a reason."""
        for other in list(self._open):
            self._kill(other)
        self.do(name, "open")
        while name in self._open:
            self.do(name, "step")

    def close(self) -> None:
        for name in list(self._open):
            self._kill(name)

    def state(self) -> str:
        """Return a digest of the disk, of the processes and of what is promised."""
        disk = [
            (str(path.relative_to(self.directory)), path.read_bytes() if path.suffix == ".parquet" else b"")
            for path in sorted(self.directory.rglob("*"))
            if "_logs" not in path.parts
        ]
        processes = sorted((name, tuple(missing)) for name, (_, _, missing) in self._open.items())
        return hashlib.sha256(repr((disk, processes, sorted(self._kept.items()))).encode()).hexdigest()

    def _begin(self, name: str) -> None:
        task, stack = TASKS[name], ExitStack()
        writers = [one for one in self._open if TASKS[one].count == task.count]
        opening = open_part(self.directory, 0, task.count, task.work, TRAJECTORIES, overwrite=task.overwrite)
        try:
            part = stack.enter_context(opening)
        except FingerprintMismatch as error:
            if task.overwrite or not self._holds_other_work(task):
                raise AssertionError(f"{name} is refused without a reason") from error
            return
        except UserError as error:
            if "is working in" not in str(error) or not self._open:
                raise AssertionError(f"{name} waits for nobody") from error
            return
        if part.up_to_date:  # what is left of another split is removed
            self._kept = {one: n for one, n in self._kept.items() if one[0] == task.count}
            return stack.close()
        assert not writers, "two processes write one part"
        # Opening with overwrite removes the chunks of other work.
        self._kept = {one: n for one, n in self._kept.items() if one[0] != task.count or one == _identity(task)}
        missing = list(part.missing(KEYS))
        assert len(KEYS) - len(missing) >= self._kept.get(_identity(task), 0), f"{name} has lost chunks"
        self._open[name] = (stack, part, missing)

    def _step(self, name: str) -> None:
        (stack, part, missing), task = self._open[name], TASKS[name]
        if missing:
            chunk = missing.pop(0)
            part.commit(chunk, trajectories(6, FIRST_ROW[task.work.fingerprint] + 6 * chunk))
            self._kept = {one: chunks for one, chunks in self._kept.items() if one[0] != task.count}
            self._kept[_identity(task)] = len(KEYS) - len(missing)
            return
        del self._open[name]
        try:
            with stack:
                part.finish()
        except UserError as error:  # a process of another split is at work
            if "is working in" not in str(error) or all(TASKS[one].count == task.count for one in self._open):
                raise AssertionError(f"{name} waits for nobody") from error
            return
        self._kept.clear()  # those of this part are in it, those of another split are removed

    def _kill(self, name: str) -> None:
        stack, part, _ = self._open.pop(name)
        stack.close()
        chunks = self.directory / f".{part.path.stem}"
        chunks.mkdir(parents=True, exist_ok=True)  # a killed process leaves the directory of its chunks, and the lock
        (chunks / "lock").touch()

    def _holds_other_work(self, task: Task) -> bool:
        """Return whether a part or a chunk of other work, or of another split, is in the directory."""
        own = Path(part_name(0, task.count)).stem
        for path in [*self.directory.glob("part-*.parquet"), *self.directory.glob(".part-*/chunk-*.parquet")]:
            stem = path.stem if path.parent == self.directory else path.parent.name[1:]
            if stem != own or _fingerprint(path) != task.work.at(0, task.count).fingerprint:
                return True
        return False

    def _check_visible(self) -> None:
        """Check that readers see one whole part of one work, or none."""
        paths = sorted(self.directory.glob("*.parquet"))
        assert len(paths) <= 1, "two truths"
        for path in paths:
            count = int(path.stem[-5:])
            (work,) = (work for work in (WORK, OTHER_WORK) if work.at(0, count).fingerprint == _fingerprint(path))
            expected = trajectories(12, FIRST_ROW[work.fingerprint])
            assert read_columns(path, None, TRAJECTORIES).to_pylist() == expected.to_pylist(), "a torn part"


def _identity(task: Task) -> tuple[int, str]:
    return task.count, task.work.fingerprint


def _fingerprint(path: Path) -> str:
    found = lineage_of(read_footer(path, TRAJECTORIES), path)
    assert found is not None
    return found.fingerprint


@pytest.mark.parametrize("names", PAIRS, ids=" and ".join)
def test_no_interleaving_breaks_a_promise(names: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writing, "_CLEARING_SECONDS", 0.0)
    seen, waiting = set[str](), deque[Actions]([()])
    while waiting:
        path = waiting.popleft()
        with replay(tmp_path / "world", names, path) as world:
            actions = world.actions()
        for action in actions:
            with replay(tmp_path / "world", names, (*path, action)) as world:
                if (state := world.state()) not in seen:
                    seen.add(state)
                    waiting.append((*path, action))
                    world.run_alone(names[0])
    assert len(seen) >= 10


@contextmanager
def replay(directory: Path, names: tuple[str, str], path: Actions) -> Iterator[World]:
    """Yield a new world in which the actions of a path have happened; end it afterwards."""
    world = World(directory, names)
    try:
        for action in path:
            world.do(*action)
        yield world
    finally:
        world.close()
        shutil.rmtree(directory, ignore_errors=True)
