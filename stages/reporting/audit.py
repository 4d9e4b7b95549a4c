"""`spo audit`: sample many more rollouts from some states of an artefact, and compare its values with their means.

OUT/cutpoints/       the segments of the chosen responses
OUT/trajectories/    of trees only: the paths to the chosen leaves as whole responses
OUT/reference/       advantages from the new rollouts; `rewards` begins with those of the estimates of N = 1 to 64
OUT/gradients/       norms of the gradient of each response under several advantages (`audit_gradients`)
OUT/audit.json       the figures, all of which follow from these tables, the advantages and the trajectories
"""

# pyarrow.compute makes its functions at import time:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages import estimate
from stages.configs.audit import Config
from stages.configs.estimate import Config as EstimateConfig
from stages.configs.execution import ExecutorOptions
from stages.configs.shared import EngineOptions
from stages.core.errors import UserError
from stages.core.paths import AnyPath
from stages.core.progress import Progress, Silent
from stages.core.storage import digest, replacing, write_atomically
from stages.maths import audit as maths
from stages.reporting.audit_figure import draw
from stages.reporting.audit_gradients import summarize
from stages.reporting.audit_methods import CHAIN_ROLLOUTS, Sources, ValuedSegment, compare
from stages.reporting.audit_trees import Nodes, write_paths
from stages.reporting.sources import AUDIT_FILE
from stages.responses.trees import are_trees
from stages.shards.disk import disk_errors
from stages.shards.lineage import canonical_json
from stages.shards.origin import trace_back
from stages.shards.parts import Artefact, open_artefact
from stages.shards.schemas import ADVANTAGES, CUTPOINTS, TRAJECTORIES

