"""Owns what a job is: one stage of one iteration, its command, its tasks, and the jobs it waits for."""

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
"""Stage → the name of what it writes within an iteration of a run."""

MODEL_STAGES = ("sft", "train")
"""Those that write a model directory: one piece, by one job."""


@dataclass(frozen=True)
class Work:
    """What one stage of one iteration has to make.

    Attributes:
      iteration: `start`, `000` …
      stage: the command.
      parts: of its artefact; 1 for a model directory.
      num_shards, shards_per_task: how it is shared out. A stage that follows its input has as many parts as that,
        whatever its shards.
    """

    iteration: str
    stage: str
    parts: int = 1
    num_shards: int = 1
    shards_per_task: int = 1

    @property
    def output(self) -> str:
        """Of its artefact within the run, as `000/trajectories`."""
        return f"{self.iteration}/{STAGES[self.stage]}"

    @property
    def name(self) -> str:
        """`000-rollout`: of its script, its logs and its job."""
        return f"{self.iteration}-{self.stage}"

    @property
    def tasks(self) -> int:
        """Of its array."""
        return count_tasks(self.num_shards, self.shards_per_task)

    @property
    def is_array(self) -> bool:
        """Whether its tasks are those of an array; else it is one job."""
        return self.num_shards > 1

    def parts_of_task(self, task: int) -> range:
        """The parts that a task of the array makes."""
        return split(self.parts, *task_shards(task, self.num_shards, self.shards_per_task))


@dataclass(frozen=True)
class Job:
    """Some work as a job of the cluster.

    Attributes:
      work: what it makes.
      config: what its command is told.
      resources: what it asks for.
      after: the places of what it reads, which must be whole before it begins.
    """

    work: Work
    config: Any
    resources: Resources
    after: tuple[str, ...]

    def command(self) -> list[str]:
        """Its command, a flag and its value together, quoted for a shell."""
        return [f"spo {self.work.stage}", *(shlex.join(words) for words in to_arguments(self.config))]

    def launcher(self) -> list[str]:
        """What starts the command: srun for several processes, the program that runs a container, both or none."""
        asked, words = self.resources, list[str]()
        cpus = [f"--cpus-per-task={asked.cpus}"] if asked.cpus else []  # srun does not take it from the job
        if isinstance(asked, RankResources) and asked.ranks > 1:
            words = ["srun", "--kill-on-bad-exit=1", *cpus]
        if asked.container and asked.container_runtime == "pyxis":
            return [*(words or ["srun", *cpus]), f"--container-image={asked.container}", *asked.container_options]
        if asked.container:
            gpus = ["--nv"] if asked.has_gpus else []
            words += [asked.container_runtime, "exec", *gpus, *asked.container_options, asked.container]
        return words
