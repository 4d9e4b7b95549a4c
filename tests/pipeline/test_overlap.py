"""`[run] overlap = 1`: which weights sample, what the artefacts record, and that sampling runs beside training."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

import pytest

from stages import rollout
from stages.configs.execution import Cluster
from stages.core.errors import UserError
from stages.core.progress import Summary
from stages.pipeline import ahead, iterate
from stages.pipeline.ahead import BackgroundProgress, RolloutsAhead
from stages.reporting import curves, sources
from stages.sampling.pool import SamplerPool
from tests.chains import footer, rows
from tests.pipeline.test_iterate import artefacts, config, metrics, run
from tests.recipes import small_recipe, write_recipe
from tests.shards.samples import Notes

PART = "part-00000-of-00001.parquet"
RECIPE = small_recipe(
    run={"iterations": 3, "seed": 5, "overlap": 1},
    rollout={"temperature": 0.9, "num_questions": 8, "num_generations": 4},
    train={"learning_rate": 1e-2, "per_device_batch_size": 8},
)


@pytest.fixture(scope="module")
def done(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Notes]:
    """Return an overlapped run in one process, and what it reported."""
    folder, notes = tmp_path_factory.mktemp("overlap"), Notes()
    run(write_recipe(folder, RECIPE), folder / "run", policy, progress=notes)
    return folder / "run", notes


def test_rollouts_are_sampled_with_the_weights_before_the_last_update(done: tuple[Path, Notes], policy: Path):
    out, notes = done
    names = [footer(out / f"{i:03d}/trajectories" / PART)["model"]["path"] for i in range(3)]
    assert [name.split("/")[-2:] for name in names] == [
        [policy.parent.name, policy.name],
        [policy.parent.name, policy.name],
        ["000", "checkpoint"],
    ]
    lags = [{row["staleness"] for row in rows(out / f"{i:03d}/trajectories")} for i in range(3)]
    assert lags == [{0}, {1}, {1}]
    assert sum("sampling and training take turns here" in line for line in notes.lines) == 1


def test_the_loss_of_stale_samples_is_corrected_and_their_old_policy_is_the_current_one(done: tuple[Path, Notes]):
    out, notes = done
    fresh, stale = (metrics(out / name / "checkpoint")[0] for name in ("000", "001"))
    assert "mismatch/weight_mean" not in fresh
    assert fresh["ratio/mean"] == pytest.approx(1)
    assert stale["ratio/mean"] == pytest.approx(1), "ratios are to the policy at the start of the call"
    assert stale["mismatch/weight_mean"] > 0
    assert stale["mismatch/logp_difference_mean"] > 1e-3 > fresh["mismatch/logp_difference_mean"]
    assert stale["mismatch/staleness"] == 1
    assert not [line for line in notes.lines if "disagree" in line or "is not the model" in line]


def test_the_report_has_the_staleness_of_each_iteration(done: tuple[Path, Notes]):
    points = curves.iterations(sources.find([done[0]]))
    assert [point.get("staleness") for point in points if point["iteration"] >= 0] == [0, 1, 1]


def test_without_a_correction_ratios_are_to_the_model_that_sampled(
    done: tuple[Path, Notes], policy: Path, tmp_path: Path
):
    run(write_recipe(tmp_path, RECIPE), tmp_path / "run", policy, 'train.mismatch_correction="none"')
    line = metrics(tmp_path / "run/001/checkpoint")[0]
    assert "mismatch/weight_mean" not in line
    assert line["ratio/mean"] != pytest.approx(1, abs=1e-4)


def test_pruning_keeps_the_weights_that_sample_next(done: tuple[Path, Notes], policy: Path, tmp_path: Path):
    run(write_recipe(tmp_path, RECIPE), tmp_path / "run", policy, keep_checkpoints=1)
    found, expected = artefacts(tmp_path / "run"), artefacts(done[0])
    assert found["002/checkpoint/model.safetensors"] == expected["002/checkpoint/model.safetensors"]
    assert "000/checkpoint/model.safetensors" not in found
    assert "001/checkpoint/model.safetensors" in found, "without a correction, the next iteration would score with it"
    assert run(write_recipe(tmp_path, RECIPE), tmp_path / "run", policy, keep_checkpoints=1).up_to_date


class Session:
    """Stands for a Ray whose samplers and trainers have processes of their own."""

    def __init__(self, cluster: Cluster, gpus: int) -> None:
        self.cluster, self.gpus, self.begun = cluster, gpus, False

    def begin(self) -> None:
        self.begun = True


def planned(policy: Path, folder: Path) -> iterate.Plan:
    return iterate.make_plan(config(write_recipe(folder, RECIPE), folder / "run", f"run.model={policy}"))


def ahead_of(plan: iterate.Plan, progress: Any, cluster: Cluster, gpus: int) -> RolloutsAhead:
    return RolloutsAhead(plan, progress, cast("Any", Session(cluster, gpus)))


@pytest.mark.parametrize(
    ("cluster", "gpus", "beside"),
    [(Cluster(), 0, True), (Cluster(), 8, False), (Cluster(share_gpus=False), 8, True)],
    ids=["CPU", "shared GPUs", "own GPUs"],
)
def test_sampling_runs_beside_training_where_both_have_their_own_processors(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: Cluster, gpus: int, beside: bool
):
    main, seen, release = threading.current_thread(), list[threading.Thread](), threading.Event()

    def sample(config: Any, progress: Any, pool: Any) -> Summary:
        seen.append(threading.current_thread())
        if beside:
            assert release.wait(60)
        progress.start("rollout", 4, "responses")
        progress.advance(4, 9)
        return Summary("rollout", "here", 4, 1.0)

    monkeypatch.setattr(ahead.rollout, "run", sample)
    with ahead_of(planned(policy, tmp_path), Notes(), cluster, gpus) as rollouts, SamplerPool() as pool:
        assert rollouts.begin(1, pool) == beside
        release.set()  # training is over
        rollouts.finish()
        assert rollouts.take(1, pool).rows == 4
        assert not rollouts.begin(3, pool), "there is no fourth iteration"
    assert len(seen) == 1
    assert (seen[0] is not main) == beside


def test_an_error_of_the_rollouts_is_raised_after_training(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(config: Any, progress: Any, pool: Any) -> Summary:
        raise UserError("no room left")

    monkeypatch.setattr(ahead.rollout, "run", fail)
    with ahead_of(planned(policy, tmp_path), Notes(), Cluster(), 0) as rollouts, SamplerPool() as pool:
        assert rollouts.begin(1, pool)
        with pytest.raises(UserError, match=r"^no room left$"):
            rollouts.finish()


class Screen(Notes):
    """Record all reports in order."""

    def __init__(self) -> None:
        super().__init__()
        self.reports: list[tuple[Any, ...]] = []

    def start(self, label: str, total: int, unit: str, most_tokens: int | None = None) -> None:
        self.reports.append(("start", label, total, unit, most_tokens))

    def advance(self, done: int = 0, tokens: int = 0, prefilled: int = 0, **figures: float) -> None:
        self.reports.append(("advance", done, tokens, prefilled, figures))


def test_the_step_of_the_thread_is_shown_once_training_has_ended():
    screen = Screen()
    hidden = BackgroundProgress(screen)
    hidden.start("rollout", 9, "responses", 90)
    hidden.advance(2, 20, 5, slowest=3.0)
    hidden.advance(1, 10, slowest=4.0)
    assert screen.reports == []
    hidden.show()
    hidden.advance(6, 60)
    assert screen.reports == [
        ("start", "rollout", 9, "responses", 90),
        ("advance", 3, 30, 5, {"slowest": 4.0}),
        ("advance", 6, 60, 0, {}),
    ]


def test_staleness_of_a_single_command_is_written_and_changes_the_fingerprint(policy: Path, tmp_path: Path):
    shared: dict[str, Any] = {"model": str(policy), "task": "arithmetic", "task_arg": ("operations=1",), "threads": 1}
    shared |= {"num_questions": 2, "num_generations": 2, "max_tokens": 16}
    for name, options in {"plain": {}, "stale": {"staleness": 2, "token_texts": True}}.items():
        rollout.run(rollout.Config(out=tmp_path / name, **shared, **options))
    plain, stale = rows(tmp_path / "plain"), rows(tmp_path / "stale")
    assert "staleness" not in plain[0]
    assert [row["staleness"] for row in stale] == [2, 2, 2, 2]
    assert [row["token_ids"] for row in stale] == [row["token_ids"] for row in plain]


def test_overlap_is_0_or_1(policy: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"overlap must be at most 1; got 2"):
        run(write_recipe(tmp_path, RECIPE), tmp_path / "run", policy, "run.overlap=2")
