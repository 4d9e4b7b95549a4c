"""Stages on four workers of a real Ray write the bytes that one process writes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from stages import estimate, evaluate, rollout
from stages.cluster.session import Session
from stages.core.progress import Silent, Summary
from stages.sampling.engines import with_engine
from stages.sampling.executors import remote_pool
from stages.sampling.pool import SamplerPool
from tests.chains import ARITHMETIC, cut, sample
from tests.shards.samples import files

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

SAMPLING: dict[str, Any] = {**ARITHMETIC, "max_tokens": 24, "threads": 1, "num_questions": 10, "chunk_questions": 4}


@pytest.fixture(scope="module")
def pool(session: Session) -> Iterator[SamplerPool]:
    with remote_pool(session) as opened:
        yield opened


def rolled(out: Path, policy: Path, pool: SamplerPool | None, **options: Any) -> Summary:
    return rollout.run(rollout.Config(out=out, model=str(policy), **SAMPLING, **options), pool=pool)


@pytest.mark.parametrize(
    "options",
    [{"num_generations": 24}, {"tree": "3-3-2", "segment_tokens": 3}, {"num_generations": 3, "stop": ("8.",)}],
    ids=["responses", "trees", "stop strings"],
)
def test_a_rollout_on_four_workers_has_the_bytes_of_one_process(
    policy: Path, pool: SamplerPool, tmp_path: Path, options: dict[str, Any]
):
    summary = rolled(tmp_path / "workers", policy, pool, **options)
    rolled(tmp_path / "process", policy, None, **options)
    assert files(tmp_path / "workers") == files(tmp_path / "process")
    (line,) = [note for note in summary.notes if "samplers busy" in note]
    assert line.startswith("4 samplers busy ")


@pytest.mark.parametrize(
    "options", [{"rollouts": "6"}, {"rollouts": "2..6", "interval_width": 0.5}], ids=["N", "MIN..MAX"]
)
def test_an_estimation_on_four_workers_has_the_bytes_of_one_process(
    chain: Path, pool: SamplerPool, tmp_path: Path, options: dict[str, Any]
):
    shared: dict[str, Any] = {"cutpoints": chain / "cutpoints", "threads": 1, "chunk_trajectories": 8, **options}
    estimate.run(estimate.Config(out=tmp_path / "workers", **shared), pool=pool)
    estimate.run(estimate.Config(out=tmp_path / "process", **shared))
    assert files(tmp_path / "workers") == files(tmp_path / "process")


def test_an_evaluation_survives_a_killed_worker_with_the_bytes_of_one_process(
    policy: Path, pool: SamplerPool, tmp_path: Path
):
    shared = {**SAMPLING, "task": ("arithmetic",), "model": str(policy), "num_generations": 40, "temperature": 1.0}
    shared["max_tokens"] = (24,)
    config = evaluate.Config(out=tmp_path / "workers", **shared)
    sampler: Any = pool.open(model_dir=policy, **with_engine(config, Silent()).engine_options())
    before = [worker.call(_process) for worker in sampler.crew.workers]
    os.kill(before[0], signal.SIGKILL)
    summary = evaluate.run(config, pool=pool)
    evaluate.run(evaluate.Config(out=tmp_path / "process", **shared))
    assert files(tmp_path / "workers") == files(tmp_path / "process")
    after = sampler.crew.everywhere(_process)  # on a busy machine, the first unit that the killed worker gets
    assert before[0] not in after
    assert after[1:] == before[1:]
    # The summary counts the restart where the evaluation found the loss, and the next report counts it otherwise.
    reports = [*summary.notes, sampler.report()]
    assert sum("1 started again" in line for line in reports) == 1


def _process(workspace: Any, report: Any) -> int:
    return os.getpid()


def test_grpo_on_workers_needs_no_sampler_and_starts_none(policy: Path, tmp_path: Path):
    sample(tmp_path / "trajectories", policy)
    cut(tmp_path / "cutpoints", tmp_path / "trajectories", partition="trajectory")
    config = estimate.Config(
        out=tmp_path / "advantages", cutpoints=tmp_path / "cutpoints", estimator="grpo", executor="ray", num_workers=2
    )
    before = len(psutil.Process().children())
    estimate.run(config)
    assert len(psutil.Process().children()) <= before
