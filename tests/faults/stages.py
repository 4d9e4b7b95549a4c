"""The stages whose changes to the disk are enumerated: small commands that each write one output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.chains import cut, sample, train_small_policy, value

_TASK = ["--task", "arithmetic", "--task-arg", "operations=1"]
_MODEL = [*_TASK, "--max-tokens", "12", "--threads", "1"]
_STEPS = ["--save-steps", "1", "--threads", "1"]
_RECIPE = """
[run]
out = "OUT/run"
model = "POLICY"
iterations = 2
keep_checkpoints = 1
task = "arithmetic"
task_arg = ["operations=1"]
max_tokens = 12
threads = 1
[rollout]
num_questions = 4
num_generations = 4
temperature = 1.0
[segment]
partition = "trajectory"
[estimate]
estimator = "rloo"
[train]
learning_rate = 1e-3
gradient_accumulation_steps = 1
[slurm]
partition = "gpu"
"""


@dataclass(frozen=True)
class Inputs:
    """What the stages read.

    Attributes:
      folder: with `policy` (a model), `trajectories`, `cutpoints`, `whole` (the same, one segment each), `advantages`,
        and `recipe.toml`.
      out: the folder below which all stages write.
    """

    folder: Path
    out: Path


def make_inputs(folder: Path) -> Inputs:
    """Make the inputs of all stages in a new folder."""
    inputs = Inputs(folder, folder / "out")
    inputs.out.mkdir(parents=True)
    policy = train_small_policy(folder / "policy")
    sample(folder / "trajectories", policy, num_questions=4, num_generations=4)
    cut(folder / "cutpoints", folder / "trajectories", interval=2)
    cut(folder / "whole", folder / "trajectories", partition="trajectory")
    value(folder / "advantages", folder / "cutpoints")
    recipe = _RECIPE.replace("OUT", str(inputs.out)).replace("POLICY", str(policy))
    (folder / "recipe.toml").write_text(recipe)
    return inputs


def _words(*words: str | Path) -> list[str]:
    return [str(word) for word in words]


STAGES: Mapping[str, Callable[[Inputs], list[str]]] = {
    "rollout": lambda i: _words(
        *("rollout", "-m", i.folder / "policy", *_MODEL, "--num-questions", "2", "--num-generations", "2"),
        *("--chunk-questions", "1", "--out", i.out / "trajectories"),
    ),
    "segment": lambda i: _words(
        *("segment", i.folder / "trajectories", "--interval", "2", "--shard", "all", "--out", i.out / "cutpoints")
    ),
    "estimate": lambda i: _words(
        *("estimate", i.folder / "cutpoints", "--rollouts", "1", "--keep-rollouts", "--chunk-trajectories", "8"),
        *("--threads", "1", "--out", i.out / "advantages"),
    ),
    "group": lambda i: _words(
        *("estimate", i.folder / "whole", "--estimator", "grpo", "--num-shards", "2", "--out", i.out / "group")
    ),
    "sft": lambda i: _words("sft", "--preset", "tiny", *_TASK, "--steps", "2", *_STEPS, "--out", i.out / "model"),
    "train": lambda i: _words(
        *("train", i.folder / "advantages", "--learning-rate", "1e-3", "--per-device-batch-size", "4"),
        *("--gradient-accumulation-steps", "2", *_STEPS, "--out", i.out / "checkpoint"),
    ),
    "eval": lambda i: _words(
        *("eval", "-m", i.folder / "policy", *_MODEL, "--num-questions", "2", "--chunk-questions", "1"),
        *("--out", i.out / "eval"),
    ),
    "grade": lambda i: _words("grade", i.folder / "trajectories", "--out", i.out / "graded.parquet"),
    "report": lambda i: _words("report", i.folder / "advantages", "--overwrite", "--out", i.out / "report.html"),
    "slurm": lambda i: _words("slurm", i.folder / "recipe.toml"),
    "run": lambda i: _words("run", i.folder / "recipe.toml"),
}
"""Name → the words of the command. Each ends with exit code 0 and may be repeated."""
