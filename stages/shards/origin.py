"""The origin of an artefact, read from its lineage: the artefacts it was made from, the model that sampled it."""

from __future__ import annotations

from stages.core.errors import UserError
from stages.core.paths import AnyPath, is_path_reference
from stages.shards.lineage import Lineage, Source
from stages.shards.parts import Artefact, open_artefact
from stages.shards.schemas import ARTEFACT, BY_STAGE, Schema


def trace_back(artefact: Artefact, to: Schema, at: AnyPath | None = None) -> Artefact:
    """Return the artefact of an earlier stage that cutpoints or advantages were made from.

    Args:
      artefact: the cutpoints or advantages.
      to: the schema of the earlier artefact, e.g. TRAJECTORIES.
      at: its path, if the user gave one; default: the path in the lineage.

    Raises:
      UserError: there is neither a lineage nor `at`, the path no longer exists, or the artefact there is not the one
        that the rows were made from.
      IncompleteInput: as for `open_artefact`.
    """
    name, flag = ARTEFACT[to.stage], f"--{ARTEFACT[to.stage].replace(' ', '-')}"
    lineage = artefact.lineage
    if lineage is None:
        if at is None:
            raise UserError(f"{artefact.path} has no lineage that names its {name}: pass {flag} PATH")
        return open_artefact(at, to)
    direct = next((candidate for candidate in lineage.inputs if candidate.stage == to.stage), None)
    if direct is None:
        return _trace_back_through_inputs(artefact, lineage, to, at)
    target = at or artefact.locate(direct.path)
    if not target.exists():
        raise UserError(f"the {name} of {artefact.path} are no longer at {target}: pass {flag} PATH")
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
            f"the {name} at {target} have changed since {artefact.path} was made from them: "
            f"rerun `spo {artefact.schema.stage}` on them, or pass {flag} PATH"
        )
    return found


def sampling_model(artefact: Artefact, flag: str = "--model") -> str | None:
    """Return the directory or hub name of the model that sampled an artefact; None if the lineage names no model.

    Args:
      flag: the flag that sets the model explicitly, for the error message.

    Raises:
      UserError: the directory of the model no longer exists.
    """
    lineage = artefact.lineage
    if lineage is None or lineage.model is None:
        return None
    there = artefact.locate(lineage.model.path)
    if there.exists():
        return str(there)
    if is_path_reference(lineage.model.path):
        raise UserError(f"the model that sampled {artefact.path} is no longer at {there}: pass {flag} PATH")
    return lineage.model.path


def staleness(trajectories: Artefact) -> int:
    """Return the iterations of training between the model that sampled and the one that learns, as recorded."""
    return int(trajectories.lineage.config.get("staleness") or 0) if trajectories.lineage else 0


def foreign_notes(*artefacts: Artefact) -> tuple[str, ...]:
    """Return a note for each artefact that has parts without lineage."""
    foreign = [artefact.path for artefact in artefacts if any(part.lineage is None for part in artefact.parts)]
    return tuple(f"{path} has no lineage: another tool wrote it" for path in foreign)


def check_sampling_model(artefact: Artefact, model: Source, *, named: bool) -> tuple[str, ...]:
    """Compare a model, by its weights, with the one that sampled an artefact; return a note if they differ.

    Args:
      named: whether the user named the model; otherwise its path comes from the lineage of the artefact.

    Raises:
      UserError: the path comes from the lineage, and the weights have changed since.
    """
    lineage = artefact.lineage
    if lineage is None or lineage.model is None or lineage.model.fingerprint == model.fingerprint:
        return ()
    if named and staleness(artefact):  # another model is expected
        return ()
    if named:
        return (f"{model.path} is not the model that sampled {artefact.path} ({lineage.model.path})",)
    raise UserError(
        f"the model {model.path} has changed since {artefact.path} was sampled with it; expected the policy that "
        "sampled: pass --model PATH"
    )


def _trace_back_through_inputs(artefact: Artefact, lineage: Lineage, to: Schema, at: AnyPath | None) -> Artefact:
    """Trace back through an intermediate artefact: advantages → cutpoints → trajectories."""
    name = ARTEFACT[to.stage]
    for intermediate in lineage.inputs:
        path = artefact.locate(intermediate.path)
        if intermediate.stage in BY_STAGE and path.exists():
            return trace_back(open_artefact(path, BY_STAGE[intermediate.stage]), to, at)
    if at is None:
        raise UserError(f"the lineage of {artefact.path} leads to no {name}: pass --{name.replace(' ', '-')} PATH")
    return open_artefact(at, to)
