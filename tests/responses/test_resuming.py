"""Test that a killed command keeps the finished samples of its unfinished chunk, and ends with the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages import estimate, evaluate
from stages.core.errors import FingerprintMismatch
from stages.core.progress import Silent
from stages.shards import kept_samples
from tests.chains import ARITHMETIC, cut, make_constant, rows, sample

SAMPLING: dict[str, Any] = {"num_questions": 6, "num_generations": 4, "max_tokens": 40, "max_batch_rows": 4}


class Killed(BaseException):
    """A kill that no handler of errors takes."""


class KilledAfter(Silent):
    """Ends the command once some responses are finished."""

    def __init__(self, responses: int) -> None:
        self.left = responses

    def advance(self, done: int = 0, tokens: int = 0, prefilled: int = 0, **figures: float) -> None:
        self.left -= done
        if self.left <= 0:
            raise Killed


class KilledAfterTokens(KilledAfter):
    """Ends the command once some tokens are sampled: an estimation reports samples only as tokens."""

    def advance(self, done: int = 0, tokens: int = 0, prefilled: int = 0, **figures: float) -> None:
        super().advance(tokens)


class Lines(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.reports: list[tuple[int, int, int]] = []

    def advance(self, done: int = 0, tokens: int = 0, prefilled: int = 0, **figures: float) -> None:
        self.reports.append((done, tokens, prefilled))

    def note(self, line: str) -> None:
        self.notes.append(line)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a model whose responses have unlike lengths; every finished sample is written at once."""
    monkeypatch.setattr(kept_samples, "KEEP_SECONDS", 0.0)
    return make_constant(tmp_path / "model", {"a": 0.5, "b": 0.4}, 0.1)


def part(out: Path) -> bytes:
    (file,) = out.glob("*.parquet")
    return file.read_bytes()


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"tree": "2-2", "segment_tokens": 5, "num_generations": None},
        {"tree": "2-2", "branch_at": "entropy", "num_generations": None},
    ],
)
def test_a_killed_rollout_samples_only_what_was_not_finished(
    shape: dict[str, Any], model: Path, tmp_path: Path
) -> None:
    options = SAMPLING | shape
    whole = Lines()
    sample(tmp_path / "whole", model, whole, **options)
    with pytest.raises(Killed):
        sample(tmp_path / "killed", model, KilledAfter(8), **options)
    kept = [*(tmp_path / "killed").glob(".part-*/chunk-00000.samples-*")]
    assert kept
    lines = Lines()
    sample(tmp_path / "killed", model, lines, **options)
    assert part(tmp_path / "killed") == part(tmp_path / "whole")
    assert sum("finished samples of an unfinished chunk" in line for line in lines.notes) == 1
    assert not [*(tmp_path / "killed").glob(".part-*")]
    done, tokens, prefilled = (sum(column) for column in zip(*whole.reports, strict=True))
    found = rows(tmp_path / "whole")
    assert done == (6 * (2 + 4) if shape else len(found))
    assert tokens == sum(len(row["token_ids"]) for row in found)
    assert prefilled > 0


def test_a_killed_evaluation_keeps_its_responses(model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {**ARITHMETIC, "split": "train", "threads": 1, **SAMPLING, "max_tokens": (40,)}

    def run(name: str, progress: Silent = Silent()) -> None:
        options["task"] = ("arithmetic",)
        evaluate.run(evaluate.Config(model=str(model), out=tmp_path / name, **options), progress)

    run("whole")
    with pytest.raises(Killed):
        run("killed", KilledAfter(8))
    run("killed")
    assert part(tmp_path / "killed") == part(tmp_path / "whole")


@pytest.mark.parametrize("rollouts", ["5", "2..6"])
def test_a_killed_estimation_keeps_its_rollouts(rollouts: str, model: Path, tmp_path: Path) -> None:
    sample(tmp_path / "trajectories", model, **SAMPLING)
    cut(tmp_path / "cutpoints", tmp_path / "trajectories", interval=1, rho=0.6)

    def run(name: str, progress: Silent = Silent()) -> list[bytes]:
        config = estimate.Config(
            cutpoints=tmp_path / "cutpoints",
            out=tmp_path / name / "advantages",
            rollouts=rollouts,
            interval_width=0.3 if ".." in rollouts else None,
            threads=1,
            max_batch_rows=4,
            keep_rollouts=True,
        )
        estimate.run(config, progress)
        return [part(tmp_path / name / artefact) for artefact in ("advantages", "rollouts")]

    whole, lines = Lines(), Lines()
    expected = run("whole", whole)
    with pytest.raises(Killed):
        run("killed", KilledAfterTokens(sum(tokens for _, tokens, _ in whole.reports) // 2))
    assert [*(tmp_path / "killed" / "advantages").glob(".part-*/chunk-00000.samples-*")]
    assert run("killed", lines) == expected
    assert sum("finished samples of an unfinished chunk" in line for line in lines.notes) == 1
    assert not [*(tmp_path / "killed").glob("*/.part-*")]


def test_samples_of_other_work_are_refused_or_replaced(model: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        sample(tmp_path / "out", model, KilledAfter(8), **SAMPLING)
    with pytest.raises(FingerprintMismatch, match=r"temperature: found 1\.0, requested 0\.5"):
        sample(tmp_path / "out", model, **SAMPLING, temperature=0.5)
    sample(tmp_path / "out", model, **SAMPLING, temperature=0.5, overwrite=True)
    sample(tmp_path / "other", model, **SAMPLING, temperature=0.5)
    assert part(tmp_path / "out") == part(tmp_path / "other")


def test_a_corrupt_file_is_left_out(model: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        sample(tmp_path / "out", model, KilledAfter(8), **SAMPLING)
    first, *_ = sorted((tmp_path / "out").glob(".part-*/chunk-00000.samples-*"))
    first.write_bytes(b"torn")
    sample(tmp_path / "out", model, **SAMPLING)
    sample(tmp_path / "whole", model, **SAMPLING)
    assert part(tmp_path / "out") == part(tmp_path / "whole")
