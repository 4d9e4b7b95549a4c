"""Owns the places that show a run's metrics while it goes on: TensorBoard's event files, and Weights & Biases.

A mirror is given all entries so far when it is opened, shows those that it lacks, and then each new one. So what it
shows is what the run's `metrics.jsonl` says (`stages.tracking.metrics_log`), each entry once, whatever was killed before.
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
"""One line of a run's metrics: `stage`, `of` (the output), `work`, `step`, `time`, and figures as `stage/name`."""


@dataclass(frozen=True)
class RunInfo:
    """What a mirror tells of a run.

    Attributes:
      directory: where it may keep files.
      identity: of the run, the same for every process that goes on with it.
      title: for people.
      settings: the run's options.
    """

    directory: Path
    identity: str
    title: str
    settings: Mapping[str, Any]


class Tracker(Protocol):
    """A place that shows a run.

    Attributes:
      where: one line for people.
    """

    where: str

    def show(self, number: int, entry: Entry) -> None:
        """Entry `number` of the run, counted from 0; one that is there already is passed over."""
        ...

    def close(self, *, failed: bool) -> None:
        """The process ends here, well or not."""
        ...


class TensorBoard:
    """Event files, made anew from the first entry by each process that goes on with a run, and flushed every step.

    They begin by telling a TensorBoard that is open to forget what it has read of the run.
    """

    def __init__(self, shown: RunInfo, entries: Iterable[Entry]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        directory = shown.directory / "tensorboard"
        shutil.rmtree(directory, ignore_errors=True)
        self.where = f"tensorboard --logdir {directory}"
        self._writer = SummaryWriter(str(directory), purge_step=0)
        for entry in entries:
            self._write(entry)
        self._writer.flush()

    def show(self, number: int, entry: Entry) -> None:
        self._write(entry)
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        self._writer.close()

    def _write(self, entry: Entry) -> None:
        for name, value in figures(entry).items():
            self._writer.add_scalar(name.replace("@", "_at_").replace(" ", "_"), value, entry["step"], entry["time"])


class WeightsAndBiases:
    """A run at Weights & Biases, of which an entry's number is the step, so that none is taken in twice.

    Online the server says what it has; an offline process writes everything again, and its directory takes the place
    of the one before: `wandb sync` uploads it whole.
    """

    def __init__(self, shown: RunInfo, entries: Iterable[Entry]) -> None:
        import wandb

        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "spo"),
                name=os.environ.get("WANDB_NAME", shown.title),
                id=shown.identity,
                resume="allow",
                dir=str(shown.directory),
                config=dict(shown.settings),
                reinit="create_new",
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            raise UserError(
                f"Weights & Biases cannot be reached ({error}): run this again when it can, or with WANDB_MODE=offline "
                "and `wandb sync` later"
            ) from error
        self._run.define_metric("*", step_metric="step")
        self._count = self._run.starting_step
        for number, entry in enumerate(entries):
            self.show(number, entry)
        if self._run.offline:
            here = Path(self._run.dir).parent
            for before in here.parent.glob(f"offline-run-*-{shown.identity}"):
                if before != here:
                    shutil.rmtree(before, ignore_errors=True)
        self.where = f"Weights & Biases: {self._run.url or Path(self._run.dir).parent}"

    def show(self, number: int, entry: Entry) -> None:
        if number >= self._count:
            self._run.log({"step": entry["step"], **figures(entry)}, step=number)
            self._count = number + 1

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


TRACKERS: dict[str, Callable[[RunInfo, Iterable[Entry]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}
"""Value of `--report-to` → what opens it."""


def figures(entry: Entry) -> dict[str, float]:
    """The numbers of an entry, by name."""
    return {name: value for name, value in entry.items() if "/" in name}


def check_trackers(names: Iterable[str]) -> None:
    """Told before any work begins.

    Raises:
      UserError: a package is missing, or Weights & Biases has no credentials.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"--report-to {name} needs a package that is not installed: pip install 'spo-cli[{name}]'")
    if "wandb" in names:
        import wandb

        try:
            if wandb.setup().settings.mode in ("online", "run", "shared"):
                wandb.login(verify=False)
        except wandb.Error as error:
            raise UserError(
                f"--report-to wandb: {error} Or set WANDB_API_KEY; or WANDB_MODE=offline, and `wandb sync` later"
            ) from error
