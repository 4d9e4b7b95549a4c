"""Kills, full disks, jumping clocks and lagging views at samples of the places that `make faults` enumerates."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.command_server import Commands
from tests.faults.points import Enumeration, contents
from tests.faults.shim import Fault, Lag, build, missing_compiler
from tests.faults.stages import STAGES, Inputs, make_inputs

pytestmark = pytest.mark.xdist_group("faults")  # one server and one set of inputs serve all

LAGS = ((0, 1), (1, 0), (2, 2))
"""Lookups and listings that do not see a file yet."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    if reason := missing_compiler():
        pytest.skip(reason)
    return make_inputs(tmp_path_factory.mktemp("faults") / "inputs")


@pytest.fixture(scope="module")
def spo(inputs: Inputs) -> Iterator[Commands]:
    with Commands(build(inputs.folder)) as commands:
        yield commands


def test_every_kill_point_of_a_part_resumes_to_the_same_bytes(inputs: Inputs, spo: Commands):
    segment = Enumeration(spo, inputs, "segment")
    outcome = segment.kill()
    assert not outcome.problems
    assert outcome.points >= len(segment.calls) >= 20


def test_a_kill_leaves_what_the_calls_before_it_wrote(inputs: Inputs, spo: Commands):
    segment = Enumeration(spo, inputs, "segment")
    writes = [at for at, call in enumerate(segment.calls, start=1) if call.startswith("write")]
    rename = next(at for at, call in enumerate(segment.calls, start=1) if call.startswith("rename"))
    states = [segment.kill_for_real("kill", at) for at in (1, rename, rename + 1)]
    assert not states[0]
    assert not any(name.endswith("1.parquet") for name in states[1])
    assert states[2].items() >= {name: x for name, x in segment.reference.items() if name.endswith(".parquet")}.items()
    whole, torn = segment.kill_for_real("kill", writes[-1]), segment.kill_for_real("tear", writes[-1])
    assert whole.keys() == torn.keys()


@pytest.mark.parametrize(("stage", "step"), [("segment", 4), ("rollout", 9)])
def test_a_full_disk_is_one_line_and_resumes_to_the_same_bytes(stage: str, step: int, inputs: Inputs, spo: Commands):
    enumeration = Enumeration(spo, inputs, stage)
    points = [
        at for at, call in enumerate(enumeration.calls, start=1) if call.split()[0] in ("open", "write", "rename")
    ]
    for at in points[::step]:
        assert not enumeration.fill_at(at).problems


@pytest.mark.parametrize("stage", ["rollout", "segment"])
def test_a_clock_that_jumps_changes_no_byte(stage: str, inputs: Inputs, spo: Commands):
    enumeration = Enumeration(spo, inputs, stage)
    for at in (1, len(enumeration.calls) // 2):
        enumeration.clear()
        result = spo.run(*STAGES[stage](inputs), fault=Fault(str(inputs.out), "clock", at))
        assert result.code == 0, result.stderr
        assert contents(inputs.out) == enumeration.reference


def test_views_that_lag_after_a_kill_lose_and_tear_nothing(inputs: Inputs, spo: Commands):
    """A task that is queued again on another node sees what the killed one wrote late, or still lists what is gone."""
    rollout = Enumeration(spo, inputs, "rollout")
    renames = [at for at, call in enumerate(rollout.calls, start=1) if call.startswith("rename")]
    for at in (renames[0] + 1, renames[-1] + 1):  # after the first chunk, after the part
        left = inputs.folder / "left"
        shutil.rmtree(left, ignore_errors=True)
        rollout.kill_for_real("kill", at)
        shutil.copytree(inputs.out, left)
        files = list(inputs.out.rglob("*.parquet"))
        lags = LAGS if at <= renames[0] + 1 else LAGS[:1]
        late = [Lag(str(path.parent), path.name, lookups, listings) for path in files for lookups, listings in lags]
        chunks = inputs.out / "trajectories" / ".part-00000-of-00001"
        ghosts = [Lag(str(chunks), "chunk-00001.parquet", 0, 2, ghost=True)] if chunks.exists() else []
        for lag in (*late, *ghosts):
            shutil.rmtree(inputs.out)
            shutil.copytree(left, inputs.out)
            result = spo.run(*STAGES["rollout"](inputs), fault=Fault(str(inputs.out), lag=lag))
            assert result.code == 0, f"{lag}: {result.stderr}"
            assert contents(inputs.out).items() >= rollout.reference.items(), lag
            spo.finish(*STAGES["rollout"](inputs))  # removes chunks that the listing hid from the first call
            assert contents(inputs.out) == rollout.reference, lag
