"""Owns the way from an artefact back to what made it: where the model lies that its rows were sampled with."""

from __future__ import annotations

from stages.errors import UserError
from stages.shards.lineage import Source
from stages.shards.parts import Artefact


def sampling_model(artefact: Artefact, flag: str = "--model") -> str | None:
    """The directory, or hub name, of the model that sampled an artefact; None where it does not say.

    Args:
      flag: with which the user may name it instead.

    Raises:
      UserError: a directory that is no longer there.
    """
    lineage = artefact.parts[0].lineage
    if lineage is None or lineage.model is None:
        return None
    local = artefact.directory / lineage.model.path
    if local.exists():
        return str(local)
    if lineage.model.path.startswith(".."):  # a directory as seen from the artefact; names on the hub never begin so
        raise UserError(f"the model that sampled {artefact.path} lies no longer at {local}: pass {flag} PATH")
    return lineage.model.path


def is_other_model(artefact: Artefact, model: Source) -> bool:
    """Whether an artefact says that it was sampled with other weights than these."""
    lineage = artefact.parts[0].lineage
    return bool(lineage and lineage.model and lineage.model.fingerprint != model.fingerprint)
