"""Errors, options, progress, files and paths for every room. Nothing here depends on models or tables."""
