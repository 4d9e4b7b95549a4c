"""Recipes of examples/methods run to their end at a tiny size; every recipe is in the lists of methods."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stages.pipeline import iterate
from tests.shards.samples import Notes

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "examples" / "methods").glob("*.toml"))
TO_THE_END = ("dpo-positive", "forward", "tree-budget")
"""Recipes whose estimators or trees no other test trains with in a run."""
TINY = (
    'run.task_arg=["operations=1"]',
    "run.iterations=2",
    "run.max_tokens=16",
    "rollout.num_questions=4",
    "train.per_device_batch_size=4",
    "eval.num_questions=2",
)


@pytest.mark.parametrize("name", TO_THE_END)
def test_a_recipe_trains_to_its_end(name: str, policy: Path, tmp_path: Path):
    recipe = ROOT / "examples" / "methods" / f"{name}.toml"
    overrides = (*TINY, f"run.model={policy}")
    iterate.run(iterate.Config(recipe=recipe, out=tmp_path / "run", overrides=overrides), Notes())
    assert (tmp_path / "run" / "001" / "checkpoint" / "config.json").is_file()


def test_every_recipe_is_in_the_script_and_in_the_table_of_methods():
    script = (ROOT / "examples" / "methods" / "run.sh").read_text()
    named = re.search(r"methods=\((spo-chain[^)]*)\)", script)
    assert named
    assert sorted(named[1].split()) == sorted(path.stem for path in RECIPES)
    table = (ROOT / "docs" / "methods.md").read_text().partition("**Cost.**")[0]
    assert {path.name for path in RECIPES} == set(re.findall(r"[a-z-]+\.toml", table))
