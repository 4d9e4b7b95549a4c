"""Owns what a killed training call leaves beside its output: checkpoints to resume from, in `.NAME.partial/`.

A checkpoint is a whole model directory with the optimiser's state and the metrics of the steps so far; how many lines
those have is how far it is. Everything appears by a rename, so whatever is there is complete.
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

from stages.core.errors import FingerprintMismatch, SpoError, UserError
from stages.core.paths import cache_directory, is_local
from stages.core.progress import Progress
from stages.core.storage import digest
from stages.models import transfer
from stages.optimization.ranks import ALONE, Ranks
from stages.shards.disk import disk_errors, locked, replacing
from stages.shards.lineage import Lineage, differences, read_lineage, write_lineage
from stages.tracking.metrics_log import MetricsLog, Series

METRICS_FILE = "metrics.jsonl"
SAVE_SECONDS = 300.0
"""Where no number of steps is asked for, the most work that a killed call loses."""

Metrics = list[dict[str, float]]


class Saving(Protocol):
    """Something that writes a model directory whole, with its optimiser's state: an engine, or a policy and critic."""

    def save(self, directory: Path, tokenizer: PreTrainedTokenizerBase, write_more: Callable[[Path], None]) -> None:
        """Write it atomically; `write_more` puts further files into the unfinished directory."""
        ...


class Unfinished:
    """The unfinished work of one output, held by this call alone; of its ranks the first one writes.

    Attributes:
      directory: `.NAME.partial/` beside the output.
      checkpoint: the model directory to resume from; None where nothing was saved yet.
      metrics: of the steps up to that checkpoint.
    """

    def __init__(
        self,
        directory: Path,
        lineage: Lineage,
        checkpoint: Path | None,
        metrics: Metrics,
        series: Series | None,
        ranks: Ranks,
    ) -> None:
        self.directory, self.checkpoint, self.metrics = directory, checkpoint, metrics
        self._lineage, self._series, self._ranks = lineage, series, ranks
        self._saved = time.monotonic()

    def log(self, line: dict[str, float]) -> None:
        """Append a step's metrics where a user may follow them."""
        if self._ranks.rank:
            return
        with (self.directory / METRICS_FILE).open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self._series:
            self._series.log(line)

    def save_if_due(
        self, work: Saving, tokenizer: PreTrainedTokenizerBase, metrics: Metrics, every: int | None
    ) -> None:
        """Write a checkpoint after the steps that `metrics` holds; older ones go.

        Args:
          every: steps between checkpoints; None: `SAVE_SECONDS` since the last.
        """

        def is_due() -> bool:
            return len(metrics) % every == 0 if every else time.monotonic() - self._saved >= SAVE_SECONDS

        if not self._ranks.first(is_due):
            return
        here = self.directory / f"step-{len(metrics):08d}"
        work.save(here, tokenizer, lambda directory: write_records(directory, self._lineage, metrics))
        if self._ranks.rank == 0:
            for other in _steps(self.directory)[1:]:
                shutil.rmtree(other)
        self._saved = time.monotonic()

    def once(self, name: str, compute: Callable[[], dict[str, NDArray[np.floating]]]) -> dict[str, NDArray]:
        """Arrays that are computed by the first attempt, all ranks together, and read by those that resume it."""

        path = self.directory / f"{name}.safetensors"
        if self._ranks.first(path.exists):
            return load_file(path)
        arrays = compute()
        if self._ranks.rank == 0:
            with replacing(path, path.with_name(f".{path.name}")) as file:
                file.write(save(arrays))
        return arrays


