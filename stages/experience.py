"""What a policy learns from: the segments of an advantages artefact, joined with the tokens of their trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stages.engines.batches import Example
from stages.engines.optimisation import Engine
from stages.errors import UserError
from stages.maths.ragged import Ragged, offsets_of
from stages.maths.randomness import random_key
from stages.shards.parts import Artefact
from stages.shards.tables import ragged

Mask = Literal["cutpoints", "all"]


@dataclass(frozen=True)
class Experience:
    """Trajectories to learn from, in the order of their artefact.

    Attributes:
      ids: their `trajectory_id`.
      examples: the same, as the policy step takes them.
    """

    ids: list[str]
    examples: list[Example]


@dataclass(frozen=True)
class _Tokens:
    """The kept tokens of all trajectories, flat and in order.

    Attributes:
      row: int64 [M], the trajectory's row. position: int64 [M], offset in its response. advantage: float64 [M].
    """

    row: NDArray[np.int64]
    position: NDArray[np.int64]
    advantage: NDArray[np.float64]


def load_experience(advantages: Artefact, trajectories: Artefact, mask: Mask, *, recorded: bool) -> Experience:
    """Every trajectory that has a segment; a segment's advantage goes to each token of it that the mask keeps.

    Args:
      mask: `cutpoints` keeps the tokens listed in the column of that name, `all` every token of a segment.
      recorded: take the log-probabilities that were recorded when sampling as the old ones.

    Raises:
      UserError: no segment at all; segments of unknown trajectories, outside their response or overlapping; an
        advantage that is not finite; an empty prompt; the stretches of a tree.
    """
    columns = ("trajectory_id", "parent_id", "prompt_token_ids", "token_ids", "reward", *["logprobs"] * recorded)
    table = trajectories.read_all(columns)
    if table["parent_id"].null_count != table.num_rows:
        raise UserError(f"{trajectories.path} holds stretches of trees; `spo train` takes whole responses (chains)")
    ids = table["trajectory_id"].to_pylist()
    prompts, responses = ragged(table["prompt_token_ids"]), ragged(table["token_ids"])
    tokens, segments = _kept_tokens(advantages, ids, responses.lengths, mask)
    rewards = table["reward"].to_numpy()
    logprobs = ragged(table["logprobs"]) if recorded else None

    starts = np.searchsorted(tokens.row, np.arange(len(ids) + 1))
    used: list[int] = np.flatnonzero(segments).tolist()
    examples = []
    for row in used:
        part = slice(starts[row], starts[row + 1])
        prompt, response, position = prompts[row], responses[row], tokens.position[part]
        if prompt.size == 0 and 0 in position:
            raise UserError(
                f"the prompt of trajectory {ids[row]} in {trajectories.path} is empty; expected at least one token"
            )
        examples.append(
            Example(
                tokens=np.concatenate([prompt, response]),
                kept=prompt.size + position,
                advantages=tokens.advantage[part],
                old=logprobs[row][position] if logprobs else None,
                response_tokens=response.size,
                segments=int(segments[row]),
                reward=float(rewards[row]),
            )
        )
    return Experience([ids[row] for row in used], examples)


def _kept_tokens(
    advantages: Artefact, ids: list[str], lengths: NDArray[np.int64], mask: Mask
) -> tuple[_Tokens, NDArray[np.int64]]:
    """The kept tokens, sorted by trajectory and position; and how many segments each trajectory has, int64 [N]."""
    table = advantages.read_all(("trajectory_id", "start", "end", "cutpoints", "advantage"))
    row_of = {identifier: row for row, identifier in enumerate(ids)}
    names = table["trajectory_id"].to_pylist()
    unknown = next((name for name in names if name not in row_of), None)
    if unknown is not None:
        raise UserError(f"{advantages.path} has segments of trajectory {unknown}, which its trajectories do not have")
    if not names:
        raise UserError(f"{advantages.path} holds no segment; expected at least one to train on")
    row = np.array([row_of[name] for name in names], np.int64)
    start, end = (table[name].to_numpy().astype(np.int64) for name in ("start", "end"))
    advantage = table["advantage"].to_numpy()
    misplaced = (start < 0) | (end > lengths[row]) | (start > end)
    _refuse(advantages, ids, row, misplaced, "does not lie within the response")
    _refuse(advantages, ids, row, ~np.isfinite(advantage), "has an advantage that is not finite")
    kept = ragged(table["cutpoints"]) if mask == "cutpoints" else _all_tokens(start, end)
    position = kept.flat.astype(np.int64)
    segment = np.repeat(np.arange(row.size), kept.lengths)
    outside = (position < start[segment]) | (position >= end[segment])
    _refuse(advantages, ids, row[segment], outside, "has a cutpoint outside itself")

    order = np.lexsort((position, row[segment]))
    tokens = _Tokens(row[segment][order], position[order], advantage[segment][order])
    again = (np.diff(tokens.row) == 0) & (np.diff(tokens.position) == 0)
    _refuse(advantages, ids, tokens.row[1:], again, "overlaps another one")
    return tokens, np.bincount(row, minlength=len(ids))


def _all_tokens(start: NDArray[np.int64], end: NDArray[np.int64]) -> Ragged:
    offsets = offsets_of(end - start)
    return Ragged(np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], end - start), offsets)


def _refuse(
    advantages: Artefact, ids: list[str], row: NDArray[np.int64], wrong: NDArray[np.bool_], problem: str
) -> None:
    if wrong.any():
        raise UserError(f"a segment of trajectory {ids[row[np.argmax(wrong)]]} in {advantages.path} {problem}")


def plan_batches(ids: Sequence[str], seed: int, epochs: int, size: int) -> list[list[int]]:
    """The trajectories of each optimiser step: every epoch in an order drawn from (seed, epoch, trajectory id).

    So the order does not depend on how the artefact was cut into parts. The last batch of an epoch may be smaller.
    """
    batches = []
    for epoch in range(epochs):
        keys = [random_key(seed, "order", epoch, identifier) for identifier in ids]
        order = sorted(range(len(ids)), key=keys.__getitem__)
        batches += [order[first : first + size] for first in range(0, len(ids), size)]
    return batches


def check_fits(experience: Experience, engine: Engine, model: Path) -> None:
    """Refuse what a model cannot read.

    Raises:
      UserError: a trajectory longer than its context, or with a token that it does not know.
    """
    for identifier, example in zip(experience.ids, experience.examples, strict=True):
        if example.tokens.size > engine.context_length:
            raise UserError(
                f"trajectory {identifier} has {example.tokens.size} tokens with its prompt, but the context of {model} "
                f"is {engine.context_length}; expected trajectories that were sampled within it (--max-tokens)"
            )
        if example.tokens.size and example.tokens.max() >= engine.vocabulary:
            raise UserError(
                f"trajectory {identifier} holds token {example.tokens.max()}, but {model} knows {engine.vocabulary}: "
                "it was sampled by a model with another vocabulary"
            )
