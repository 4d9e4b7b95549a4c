"""`--rollouts MIN..MAX`: more rollouts only for uncertain values, and none for questions whose responses agree."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from stages.core.errors import UserError
from stages.maths.intervals import wilson_width
from tests.chains import ARITHMETIC, cut, footer, rows, sample, value
from tests.estimators.handmade import estimate_rows, responses, write_trajectories
from tests.shards.samples import files

PART = "part-00000-of-00001.parquet"
Rows = dict[tuple[str, int], dict[str, Any]]


def estimate_adaptively(out: Path, cutpoints: Path, **options: Any) -> tuple[Rows, dict[str, float]]:
    found, summary = estimate_rows(out, cutpoints, **{"rollouts": "4..16", "threads": 1, **options})
    return found, summary.figures


def states(found: Rows, trajectories: Path) -> dict[tuple[str, tuple[int, ...]], list[float]]:
    """Return the rewards of each distinct state with rollouts."""
    sampled = {row["trajectory_id"]: row for row in rows(trajectories)}
    return {
        (sampled[name]["question_id"], tuple(sampled[name]["token_ids"][: row["start"]])): row["rewards"]
        for (name, _), row in found.items()
        if row["num_rollouts"]
    }


def test_equal_min_and_max_are_a_fixed_number(chain: Path, tmp_path: Path):
    value(tmp_path / "advantages", chain / "cutpoints", rollouts="4..4")
    assert rows(tmp_path / "advantages") == rows(chain / "advantages")
    assert value(chain / "advantages", chain / "cutpoints", rollouts="4..4").up_to_date


def test_the_rollouts_of_a_state_double_until_its_interval_is_narrow(chain: Path, tmp_path: Path):
    found, figures = estimate_adaptively(tmp_path / "out", chain / "cutpoints", interval_width=0.35)
    fixed, _ = estimate_rows(tmp_path / "fixed", chain / "cutpoints", rollouts="16", threads=1)
    full = states(fixed, chain / "trajectories")
    sizes = set()
    for name, rewards in states(found, chain / "trajectories").items():
        expected = 4
        while expected < 16 and wilson_width(sum(full[name][:expected]) / expected, expected) > 0.35:
            expected *= 2
        assert rewards == full[name][:expected], "rollout j of a state does not depend on the number of rollouts"
        sizes.add(expected)
    assert sizes == {8, 16}  # four equal rewards have an interval of width 0.49, eight of 0.32
    drawn = sum(map(len, states(found, chain / "trajectories").values()))
    assert figures["rollouts"] == drawn
    assert figures["rollouts_saved"] == 16 * figures["states"] - drawn > 0


def test_questions_whose_responses_agree_get_no_rollouts(chain: Path, tmp_path: Path):
    # Four equal rewards have an interval of width 0.49.
    found, figures = estimate_adaptively(tmp_path / "out", chain / "cutpoints", interval_width=0.5, rollouts="2..4")
    drawn = {row["trajectory_id"]: row for row in rows(chain / "trajectories")}
    rewards = defaultdict(list)
    for row in drawn.values():
        rewards[row["question_id"]].append(row["reward"])
    decided = {name for name, values in rewards.items() if len(set(values)) == 1}
    assert 0 < len(decided) < len(rewards)
    assert figures["questions_decided"] == len(decided)
    for (name, _), row in found.items():
        question = drawn[name]["question_id"]
        if question in decided:
            assert (row["num_rollouts"], row["rewards"], row["advantage"]) == (0, [], 0)
            assert row["value_start"] == row["value_end"] == rewards[question][0]
    undecided = [row for (name, _), row in found.items() if drawn[name]["question_id"] not in decided]
    assert any(row["num_rollouts"] for row in undecided)
    # No question is decided by a width below that of four equal rewards.
    _, narrow = estimate_adaptively(tmp_path / "narrow", chain / "cutpoints", interval_width=0.45, rollouts="2..4")
    assert narrow["questions_decided"] == 0


def test_a_higher_confidence_needs_more_rollouts(chain: Path, tmp_path: Path):
    counts = [
        estimate_adaptively(
            tmp_path / str(confidence), chain / "cutpoints", interval_width=0.35, confidence=confidence
        )[1]
        for confidence in (0.8, 0.99)
    ]
    assert counts[0]["rollouts"] < counts[1]["rollouts"]


def test_a_budget_is_kept_and_spent_on_the_widest_intervals(chain: Path, tmp_path: Path):
    unlimited, free = estimate_adaptively(tmp_path / "free", chain / "cutpoints", interval_width=0.3)
    budget = int(4 * len(states(unlimited, chain / "trajectories")) * 1.2)  # too few for four more per state
    assert budget < free["rollouts"]
    found, figures = estimate_adaptively(tmp_path / "out", chain / "cutpoints", interval_width=0.3, budget=budget)
    assert figures["rollouts"] <= budget
    by_state = states(found, chain / "trajectories")
    assert min(map(len, by_state.values())) == 4
    assert max(map(len, by_state.values())) > 4
    for question in {question for question, _ in by_state}:
        own = [rewards for (name, _), rewards in by_state.items() if name == question]
        more = [wilson_width(sum(r[:4]) / 4, 4) for r in own if len(r) > 4]
        only = [wilson_width(sum(r) / 4, 4) for r in own if len(r) == 4]
        assert not more or not only or min(more) >= max(only) - 1e-12, "the widest intervals come first"


def test_parts_chunks_and_batches_change_no_row(policy: Path, tmp_path: Path):
    sizes = {"one": 1, "five": 5}
    options: dict[str, Any] = {"interval_width": 0.3, "budget": 150, "rollouts": "2..16"}
    for name, parts in sizes.items():
        for shard in range(parts):
            sample(tmp_path / name / "t", policy, num_generations=3, num_questions=7, shard=f"{shard}/{parts}")
        cut(tmp_path / name / "c", tmp_path / name / "t")
    one, figures = estimate_adaptively(tmp_path / "one" / "a", tmp_path / "one" / "c", **options)
    five, _ = estimate_adaptively(tmp_path / "five" / "a", tmp_path / "five" / "c", **options)
    small, _ = estimate_adaptively(
        tmp_path / "one" / "small", tmp_path / "one" / "c", chunk_trajectories=1, max_batch_rows=3, **options
    )
    assert one == five == small
    assert files(tmp_path / "one" / "small") == files(tmp_path / "one" / "a")
    assert figures["rollouts_saved"] > 0


def test_a_budget_counts_equal_states_once(chain: Path, tmp_path: Path):
    """The prompt of six responses is one state: MIN times the distinct states is enough, one rollout less is not."""
    cut(tmp_path / "c", chain / "trajectories", partition="count", num_segments=2)
    found, _ = estimate_rows(tmp_path / "free", tmp_path / "c", rollouts="4", threads=1)
    by_state = states(found, chain / "trajectories")
    enough = 4 * len(by_state)
    assert len(by_state) < len(rows(tmp_path / "c"))
    _, figures = estimate_adaptively(tmp_path / "out", tmp_path / "c", budget=enough, interval_width=0.2)
    assert figures["rollouts"] == enough
    with pytest.raises(UserError, match=f"--budget {enough - 1} is too small: {len(by_state)} states"):
        estimate_adaptively(tmp_path / "less", tmp_path / "c", budget=enough - 1, interval_width=0.2)


def test_a_budget_below_min_per_state_is_refused(chain: Path, tmp_path: Path):
    with pytest.raises(
        UserError, match=r"--budget 10 is too small: \d+ states of 12 questions need \d+ rollouts at 4 each"
    ):
        estimate_adaptively(tmp_path / "out", chain / "cutpoints", budget=10, interval_width=0.2)
    assert not (tmp_path / "out").exists()


def test_rewards_outside_0_to_1_are_refused(policy: Path, tmp_path: Path):
    records = responses({"a": [2.0, 0.0]}, {"a": [[65, 66, 256], [65, 256]]})
    cut(tmp_path / "c", write_trajectories(tmp_path / "t", records), partition="token")
    options: dict[str, Any] = {"model": str(policy), "temperature": 1.0, "max_tokens": 8, **ARITHMETIC}
    with pytest.raises(UserError, match=r"needs rewards from 0 to 1; trajectory a/0 has reward 2"):
        estimate_adaptively(tmp_path / "out", tmp_path / "c", **options)
    assert not (tmp_path / "out").exists()


def test_unfinished_rollouts_have_the_given_reward(chain: Path, tmp_path: Path):
    cut(tmp_path / "c", chain / "trajectories", partition="trajectory")
    options: dict[str, Any] = {"rollouts": "16", "max_tokens": 9, "temperature": 2.0, "threads": 1}
    plain, _ = estimate_rows(tmp_path / "plain", tmp_path / "c", **options)
    punished, _ = estimate_rows(tmp_path / "punished", tmp_path / "c", unfinished_reward=-0.5, **options)
    pairs = [
        (a, b) for key, row in plain.items() for a, b in zip(row["rewards"], punished[key]["rewards"], strict=True)
    ]
    assert set(pairs) >= {(0.0, -0.5), (0.0, 0.0)}, "finished wrong responses keep reward 0"
    assert set(pairs) <= {(0.0, -0.5), (0.0, 0.0), (1.0, 1.0)}
    with pytest.raises(UserError, match=r"a rollout of question .* has reward -0.5: pass a fixed number of rollouts"):
        estimate_rows(tmp_path / "no", tmp_path / "c", unfinished_reward=-0.5, **options | {"rollouts": "4..8"})


def test_the_footer_records_the_range_and_the_interval(chain: Path, tmp_path: Path):
    estimate_adaptively(tmp_path / "out", chain / "cutpoints")
    recorded = footer(tmp_path / "out" / PART)
    config = recorded["config"]
    assert (config["rollouts"], config["interval_width"], config["confidence"]) == ("4..16", 0.2, 0.95)
    assert {"states", "rollouts", "rollouts_saved", "questions_decided"} <= recorded["counts"].keys()
    fixed = footer(chain / "advantages" / PART)["config"]
    assert (fixed["rollouts"], fixed["interval_width"], fixed["confidence"]) == ("4", None, None)
    assert not {"baseline", "keep_zero", "critic"} & fixed.keys()
