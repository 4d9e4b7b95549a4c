"""Owns what an artefact tells of its origin: whether it does, and which model its rows were sampled with."""

from __future__ import annotations

from stages.errors import UserError
from stages.places import names_a_file
from stages.shards.lineage import Source
from stages.shards.parts import Artefact


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
    if names_a_file(lineage.model.path):
        raise UserError(f"the model that sampled {artefact.path} lies no longer at {there}: pass {flag} PATH")
    return lineage.model.path


def without_lineage(*artefacts: Artefact) -> tuple[str, ...]:
    """A line for the reader about each artefact that does not say how it was made."""
    alien = [artefact.path for artefact in artefacts if any(part.lineage is None for part in artefact.parts)]
    return tuple(f"{path} has no lineage: another tool wrote it" for path in alien)


def compare_model(artefact: Artefact, model: Source, *, named: bool) -> tuple[str, ...]:
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