ESTIMATES = 64
"""Rollouts of each state that are estimates; those after them are the reference."""
_SEEDS = 1_000_003
"""Added to the seed: an audit never draws the rollouts that the estimate drew with a seed of its own."""
_LAST, _UNKNOWN = -1, -2
_RHOS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
      out: the directory of the reference rollouts and of audit.json.
      figures: `responses`, `states`, `segments`, `rollouts` of a reference value; `calibration`, `by_rollouts`,
        `recorded`, `mask` and `spent`, which `measure` describes; `gradients` (`audit_gradients.summarize`).
      config: the options.
    """

    out: AnyPath
    figures: dict[str, Any]
    config: Config


def run(config: Config, progress: Progress = Silent()) -> Audit:
    """Audit one artefact of advantages.

    Raises:
      UserError: the trajectories of the advantages are not found, or none of them is graded; as for
        `stages.estimate.run`.
    """
    advantages = open_artefact(config.advantages, ADVANTAGES)
    sampled, cutpoints = trace_back(advantages, TRAJECTORIES), trace_back(advantages, CUTPOINTS)
    out = config.out or advantages.directory.with_name("audit")
    nodes, trajectories = None, sampled
    chosen = _choose(sampled, config.trajectories)
    if are_trees(sampled):
        nodes = write_paths(sampled, cutpoints, config.trajectories, out)
        trajectories = open_artefact(out / "trajectories", TRAJECTORIES)
    else:
        _write_cutpoints(cutpoints, chosen, out / "cutpoints")
    _estimate(config, out, trajectories, progress)
    reference = open_artefact(out / "reference", ADVANTAGES)
    table = _join(reference, advantages, trajectories, nodes)
    figures = measure(table)
    if config.gradients:
        whole = table if nodes is None else _join(reference, advantages, trajectories, nodes, once=False)
        sources = Sources(advantages, sampled, trajectories, reference)
        rows = compare(config, segments_of(whole, sources), sources, progress)
        with disk_errors(out), replacing(_gradients_file(out)) as file:
            pq.write_table(rows, file)
        figures["gradients"] = summarize(rows)
    with disk_errors(out):
        write_atomically(out / AUDIT_FILE, f"{canonical_json(figures, indent=2)}\n".encode())
    if config.figure is not None:
        draw(figures, config.figure)
    return Audit(out, json.loads(canonical_json(figures)), config)


def _gradients_file(out: AnyPath) -> AnyPath:
    directory = out / "gradients"
    directory.mkdir(parents=True, exist_ok=True)
    return directory / "gradients.parquet"


def segments_of(table: _Segments, sources: Sources) -> list[ValuedSegment]:
    """Return the segments of the audited responses with their recorded values and those of a chain.

    A segment without a row was left out by the estimator: its advantage is 0.
    """
    recorded = np.nan_to_num(table.recorded_end - table.recorded_value)
    chain = np.nan_to_num(table.estimated_advantage(CHAIN_ROLLOUTS)) if sources.are_trees else recorded
    columns = zip(table.names, table.start.tolist(), table.end.tolist(), recorded, chain, strict=True)
    return [ValuedSegment(name, start, end, float(own), float(sampled)) for name, start, end, own, sampled in columns]


def measure(table: _Segments) -> dict[str, Any]:
    """Compare the rows of the advantages with the reference.

    Returns:
      `calibration`: one entry per bin of the recorded values, in tenths (`stages.maths.audit.Calibration`); empty if
      rewards are not from 0 to 1. `by_rollouts`: for N = 1, 2, 4 … 64 new rollouts, the errors of the values and the
      signs of the advantages. `recorded`: the same for the recorded ones. `mask`: shares of tokens and of |advantage|
      by ρ. `spent`: the recorded rollouts, and those at states whose rewards all agree in the reference.
    """
    states = table.distinct
    truth, known = table.truth[states], np.isfinite(table.recorded_value[states])
    recorded = table.recorded_value[states][known]
    within = all(np.all((one >= 0) & (one <= 1)) for one in (recorded, truth))
    bins = maths.calibration(recorded, truth[known], table.count[states][known]) if within and known.any() else None
    fixed = np.array([len(set(table.rewards[i])) == 1 for i in states])
    spent = table.recorded_rollouts[states]
    segment = np.repeat(np.arange(len(table.logprobs)), [len(one) for one in table.logprobs])
    shares = maths.mask_shares(np.nan_to_num(table.advantage), segment, np.concatenate(table.logprobs), _RHOS)
    return {
        "responses": table.responses,
        "states": len(states),
        "segments": table.truth.size,
        "rollouts": int(np.median(table.count)),
        "calibration": [dict(zip(bins._fields, map(float, row), strict=True)) for row in zip(*bins, strict=True)]
        if bins
        else [],
        "by_rollouts": [
            {"rollouts": n, **_errors(table, table.estimate(n), table.estimated_advantage(n))}
            for n in (1, 2, 4, 8, 16, 32, 64)
        ],
        "recorded": {
            "rollouts": float(spent[known].mean()) if known.any() else 0.0,
            **_errors(table, table.recorded_value, table.recorded_advantage),
        },
        "mask": [{"rho": rho, **share._asdict()} for rho, share in zip(_RHOS, shares, strict=True)],
        "spent": {"rollouts": int(spent.sum()), "where_the_value_cannot_move": int(spent[fixed].sum())},
    }


@dataclass(frozen=True)
class _Segments:
    """The segments of the audited responses, in order.

    Attributes:
      responses: number of responses.
      distinct: rows whose states are distinct.
      rewards: of the state at the start of each segment; the first `ESTIMATES` are estimates, the others reference.
      following: row of the segment that begins at the end of each; `_LAST` for the last of a response, `_UNKNOWN` where
        too few rollouts from the end could be graded, so that the segment has no advantage: NaN.
      final: reward of the response.
      logprobs: of the tokens of each segment.
      recorded_value, recorded_advantage: of the audited artefact; NaN where it has no row.
      recorded_end: value of the end of each segment in the audited artefact; NaN where it has no row.
      names, start, end: response of each segment, and its tokens.
      recorded_rollouts: rollouts that the recorded value was estimated from; 0 where it has no row.
    """

    responses: int
    distinct: NDArray[np.int64]
    rewards: list[list[float]]
    following: NDArray[np.int64]
    final: NDArray[np.float64]
    logprobs: list[list[float]]
    recorded_value: NDArray[np.float64]
    recorded_advantage: NDArray[np.float64]
    recorded_rollouts: NDArray[np.int64]
    recorded_end: NDArray[np.float64]
    names: list[str]
    start: NDArray[np.int64]
    end: NDArray[np.int64]

    @property
    def truth(self) -> NDArray[np.float64]:
        """Reference value of each state."""
        return np.array([np.mean(one[ESTIMATES:]) for one in self.rewards], np.float64)

    @property
    def count(self) -> NDArray[np.int64]:
        """Number of rewards of each reference value."""
        return np.array([len(one) - ESTIMATES for one in self.rewards])

    @property
    def advantage(self) -> NDArray[np.float64]:
        """Reference advantage of each segment."""
        return self._difference(self.truth)

    @property
    def standard_error(self) -> NDArray[np.float64]:
        """Standard error of the reference advantage; a response's own reward has none."""
        square = np.array([np.var(one[ESTIMATES:]) / (len(one) - ESTIMATES) for one in self.rewards])
        return np.sqrt(square + np.append(square, 0.0)[np.maximum(self.following, -1)])

    def estimate(self, n: int) -> NDArray[np.float64]:
        """Return the values from the first n rollouts."""
        return np.array([np.mean(one[:n]) for one in self.rewards], np.float64)

    def estimated_advantage(self, n: int) -> NDArray[np.float64]:
        """Return the advantages from the first n rollouts of each state."""
        return self._difference(self.estimate(n))

    def _difference(self, value: NDArray[np.float64]) -> NDArray[np.float64]:
        after = np.append(value, np.nan)[np.maximum(self.following, -1)]
        return np.where(self.following == _LAST, self.final, after) - value


def _errors(table: _Segments, value: NDArray[np.float64], advantage: NDArray[np.float64]) -> dict[str, float]:
    """Return the errors of values and the signs of advantages; NaN marks rows that are left out."""
    states = table.distinct[np.isfinite(value[table.distinct])]
    segments = np.isfinite(advantage) & np.isfinite(table.advantage)
    if not states.size:
        return {}
    found = maths.errors(value[states], table.truth[states])
    right = maths.signs(advantage[segments], table.advantage[segments], table.standard_error[segments])
    return found._asdict() | right._asdict()


