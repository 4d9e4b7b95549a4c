"""The jobs of a run: one stage of one iteration each, with its command, its array tasks and its dependencies."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from stages.configs.resources import RankResources, Resources
from stages.core.config import to_arguments
from stages.shards.sharding import count_tasks, split, task_shards

STAGES = {
    "sft": "checkpoint",
    "rollout": "trajectories",
    "segment": "cutpoints",
    "estimate": "advantages",
    "train": "checkpoint",
    "eval": "eval",
}
"""Stage → name of its output in the directory of an iteration."""

MODEL_STAGES = ("sft", "train")
"""Stages that write a model directory, which is not divided into parts: one job each."""


@dataclass(frozen=True)
class Work:
    """The work of one stage in one iteration.

    Attributes:
      iteration: the name of the iteration: `start`, `000`, `001` …
      stage: the command.
      parts: the number of parts of its output; 1 for a model directory.
      num_shards, shards_per_task: how the parts are distributed over array tasks. A stage that reads an artefact has
        as many parts as its input, whatever its number of shards.
    """

    iteration: str
    stage: str
    parts: int = 1
    num_shards: int = 1
    shards_per_task: int = 1

    @property
    def output(self) -> str:
        """Return the path of the output within the run, e.g. `000/trajectories`."""
        return f"{self.iteration}/{STAGES[self.stage]}"

    @property
    def name(self) -> str:
        """Return the name of the script, the logs and the job: `000-rollout`."""
        return f"{self.iteration}-{self.stage}"

    @property
    def tasks(self) -> int:
        """Return the number of tasks in the job array."""
        return count_tasks(self.num_shards, self.shards_per_task)

    @property
    def is_array(self) -> bool:
        """Return whether the job is an array; otherwise it is a single job."""
        return self.num_shards > 1

    def parts_of_task(self, task: int) -> range:
        """Return the parts that one task of the array makes."""
        return split(self.parts, *task_shards(task, self.num_shards, self.shards_per_task))


@dataclass(frozen=True)
class Job:
    """The job that does some work.

    Attributes:
      work: the work.
      config: the Config of the stage, which becomes the flags of the command.
      resources: the requested resources.
      after: the outputs that the command reads (`Work.output`); they must be complete before the job begins.
    """

    work: Work
    config: Any
    resources: Resources
    after: tuple[str, ...]

    def command(self) -> list[str]:
        """Return the words of the command, quoted for a shell; a flag and its value are one entry."""
        return [f"spo {self.work.stage}", *(shlex.join(words) for words in to_arguments(self.config))]

    def launcher(self) -> list[str]:
        """Return the words before the command: srun for several processes, a container runtime, both or none."""
        resources, words = self.resources, list[str]()
        # srun does not inherit --cpus-per-task from the job (since SLURM 22.05).
        cpus = [f"--cpus-per-task={resources.cpus}"] if resources.cpus else []
        if isinstance(resources, RankResources) and resources.ranks > 1:
            words = ["srun", "--kill-on-bad-exit=1", *cpus]
        if resources.container and resources.container_runtime == "pyxis":
            return [
                *(words or ["srun", *cpus]),
                f"--container-image={resources.container}",
                *resources.container_options,
            ]
        if resources.container:
            gpus = ["--nv"] if resources.has_gpus else []
            words += [resources.container_runtime, "exec", *gpus, *resources.container_options, resources.container]
        return words
