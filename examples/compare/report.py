"""Write the tables and figures of a comparison: `python examples/compare/report.py runs/compare --plan PLAN --out DIR`.

Reads every `result.json` below the folder and writes `results.jsonl` (all of them, one line a run, the grid's without
their curves), `tables.md` and one figure per table: accuracy of sampled responses against trained trajectories,
sampled tokens and seconds of the run's one thread (its wall time where nothing else runs); where a table is about a
fixed training set, also the fraction of unique responses and the entropy.

Means are over warm starts × seeds. Differences to the first method of a table are paired by warm start and seed.
Every standard error is over those runs.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.maths.statistics import mean_and_standard_error

Result = dict[str, Any]


def read_results(folder: Path) -> list[Result]:
    """Return every result below a folder, or in a `results.jsonl`, sorted by name."""
    if folder.is_file():
        return [json.loads(line) for line in folder.read_text().splitlines()]
    return [json.loads(path.read_text()) for path in sorted(folder.glob("runs/**/result.json"))]


def of(results: Sequence[Result], table: str, method: str, split: str) -> list[Result]:
    """Return the runs of a method in a table, sorted by warm start and seed."""
    wanted = (table, method, split)
    found = [result for result in results if (result["table"], result["method"], result["split"]) == wanted]
    return sorted(found, key=lambda result: (result["warm_start"], result["seed"]))


def shown(values: Sequence[float], digits: int = 3) -> str:
    """Return a mean with its standard error as `.779 ± .005`."""
    mean, error = mean_and_standard_error(values)
    return f"{mean:.{digits}f} ± {error:.{digits}f}".replace("0.", ".")


def table_rows(results: Sequence[Result], table: str, methods: dict[str, str]) -> list[list[str]]:
    """Return one row per method that has runs on the test split."""
    rows = []
    first = next(iter(methods))
    for method, title in methods.items():
        runs = of(results, table, method, "test")
        if not runs:
            continue
        against = {
            (run["warm_start"], run["seed"]): run["test"]["sampled"] for run in of(results, table, first, "test")
        }
        pairs = [
            run["test"]["sampled"] - against[run["warm_start"], run["seed"]]
            for run in runs
            if (run["warm_start"], run["seed"]) in against
        ]
        rows.append(
            [
                title,
                f"{runs[0]['rate']:g}",
                shown([run["test"]["sampled"] for run in runs]),
                shown([run["test"]["greedy"] for run in runs]),
                "" if method == first or len(pairs) < 2 else shown(pairs),
                f"{sum(run['tokens_sampled'] for run in runs) / len(runs) / 1000:,.0f}k",
                f"{sum(run['cpu_seconds'] for run in runs) / len(runs):.0f}",
                str(len(runs)),
            ]
        )
    return rows


def markdown(results: Sequence[Result], plan: dict[str, Any]) -> str:
    """Return every table that has results as GitHub-flavored Markdown."""
    lines = []
    for table, here in plan["tables"].items():
        methods = {name: plan["methods"][name]["title"] for name in here["methods"]}
        rows = table_rows(results, table, methods)
        if not rows:
            continue
        first = next(iter(methods.values()))
        header = [
            "method",
            "learning rate",
            "sampled",
            "greedy",
            f"sampled − {first}",
            "tokens sampled",
            "seconds",
            "runs",
        ]
        lines += [f"**{table}.** {here['title']}", ""]
        lines += ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]]
        lines.append("")
    return "\n".join(lines)


def curve(runs: Sequence[Result], x: str, y: str) -> tuple[list[float], list[float], list[float]]:
    """Return mean x, mean y and its standard error at each iteration that all runs have; x accumulates along a run."""
    xs, ys, errors = [], [], []
    for at in range(len(runs[0]["curve"])):
        values = [run["curve"][at].get(y) for run in runs]
        if any(value is None for value in values):
            continue
        mean, error = mean_and_standard_error(values)
        sums = [sum(point.get(x, 0) for point in run["curve"][: at + 1]) for run in runs]
        xs.append(sum(sums) / len(sums))
        ys.append(mean)
        errors.append(error if len(runs) > 1 else 0.0)
    return xs, ys, errors


PANELS = (
    ("trained", "accuracy", "trained trajectories", "accuracy, sampled"),
    ("tokens_sampled", "accuracy", "tokens sampled, thousands", ""),
    ("cpu_seconds", "accuracy", "seconds of one CPU thread", ""),
)
MORE_PANELS = (
    ("trained", "reward", "trained trajectories", "accuracy on the training questions"),
    ("trained", "unique", "trained trajectories", "unique responses"),
    ("trained", "entropy", "trained trajectories", "entropy of trained tokens, nats"),
)


def draw(results: Sequence[Result], table: str, plan: dict[str, Any], path: Path) -> None:
    """Draw one row of panels; two for a table with `more_panels`."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = table  # the same results draw the same file
    from matplotlib import pyplot

    here = plan["tables"][table]
    panels = PANELS + (MORE_PANELS if here.get("more_panels") else ())
    rows = len(panels) // 3
    figure, axes = pyplot.subplots(rows, 3, figsize=(11, 3 * rows + 0.8), squeeze=False, layout="constrained")
    for axis, (x, y, label, ylabel) in zip(axes.flat, panels, strict=True):
        for number, method in enumerate(here["methods"]):
            runs = of(results, table, method, "test")
            if not runs:
                continue
            xs, ys, errors = curve(runs, x, y)
            xs = [x_value / 1000 for x_value in xs] if x == "tokens_sampled" else xs
            axis.plot(xs, ys, color=f"C{number}", label=plan["methods"][method]["title"], linewidth=1.4)
            low, high = ([y + sign * e for y, e in zip(ys, errors, strict=True)] for sign in (-1, 1))
            axis.fill_between(xs, low, high, color=f"C{number}", alpha=0.2, linewidth=0)
        axis.set_xlabel(label)
        axis.set_ylabel(ylabel)
        axis.grid(alpha=0.3)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(f"{table}: {here['title']}", fontsize=10)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def kept(result: Result) -> Result:
    """Return a result without the curves that no figure uses."""
    return {key: value for key, value in result.items() if key != "curve" or result["split"] == "test"}


def rounded(number: str) -> float:
    """Round the numbers of a result to five decimals; the rest is noise."""
    return round(float(number), 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="the folder of compare.py, or a results.jsonl")
    parser.add_argument("--plan", type=Path, default=Path(__file__).parent / "plan.toml")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    results, plan = read_results(args.results), tomllib.loads(args.plan.read_text())
    args.out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(json.loads(json.dumps(result), parse_float=rounded)) for result in results]
    (args.out / "results.jsonl").write_text("\n".join(lines) + "\n")
    (args.out / "tables.md").write_text(markdown(results, plan))
    for table in plan["tables"]:
        if any(result["table"] == table and result["split"] == "test" for result in results):
            draw(results, table, plan, args.out / f"{table}.svg")
    print(markdown(results, plan))


if __name__ == "__main__":
    main()
