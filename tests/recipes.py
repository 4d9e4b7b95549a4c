"""Write small recipes: runs of a few questions that take seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_SMALL: dict[str, dict[str, Any]] = {
    "run": {
        "out": "unused",
        "iterations": 2,
        "task": "arithmetic",
        "task_arg": ["operations=1"],
        "max_tokens": 16,
        "threads": 1,
    },
    "rollout": {"num_questions": 3, "num_generations": 2},
    "segment": {"interval": 2},
    "estimate": {"rollouts": 2},
    "train": {"learning_rate": 1e-3},
    "eval": {"num_questions": 2},
}


def small_recipe(**tables: dict[str, Any]) -> str:
    """Return the text of the small recipe, with these options added to its tables or replaced there."""
    lines = []
    for name in (*_SMALL, *(tables.keys() - _SMALL.keys())):
        lines += [f"[{name}]"]
        options = _SMALL.get(name, {}) | tables.get(name, {})
        lines += [f"{key} = {json.dumps(value)}" for key, value in options.items()]  # JSON values are TOML values
        lines += [""]
    return "\n".join(lines)


def write_recipe(directory: Path, text: str) -> Path:
    """Write a recipe to `recipe.toml` in a directory; return the file."""
    path = directory / "recipe.toml"
    path.write_text(text)
    return path
