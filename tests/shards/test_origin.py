"""An artefact leads back to its inputs, also after both were moved together; errors say what is missing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stages.core.errors import UserError
from stages.shards.origin import trace_back
from stages.shards.parts import Artefact, artefact_source, open_artefact
from stages.shards.schemas import ADVANTAGES, CUTPOINTS, TRAJECTORIES
from tests.shards.samples import Settings, cutpoints, lineage, write_part


def segment(trajectories: Artefact, directory: Path, parts: int) -> Artefact:
    """Write cutpoints for each part of the trajectories, as `spo segment` does."""
    for part in trajectories.parts:
        work = lineage(schema=CUTPOINTS, inputs=(artefact_source(trajectories, directory, part),))
        write_part(directory, part.index, parts, table=cutpoints(12, 12 * part.index), schema=CUTPOINTS, work=work)
    return open_artefact(directory, CUTPOINTS)


def estimate(cuts: Artefact, directory: Path) -> Artefact:
    """Write advantages that name only the cutpoints as their input."""
    work = lineage(schema=ADVANTAGES, inputs=(artefact_source(cuts, directory),))
    write_part(directory, table=ADVANTAGES.arrow.empty_table(), schema=ADVANTAGES, work=work)
    return open_artefact(directory, ADVANTAGES)


@pytest.fixture
def chain(tmp_path: Path) -> tuple[Artefact, Artefact, Artefact]:
    """Write trajectories in two parts, their cutpoints and their advantages into tmp_path/run."""
    for index in (0, 1):
        write_part(tmp_path / "run" / "trajectories", index, 2)
    rolled = open_artefact(tmp_path / "run" / "trajectories", TRAJECTORIES)
    cuts = segment(rolled, tmp_path / "run" / "cutpoints", 2)
    return rolled, cuts, estimate(cuts, tmp_path / "run" / "advantages")


def test_cutpoints_and_advantages_lead_back_to_their_trajectories(
    chain: tuple[Artefact, Artefact, Artefact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rolled, cuts, advantages = chain
    for artefact in (cuts, advantages):
        assert trace_back(artefact, TRAJECTORIES).fingerprint() == rolled.fingerprint()
    assert trace_back(advantages, CUTPOINTS).fingerprint() == cuts.fingerprint()
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    moved = open_artefact("advantages", ADVANTAGES)
    assert trace_back(moved, TRAJECTORIES).rows == 24


def test_trajectories_that_were_moved_must_be_named(chain: tuple[Artefact, Artefact, Artefact], tmp_path: Path):
    _, cuts, advantages = chain
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "run" / "trajectories", moved)
    for artefact in (cuts, advantages):
        with pytest.raises(UserError, match="--trajectories"):
            trace_back(artefact, TRAJECTORIES)
        assert trace_back(artefact, TRAJECTORIES, at=moved).rows == 24


def test_trajectories_that_have_changed_since_are_refused(chain: tuple[Artefact, Artefact, Artefact], tmp_path: Path):
    _, cuts, _ = chain
    for index in (0, 1):
        write_part(tmp_path / "run" / "trajectories", index, 2, work=lineage(Settings(seed=1)), overwrite=True)
    with pytest.raises(UserError, match=r"have changed since.*spo segment"):
        trace_back(cuts, TRAJECTORIES)


def test_an_artefact_without_lineage_does_not_lead_back(tmp_path: Path):
    write_part(tmp_path / "trajectories")
    pq.write_table(cutpoints(3), tmp_path / "mine.parquet")
    mine = open_artefact(tmp_path / "mine.parquet", CUTPOINTS)
    with pytest.raises(UserError, match="pass --trajectories"):
        trace_back(mine, TRAJECTORIES)
    assert trace_back(mine, TRAJECTORIES, at=tmp_path / "trajectories").rows == 12
