"""Answer four questions about a run with a reader of your choice: `python examples/inspect_run.py RUN polars`.

1. Which questions flip between two evaluations: right before and wrong now, or the reverse?
2. Which tokens are cutpoints most often?
3. How does the advantage vary with the position in the response?
4. Which share of the tokens carries gradient?

Each reader is one function and needs nothing of spo. The four functions return equal answers.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

WIDTH = 10  # tokens per bin of positions
ZERO = 1e-8  # an advantage up to this size carries no gradient


class Answers(NamedTuple):
    """The answers to the four questions.

    Attributes:
      flips: (question, iteration, "learned" or "forgotten"), sorted.
      cutpoint_tokens: (token id, how often it is a cutpoint), the ten most frequent first.
      by_position: (offset of the first token of the bin, segments that start there, their mean |advantage|).
      share_with_gradient: cutpoints of segments with an advantage, per token of all responses.
    """

    flips: list[tuple[str, str, str]]
    cutpoint_tokens: list[tuple[int, int]]
    by_position: list[tuple[int, int, float]]
    share_with_gradient: float


def with_pandas(run: Path, iteration: str) -> Answers:
    """Answer with pandas."""
    import pandas

    evaluations = {path.parent.name: pandas.read_parquet(path) for path in sorted(run.glob("*/eval"))}
    scores: Any = pandas.concat(evaluations, names=["iteration"]).groupby(["question_id", "iteration"])["reward"].mean()
    right = scores.unstack().pipe(lambda wide: wide[sorted(wide, key=order)]) >= 0.5  # question × iteration
    changed = right.astype(int).diff(axis=1).stack()
    flips = [(q, i, "learned" if change > 0 else "forgotten") for (q, i), change in changed[changed.abs() == 1].items()]

    responses: Any = pandas.read_parquet(run / iteration / "trajectories").set_index("trajectory_id")["token_ids"]
    segments: Any = pandas.read_parquet(run / iteration / "advantages")
    cuts = segments[["trajectory_id", "cutpoints"]].explode("cutpoints").dropna()
    tokens = Counter(int(responses[name][offset]) for name, offset in cuts.itertuples(index=False))
    bins = segments.assign(size=segments["advantage"].abs()).groupby(segments["start"] // WIDTH * WIDTH)["size"]
    trained = segments[segments["advantage"].abs() > ZERO]["cutpoints"].map(len).sum()
    return Answers(
        sorted(flips),
        most_common(tokens),
        [(int(start), int(n), float(mean)) for start, n, mean in bins.agg(["size", "mean"]).itertuples()],
        float(trained / responses.map(len).sum()),
    )


def with_polars(run: Path, iteration: str) -> Answers:
    """Answer with polars."""
    import polars
    from polars import col

    scores = (
        polars.scan_parquet(run / "*/eval/*.parquet", include_file_paths="path")
        .with_columns(iteration=col("path").str.extract(r"([^/]+)/eval/", 1))
        .group_by("question_id", "iteration")
        .agg(right=col("reward").mean() >= 0.5)
        .sort(col("iteration") != "start", "iteration")
        .with_columns(before=col("right").shift().over("question_id"))
        .filter(col("right") != col("before"))
        .with_columns(change=polars.when(col("right")).then(polars.lit("learned")).otherwise(polars.lit("forgotten")))
        .select("question_id", "iteration", "change")
        .collect()
    )
    responses: Any = polars.read_parquet(run / iteration / "trajectories", columns=["trajectory_id", "token_ids"])
    segments: Any = polars.read_parquet(run / iteration / "advantages")
    tokens = (
        segments.select("trajectory_id", "cutpoints")
        .explode("cutpoints")
        .drop_nulls("cutpoints")
        .join(responses, on="trajectory_id")
        .select(token=col("token_ids").list.get(col("cutpoints")))["token"]
        .value_counts()
    )
    bins = (
        segments.group_by(bin=col("start") // WIDTH * WIDTH)
        .agg(count=polars.len(), mean=col("advantage").abs().mean())
        .sort("bin")
    )
    trained = segments.filter(col("advantage").abs() > ZERO)["cutpoints"].list.len().sum()
    return Answers(
        sorted(scores.rows()),
        most_common(Counter(dict(tokens.rows()))),
        bins.rows(),
        trained / responses["token_ids"].list.len().sum(),
    )


def with_duckdb(run: Path, iteration: str) -> Answers:
    """Answer with DuckDB."""
    import duckdb

    def query(text: str) -> list[tuple]:
        found: Any = duckdb.sql(text.format(run=run, here=run / iteration))
        return found.fetchall()

    flips = query("""
        WITH scores AS (
            SELECT question_id, regexp_extract(filename, '([^/]+)/eval/', 1) AS iteration, avg(reward) >= 0.5 AS "right"
            FROM read_parquet('{run}/*/eval/*.parquet', filename = true) GROUP BY ALL
        ), changes AS (
            SELECT *, lag("right") OVER (PARTITION BY question_id ORDER BY iteration <> 'start', iteration) AS before
            FROM scores
        )
        SELECT question_id, iteration, if("right", 'learned', 'forgotten') FROM changes WHERE "right" <> before""")
    tokens = query("""
        SELECT token_ids[offset_ + 1], count(*)  -- lists begin at 1
        FROM (SELECT trajectory_id, unnest(cutpoints) AS offset_ FROM '{here}/advantages/*.parquet')
        JOIN '{here}/trajectories/*.parquet' USING (trajectory_id) GROUP BY ALL""")
    bins = query(f"""
        SELECT start // {WIDTH} * {WIDTH} AS bin, count(*), avg(abs(advantage))
        FROM '{{here}}/advantages/*.parquet' GROUP BY ALL ORDER BY bin""")
    ((share,),) = query(f"""
        SELECT (SELECT sum(len(cutpoints)) FROM '{{here}}/advantages/*.parquet' WHERE abs(advantage) > {ZERO})
             / (SELECT sum(len(token_ids)) FROM '{{here}}/trajectories/*.parquet')""")
    return Answers(sorted(flips), most_common(Counter(dict(tokens))), bins, share)


def with_datasets(run: Path, iteration: str) -> Answers:
    """Answer with Hugging Face datasets and plain Python."""
    import datasets

    def load(directory: Path) -> Any:
        return datasets.load_dataset("parquet", data_dir=str(directory), split="train")

    flips, before = [], dict[str, bool]()
    for path in sorted(run.glob("*/eval"), key=lambda path: order(path.parent.name)):
        rewards = defaultdict[str, list[float]](list)
        for row in load(path).select_columns(["question_id", "reward"]):
            rewards[row["question_id"]].append(row["reward"])
        now = {question: sum(values) / len(values) >= 0.5 for question, values in rewards.items()}
        changed = [question for question in now if before.get(question, now[question]) != now[question]]
        flips += [(one, path.parent.name, "learned" if now[one] else "forgotten") for one in changed]
        before |= now
    responses = {row["trajectory_id"]: row["token_ids"] for row in load(run / iteration / "trajectories")}
    tokens, bins, trained = Counter[int](), defaultdict[int, list[float]](list), 0
    for row in load(run / iteration / "advantages"):
        tokens.update(responses[row["trajectory_id"]][offset] for offset in row["cutpoints"])
        bins[row["start"] // WIDTH * WIDTH].append(abs(row["advantage"]))
        trained += len(row["cutpoints"]) if abs(row["advantage"]) > ZERO else 0
    by_position = [(start, len(sizes), sum(sizes) / len(sizes)) for start, sizes in sorted(bins.items())]
    return Answers(sorted(flips), most_common(tokens), by_position, trained / sum(map(len, responses.values())))


READERS: dict[str, Callable[[Path, str], Answers]] = {
    "pandas": with_pandas,
    "polars": with_polars,
    "duckdb": with_duckdb,
    "datasets": with_datasets,
}


def order(iteration: str) -> tuple[bool, str]:
    """Return a key that sorts the start of a run before its iterations 000, 001, …"""
    return iteration != "start", iteration


def most_common(tokens: Counter[int]) -> list[tuple[int, int]]:
    """Return the ten most frequent tokens, those of equal frequency by their id."""
    return sorted(tokens.items(), key=lambda entry: (-entry[1], entry[0]))[:10]


def main() -> None:
    """Print the answers for one iteration of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--iteration", default="000", help="for questions 2 to 4 (default: 000)")
    given = parser.parse_args()
    answers = READERS[given.reader](given.run, given.iteration)
    kinds = Counter((iteration, change) for _, iteration, change in answers.flips)
    print("flips    ", "; ".join(f"{n} {change} by {iteration}" for (iteration, change), n in sorted(kinds.items())))
    print("forgotten", ", ".join(question for question, _, change in answers.flips if change == "forgotten")[:100])
    print("cutpoints", ", ".join(f"token {token}: {count}" for token, count in answers.cutpoint_tokens[:5]))
    print("position ", ", ".join(f"{start}+: {mean:.3f} ({n})" for start, n, mean in answers.by_position))
    print("gradient ", f"{answers.share_with_gradient:.1%} of the tokens")


if __name__ == "__main__":
    main()
