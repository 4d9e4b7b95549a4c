"""Turn kept rollouts into training examples: SPO-chain then also trains on what it samples to estimate values.

A rollout follows the prompt and the tokens of a trajectory up to its state, which have no loss in this example. Its own
tokens are one segment with the advantage R − V(s) (`stages.estimators.kept_rollouts`). The rollouts from one state are
a group, so that a batch keeps them together and reads their common prefix once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from stages.configs.estimate import ROLLOUTS_NAME
from stages.core.errors import UserError
from stages.maths.advantages import NEGLIGIBLE
from stages.optimization.batches import Example
from stages.shards.origin import trace_back
from stages.shards.parts import Artefact, open_artefact
from stages.shards.schemas import ROLLOUTS, TRAJECTORIES
from stages.shards.tables import ragged, rows_by_name
from stages.training.experience import Experience, Mask


def open_rollouts(advantages: Artefact, trajectories: Artefact) -> Artefact:
    """Open the kept rollouts beside the advantages.

    Raises:
      UserError: there are none; they start from other trajectories, or another model sampled them.
      IncompleteInput: parts are missing.
    """
    path = advantages.directory.with_name(ROLLOUTS_NAME)
    if not path.exists():
        raise UserError(
            f"--train-rollouts reads {path}, which does not exist: run `spo estimate` with --keep-rollouts, or omit "
            "--train-rollouts"
        )
    rollouts = open_artefact(path, ROLLOUTS)
    if rollouts.lineage:
        trace_back(rollouts, TRAJECTORIES, trajectories.path)  # refuses rollouts from other trajectories
        sampled, rolled = (one.lineage.model if one.lineage else None for one in (trajectories, rollouts))
        if sampled and rolled and sampled.fingerprint != rolled.fingerprint:
            raise UserError(
                f"{rolled.path} sampled {path}, but {sampled.path} sampled {trajectories.path}; expected one model: "
                "run `spo estimate` without --model, or omit --train-rollouts"
            )
    return rollouts


def load_rollouts(
    rollouts: Artefact,
    trajectories: Artefact,
    mask: Mask,
    *,
    only_signal: bool,
    per_state: int | None,
    recorded: bool,
    compared: bool = False,
    kept: bool = False,
    drop_unfinished: bool = False,
) -> Experience:
    """Return an example for every chosen rollout.

    Args:
      mask: `cutpoints` keeps the tokens in the column of that name, `all` every token of a rollout.
      only_signal: leave out the states whose rollouts all have an advantage of 0.
      per_state: use the first rollouts of each state only; they do not depend on the rewards. None: all of them.
      recorded, compared, kept, drop_unfinished: as in `load_experience`.

    Raises:
      UserError: a rollout starts from an unknown trajectory or after its end, or an advantage is infinite.
    """
    table = rollouts.read_all(ROLLOUTS.names)
    sampled = trajectories.read_all(["trajectory_id", "prompt_token_ids", "token_ids"])
    owner, start = _states(table, sampled, rollouts, trajectories)
    prompts, responses = ragged(sampled["prompt_token_ids"]), ragged(sampled["token_ids"])
    tokens, logprobs, cutpoints = (ragged(table[name]) for name in ("token_ids", "logprobs", "cutpoints"))
    advantage = table["advantage"].to_numpy()
    used, left_out = _chosen(table, advantage, only_signal, per_state, drop_unfinished)
    examples = []
    for row in used:
        prefix = np.concatenate([prompts[owner[row]], responses[owner[row]][: start[row]]])
        position = cutpoints[row].astype(np.int64) if mask == "cutpoints" else np.arange(tokens[row].size)
        known = logprobs[row][position]
        examples.append(
            Example(
                tokens=np.concatenate([prefix, tokens[row]]),
                kept=prefix.size + position,
                advantages=np.full(position.size, advantage[row], np.float64),
                old=known if recorded else None,
                sampled=known if compared else None,
                recorded=known if kept else None,
                response_tokens=tokens[row].size,
            )
        )
    ids, questions, states = (table[name].to_pylist() for name in ("rollout_id", "question_id", "state_id"))
    return Experience(
        [ids[row] for row in used],
        [questions[row] for row in used],
        [f"{states[row]}/" for row in used],
        examples,
        True,
        left_out,
    )


def _states(
    table: pa.Table, sampled: pa.Table, rollouts: Artefact, trajectories: Artefact
) -> tuple[np.ndarray, np.ndarray]:
    """Return the trajectory that each rollout starts from, and the number of its tokens before the state: [R] each."""
    names = pa.array([ids[0] if ids else None for ids in table["trajectory_ids"].to_pylist()], pa.string())
    owner, start = rows_by_name(names, sampled["trajectory_id"]), table["start"].to_numpy()
    lengths = ragged(sampled["token_ids"]).lengths
    wrong = (owner < 0) | (start < 0) | (start > lengths[owner])
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(
            f"{rollouts.path} has the rollout {table['rollout_id'][row]} after {start[row]} tokens of trajectory "
            f"{names[row]}, which {trajectories.path} does not have"
        )
    return owner, start


def _chosen(
    table: pa.Table, advantage: np.ndarray, only_signal: bool, per_state: int | None, drop_unfinished: bool
) -> tuple[Sequence[int], dict[str, int]]:
    """Return the rows to train on, in order, and how many are left out, by reason."""
    states, samples = table["state_id"].to_pylist(), table["sample"].to_numpy()
    if np.isinf(advantage).any():
        raise UserError(f"rollout {table['rollout_id'][int(np.isinf(advantage).argmax())]} has an infinite advantage")
    used = np.isfinite(advantage)  # without a reward or another rollout, there is no advantage
    left_out = {"rollouts_without_advantage": int((~used).sum())}
    if only_signal:
        with_signal = {states[row] for row in np.flatnonzero(np.abs(np.nan_to_num(advantage)) > NEGLIGIBLE)}
        flat = np.array([state not in with_signal for state in states], np.bool_) & used
        left_out["rollouts_without_signal"] = int(flat.sum())
        used &= ~flat
    if per_state is not None:
        beyond = np.zeros(used.size, np.bool_)
        taken: Counter[str] = Counter()
        for row in sorted(np.flatnonzero(used).tolist(), key=lambda row: int(samples[row])):
            beyond[row] = taken[states[row]] >= per_state
            taken[states[row]] += 1
        left_out["rollouts_beyond_limit"] = int(beyond.sum())
        used &= ~beyond
    if drop_unfinished:
        unfinished = np.array([reason == "length" for reason in table["finish_reason"].to_pylist()], np.bool_) & used
        left_out["rollouts_unfinished"] = int(unfinished.sum())
        used &= ~unfinished
    return np.flatnonzero(used).tolist(), {reason: number for reason, number in left_out.items() if number}
