"""Artefacts on disk: schemas, atomic parts, lineage, completeness checks, resume."""
