"""Run a comparison: every method of a plan, over warm starts and seeds, each at its own best learning rate.

    python examples/compare/compare.py examples/compare/plan.toml --out runs/compare --jobs 2
    python examples/compare/report.py runs/compare

A plan (see plan.toml) contains tables; each table is a setting in which methods are compared. For each table:

1. Every method runs at every learning rate of the grid, on the grid's own warm starts and seed, and is scored on the
   validation split. Its best rate is selected.
2. Every method runs at its best rate on all warm starts × seeds, and is scored on the test split.

Each run is an ordinary `spo run` of a recipe that is stored beside its result, so each can be repeated alone. Finished
runs are skipped. An interrupted run starts again from the beginning, so that its wall time is that of one process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

Recipe = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """The content of a plan file."""

    content: dict[str, Any]

    def methods(self, table: str) -> list[str]:
        return list(self.content["tables"][table]["methods"])

    def recipe(self, table: str, method: str | None) -> Recipe:
        """Return the recipe of a method in a table; without a method, the recipe of the table's warm start."""
        here = self.content["tables"][table]
        layers = [self.content["recipe"], here.get("recipe", {})]
        if method:
            layers += [self.content["methods"][method].get("recipe", {}), here["methods"][method]]
        return merged(layers)


def merged(layers: Iterable[Mapping[str, Mapping[str, Any]]]) -> Recipe:
    """Return tables of options; later layers override earlier ones."""
    recipe: Recipe = {}
    for layer in layers:
        for table, options in layer.items():
            recipe.setdefault(table, {}).update(options)
    return recipe


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Write a recipe as TOML: its values (texts, numbers, booleans, lists) have the same syntax in JSON."""
    lines = []
    for table, options in recipe.items():
        lines += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in options.items()), ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))


@dataclass(frozen=True)
class Run:
    """One run of the comparison, and the split that scores it."""

    table: str
    method: str
    rate: float
    warm_start: int
    seed: int
    split: Literal["validation", "test"]

    @property
    def name(self) -> str:
        return f"{self.table}/{self.method}/{self.rate:g}-warm{self.warm_start}-seed{self.seed}-{self.split}"


def warm_start_recipe(plan: Plan, table: str, number: int) -> Recipe:
    """Return the recipe of a warm start, with its own weights, questions and wrong facts."""
    recipe = plan.recipe(table, None)
    shared = {key: value for key, value in recipe["run"].items() if key != "iterations"}
    task_args = [*shared.pop("task_arg", []), f"seed={number}"]
    return {
        "run": shared | {"iterations": 0, "task_arg": task_args},
        "sft": recipe["sft"] | {"seed": number},
    }


def run_recipe(plan: Plan, run: Run, policy: Path) -> Recipe:
    """Return the recipe of a run; no two seeds share questions."""
    recipe = plan.recipe(run.table, run.method)
    del recipe["sft"]
    recipe["run"]["task_arg"] = [*recipe["run"].get("task_arg", []), f"seed={run.warm_start}"]
    recipe["run"] |= {"model": str(policy), "seed": run.seed * 100_000}
    if "task_arg" in recipe["rollout"]:
        recipe["rollout"]["task_arg"] = [*recipe["rollout"]["task_arg"], f"seed={run.warm_start}"]
    if "shuffle_seed" in recipe["rollout"]:
        recipe["rollout"]["shuffle_seed"] = run.seed
    else:
        recipe["rollout"]["skip_questions"] = run.seed * 1_000_000
    recipe["train"]["learning_rate"] = run.rate
    return recipe


def do_run(plan: Plan, run: Run, out: Path) -> dict[str, Any]:
    """Return the result of a run; do the run if it has no result yet."""
    import torch

    from stages.pipeline import iterate

    torch.set_num_threads(1)
    here = out / "runs" / run.name
    if (here / "result.json").exists():
        return json.loads((here / "result.json").read_text())
    shutil.rmtree(here, ignore_errors=True)
    policy = out / "warm" / warm_start_name(plan, run.table, run.warm_start) / "start" / "checkpoint"
    write_recipe(here / "recipe.toml", run_recipe(plan, run, policy.absolute()))
    intended = iterate.make_plan(iterate.Config(recipe=here / "recipe.toml", out=here / "run"))
    curve, before = [], time.process_time()
    for done in iterate.run_plan(intended):
        curve.append(point(done, intended) | {"cpu_seconds": time.process_time() - before})
        before = time.process_time()
    last = len(intended.iterations) - 1
    if run.split == "test":
        for found in curve:
            if (found["iteration"] + 1) % plan.content["curve_every"] == 0 or found["iteration"] == last:
                policy_then = checkpoint(here / "run", found["iteration"]) if found["iteration"] >= 0 else policy
                found |= scores(plan, run, "curve", policy_then, here / f"curve-{found['iteration']}")
    costs = ("tokens_sampled", "seconds", "cpu_seconds")
    result = asdict(run) | {
        "test": scores(plan, run, run.split, checkpoint(here / "run", last), here / "scores"),
        **{name: sum(found[name] for found in curve) for name in costs},
        "curve": curve,
    }
    (here / "result.part").write_text(json.dumps(result, indent=1))
    (here / "result.part").rename(here / "result.json")
    for path in here.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    return result


def checkpoint(out: Path, iteration: int) -> Path:
    """Return the policy after an iteration of a run."""
    return out / f"{iteration:03d}" / "checkpoint"


def point(done: Any, intended: Any) -> dict[str, Any]:
    """Return one iteration for the curve: its cost, and the figures of the trajectories that it sampled."""
    found: dict[str, Any] = {"iteration": done.number, "tokens_sampled": done.tokens_sampled, "seconds": done.seconds}
    if done.number >= 0:
        train, rollout = done.stages["train"], done.stages["rollout"]
        found |= {"trained": train.rows, "reward": rollout.reward, "entropy": train.figures.get("entropy")}
        found["unique"] = unique_responses(intended.iterations[done.number].rollout.out)
    return found


def unique_responses(trajectories: Path) -> float | None:
    """Return the fraction of distinct responses to a question, averaged over questions; None for trees."""
    from stages.shards import schemas
    from stages.shards.parts import open_artefact

    table = open_artefact(trajectories, schemas.TRAJECTORIES).read_all(["question_id", "parent_id", "token_ids"])
    if table["parent_id"].null_count < table.num_rows:
        return None
    of_question: dict[str, list[tuple[int, ...]]] = {}
    for question, tokens in zip(table["question_id"].to_pylist(), table["token_ids"].to_pylist(), strict=True):
        of_question.setdefault(question, []).append(tuple(tokens))
    return sum(len(set(responses)) / len(responses) for responses in of_question.values()) / len(of_question)


def scores(plan: Plan, run: Run, which: str, model: Path, out: Path) -> dict[str, Any]:
    """Return the accuracies in the plan's `scores` by name, on held-out questions of the run's split."""
    from stages import evaluate

    shared = plan.recipe(run.table, None)["run"]
    found = {}
    for name, options in plan.content["scores"][which].items():
        summary = evaluate.run(
            evaluate.Config(
                model=str(model),
                task=(shared["task"],),
                task_arg=(*shared.get("task_arg", []), f"seed={run.warm_start}"),
                split=run.split,
                max_tokens=(shared["max_tokens"],),
                threads=1,
                out=out / name,
                **options,
            )
        )
        found[name] = summary.reward
    return found


def warm_start_name(plan: Plan, table: str, number: int) -> str:
    """Return the name of a warm start; tables with the same warm start share it."""
    return f"{plan.content['tables'][table]['warm_start']}-{number}"


def make_warm_start(plan: Plan, table: str, number: int, out: Path) -> str:
    """Train a warm start unless it exists; return its name."""
    import torch

    from stages.pipeline import iterate

    torch.set_num_threads(1)
    name = warm_start_name(plan, table, number)
    write_recipe(out / "warm" / f"{name}.toml", warm_start_recipe(plan, table, number))
    iterate.run(iterate.Config(recipe=out / "warm" / f"{name}.toml", out=out / "warm" / name))
    return name


def best_rate(results: Iterable[Mapping[str, Any]], table: str, method: str) -> float:
    """Return the rate with the highest mean validation score of sampled responses; the lowest of equal ones."""
    by_rate: dict[float, list[float]] = {}
    for result in results:
        if (result["table"], result["method"], result["split"]) == (table, method, "validation"):
            by_rate.setdefault(result["rate"], []).append(result["test"]["sampled"])
    return max(sorted(by_rate), key=lambda rate: sum(by_rate[rate]) / len(by_rate[rate]))


def compare(plan: Plan, tables: list[str], methods: list[str] | None, out: Path, jobs: int) -> None:
    """Run the warm starts, then the grid, then the runs at the best rates, `jobs` at a time."""
    warm_starts = range(plan.content["warm_starts"])
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        needed = {warm_start_name(plan, table, number): (table, number) for table in tables for number in warm_starts}
        for made in as_completed([pool.submit(make_warm_start, plan, *which, out) for which in needed.values()]):
            print("warm start", made.result(), flush=True)
        grid = grid_runs(plan, tables, methods)
        left = Counter((run.table, run.method) for run in grid)
        pending = {pool.submit(do_run, plan, run, out): run for run in grid}
        scored: list[dict[str, Any]] = []
        while pending:
            future = next(as_completed(pending))
            run, result = pending.pop(future), future.result()
            spent = f"{result['tokens_sampled']:,} tokens, {result['cpu_seconds']:.0f} s"
            print(f"{run.name}: {result['test']}, {spent}", flush=True)
            if run.split == "test":
                continue
            scored.append(result)
            left[run.table, run.method] -= 1
            if left[run.table, run.method] == 0:  # its rate is known: its runs queue up
                rate = best_rate(scored, run.table, run.method)
                pending |= {pool.submit(do_run, plan, final, out): final for final in final_runs(plan, run, rate)}


def grid_runs(plan: Plan, tables: list[str], methods: list[str] | None) -> list[Run]:
    """Return the runs of every method at every rate."""
    content = plan.content
    return [
        Run(table, method, rate, number, content["grid_seed"], "validation")
        for table in tables
        for method in plan.methods(table)
        if methods is None or method in methods
        for rate in content["learning_rates"]
        for number in range(content["grid_warm_starts"])
    ]


def final_runs(plan: Plan, run: Run, rate: float) -> list[Run]:
    """Return the runs of a method at its rate, on every warm start with every seed."""
    return [
        replace(run, rate=rate, split="test", warm_start=number, seed=seed)
        for number in range(plan.content["warm_starts"])
        for seed in range(plan.content["seeds"])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on one thread")
    parser.add_argument("--tables", nargs="+", help="default: all tables of the plan")
    parser.add_argument("--methods", nargs="+", help="default: all methods of each table")
    args = parser.parse_args()
    plan = Plan(tomllib.loads(args.plan.read_text()))
    compare(plan, args.tables or list(plan.content["tables"]), args.methods, args.out, args.jobs)


if __name__ == "__main__":
    main()
