"""Test examples/compare: its plan is valid, a small plan runs to its table and figure, and learning rates are chosen on
the validation split only."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import compare
import pytest
import report

from stages.pipeline import iterate

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "compare"
PLAN = compare.Plan(tomllib.loads((EXAMPLE / "plan.toml").read_text()))
EVERY_METHOD = [(table, method) for table in PLAN.content["tables"] for method in PLAN.methods(table)]

SMALL = """
warm_starts = 2
seeds = 1
learning_rates = [1e-4, 2e-4]
grid_warm_starts = 1
grid_seed = 9
curve_every = 1

[scores.validation]
sampled = { num_questions = 3, num_generations = 2, temperature = 1.0 }
[scores.test]
sampled = { num_questions = 4, num_generations = 2, temperature = 1.0 }
greedy = { num_questions = 4 }
[scores.curve]
accuracy = { num_questions = 2, temperature = 1.0 }

[recipe.run]
iterations = 2
task = "arithmetic"
task_arg = ["operations=1"]
threads = 1
max_tokens = 12
[recipe.sft]
preset = "tiny"
steps = 2
[recipe.rollout]
num_questions = 2
num_generations = 2
[recipe.train]
beta = 0.0

[methods.grpo]
title = "GRPO"
[methods.grpo.recipe]
segment = { partition = "trajectory" }
estimate = { estimator = "grpo" }
train = { mask = "all" }
[methods.chain]
title = "SPO-chain"
[methods.chain.recipe]
estimate = { rollouts = "2" }

[tables.T]
title = "a small table"
warm_start = "one"
more_panels = true
[tables.T.methods]
grpo = {}
chain = { segment = { interval = 2 } }
"""


@pytest.mark.parametrize(("table", "method"), EVERY_METHOD)
def test_every_run_of_the_plan_is_a_recipe_that_spo_run_takes(table: str, method: str, tmp_path: Path):
    for split in ("validation", "test"):
        run = compare.Run(table, method, 1e-4, 1, 2, split)
        compare.write_recipe(tmp_path / "recipe.toml", compare.run_recipe(PLAN, run, tmp_path / "policy"))
        plan = iterate.make_plan(iterate.Config(recipe=tmp_path / "recipe.toml", out=tmp_path / "run"))
        assert plan.iterations[0].train.learning_rate == 1e-4
        assert not plan.evaluations, "the plan's own scores are the only evaluations"


@pytest.mark.slow
def test_a_small_comparison_writes_a_table_and_a_figure_and_is_not_run_twice(tmp_path: Path):
    plan, out = tmp_path / "plan.toml", tmp_path / "out"
    plan.write_text(SMALL)

    def script(name: str, *arguments: object) -> str:
        command = [sys.executable, str(EXAMPLE / name), *map(str, arguments)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    script("compare.py", plan, "--out", out, "--jobs", 1)
    found = report.read_results(out)
    assert len(report.of(found, "T", "grpo", "validation")) == 2
    assert len(report.of(found, "T", "chain", "test")) == 2
    for result in found:
        assert result["tokens_sampled"] > 0
        assert len(result["curve"]) == 3
        has_curve = ["accuracy" in point for point in result["curve"]]
        assert has_curve == [result["split"] == "test"] * 3, "runs of the grid never use the test split"
        assert result["cpu_seconds"] > 0
    again = script("compare.py", plan, "--out", out, "--jobs", 1)
    assert report.read_results(out) == found, f"run again: {again}"

    shown = script("report.py", out, "--plan", plan, "--out", tmp_path / "results")
    assert "| SPO-chain |" in shown
    assert (tmp_path / "results" / "tables.md").read_text() in shown
    assert "<svg" in (tmp_path / "results" / "T.svg").read_text()
    lines = (tmp_path / "results" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["method"] for line in lines] == [result["method"] for result in found]


def result(method: str, rate: float, sampled: float, split: str = "validation", **more: Any) -> dict[str, Any]:
    """Return the result of a run as `report` reads it."""
    return {"table": "T", "method": method, "rate": rate, "split": split, "test": {"sampled": sampled}} | more


def test_the_best_rate_has_the_highest_mean_on_the_validation_split():
    results = [
        *(result("a", 1e-4, score) for score in (0.5, 0.6)),
        *(result("a", 2e-4, score) for score in (0.9, 0.1)),
        result("a", 3e-4, 0.99, split="test"),
        result("b", 3e-4, 0.99),
    ]
    assert compare.best_rate(results, "T", "a") == 1e-4


def test_equal_scores_choose_the_lowest_rate_in_any_order_of_runs():
    results = [result("a", rate, 0.5) for rate in (3e-4, 1e-4, 2e-4)]
    assert compare.best_rate(results, "T", "a") == compare.best_rate(results[::-1], "T", "a") == 1e-4


def test_differences_in_the_table_are_paired_by_warm_start_and_seed():
    runs = [
        result(method, 1e-4, sampled, "test", warm_start=warm, seed=0, tokens_sampled=2000, cpu_seconds=3.0)
        for method, scores in {"a": (0.2, 0.6), "b": (0.3, 0.7)}.items()
        for warm, sampled in enumerate(scores)
    ]
    for run in runs:
        run["test"]["greedy"] = 0.5
    rows = report.table_rows(runs, "T", {"a": "First", "b": "Second"})
    assert rows[0] == ["First", "0.0001", ".400 ± .200", ".500 ± .000", "", "2k", "3", "2"]
    assert rows[1][4] == ".100 ± .000"