def _choose(trajectories: Artefact, count: int) -> list[str]:
    """Return ids of graded responses, the first by a hash of their id."""
    table = trajectories.read_all(["trajectory_id", "reward"])
    names = table.filter(pc.is_valid(table["reward"]))["trajectory_id"].to_pylist()
    if not names:
        raise UserError(f"{trajectories.path} has no response with a reward: nothing to audit")
    return sorted(names, key=lambda name: digest(name.encode()))[:count]


def _write_cutpoints(cutpoints: Artefact, chosen: Sequence[str], directory: AnyPath) -> None:
    """Write the segments of the chosen responses, without lineage: they are no output of `spo segment`."""
    rows = cutpoints.read_all(CUTPOINTS.names)
    rows = rows.filter(pc.is_in(rows["trajectory_id"], value_set=pa.array(chosen, pa.string())))
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with replacing(directory / "segments.parquet") as file:
            pq.write_table(rows.replace_schema_metadata(), file)


def _estimate(config: Config, out: AnyPath, trajectories: Artefact, progress: Progress) -> None:
    """Estimate the values of the chosen segments from new rollouts; what is done is kept."""
    shared = {field.name for one in (EngineOptions, ExecutorOptions) for field in dataclasses.fields(one)}
    options = {name: getattr(config, name) for name in shared}
    estimate.run(
        EstimateConfig(
            cutpoints=out / "cutpoints",
            trajectories=trajectories.path,
            out=out / "reference",
            rollouts=str(ESTIMATES + config.rollouts),
            seed=_SEEDS + config.seed,
            model=config.model,
            overwrite=config.overwrite,
            **options,
        ),
        progress,
    )


def _join(
    reference: Artefact,
    advantages: Artefact,
    trajectories: Artefact,
    nodes: Nodes | None = None,
    *,
    once: bool = True,
) -> _Segments:
    """Return the rows of the reference, joined with the audited artefact and with the tokens.

    Args:
      nodes: of trees, the node of each segment of a path.
      once: whether a node that several paths share has one row, that of the first path, or one for each path.
    """
    names = ["trajectory_id", "segment_index", "start", "end", "rewards"]
    rows = sorted(
        (row for row in reference.read_all(names).to_pylist() if len(row["rewards"]) > ESTIMATES + 1),
        key=lambda row: (row["trajectory_id"], row["start"]),
    )
    if nodes is not None and once:
        first: dict[str, dict[str, Any]] = {}
        for row in rows:
            first.setdefault(nodes[row["trajectory_id"], row["segment_index"]], row)
        rows = list(first.values())
    if not rows:
        raise UserError(f"{reference.path} has no state with more than {ESTIMATES + 1} graded rollouts to compare with")
    values = ["value_start", "value_end", "advantage", "num_rollouts"]
    recorded = {
        (row["trajectory_id"], row["segment_index"]): row
        for row in advantages.read_all([*names[:2], *values]).to_pylist()
    }
    keys = [(row["trajectory_id"], row["segment_index"]) for row in rows]
    own = [recorded.get(key if nodes is None else (nodes[key], 0), {}) for key in keys]
    table = trajectories.read_all(["trajectory_id", "question_id", "token_ids", "logprobs", "reward"])
    audited = pa.array(sorted({row["trajectory_id"] for row in rows}), pa.string())
    table = table.filter(pc.is_in(table["trajectory_id"], value_set=audited))
    responses = {row["trajectory_id"]: row for row in table.to_pylist()}
    place = {(row["trajectory_id"], row["start"]): i for i, row in enumerate(rows)}
    states: dict[tuple[str, tuple[int, ...]], int] = {}
    for i, row in enumerate(rows):
        response = responses[row["trajectory_id"]]
        states.setdefault((response["question_id"], tuple(response["token_ids"][: row["start"]])), i)
    whole = [row["end"] == len(responses[row["trajectory_id"]]["token_ids"]) for row in rows]
    following = [
        _LAST if last else place.get((row["trajectory_id"], row["end"]), _UNKNOWN)
        for row, last in zip(rows, whole, strict=True)
    ]
    return _Segments(
        responses=len(responses),
        distinct=np.array(sorted(states.values())),
        rewards=[row["rewards"] for row in rows],
        following=np.array(following),
        final=np.array([responses[row["trajectory_id"]]["reward"] for row in rows], np.float64),
        logprobs=[responses[row["trajectory_id"]]["logprobs"][row["start"] : row["end"]] for row in rows],
        recorded_value=np.array([one.get("value_start", np.nan) for one in own], np.float64),
        recorded_advantage=np.array([one.get("advantage", np.nan) for one in own], np.float64),
        recorded_rollouts=np.array([one.get("num_rollouts", 0) for one in own], np.int64),
        recorded_end=np.array([one.get("value_end", np.nan) for one in own], np.float64),
        names=[row["trajectory_id"] for row in rows],
        start=np.array([row["start"] for row in rows], np.int64),
        end=np.array([row["end"] for row in rows], np.int64),
    )
