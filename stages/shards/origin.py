"""Owns the way from an artefact back to what made it: where the model lies that its rows were sampled with."""

from __future__ import annotations

from stages.shards.parts import Artefact


def sampling_model(artefact: Artefact) -> str | None:
    """The directory, or hub name, of the model that sampled an artefact; None where it does not say."""
    lineage = artefact.parts[0].lineage
    if lineage is None or lineage.model is None:
        return None
    local = artefact.directory / lineage.model.path
    return str(local) if local.exists() else lineage.model.path
