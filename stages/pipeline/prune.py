"""`spo prune`: delete the files of a run's checkpoints that `[run] keep_checkpoints` does not keep.

`spo run` prunes by itself; this command is for runs whose stages are SLURM jobs or run by hand. It considers the
iterations up to the first unfinished one, evaluations included, so that no file is deleted that a stage still
needs. `setup = ["spo prune RECIPE"]` in [slurm.train] calls it before each training.
"""

from __future__ import annotations

from stages.configs.prune import Config
from stages.core.errors import IncompleteInput, UserError
from stages.core.progress import Progress, Silent
from stages.pipeline import iterate, planning
from stages.shards.lineage import read_lineage
from stages.shards.parts import open_artefact
from stages.shards.schemas import EVALUATION


def run(config: Config, progress: Progress = Silent()) -> None:
    """Prune the checkpoints of a run, and report the pruned ones.

    Raises:
      UserError: an invalid recipe, or one without keep_checkpoints.
    """
    plan = planning.make_plan(config)
    if plan.keep is None:
        raise UserError(
            f"{config.recipe}: [run] lacks keep_checkpoints, the number of checkpoints that are kept whole: set it, or "
            "pass --keep-checkpoints"
        )
    numbers = range(len(plan.iterations))
    done = next((number for number in numbers if not _is_done(plan, number)), len(numbers))
    pruned = iterate.prune_checkpoints(plan, done - 1, progress) if done else []
    if not pruned:
        progress.note(f"nothing to prune in {plan.out} ({done} of {len(numbers)} iterations are done)")


def _is_done(plan: planning.Plan, number: int) -> bool:
    """Return whether an iteration has its checkpoint and, if one is due, its complete evaluation."""
    if read_lineage(plan.iterations[number].train.out) is None:
        return False
    try:
        return number not in plan.evaluations or bool(open_artefact(plan.evaluations[number].out, EVALUATION).parts)
    except IncompleteInput:
        return False
