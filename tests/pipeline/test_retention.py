"""`[run] keep_checkpoints` bounds the disk space of a run; pruning neither loses results nor causes recomputation."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from random import Random
from typing import Any

import pytest

from stages import evaluate, train
from stages.core.errors import UserError
from stages.core.progress import Summary
from stages.models import checkpoints
from stages.models.checkpoints import OPTIMIZER_FILE
from stages.models.pruning import PRUNED_FILE, lost
from stages.pipeline import iterate, retention
from stages.pipeline.retention import Retention, prune
from tests.command_server import Commands
from tests.recipes import small_recipe, write_recipe
from tests.shards.samples import Notes, files

RECIPE = small_recipe(run={"iterations": 4}, train={"per_device_batch_size": 4, "gradient_accumulation_steps": 1})


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path, RECIPE)


def run(recipe: Path, out: Path, policy: Path, *overrides: str, progress: Any = None, **options: Any) -> Summary:
    config = iterate.Config(recipe=recipe, out=out, overrides=(f"run.model={policy}", *overrides), **options)
    return iterate.run(config, progress or Notes())


def results(out: Path) -> dict[str, bytes]:
    """Return every file of a run except logs, metrics, weights and optimizer states."""
    large = ("metrics.jsonl", "model.safetensors", OPTIMIZER_FILE, PRUNED_FILE)
    return {name: content for name, content in files(out).items() if not name.endswith(large)}


def iterations_with(out: Path, name: str) -> list[int]:
    """Return the iterations whose checkpoints contain a file."""
    return [int(path.parent.parent.name) for path in sorted(out.glob(f"[0-9]*/checkpoint/{name}"))]


@pytest.fixture
def model(policy: Path, tmp_path: Path) -> Path:
    """Return a copy of the policy with an optimizer state, for a test to prune."""
    copy = shutil.copytree(policy, tmp_path / "model")
    (copy / OPTIMIZER_FILE).write_bytes(b"state")
    return copy


def test_the_last_checkpoints_stay_complete_and_selected_older_ones_keep_their_weights():
    keep = Retention(whole=2, every=3)
    assert [number for number in range(9) if keep.keeps_weights(number, 8)] == [2, 5, 7, 8]
    assert [n for n in range(9) if Retention(whole=1, scored=4).keeps_weights(n, 8)] == [5, 6, 7, 8]


def test_a_pruned_model_keeps_its_digest(model: Path):
    before = checkpoints.digest(model)
    assert prune(model, weights=True)
    assert not (model / "model.safetensors").exists()
    assert not (model / OPTIMIZER_FILE).exists()
    assert checkpoints.resolve(str(model)) == model
    assert checkpoints.digest(model) == before
    assert not prune(model, weights=True), "nothing is left to delete"


@pytest.mark.parametrize("kept", [("model.safetensors", OPTIMIZER_FILE), ("model.safetensors",), ()])
def test_pruning_resumes_after_a_kill_at_any_moment(model: Path, kept: tuple[str, ...]):
    """Restore some of the deleted files, as after a kill between the record and the last deletion."""
    before, content = checkpoints.digest(model), {name: (model / name).read_bytes() for name in kept}
    prune(model, weights=True)
    for name in kept:
        (model / name).write_bytes(content[name])
    assert checkpoints.digest(model) == before
    assert ("model.safetensors" in kept) == (not lost(model, "weights"))
    prune(model, weights=True)
    assert checkpoints.digest(model) == before
    assert lost(model, "weights") == ["model.safetensors"]


def test_a_critic_inside_a_model_directory_is_pruned_with_it(model: Path, policy: Path):
    critic = shutil.copytree(policy, model / "critic")
    before = checkpoints.digest(critic)
    prune(model, weights=True)
    assert not [*model.rglob("*.safetensors")]
    assert checkpoints.digest(critic) == before


def test_pruned_weights_are_reported_before_any_work(model: Path, chain: Path, tmp_path: Path):
    prune(model, weights=True)
    options: dict[str, Any] = {"task": ("arithmetic",), "task_arg": ("operations=1",), "max_tokens": (16,)}
    with pytest.raises(UserError, match=r"the weights in .*model were pruned .* the last one of the run"):
        evaluate.run(evaluate.Config(model=str(model), out=tmp_path / "eval", **options))
    with pytest.raises(UserError, match=r"the weights in .*model were pruned"):
        train.run(train.Config(advantages=(chain / "advantages",), model=str(model), out=tmp_path / "new"))
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_a_pruned_optimizer_state_is_not_silently_replaced_by_a_fresh_one(model: Path, chain: Path, tmp_path: Path):
    prune(model, weights=False)
    options: dict[str, Any] = {"model": str(model), "threads": 1, "out": tmp_path / "new"}
    with pytest.raises(UserError, match=r"optimizer's state in .* was pruned .*: pass --optimizer-state fresh"):
        train.run(train.Config(advantages=(chain / "advantages",), **options))
    train.run(train.Config(advantages=(chain / "advantages",), optimizer_state="fresh", **options))


@pytest.mark.slow
def test_a_run_that_prunes_produces_the_same_results_as_one_that_keeps_everything(
    recipe: Path, policy: Path, tmp_path: Path
):
    run(recipe, tmp_path / "all", policy)
    notes = Notes()
    run(recipe, tmp_path / "few", policy, "run.keep_every=3", keep_checkpoints=1, progress=notes)
    assert results(tmp_path / "few") == results(tmp_path / "all")
    assert iterations_with(tmp_path / "few", "model.safetensors") == [2, 3]
    assert iterations_with(tmp_path / "few", OPTIMIZER_FILE) == [3]
    assert sum(line.startswith("pruned ") for line in notes.lines) == 3

    left = files(tmp_path / "few")
    again = run(recipe, tmp_path / "few", policy, "run.keep_every=3", keep_checkpoints=1)
    assert again.up_to_date
    assert files(tmp_path / "few") == left, "a rerun does nothing"

    run(recipe, tmp_path / "all", policy, iterations=5)
    run(recipe, tmp_path / "few", policy, iterations=5)
    assert results(tmp_path / "few") == results(tmp_path / "all"), "a pruned run can be extended by more iterations"


def test_with_replay_the_policies_needed_for_scoring_keep_their_weights(recipe: Path, policy: Path, tmp_path: Path):
    replay = ("train.replay=2", "train.lr_scheduler_type=constant", "segment.partition=trajectory")
    run(recipe, tmp_path / "few", policy, *replay, keep_checkpoints=1, unset=("segment.interval",))
    assert iterations_with(tmp_path / "few", "model.safetensors") == [2, 3]
    assert iterations_with(tmp_path / "few", OPTIMIZER_FILE) == [3]
    older = tuple(tmp_path / "few" / name / "advantages" for name in ("001", "002", "003"))
    with pytest.raises(UserError, match=r"the weights in .*000/checkpoint were pruned"):
        train.run(train.Config(advantages=older, replay=3, out=tmp_path / "new", optimizer_state="fresh"))


@pytest.mark.slow
def test_a_pruning_run_killed_at_random_moments_produces_the_same_files(
    recipe: Path, policy: Path, spo: Commands, tmp_path: Path
):
    def command(out: str) -> list[str | Path]:
        options = ("--run.model", policy, "--keep-checkpoints", "1", "--train.save-steps", "1")
        return ["run", recipe, "--out", tmp_path / out, *options]

    unbroken = spo.finish(*command("unbroken"))
    random, kills = Random(1), 0
    for moment in sorted(random.uniform(0.1, 0.5) for _ in range(6)):
        killed = spo.run(*command("killed"), seconds=unbroken.seconds * moment)
        kills += killed.code == -signal.SIGPROF
        assert killed.code in (-signal.SIGPROF, 0), killed.stderr
    assert kills >= 2
    spo.finish(*command("killed"))
    found, expected = files(tmp_path / "killed"), files(tmp_path / "unbroken")
    assert found.keys() == expected.keys()
    timed = [name for name in found if name.endswith("metrics.jsonl")]  # these contain durations
    assert [name for name in found if name not in timed and found[name] != expected[name]] == []


def test_keep_every_without_keep_checkpoints_is_rejected(recipe: Path, policy: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"\[run\] keep_every excepts checkpoints from the pruning"):
        run(recipe, tmp_path / "run", policy, "run.keep_every=3")


def test_spo_show_reports_what_was_pruned(model: Path, spo: Commands):
    prune(model, weights=True)
    shown = json.loads(spo.finish("show", model, "--json").stdout)
    assert shown["statistics"]["pruned_to_make_room"] == "weights and the optimizer state"
    assert "weights pruned" in spo.finish("show", model.parent).stdout


def test_deletions_are_recorded_before_they_happen(model: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr(retention.storage, "write_atomically", full)
    with pytest.raises(OSError, match="no room"):
        prune(model, weights=True)
    assert (model / "model.safetensors").exists()


def test_spo_prune_deletes_the_same_files_as_a_pruning_run(recipe: Path, policy: Path, spo: Commands, tmp_path: Path):
    run(recipe, tmp_path / "jobs", policy, "run.eval_every=1")
    run(recipe, tmp_path / "run", policy, "run.eval_every=1", keep_checkpoints=1)
    command = ("prune", recipe, "--out", tmp_path / "jobs", "--run.model", policy, "--run.eval-every", "1")
    rejected = spo.run(*command)
    assert rejected.code == 2
    assert "[run] lacks keep_checkpoints" in rejected.stderr

    evaluation = tmp_path / "jobs" / "002" / "eval"
    evaluation.rename(tmp_path / "away")  # the evaluation is missing and needs its checkpoint, so pruning must keep it
    spo.finish(*command, "--keep-checkpoints", "1")
    assert iterations_with(tmp_path / "jobs", "model.safetensors") == [1, 2, 3]
    (tmp_path / "away").rename(evaluation)
    spo.finish(*command, "--keep-checkpoints", "1")
    found, expected = files(tmp_path / "jobs"), files(tmp_path / "run")
    assert found.keys() == expected.keys()
    assert "nothing to prune" in spo.finish(*command, "--keep-checkpoints", "1").stderr
