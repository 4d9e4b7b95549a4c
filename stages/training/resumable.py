"""Keep the state of an unfinished training run beside its output, in `.NAME.partial/`, so that a rerun resumes it.

A checkpoint is a complete model directory with the optimizer state and the metrics of the steps so far; the number of
these metrics is the number of steps taken. Checkpoints and arrays appear by a rename, so whatever exists is complete.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from transformers import PreTrainedTokenizerBase

from stages.core.errors import FingerprintMismatch, Interrupted, SpoError, UserError
from stages.core.json_files import read_json_lines
from stages.core.paths import AnyPath, cache_directory, log_directory
from stages.core.progress import Progress
from stages.core.storage import digest, write_atomically
from stages.models import transfer
from stages.models.checkpoints import METRICS_FILE
from stages.models.guard import guarded
from stages.optimization.ranks import ALONE, Ranks
from stages.shards.calls import WARNING
from stages.shards.disk import disk_errors, locked
from stages.shards.lineage import Lineage, differences, read_lineage, write_lineage
from stages.shards.logs import PartLog
from stages.shards.places import check_place
from stages.tracking.metrics_log import MetricsLog, Series

SAVE_SECONDS = 300.0
"""Seconds between checkpoints if no number of steps is given: the most work that a killed run loses."""

Metrics = list[dict[str, float]]
"""The metrics of each step, in order."""


class ModelWriter(Protocol):
    """Writes a model directory with its optimizer state: an engine, or a policy together with its critic."""

    def save(self, directory: AnyPath, tokenizer: PreTrainedTokenizerBase, write_more: Callable[[Path], None]) -> None:
        """Write the directory atomically; `write_more` adds files to it before it gets its final name."""
        ...


class ResumableRun:
    """The unfinished work of one output, locked by this process; with several ranks, only rank 0 writes.

    Attributes:
      directory: `.NAME.partial/` beside the output.
      checkpoint: model directory to resume from; None if nothing was saved yet.
      metrics: metrics of the steps up to that checkpoint.
      call_log: the log of the calls that worked on the output.
    """

    def __init__(
        self,
        directory: Path,
        lineage: Lineage,
        checkpoint: Path | None,
        metrics: Metrics,
        series: Series | None,
        ranks: Ranks,
        call_log: PartLog,
    ) -> None:
        self.directory, self.checkpoint, self.metrics = directory, checkpoint, metrics
        self.call_log = call_log
        self._lineage, self._series, self._ranks = lineage, series, ranks
        self._saved_at = time.monotonic()

    def announce(self, steps: int, gpus: int) -> None:
        """Write to the log how many steps there are in all, and on how many GPUs they run."""
        if self._ranks.rank == 0:
            self.call_log.write(f"to do: {steps - len(self.metrics)} of {steps} steps, gpus {gpus}")

    def warn(self, line: str, progress: Progress) -> None:
        """Report a line to the user, and write it to the log."""
        progress.note(line)
        if self._ranks.rank == 0:
            self.call_log.write(f"{WARNING}{line}")

    def log(self, line: dict[str, float]) -> None:
        """Append the metrics of a step to the file of the unfinished run and to the trackers."""
        if self._ranks.rank:
            return
        with (self.directory / METRICS_FILE).open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._series:
            self._series.log(line)

    def save_if_due(
        self, writer: ModelWriter, tokenizer: PreTrainedTokenizerBase, metrics: Metrics, every: int | None
    ) -> None:
        """Write a checkpoint after the steps in `metrics` if one is due, and delete the older ones.

        Args:
          every: steps between checkpoints; None: `SAVE_SECONDS` since the last one.
        """

        def is_due() -> bool:
            return len(metrics) % every == 0 if every else time.monotonic() - self._saved_at >= SAVE_SECONDS

        # The clocks of the ranks differ, and all of them must save together: rank 0 decides.
        if not self._ranks.broadcast_from_main(is_due):
            return
        checkpoint = self.directory / f"step-{len(metrics):08d}"
        writer.save(checkpoint, tokenizer, lambda directory: write_records(directory, self._lineage, metrics))
        if self._ranks.rank == 0:
            for older in _checkpoints(self.directory)[1:]:
                shutil.rmtree(older)
        self._saved_at = time.monotonic()

    def cached_arrays(
        self, name: str, compute: Callable[[], dict[str, NDArray[np.floating]]]
    ) -> dict[str, NDArray[np.floating]]:
        """Return arrays that the first attempt computes, on all ranks together, and later attempts read from disk."""
        path = self.directory / f"{name}.safetensors"
        if self._ranks.broadcast_from_main(path.exists):
            with guarded(path.name, path.parent):
                return load_file(path)
        arrays = compute()
        if self._ranks.rank == 0:
            write_atomically(path, save(arrays))
        return arrays


@contextmanager
def open_resumable_run(
    out: AnyPath,
    lineage: Lineage,
    *,
    overwrite: bool,
    progress: Progress,
    metrics_log: MetricsLog | None = None,
    ranks: Ranks = ALONE,
    began: float | None = None,
) -> Iterator[ResumableRun]:
    """Open the unfinished run of an output, or start one, and lock it until the block ends.

    The directory stays after the block; `discard_partial` removes it once the output is published.

    Args:
      overwrite: whether to discard unfinished work of another configuration.
      metrics_log: log that receives the metrics of every step.
      ranks: the ranks of this run; rank 0 holds the lock for all of them, and writes the log of calls.
      began: when the call began (`time.monotonic`), for the seconds in the log; None: now.

    Raises:
      FingerprintMismatch: the unfinished work is of another configuration, and `overwrite` is False.
      UserError: another process holds the lock, or the directory cannot be written.
    """
    directory, began = partial_directory(out), time.monotonic() if began is None else began
    call_log = PartLog(log_directory(out) / f"{lineage.stage}.log")
    with ExitStack() as stack:
        stack.enter_context(disk_errors(directory))
        if ranks.rank == 0 and not stack.enter_context(locked(directory)):
            progress.note(f"{directory} has no file locks: let no other process work on {out}")
        checkpoint, metrics = ranks.broadcast_from_main(lambda: _start_or_resume(directory, lineage, overwrite))
        series = metrics_log and metrics_log.open_series(lineage.stage, out, lineage.fingerprint, metrics)
        if metrics:
            progress.note(f"resuming {out} after step {len(metrics)}")
        if ranks.rank == 0:
            stack.enter_context(_logged(call_log, lineage, began))
        try:
            yield ResumableRun(directory, lineage, checkpoint, metrics, series, ranks, call_log)
        except SpoError:
            if ranks.rank == 0 and not _checkpoints(directory):
                shutil.rmtree(directory, ignore_errors=True)  # there is nothing to resume from
            raise


@contextmanager
def _logged(call_log: PartLog, lineage: Lineage, began: float) -> Iterator[None]:
    """Write the beginning and the end of a call to its log."""
    call_log.start(lineage.fingerprint)
    try:
        yield
    except Interrupted as error:
        call_log.end(f"interrupted: {error}")
        raise
    except BaseException as error:  # the log says how the work ended, whatever ended it
        call_log.end(f"failed: {type(error).__name__}: {error}")
        raise
    call_log.write(f"finished: {lineage.stage} in {time.monotonic() - began:.1f} s")


def find_finished(
    out: AnyPath, lineage: Lineage, *, overwrite: bool, progress: Progress, metrics_log: MetricsLog | None = None
) -> Lineage | None:
    """Return the lineage of an output that is up to date, with a note to the user; None if it must be made.

    Args:
      lineage: of the requested work.
      overwrite: whether an output of another configuration may be replaced.
      metrics_log: log that receives the metrics of the output, if they are missing there.

    Raises:
      FingerprintMismatch: the output was made with another configuration, and `overwrite` is False.
      UserError: the output path holds something else.
    """
    check_place(out, "model")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    found = read_lineage(out) if out.is_dir() else None
    if found and not transfer.is_whole(out):
        return None
    if found is None:
        raise UserError(f"{out} exists and is not a model directory made by spo: choose another --out, or move it away")
    if found.fingerprint == lineage.fingerprint:
        progress.note(f"{out} is up to date")
        if metrics_log:
            metrics_log.open_series(found.stage, out, found.fingerprint, read_metrics(out))
        return found
    if not overwrite:
        raise FingerprintMismatch(
            f"{out} was made with another configuration ({'; '.join(differences(found, lineage))}): "
            "choose another --out, or pass --overwrite"
        )
    return None


def discard_partial(out: AnyPath) -> None:
    """Remove the directory of the unfinished run, once the output is published."""
    shutil.rmtree(partial_directory(out), ignore_errors=True)


def partial_directory(out: AnyPath) -> Path:
    """Return the directory of the unfinished run: beside a local output, in the local cache for an object store."""
    if isinstance(out, Path):
        return out.with_name(f".{out.name}.partial")
    return cache_directory() / "unfinished" / digest(str(out.resolve()).encode()) / f".{out.name}.partial"


def write_records(directory: Path, lineage: Lineage, metrics: Metrics) -> None:
    """Write the lineage and the metrics of the steps into a model directory."""
    write_lineage(directory, lineage)
    write_metrics(directory, metrics)


def write_metrics(directory: Path, metrics: Metrics) -> None:
    """Write the metrics of all steps into a directory, one JSON object per line."""
    write_atomically(directory / METRICS_FILE, "".join(json.dumps(line) + "\n" for line in metrics).encode())


def read_metrics(directory: AnyPath) -> Metrics:
    """Return the metrics that `write_metrics` wrote."""
    return read_json_lines(directory / METRICS_FILE)


def _checkpoints(directory: Path) -> list[Path]:
    """Return the checkpoints of an unfinished run, the newest first."""
    return sorted(directory.glob("step-*"), reverse=True)


def _start_or_resume(directory: Path, lineage: Lineage, overwrite: bool) -> tuple[Path | None, Metrics]:
    """Return the checkpoint to resume from, if there is one, and the metrics up to it."""
    _clear_other_work(directory, lineage, overwrite)
    checkpoint = next(iter(_checkpoints(directory)), None)
    metrics = read_metrics(checkpoint) if checkpoint else []
    # The file may have lines of steps after the checkpoint, which are taken again.
    write_metrics(directory, metrics)
    return checkpoint, metrics


def _clear_other_work(directory: Path, lineage: Lineage, overwrite: bool) -> None:
    """Empty a directory that holds work of another configuration, and record the lineage of this work.

    Raises:
      FingerprintMismatch: it has a checkpoint, and `overwrite` is False.
    """
    found = _recorded_lineage(directory)
    if found and found.fingerprint == lineage.fingerprint:
        return
    if found and _checkpoints(directory) and not overwrite:
        raise FingerprintMismatch(
            f"{directory} holds unfinished work of another configuration ({'; '.join(differences(found, lineage))}): "
            "finish that work, or pass --overwrite to discard it"
        )
    for entry in directory.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != "lock":  # held by this process
            entry.unlink()
    write_lineage(directory, lineage)


def _recorded_lineage(directory: Path) -> Lineage | None:
    """Return the lineage of unfinished work; None if it is torn and no step is recorded, so that nothing is lost."""
    try:
        return read_lineage(directory)
    except UserError:
        newest = next(iter(_checkpoints(directory)), None)
        return read_lineage(newest) if newest else None
