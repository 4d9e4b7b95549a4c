"""`spo prune`: deletes of a run's checkpoints what `[run] keep_checkpoints` does not keep, as `spo run` does by itself.

For runs whose stages are jobs, or typed by hand. It goes as far as iterations are done without a gap, evaluations that
are due included, so that nothing goes that is still to be read; `setup = ["spo prune RECIPE"]` in [slurm.train] calls
it before each training.
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
    """Prunes, and tells what was.

    Raises:
      UserError: a recipe that is not as it should be, or does not say what stays.
    """
    plan = planning.make_plan(config)
    if plan.keep is None:
        raise UserError(
            f"{config.recipe}: [run] lacks keep_checkpoints, the iterations whose checkpoints stay whole: set it, or "
            "pass --keep-checkpoints"
        )
    numbers = range(len(plan.iterations))
    done = next((number for number in numbers if not _is_done(plan, number)), len(numbers))
    pruned = iterate.prune(plan, done - 1, progress) if done else []
    if not pruned:
        progress.note(f"nothing to prune in {plan.out} ({done} of {len(numbers)} iterations are done)")


def _is_done(plan: planning.Plan, number: int) -> bool:
    """Whether an iteration has its checkpoint and, where one is due, its whole evaluation."""

    if read_lineage(plan.iterations[number].train.out) is None:
        return False
    try:
        return number not in plan.evaluations or bool(open_artefact(plan.evaluations[number].out, EVALUATION).parts)
    except IncompleteInput:
        return False