@contextmanager
def open_unfinished(
    out: Path,
    lineage: Lineage,
    *,
    overwrite: bool,
    progress: Progress,
    report: MetricsLog | None = None,
    ranks: Ranks = ALONE,
) -> Iterator[Unfinished]:
    """The unfinished work of an output, begun here or by a call that was killed; no other call may hold it.

    It stays where it is when the block ends; `discard_unfinished` removes it once the output is published.

    Args:
      report: gets the metrics of every step.
      ranks: of this call; the first holds the place for all.

    Raises:
      FingerprintMismatch: it is of another configuration, and `overwrite` was not asked for.
      UserError: another process is at it, or the disk does not take it.
    """
    directory = place(out)
    with ExitStack() as stack:
        stack.enter_context(disk_errors(directory))
        if ranks.rank == 0 and not stack.enter_context(locked(directory)):
            progress.note(f"{directory} has no file locks: let no other process work on {out}")
        checkpoint, metrics = ranks.first(lambda: _begin(directory, lineage, overwrite))
        series = report and report.open_series(lineage.stage, out, lineage.fingerprint, metrics)
        if metrics:
            progress.note(f"resuming {out} after step {len(metrics)}")
        try:
            yield Unfinished(directory, lineage, checkpoint, metrics, series, ranks)
        except SpoError:
            if ranks.rank == 0 and not _steps(directory):
                shutil.rmtree(directory, ignore_errors=True)  # nothing was done that could be resumed
            raise


def published(
    out: Path, lineage: Lineage, *, overwrite: bool, progress: Progress, report: MetricsLog | None = None
) -> Lineage | None:
    """The lineage of an output that is there and up to date, saying so; None where it is still to be made, or anew.

    Args:
      report: gets its metrics, where it lacks them.

    Raises:
      FingerprintMismatch: it is there, made with another configuration, and `overwrite` was not asked for.
      UserError: something else lies there.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    found = read_lineage(out) if out.is_dir() else None
    if found and not transfer.is_whole(out):
        return None
    if found is None:
        raise UserError(f"{out} is there and is no model directory made by spo: choose another --out, or move it away")
    if found.fingerprint == lineage.fingerprint:
        progress.note(f"{out} is up to date")
        if report:
            report.open_series(found.stage, out, found.fingerprint, read_metrics(out))
        return found
    if not overwrite:
        raise FingerprintMismatch(
            f"{out} was made with another configuration ({'; '.join(differences(found, lineage))}): "
            "choose another --out, or pass --overwrite"
        )
    return None


def discard_unfinished(out: Path) -> None:
    """Remove what an attempt at an output left; it has been published since."""
    shutil.rmtree(place(out), ignore_errors=True)


def place(out: Path) -> Path:
    """Where the unfinished work of an output lies: beside it; on this machine, where the output is to be in a store."""
    if is_local(out):
        return out.with_name(f".{out.name}.partial")
    return cache_directory() / "unfinished" / digest(str(out.resolve()).encode()) / f".{out.name}.partial"


def write_records(directory: Path, lineage: Lineage, metrics: Metrics) -> None:
    """Put beside the weights how they were made, and the metrics of the steps."""
    write_lineage(directory, lineage)
    write_metrics(directory, metrics)


def write_metrics(directory: Path, metrics: Metrics) -> None:
    """Put the metrics of all steps, one JSON object a line, into a directory."""
    (directory / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in metrics))


def read_metrics(directory: Path) -> Metrics:
    """The metrics of all steps, as `write_metrics` put them there."""
    return [json.loads(line) for line in (directory / METRICS_FILE).read_text().splitlines()]


def _steps(directory: Path) -> list[Path]:
    """The checkpoints, the last one first."""
    return sorted(directory.glob("step-*"), reverse=True)


def _begin(directory: Path, lineage: Lineage, overwrite: bool) -> tuple[Path | None, Metrics]:
    """The checkpoint to resume from, if there is one, and the metrics up to it."""
    _check_same_work(directory, lineage, overwrite)
    checkpoint = next(iter(_steps(directory)), None)
    metrics = read_metrics(checkpoint) if checkpoint else []
    write_metrics(directory, metrics)
    return checkpoint, metrics


def _check_same_work(directory: Path, lineage: Lineage, overwrite: bool) -> None:
    begun = read_lineage(directory)
    if begun and begun.fingerprint == lineage.fingerprint:
        return
    if begun and _steps(directory) and not overwrite:
        raise FingerprintMismatch(
            f"{directory} holds unfinished work of another configuration ({'; '.join(differences(begun, lineage))}): "
            "finish that, or pass --overwrite to drop it"
        )
    for entry in directory.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != "lock":
            entry.unlink()
    write_lineage(directory, lineage)
