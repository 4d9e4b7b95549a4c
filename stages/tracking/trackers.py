"""Trackers, which show the metrics of a run while it is in progress: TensorBoard event files, Weights & Biases.

A tracker receives all entries so far when it is opened, adds those that it lacks, and then receives each new entry. It
therefore shows the entries of `metrics.jsonl` (`stages.tracking.metrics_log`), each once, even after a kill.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stages.core.errors import UserError

Entry = dict[str, Any]
"""One entry of `metrics.jsonl`: `stage`, `of` (the output), `work`, `step`, `time`, and metrics as `stage/name`."""


@dataclass(frozen=True)
class RunInfo:
    """The run that a tracker shows.

    Attributes:
      directory: the directory for the tracker's files.
      identity: the id of the run; processes that resume the run use the same id.
      title: a name for the run.
      settings: the options of the run.
    """

    directory: Path
    identity: str
    title: str
    settings: Mapping[str, Any]


class Tracker(Protocol):
    """A tracker of one run.

    Attributes:
      location: where the user finds the run at the tracker, in one line.
    """

    location: str

    def log(self, number: int, entry: Entry) -> None:
        """Add entry `number` of the run, counted from 0; skip an entry that the tracker already has."""
        ...

    def close(self, *, failed: bool) -> None:
        """Finish at the end of the process, which may have failed."""
        ...


class TensorBoard:
    """Event files, flushed after every entry. Each process that resumes a run writes them again from the first entry.

    `purge_step=0` makes a running TensorBoard discard what it has read of the run before.
    """

    def __init__(self, run: RunInfo, entries: Iterable[Entry]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        directory = run.directory / "tensorboard"
        shutil.rmtree(directory, ignore_errors=True)
        self.location = f"tensorboard --logdir {directory}"
        self._writer = SummaryWriter(str(directory), purge_step=0)
        for entry in entries:
            self._write(entry)
        self._writer.flush()

    def log(self, number: int, entry: Entry) -> None:
        self._write(entry)
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        self._writer.close()

    def _write(self, entry: Entry) -> None:
        for name, value in figures(entry).items():
            self._writer.add_scalar(name.replace("@", "_at_").replace(" ", "_"), value, entry["step"], entry["time"])


class WeightsAndBiases:
    """A run at Weights & Biases. The number of an entry is its W&B step, so that no entry is recorded twice.

    Online, the server reports the step at which the run continues. Offline, the process writes all entries again, and
    its directory replaces the directory of the previous process, so that `wandb sync` uploads the complete run.
    """

    def __init__(self, run: RunInfo, entries: Iterable[Entry]) -> None:
        import wandb

        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "spo"),
                name=os.environ.get("WANDB_NAME", run.title),
                id=run.identity,
                resume="allow",
                dir=str(run.directory),
                config=dict(run.settings),
                reinit="create_new",
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            raise UserError(
                f"Weights & Biases is unreachable ({error}): rerun the command later, or set WANDB_MODE=offline "
                "and run `wandb sync` afterwards"
            ) from error
        self._run.define_metric("*", step_metric="step")
        self._count = self._run.starting_step
        for number, entry in enumerate(entries):
            self.log(number, entry)
        self._remove_previous()
        self.location = f"Weights & Biases: {self._run.url or Path(self._run.dir).parent}"

    def log(self, number: int, entry: Entry) -> None:
        if number >= self._count:
            self._run.log({"step": entry["step"], **figures(entry)}, step=number)
            self._count = number + 1

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
        self._remove_previous()  # again: after a kill, wandb's own process writes for a moment longer

    def _remove_previous(self) -> None:
        """Remove the directories of earlier processes of an offline run.

        wandb names a directory after the second of its start, and appends `-1` if that second has one already.
        """
        if self._run.offline:
            directory = Path(self._run.dir).parent
            for previous in directory.parent.glob(f"offline-run-*-{self._run.id}*"):
                if previous != directory:
                    shutil.rmtree(previous, ignore_errors=True)


TRACKERS: dict[str, Callable[[RunInfo, Iterable[Entry]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}
"""Value of `--report-to` → constructor of the tracker."""


def figures(entry: Entry) -> dict[str, float]:
    """Return the metrics of an entry by name; their names contain a slash, unlike the other keys."""
    return {name: value for name, value in entry.items() if "/" in name}


def check_trackers(names: Iterable[str]) -> None:
    """Check that trackers can be used, before any work begins.

    Raises:
      UserError: a package is not installed, or Weights & Biases has no credentials.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"--report-to {name} needs the package {name}, which is not installed: pip install 'spo-cli[{name}]'"
            )
    if "wandb" in names:
        import wandb

        try:
            if wandb.setup().settings.mode in ("online", "run", "shared"):
                wandb.login(verify=False)
        except wandb.Error as error:
            raise UserError(
                f"--report-to wandb: {error} Alternatively, set WANDB_API_KEY, or set WANDB_MODE=offline and run "
                "`wandb sync` later"
            ) from error
