"""Say why responses got their rewards: artefacts hold the rewards alone, so the recorded task grades once more."""

from __future__ import annotations

from collections.abc import Sequence

from stages.core.errors import UserError
from stages.responses.grading import verify_all
from stages.shards.parts import Artefact
from stages.tasks import open_task
from stages.tasks.verdicts import Verdict

_OWN_REWARD = "reward="
"""Beginning of the option of a task whose rewards come from a function of the user, which a report never calls."""


def reasons(
    responses: Artefact, texts: Sequence[str | None], references: Sequence[str | None]
) -> tuple[list[str | None], str]:
    """Return the reason of each verdict, and a note if the task that graded cannot be opened here.

    Args:
      responses: the artefact, whose lineage names the task and its options.
      texts: whole responses; None for a row that is not a whole response.
      references: their reference answers.
    """
    none: list[str | None] = [None] * len(texts)
    recorded = responses.lineage.config if responses.lineage else {}
    names = [recorded["task"]] if isinstance(recorded.get("task"), str) else list(recorded.get("task") or ())
    options = list(recorded.get("task_arg") or ())
    if len(names) != 1 or any(one.startswith(_OWN_REWARD) for one in options):
        return none, ""
    try:
        task = open_task(names[0], None, options)
    except (UserError, ImportError) as error:
        return none, f"The reasons of the verdicts are not shown: {error}"
    given = [i for i, pair in enumerate(zip(texts, references, strict=True)) if None not in pair]
    verdicts = verify_all(task, [str(texts[i]) for i in given], [str(references[i]) for i in given])
    for i, verdict in zip(given, verdicts, strict=True):
        none[i] = _in_words(verdict)
    return none, ""


def _in_words(verdict: Verdict) -> str:
    """Return the reason, where the answer was read, and what was read: `equal, last box: \\frac12`."""
    place = "" if verdict.stated is None else f", {verdict.place}: {verdict.stated.strip()}"
    return f"{verdict.reason}{place}"
