"""What `spo plan` knows about responses, rates and file sizes: measured in an earlier run, or assumed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.configs.plan import CUTPOINT_SHARE, Config
from stages.configs.rollout import RHO
from stages.configs.rollout import Config as Rollout
from stages.core.errors import UserError
from stages.core.json_files import read_json_lines
from stages.core.paths import AnyPath
from stages.maths import tree_structure
from stages.maths.advantages import NEGLIGIBLE
from stages.maths.partition import find_cutpoints
from stages.maths.ragged import Ragged
from stages.models.checkpoints import METRICS_FILE
from stages.reporting import curves
from stages.reporting.sources import Found, Responses, find
from stages.responses.trees import are_trees, parent_rows
from stages.shards.lineage import read_lineage
from stages.shards.parts import Artefact
from stages.shards.tables import encode_names, list_array, ragged

_COLUMNS = ["trajectory_id", "parent_id", "question_id", "prompt_token_ids", "token_ids", "logprobs", "reward"]


@dataclass(frozen=True)
class Profile:
    """What a prediction starts from.

    Attributes:
      responses: whole responses, columns trajectory_id, question_id, token_ids, logprobs; None if they are assumed.
      lengths: [N] int64, tokens of each response.
      weights: [N] of the responses; they sum to 1.
      source: the artefact of the responses, which names their model; None if they are assumed.
      prompt_tokens: mean tokens of a prompt.
      cutpoint_share: share of the tokens with a probability below ρ.
      agreeing: share of the questions whose responses have equal rewards, so that --refill replaces them.
      signal: share of the tokens in segments with an advantage, if the earlier run sampled trees; else 1.
      seconds: stage → seconds per token of its `driver`.
      bytes: stage → bytes of its artefact per token that the rollout samples.
      start_tokens: tokens of the worked solutions of a step of the warm start; None: not known.
      notes: what was measured and what was assumed, in lines.
    """

    responses: pa.Table | None
    lengths: NDArray[np.int64]
    weights: NDArray[np.float64]
    source: Artefact | None
    prompt_tokens: float
    cutpoint_share: float
    agreeing: float
    signal: float = 1.0
    seconds: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, float] = field(default_factory=dict)
    start_tokens: float | None = None
    notes: tuple[str, ...] = ()


def driver(stage: str) -> str:
    """Return the kind of tokens that the seconds of a stage grow with: those it feeds, or those it samples."""
    return "fed" if stage == "train" else "sampled"


def assume(config: Config, rollout: Rollout) -> Profile:
    """Return a profile without an earlier run: every response has the same length."""
    length = min(config.response_tokens or rollout.max_tokens, rollout.max_tokens)
    share = config.cutpoint_share or CUTPOINT_SHARE
    given = "--response-tokens" if config.response_tokens else "--max-tokens, the longest that a response can be"
    notes = [f"assumed: responses of {length:,} tokens ({given}), prompts of {config.prompt_tokens or 0:,} tokens"]
    notes.append(f"assumed: {share:.0%} of the tokens are cutpoints, every question has a signal")
    return _with_rates(
        config, Profile(None, np.array([length]), np.ones(1), None, config.prompt_tokens or 0, share, 0.0), notes
    )


def measure(config: Config, run: AnyPath) -> Profile:
    """Return the profile of an earlier run.

    Raises:
      UserError: the path is no run with complete trajectories.
    """
    found = find([run])
    sampled = [one for one in found.responses if one.kind == "train"]
    if not sampled:
        raise UserError(f"--like {run} has no complete trajectories; expected a run with at least one iteration")
    tables = [one.artefact.read_all(_COLUMNS) for one in sampled]
    parts = [_whole_responses(table) for table in tables]
    table = pa.concat_tables([part for part, _ in parts])
    weights = np.concatenate([weight for _, weight in parts])
    logprobs = ragged(table["logprobs"])
    prompts = np.concatenate([ragged(one["prompt_token_ids"]).lengths for one in tables])
    share = float(find_cutpoints(logprobs, RHO).mean()) if logprobs.flat.size else CUTPOINT_SHARE
    points = curves.iterations(found)
    agreeing = [point["agreeing"] for point in points if "agreeing" in point]
    seconds, sizes = _rates(points), _sizes(found)
    start = _warm_start(run)
    if start and start.seconds:
        seconds["sft"] = start.seconds / start.tokens
    profile = Profile(
        table,
        logprobs.lengths,
        weights / weights.sum(),
        sampled[0].artefact,
        config.prompt_tokens or float(prompts.mean()),
        share,
        float(np.mean(agreeing)) if agreeing else 0.0,
        _signal(sampled),
        seconds,
        sizes,
        start.tokens / start.steps if start else None,
    )
    mean = float(profile.weights @ profile.lengths)
    count = f"{len(sampled)} iterations" if len(sampled) > 1 else "1 iteration"
    note = (
        f"measured in {run} ({count}): responses of {mean:.1f} tokens, prompts of {profile.prompt_tokens:.1f}, "
        f"{share:.0%} of the tokens cutpoints (p < {RHO:g})"
    )
    return _with_rates(config, profile, [note])


def _whole_responses(table: pa.Table) -> tuple[pa.Table, NDArray[np.float64]]:
    """Return the responses from the prompt to their end, and the probability of reaching each in its tree."""
    parent, question = parent_rows(table), encode_names(table["question_id"])
    leaves = np.flatnonzero(tree_structure.is_leaf(parent))
    weight = tree_structure.path_probabilities(parent, question)[leaves]
    names = ["trajectory_id", "question_id"]
    whole = {name: table[name].combine_chunks().take(pa.array(leaves)) for name in names}
    paths = [list(_path(parent, leaf))[::-1] for leaf in leaves.tolist()]
    for name, kind in (("token_ids", pa.int32()), ("logprobs", pa.float32())):
        rows = ragged(table[name])
        joined = Ragged.of([np.concatenate([rows[row] for row in path]) for path in paths], rows.values.dtype)
        whole[name] = list_array(joined, kind)
    return pa.table(whole), weight


def _signal(sampled: Sequence[Responses]) -> float:
    """Return the share of the tokens in segments with an advantage, in the trees of a run; 1 where there are none.

    Segments without an advantage may have no row.
    """
    differing = tokens = 0
    for one in sampled:
        if one.advantages is not None and are_trees(one.artefact):
            table = one.advantages.read_all(["start", "end", "advantage"])
            size = table["end"].to_numpy() - table["start"].to_numpy()
            differing += int(size[np.abs(table["advantage"].to_numpy()) > NEGLIGIBLE].sum())
            tokens += ragged(one.artefact.read_all(["token_ids"])["token_ids"]).flat.size
    return differing / tokens if tokens else 1.0


def _path(parent: NDArray[np.int64], row: int) -> Iterator[int]:
    while row >= 0:
        yield row
        row = int(parent[row])


def _rates(points: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the seconds per token by stage, the median over the iterations."""
    spent: dict[str, list[float]] = {}
    for point in points:
        sampled = point["stages"].get("rollout", {}).get("sampled", 0)
        for stage, cost in point["stages"].items():
            tokens = cost.get(driver(stage)) or sampled  # an estimator that samples nothing reads what was sampled
            if tokens:  # a stage that took less than 0.1 s has no seconds in its log
                spent.setdefault(stage, []).append(cost.get("seconds", 0.0) / tokens)
    return _medians(spent)


