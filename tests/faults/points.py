"""Run a stage with a fault at each of its changes to the disk, and resume it: the same bytes must come back.

A kill at a call leaves what the earlier calls wrote. One run that stops before each call, and in the middle of each
write, therefore shows what every kill leaves; `test_faults.py` compares samples with real kills. A full disk changes
what the process does, so that each point is a run of its own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stages.models.checkpoints import OPTIMIZER_FILE
from tests.command_server import CommandResult, Commands
from tests.faults.shim import Fault, Kind
from tests.faults.stages import STAGES, Inputs

_NEED_ROOM = ("open", "write", "writev", "mkdir", "rename", "link", "symlink", "sendfile", "copy_file_range")
"""Calls that fail where the disk is full."""
_PRUNED = ("model.safetensors", OPTIMIZER_FILE)
"""Files that a run deletes from its older checkpoints."""
_VOLATILE = ("time", "step_time", "tokens_per_second")


@dataclass
class Outcome:
    """What the faults of one kind did to a stage.

    Attributes:
      stage, kind: the stage, and the kind of fault.
      points: number of faults.
      states: number of distinct states of the disk that they left, each of which was resumed from.
      problems: one line for each point that did not resume to the same bytes, or that exposed something torn.
    """

    stage: str
    kind: str
    points: int = 0
    states: int = 0
    problems: list[str] = field(default_factory=list)


class Enumeration:
    """The faults of one stage."""

    def __init__(self, commands: Commands, inputs: Inputs, stage: str) -> None:
        self._commands, self._inputs, self.stage = commands, inputs, stage
        self._words, self._log = STAGES[stage](inputs), inputs.folder / "calls.log"
        self.clear()
        result = self._run(Fault(str(inputs.out), log=str(self._log)))
        assert result.code == 0, result.stderr
        self.calls = self._log.read_text().splitlines()
        self.reference = contents(inputs.out)
        self._pruned: dict[str, bytes] = {}

    def kill(self) -> Outcome:
        """Resume from the state before each call, and in the middle of each write."""
        outcome = Outcome(self.stage, "kill")
        snapshots = self._inputs.folder / "snapshots"
        shutil.rmtree(snapshots, ignore_errors=True)
        self.clear()
        result = self._run(Fault(str(self._inputs.out), "watch", snapshots=str(snapshots)))
        assert result.code == 0, result.stderr
        seen = set[str]()
        for snapshot in sorted(snapshots.iterdir()):
            outcome.points += 1
            self._resume_from(snapshot, outcome, seen, f"state {snapshot.name}")
        shutil.rmtree(snapshots)
        return outcome

    def kill_sometimes(self, step: int) -> Outcome:
        """Kill the stage at every `step`-th call, and resume."""
        outcome, left = Outcome(self.stage, "kill"), self._inputs.folder / "left"
        for at in range(1, len(self.calls) + 1, step):
            outcome.points += 1
            self.kill_for_real("kill", at)
            shutil.rmtree(left, ignore_errors=True)
            shutil.copytree(self._inputs.out, left)
            self._resume_from(left, outcome, set(), f"call {at} ({self.calls[at - 1]})")
        return outcome

    def kill_for_real(self, kind: Kind, at: int) -> dict[str, bytes]:
        """Kill the stage at one call and return what it leaves."""
        self.clear()
        result = self._run(Fault(str(self._inputs.out), kind, at))
        assert result.code == -signal.SIGKILL, result.stderr
        return contents(self._inputs.out)

    def fill(self, step: int = 1) -> Outcome:
        """Let the disk be full from each call on that needs room (or from every `step`-th), then resume with room."""
        outcome, seen = Outcome(self.stage, "full"), set[str]()
        points = [at for at, call in enumerate(self.calls, start=1) if call.split()[0] in _NEED_ROOM]
        for at in points[::step]:
            outcome.points += 1
            self._fill_at(at, outcome, seen)
        return outcome

    def fill_at(self, at: int) -> Outcome:
        """Let the disk be full from one call on, then resume with room."""
        outcome = Outcome(self.stage, "full", points=1)
        self._fill_at(at, outcome, set())
        return outcome

    def _fill_at(self, at: int, outcome: Outcome, seen: set[str]) -> None:
        where = f"call {at} ({self.calls[at - 1]})"
        self.clear()
        result = self._run(Fault(str(self._inputs.out), "full", at))
        lines = [line for line in result.stderr.splitlines() if line.startswith("spo ")]
        if result.code not in (0, 2) or (result.code == 2) != (len(lines) == 1) or "Traceback" in result.stderr:
            outcome.problems.append(f"{where}: exit code {result.code}, {result.stderr[-600:]}")
        left = self._inputs.folder / "left"
        shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(self._inputs.out, left)
        self._resume_from(left, outcome, seen, where)

    def _resume_from(self, left: Path, outcome: Outcome, seen: set[str], where: str) -> None:
        """Check a state of the disk and, unless it is known, complete the stage from it."""
        found = contents(left)
        torn = [name for name in found if is_visible(name) and self._expected(name, found[name]) != found[name]]
        if torn:
            outcome.problems.append(f"{where}: {', '.join(torn)} can be seen, and differ from the finished files")
        state = hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()
        if state in seen:
            return
        seen.add(state)
        outcome.states += 1
        shutil.rmtree(self._inputs.out)
        shutil.copytree(left, self._inputs.out)
        result = self._commands.run(*self._words)
        if result.code != 0:
            outcome.problems.append(f"{where}: the rerun ends with {result.code}, {result.stderr[-600:]}")
        elif (now := contents(self._inputs.out)) != self.reference:
            different = sorted(name for name in {*now, *self.reference} if now.get(name) != self.reference.get(name))
            outcome.problems.append(f"{where}: the rerun changes {', '.join(different)}")

    def _expected(self, name: str, found: bytes) -> bytes:
        """Return the bytes of a finished file; weights that the run prunes later must be the same in all states."""
        if name not in self.reference and Path(name).name in _PRUNED:
            return self._pruned.setdefault(name, found)
        return self.reference.get(name, b"")

    def _run(self, fault: Fault) -> CommandResult:
        return self._commands.run(*self._words, fault=fault)

    def clear(self) -> None:
        """Empty the folder of the outputs."""
        shutil.rmtree(self._inputs.out)
        self._inputs.out.mkdir()


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file and folder below a folder, without what differs between two runs: logs of parts and times."""
    found = dict[str, bytes]()
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[f"{name}/"] = b""
        elif path.name == "metrics.jsonl":
            found[name] = "\n".join(_without_time(path)).encode()
        elif path.name != "lock" and "_logs" not in path.parts:
            found[name] = path.read_bytes()
    return found


def is_visible(name: str) -> bool:
    """Return whether a reader of outputs sees a file: no part of its path is hidden or a log."""
    return not name.endswith("/") and not any(part[0] in "._" for part in Path(name).parts)


def _without_time(path: Path) -> Iterator[str]:
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
            kept = {name: value for name, value in entry.items() if name.rpartition("/")[2] not in _VOLATILE}
            yield json.dumps(kept, sort_keys=True)
        except ValueError:  # torn, in the middle of a write
            yield line
