"""Owns what an artefact tells of its origin: whether it does, what it was made from, which model sampled its rows."""

from __future__ import annotations

from pathlib import Path

from stages.core.errors import UserError
from stages.core.paths import is_path_reference
from stages.shards.lineage import Lineage, Source
from stages.shards.parts import Artefact, open_artefact
from stages.shards.schemas import ARTEFACT, BY_STAGE, Schema


def trace_back(artefact: Artefact, to: Schema, at: Path | None = None) -> Artefact:
    """From cutpoints or advantages back to the artefact of another stage that they were made from.

    Args:
      to: e.g. TRAJECTORIES.
      at: where it lies, when the user says so; else where the lineage says.

    Raises:
      UserError: no lineage and no `at`; it is no longer there; or what is there is not what the rows were made from.
      IncompleteInput: as `open_artefact`.
    """
    name, flag = ARTEFACT[to.stage], f"--{ARTEFACT[to.stage].replace(' ', '-')}"
    lineage = artefact.lineage
    if lineage is None:
        if at is None:
            raise UserError(f"{artefact.path} does not say which {name} it was made from: pass {flag} PATH")
        return open_artefact(at, to)
    direct = next((candidate for candidate in lineage.inputs if candidate.stage == to.stage), None)
    if direct is None:
        return _trace_back_through_inputs(artefact, lineage, to, at)
    target = at or artefact.locate(direct.path)
    if not target.exists():
        raise UserError(f"the {name} that {artefact.path} was made from lie no longer at {target}: pass {flag} PATH")
    found = open_artefact(target, to)
    made_from = {
        candidate.fingerprint
        for part in artefact.parts
        for candidate in (part.lineage.inputs if part.lineage else ())
        if candidate.stage == to.stage
    }
    changed = made_from - {found.fingerprint(), *(found.fingerprint(part) for part in found.parts)}
    if changed:
        raise UserError(
            f"the {name} at {target} are not what {artefact.path} was made from (they have changed since): "
            f"run `spo {artefact.schema.stage}` again on them, or pass {flag} PATH"
        )
    return found


def sampling_model(artefact: Artefact, flag: str = "--model") -> str | None:
    """The directory, or hub name, of the model that sampled an artefact; None where it does not say.

    Args:
      flag: with which the user may name it instead.

    Raises:
      UserError: a directory that is no longer there.
    """
    lineage = artefact.lineage
    if lineage is None or lineage.model is None:
        return None
    there = artefact.locate(lineage.model.path)
    if there.exists():
        return str(there)
    if is_path_reference(lineage.model.path):
        raise UserError(f"the model that sampled {artefact.path} lies no longer at {there}: pass {flag} PATH")
    return lineage.model.path


def foreign_notes(*artefacts: Artefact) -> tuple[str, ...]:
    """A line for the reader about each artefact that does not say how it was made."""
    alien = [artefact.path for artefact in artefacts if any(part.lineage is None for part in artefact.parts)]
    return tuple(f"{path} has no lineage: another tool wrote it" for path in alien)


def check_sampling_model(artefact: Artefact, model: Source, *, named: bool) -> tuple[str, ...]:
    """What a reader should know where a model is not, by its weights, the one that sampled an artefact.

    Args:
      named: whether the user named the model; else it was found through the artefact's lineage.

    Raises:
      UserError: it was found, and has changed since.
    """
    lineage = artefact.lineage
    if lineage is None or lineage.model is None or lineage.model.fingerprint == model.fingerprint:
        return ()
    if named:
        return (f"{model.path} is not the model that sampled {artefact.path} ({lineage.model.path})",)
    raise UserError(
        f"the model {model.path} has changed since {artefact.path} was sampled with it, and the policy that sampled is "
        "wanted: pass --model PATH"
    )


def _trace_back_through_inputs(artefact: Artefact, lineage: Lineage, to: Schema, at: Path | None) -> Artefact:
    """`follow` by way of an artefact in between: advantages → cutpoints → trajectories."""
    name = ARTEFACT[to.stage]
    for between in lineage.inputs:
        path = artefact.locate(between.path)
        if between.stage in BY_STAGE and path.exists():
            return trace_back(open_artefact(path, BY_STAGE[between.stage]), to, at)
    if at is None:
        raise UserError(f"{artefact.path} does not lead back to {name}: pass --{name.replace(' ', '-')} PATH")
    return open_artefact(at, to)
