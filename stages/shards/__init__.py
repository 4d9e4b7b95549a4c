"""The contract on disk: schemas, atomic parts, lineage, completeness, resume."""
