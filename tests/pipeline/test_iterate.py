"""`spo run` executes the stages in order, resumes after a kill, and checks its plan before any work."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from random import Random
from typing import Any

import pytest

from stages import evaluate, rollout
from stages.core.errors import FingerprintMismatch, UserError
from stages.core.progress import Summary
from stages.pipeline import iterate
from tests.chains import footer, rows
from tests.command_server import Commands
from tests.recipes import small_recipe, write_recipe
from tests.shards.samples import Notes, files

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

RECIPE = small_recipe(
    run={"eval_every": 1, "seed": 5},
    rollout={"temperature": 0.9},
    train={
        "lr_scheduler_type": "linear",
        "per_device_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "epochs": 2,
    },
)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path, RECIPE)


def config(recipe: Path, out: Path | None = None, *overrides: str, **options: Any) -> iterate.Config:
    return iterate.Config(recipe=recipe, out=out, overrides=overrides, **options)


def run(recipe: Path, out: Path, policy: Path, *overrides: str, progress: Any = None, **options: Any) -> Summary:
    return iterate.run(config(recipe, out, f"run.model={policy}", *overrides, **options), progress or Notes())


def artefacts(out: Path) -> dict[str, bytes]:
    """Return every file of a run except the logs and the metrics, which contain durations."""
    return {name: content for name, content in files(out).items() if not name.endswith("metrics.jsonl")}


def metrics(checkpoint: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (checkpoint / "metrics.jsonl").read_text().splitlines()]


def run_stages(spo: Commands, out: Path, policy: Path) -> None:
    """Run the stages of the recipe one by one from the command line."""
    task_options = ("--task", "arithmetic", "--task-arg", "operations=1", "--max-tokens", "16", "--threads", "1")

    def evaluate(model: Path, directory: Path) -> None:
        spo.finish(
            "eval", "-m", model, *task_options, "--seed", "5", "--num-questions", "2", "--out", directory / "eval"
        )

    evaluate(policy, out / "start")
    model = policy
    for i in range(2):
        directory, seed = out / f"{i:03d}", ("--seed", str(5 + i))
        questions = ("--num-questions", "3", "--skip-questions", str(3 * i), "--num-generations", "2")
        sampling = (*task_options, *seed, *questions, "--temperature", "0.9")
        spo.finish("rollout", "-m", model, *sampling, "--out", directory / "trajectories")
        spo.finish("segment", directory / "trajectories", "--interval", "2", "--out", directory / "cutpoints")
        estimation = ("--rollouts", "2", *seed, "--threads", "1")
        spo.finish("estimate", directory / "cutpoints", *estimation, "--out", directory / "advantages")
        optimization = (
            "--learning-rate",
            "1e-3",
            "--lr-scheduler-type",
            "linear",
            "--epochs",
            "2",
            "--total-steps",
            "8",
        )
        batch = ("--per-device-batch-size", "2", "--gradient-accumulation-steps", "2", "--threads", "1")
        models = ("--reference-model", policy, "--out", directory / "checkpoint")
        spo.finish("train", directory / "advantages", *optimization, *batch, *seed, *models)
        model = directory / "checkpoint"
        evaluate(model, directory)


@pytest.mark.slow
def test_a_run_produces_the_same_files_as_its_stages_run_one_by_one(
    recipe: Path, spo: Commands, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, number in {"ID": 1, "COUNT": 2, "MIN": 0, "MAX": 1, "STEP": 1}.items():
        monkeypatch.setenv(
            f"SLURM_ARRAY_TASK_{name}", str(number)
        )  # SLURM sets these for the job of the run; the stages of the run ignore them
    notes = Notes()
    summary = run(recipe, tmp_path / "run", policy, progress=notes)
    run_stages(spo, tmp_path / "hand", policy)
    made, expected = artefacts(tmp_path / "run"), artefacts(tmp_path / "hand")
    assert made.keys() == expected.keys()
    assert [name for name in made if made[name] != expected[name]] == []
    assert sum(name.endswith("part-00000-of-00001.parquet") for name in made) == 9
    assert made["001/checkpoint/model.safetensors"] != made["000/checkpoint/model.safetensors"]

    first, second = (rows(tmp_path / "run" / name / "trajectories") for name in ("000", "001"))
    assert [row["question_id"][-1] for row in first + second] == [*"001122334455"]
    assert summary.rows == 12
    assert summary.tokens_sampled > sum(len(row["token_ids"]) for row in first + second)
    evaluation = footer(tmp_path / "run" / "001" / "eval" / "part-00000-of-00001.parquet")
    assert summary.figures["iteration 001 avg@1"] == evaluation["summary"]["avg@1"][0]
    assert [line.partition(":")[0] for line in notes.lines if line.startswith(("start", "iteration"))] == [
        *("start", "iteration 000", "iteration 000", "iteration 001", "iteration 001")
    ]

    steps = [line for i in range(2) for line in metrics(tmp_path / "run" / f"{i:03d}" / "checkpoint")]
    rates = [line["learning_rate"] for line in steps]
    assert rates == pytest.approx([1e-3 * (1 - i / 8) for i in range(8)]), "one schedule spans all iterations"

    again = run(recipe, tmp_path / "run", policy)
    assert again.up_to_date
    assert (again.rows, again.tokens_sampled, again.figures) == (12, 0, summary.figures)
    assert artefacts(tmp_path / "run") == made


@pytest.mark.slow
def test_a_run_killed_at_random_moments_produces_the_same_artefacts(recipe: Path, spo: Commands, tmp_path: Path):
    recipe.write_text(RECIPE + '\n[sft]\npreset = "tiny"\nsteps = 6\nsave_steps = 2\nper_device_batch_size = 8\n')

    def command(out: str) -> list[str | Path]:
        options = ("--rollout.chunk-questions", "1", "--estimate.chunk-trajectories", "1", "--train.save-steps", "1")
        return ["run", recipe, "--out", tmp_path / out, *options]

    unbroken = spo.finish(*command("unbroken"))
    expected = artefacts(tmp_path / "unbroken")
    random, kills = Random(0), 0
    for moment in sorted(random.uniform(0.05, 0.35) for _ in range(10)):
        killed = spo.run(*command("killed"), seconds=unbroken.seconds * moment)
        kills += killed.code == -signal.SIGPROF
        assert killed.code in (-signal.SIGPROF, 0), killed.stderr
    assert kills >= 2, "the first kills come early in the run"
    spo.finish(*command("killed"))
    found = artefacts(tmp_path / "killed")
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []


RECIPES = [
    path for path in sorted(EXAMPLES.rglob("*.toml")) if path.parent.name != "compare"
]  # this directory holds a plan of several recipes, not a recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name + "/" + path.name)
def test_every_example_gives_a_valid_plan(path: Path):
    plan = iterate.make_plan(iterate.Config(recipe=path))
    assert len(plan.iterations) >= 1
    assert {-1, len(plan.iterations) - 1} <= set(plan.evaluations)


def test_the_example_for_rho_has_the_published_settings():
    """Source: arXiv 2505.23564, appendix H (chain, Rho-1.1B, GSM8K)."""
    plan = iterate.make_plan(iterate.Config(recipe=EXAMPLES / "gsm8k" / "rho-1.1b.toml"))
    first, last = plan.iterations[0], plan.iterations[-1]
    assert (first.rollout.num_questions, first.rollout.num_generations) == (64, 8)
    assert (first.rollout.temperature, first.rollout.top_p, first.rollout.max_tokens) == (0.6, 0.9, 2047)
    assert (first.segment.partition, first.segment.rho, first.segment.interval) == ("cutpoints", 0.9, 5)
    assert first.estimate.rollouts == "9"
    assert (first.train.learning_rate, first.train.beta, first.train.kl) == (1e-6, 1e-4, "k3")
    assert (first.train.batch_size, first.train.epochs, first.train.epsilon) == (64, 2, 0.2)
    assert (first.train.mask, first.train.weight_decay, first.train.max_grad_norm) == ("cutpoints", 0.0, 1.0)
    assert (
        first.train.total_steps == 650 * 2 * 8
    )  # one schedule over the whole run; its warm-up takes 3 % of these steps
    assert last.rollout.skip_questions == 649 * 64
    evaluation = plan.evaluations[-1]
    assert (evaluation.num_generations, evaluation.temperature, evaluation.top_p) == (16, 0.35, 0.9)


def test_an_error_in_the_last_table_stops_a_run_before_sampling(recipe: Path, policy: Path, tmp_path: Path):
    with pytest.raises(UserError, match="task arithmetic has no option 'operation'"):
        run(recipe, tmp_path / "run", policy, 'eval.task_arg=["operation=1"]')
    assert not (tmp_path / "run").exists()


def test_a_run_with_fail_on_no_signal_ends_with_code_5_before_it_estimates(
    recipe: Path, spo: Commands, policy: Path, tmp_path: Path
):
    """Two tokens are too few for an answer: every response is truncated."""
    out = tmp_path / "run"
    overrides = (f"run.model={policy}", "run.max_tokens=2", "run.eval_every=0", "rollout.fail_on_no_signal=true")
    flags = [word for one in overrides for word in ("--set", one)]
    for _ in range(2):  # the second time, the trajectories are up to date
        result = spo.run("run", recipe, *flags, "--out", out)
        assert result.code == 5
        assert "100% of the responses are truncated. Raise --max-tokens" in result.stderr
        assert [path.name for path in (out / "000").glob("[!_]*") if path.is_dir()] == ["trajectories"]


def test_a_finished_run_can_be_extended_by_more_iterations(recipe: Path, policy: Path, tmp_path: Path):
    constant = ("train.lr_scheduler_type=constant", "run.eval_every=0")
    run(recipe, tmp_path / "run", policy, *constant, iterations=1)
    run(recipe, tmp_path / "run", policy, *constant, iterations=2)
    run(recipe, tmp_path / "direct", policy, *constant)
    assert artefacts(tmp_path / "direct").items() <= artefacts(tmp_path / "run").items()


def test_a_run_takes_what_arrays_of_jobs_left_in_several_parts(recipe: Path, policy: Path, tmp_path: Path):
    """Stages that a cluster finished, or began, in three parts are continued in three parts, not refused."""
    plan = iterate.make_plan(config(recipe, tmp_path / "run", f"run.model={policy}", iterations=1))
    first, start = plan.iterations[0], plan.evaluations[-1]
    for shard in ("0/2", "1/2"):
        evaluate.run(dataclasses.replace(start, shard=shard))
    for shard in ("0/3", "2/3"):  # the second task of the array never ran
        rollout.run(dataclasses.replace(first.rollout, shard=shard))
    before = artefacts(tmp_path / "run")
    run(recipe, tmp_path / "run", policy, iterations=1)
    after = artefacts(tmp_path / "run")
    assert before.items() <= after.items()
    for name, parts in {"start/eval": 2, "000/trajectories": 3, "000/cutpoints": 3, "000/advantages": 3}.items():
        assert len(list((tmp_path / "run" / name).glob("*.parquet"))) == parts
    assert rows(tmp_path / "run" / "000" / "eval")

    run(recipe, tmp_path / "whole", policy, iterations=1)
    for name in ("start/eval", "000/trajectories", "000/cutpoints", "000/advantages"):
        assert rows(tmp_path / "run" / name) == rows(tmp_path / "whole" / name)


def test_a_changed_option_is_rejected_by_the_first_stage_it_affects(recipe: Path, policy: Path, tmp_path: Path):
    run(recipe, tmp_path / "run", policy, iterations=1)
    with pytest.raises(
        FingerprintMismatch, match=r"000/cutpoints/part.*interval: found 2, requested 3.*--run.overwrite"
    ):
        run(recipe, tmp_path / "run", policy, "segment.interval=3", iterations=1)
    run(recipe, tmp_path / "run", policy, "segment.interval=3", "run.overwrite=true", iterations=1)
    run(recipe, tmp_path / "other", policy, "segment.interval=3", iterations=1)
    assert artefacts(tmp_path / "run") == artefacts(tmp_path / "other")


def test_the_plan_gives_each_iteration_its_questions_seed_and_policy(recipe: Path, tmp_path: Path):
    plan = iterate.make_plan(config(recipe, tmp_path, "run.model=hub/name", "rollout.skip_questions=10", iterations=3))
    assert [i.rollout.skip_questions for i in plan.iterations] == [10, 13, 16]
    for stage in ("rollout", "estimate", "train"):
        assert [getattr(i, stage).seed for i in plan.iterations] == [5, 6, 7]
    policies = ["hub/name", str(tmp_path / "000/checkpoint"), str(tmp_path / "001/checkpoint")]
    for stage in ("rollout", "estimate", "train"):
        assert [getattr(i, stage).model for i in plan.iterations] == policies
    assert {i.train.reference_model for i in plan.iterations} == {"hub/name"}
    assert {i.train.total_steps for i in plan.iterations} == {3 * 2 * 2}  # 6 trajectories, 4 a step, 2 epochs
    assert {stage.shard for i in plan.iterations for stage in (i.rollout, i.segment, i.estimate)} == {"all"}
    assert {n: e.model for n, e in plan.evaluations.items()} == dict(
        zip((-1, 0, 1, 2), [*policies, str(tmp_path / "002/checkpoint")], strict=True)
    )
    assert plan.evaluations[2].out == tmp_path / "002" / "eval"


def test_with_replay_an_iteration_trains_on_the_advantages_of_the_replay_window(recipe: Path, tmp_path: Path):
    replay = ("train.replay=3", "train.lr_scheduler_type=constant")
    plan = iterate.make_plan(config(recipe, tmp_path, "run.model=m", *replay, iterations=5))
    names = [[path.parent.name for path in iteration.train.advantages] for iteration in plan.iterations]
    assert names == [["000"], ["000", "001"], ["000", "001", "002"], ["001", "002", "003"], ["002", "003", "004"]]


def test_the_critic_of_an_iteration_is_the_one_trained_in_the_iteration_before(recipe: Path, tmp_path: Path):
    text = RECIPE.replace("[estimate]\nrollouts = 2", '[estimate]\nestimator = "critic"')
    recipe.write_text(text.replace("[train]", "[train]\ncritic_learning_rate = 1e-3"))
    plan = iterate.make_plan(config(recipe, tmp_path, "run.model=m"))
    assert [i.estimate.critic for i in plan.iterations] == ["m", str(tmp_path / "000" / "checkpoint" / "critic")]
    given = iterate.make_plan(config(recipe, tmp_path, "run.model=m", "estimate.critic=c"))
    assert [i.estimate.critic for i in given.iterations] == ["c", str(tmp_path / "000" / "checkpoint" / "critic")]


@pytest.mark.parametrize("override", ["rollout.tree=2-2", "train.replay=2", "train.drop_uniform_groups=true"])
def test_a_schedule_over_an_unknown_number_of_steps_requires_total_steps(recipe: Path, tmp_path: Path, override: str):
    recipe.write_text(RECIPE.replace("num_generations = 2\n", ""))
    with pytest.raises(UserError, match=r"\[train\] lacks total_steps"):
        iterate.make_plan(config(recipe, tmp_path, "run.model=m", override))
    plan = iterate.make_plan(config(recipe, tmp_path, "run.model=m", override, "train.total_steps=9"))
    assert plan.iterations[1].train.total_steps == 9


@pytest.mark.parametrize(
    ("every", "iterations", "after"), [(0, 4, [-1, 3]), (2, 5, [-1, 1, 3, 4]), (1, 2, [-1, 0, 1]), (3, 0, [-1])]
)
def test_evaluations_run_at_the_start_at_the_end_and_every_few_iterations(
    recipe: Path, tmp_path: Path, every: int, iterations: int, after: list[int]
):
    run_config = config(recipe, tmp_path, "run.model=m", f"run.eval_every={every}", iterations=iterations)
    assert list(iterate.make_plan(run_config).evaluations) == after


def test_a_warm_start_is_the_policy_of_the_first_iteration_and_the_reference_of_all(recipe: Path, tmp_path: Path):
    plan = iterate.make_plan(config(recipe, tmp_path, "sft.preset=tiny", "sft.steps=3"))
    assert plan.start is not None
    assert plan.start.out == tmp_path / "start" / "checkpoint"
    assert (plan.start.task, plan.start.seed) == ("arithmetic", 5)
    assert plan.iterations[0].rollout.model == str(plan.start.out) == plan.evaluations[-1].model
    assert {i.train.reference_model for i in plan.iterations} == {str(plan.start.out)}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), r"expected \[run\] model, or a table \[sft\] for a warm start"),
        (("run.model=m", "rollout.model=n"), r"\[rollout\] must not set model: `spo run` decides it"),
        (("run.model=m", "estimate.cutpoints=n"), r"\[estimate\] must not set cutpoints"),
        (("run.model=m", "train.out=n"), r"\[train\] must not set out"),
        (("run.model=m", "segment.shard=0/2"), r"\[segment\] must not set shard"),
        (("run.model=m", "train.learning_rat=1"), r"\[train\] has no option learning_rat"),
        (("run.model=m", "run.learning_rat=1"), r"sets learning_rat in \[run\], which no stage has"),
        (("run.model=m", "tran.learning_rate=1"), r"got 'tran.learning_rate=1'"),
        (("run.model=m", "estimate.rollouts=many"), r"\[estimate\] --rollouts must be N or MIN\.\.MAX.*got 'many'"),
        (("run.model=m", "segment.rho=2"), r"\[segment\] --rho must be at most 1; got 2"),
        (("run.model=m", "segment.partition=cutpoint"), r"\[segment\] --partition must be one of cutpoints, fixed"),
        (("run.model=m", "run.iterations=-1"), r"\[run\] --iterations must be at least 0"),
    ],
)
def test_invalid_recipes_are_reported_before_any_work(
    recipe: Path, tmp_path: Path, overrides: tuple[str, ...], message: str
):
    with pytest.raises(UserError, match=message):
        iterate.run(config(recipe, tmp_path / "run", *overrides))
    assert not (tmp_path / "run").exists()


def test_a_recipe_must_set_the_number_of_questions_per_iteration(recipe: Path, tmp_path: Path):
    recipe.write_text(RECIPE.replace("num_questions = 3", ""))
    with pytest.raises(UserError, match=r"recipe.toml: \[rollout\] lacks num_questions"):
        iterate.run(config(recipe, tmp_path / "run", "run.model=m"))


def test_options_shared_by_the_run_reach_every_stage_that_has_them(recipe: Path, tmp_path: Path):
    plan = iterate.make_plan(config(recipe, tmp_path, "run.model=m", "run.temperature=0.4", "train.seed=70"))
    iteration = plan.iterations[1]
    assert (iteration.rollout.temperature, iteration.estimate.temperature, iteration.train.temperature) == (
        0.9,
        0.4,
        0.4,
    )
    assert (iteration.estimate.task, iteration.estimate.max_tokens, iteration.train.seed) == ("arithmetic", 16, 71)
    assert {stage.threads for stage in (iteration.rollout, iteration.estimate, iteration.train)} == {1}
