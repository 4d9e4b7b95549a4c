"""Dynamic sampling (DAPO, arXiv 2503.14476): replace questions whose responses leave nothing to learn.

Every place of a batch has a list of candidates: place j of a batch of N takes question j, then j + N, j + 2N … The
first one whose responses differ in reward keeps the place. So a row depends on its place alone, and not on chunks,
parts or other questions; and the number of attempts is bounded.
"""

# pyarrow.compute makes its functions at import time:
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.maths.values import all_equal
from stages.responses.prompts import Prompts
from stages.sampling.protocol import Usage
from stages.shards.schemas import TRAJECTORIES
from stages.shards.tables import encode_names
from stages.tasks import Question

Candidates = Mapping[int, tuple[Question, np.ndarray]]
"""Place in a chunk → the question that one round tries there, and its prompt, int32 [P]."""


@dataclass(frozen=True)
class Refilled:
    """The rows of the places of a chunk, in order.

    Attributes:
      rows: of `TRAJECTORIES`.
      usage: token counts of all attempts.
      counts: `questions_replaced`, those without signal; `places_empty`, those without a candidate that has signal.
      untried: number of candidates that were not needed.
    """

    rows: pa.Table
    usage: Usage
    counts: dict[str, int]
    untried: int = 0


def candidates(prompts: Prompts, places: Sequence[int], context_length: int) -> Candidates:
    """Return the candidates of a round, without those whose prompt leaves no room for a response."""
    tries = zip(places, prompts.questions, prompts.token_ids, strict=True)
    return {place: (question, ids) for place, question, ids in tries if ids.size < context_length}


def answer_with_signal(
    answer: Callable[[Sequence[Question], Sequence[np.ndarray]], tuple[pa.Table, Usage]],
    rounds: Sequence[Candidates],
) -> Refilled:
    """Answer the candidates of a chunk round by round, until each place has a question with signal.

    Args:
      answer: returns the rows of some questions, question by question, and the token counts.
      rounds: candidates by round; a place may lack one.
    """
    waiting = sorted({place for one in rounds for place in one})
    kept: dict[int, pa.Table] = {}
    sampled = prefilled = distinct = tried = 0
    for one in rounds:
        trying = [place for place in waiting if place in one]
        if not trying:
            continue
        rows, usage = answer([one[place][0] for place in trying], [one[place][1] for place in trying])
        sampled, prefilled = sampled + usage.sampled, prefilled + usage.prefilled
        distinct, tried = distinct + usage.distinct_prefix_tokens, tried + len(trying)
        has_signal = questions_with_signal(rows)
        for place in trying:
            if (name := one[place][0].id) in has_signal:
                kept[place] = rows.filter(pc.equal(rows["question_id"], name))
        waiting = [place for place in waiting if place not in kept]
    table = pa.concat_tables([kept[place] for place in sorted(kept)]) if kept else TRAJECTORIES.arrow.empty_table()
    counts = {"questions_replaced": tried - len(kept) - len(waiting), "places_empty": len(waiting)}
    return Refilled(table, Usage(sampled, prefilled, distinct), counts, sum(map(len, rounds)) - tried)


def questions_with_signal(trajectories: pa.Table) -> set[str]:
    """Return the ids of the questions whose responses differ in reward; inner nodes of trees are passed over."""
    responses = trajectories.filter(pc.not_equal(trajectories["finish_reason"], "segment"))
    equal = all_equal(responses["reward"].to_numpy(), encode_names(responses["question_id"]))
    names = pc.unique(responses["question_id"]).to_pylist()
    return {name for name, is_equal in zip(names, equal, strict=True) if not is_equal}


def refill_notes(counts: Sequence[Mapping[str, int]], rounds: int) -> tuple[str, ...]:
    """Return a line for the user about what was replaced, given the counts of all parts."""
    replaced, empty = (sum(one.get(name, 0) for one in counts) for name in ("questions_replaced", "places_empty"))
    if not replaced and not empty:
        return ()
    line = f"{replaced:,} questions without a signal were replaced; their tokens count as sampled"
    return (line + f". {empty:,} places stayed empty after {rounds} replacements" * bool(empty),)