def _sizes(found: Found) -> dict[str, float]:
    """Return the bytes of each artefact per token that the rollout sampled, the median over the iterations."""
    sizes: dict[str, list[float]] = {}
    for one in found.responses:
        sampled = sum(part.lineage.counts.get("sampled", 0) for part in one.artefact.parts if part.lineage)
        for artefact in (one.artefact, one.cutpoints, one.advantages):
            if artefact is not None and sampled:
                size = sum(part.path.stat().st_size for part in artefact.parts)
                sizes.setdefault(artefact.schema.stage, []).append(size / sampled)
    return _medians(sizes)


class _WarmStart(NamedTuple):
    tokens: float
    steps: int
    seconds: float


def _warm_start(run: AnyPath) -> _WarmStart | None:
    """Return the tokens, steps and seconds of the warm start of a run; None if it has none."""
    directory = run / "start" / "checkpoint"
    lineage = read_lineage(directory)
    if lineage is None or lineage.stage != "sft":
        return None
    lines = read_json_lines(directory / METRICS_FILE)
    counts = lineage.counts
    return _WarmStart(counts["tokens"], counts["steps"], sum(line.get("step_time", 0.0) for line in lines))


def _medians(values: dict[str, list[float]]) -> dict[str, float]:
    return {name: float(np.median(found)) for name, found in values.items()}


def _with_rates(config: Config, profile: Profile, notes: list[str]) -> Profile:
    """Return the profile with the rates of the options, which replace those that were measured."""
    seconds = dict(profile.seconds)
    if config.sampling_rate:
        seconds |= dict.fromkeys(("rollout", "estimate", "eval"), 1 / config.sampling_rate)
    if config.training_rate:
        seconds |= dict.fromkeys(("train", "sft"), 1 / config.training_rate)
    if not seconds:
        notes.append("seconds are unknown: pass --like RUN, or --sampling-rate and --training-rate")

    return replace(profile, seconds=seconds, notes=(*profile.notes, *notes))
