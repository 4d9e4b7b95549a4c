"""`spo estimate`: values are means of fresh rollouts and match exact probabilities; advantages telescope."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from stages import estimate
from stages.core.errors import FingerprintMismatch, UserError
from stages.sampling.pool import SamplerPool
from stages.sampling.protocol import Request, Sample
from stages.shards.schemas import ADVANTAGES
from stages.tasks import open_task
from tests.chains import ARITHMETIC, cut, footer, make_constant, rows, sample, value, with_context
from tests.shards.samples import files

PART = "part-00000-of-00001.parquet"
CUT_COLUMNS = ["trajectory_id", "segment_index", "start", "end", "cutpoints"]


def by_key(artefact: Path) -> dict[tuple[str, int], dict[str, Any]]:
    return {(row["trajectory_id"], row["segment_index"]): row for row in rows(artefact)}


def trajectories_of(artefact: Path) -> dict[str, dict[str, Any]]:
    return {row["trajectory_id"]: row for row in rows(artefact)}


def test_a_value_is_the_mean_of_its_rewards(chain: Path):
    found = rows(chain / "advantages")
    assert list(found[0]) == list(ADVANTAGES.names)
    estimated = [row for row in found if row["num_rollouts"]]
    assert {row["num_rollouts"] for row in estimated} == {4}
    for row in estimated:
        assert row["value_start"] == np.mean(row["rewards"])
        assert row["value_std"] == pytest.approx(np.std(row["rewards"], ddof=1))
        assert set(row["rewards"]) <= {0.0, 1.0}
    assert len({row["value_start"] for row in estimated}) > 2, "some values must be uncertain"


def test_the_segments_are_those_of_the_cutpoints(chain: Path):
    estimated, cutpoints = by_key(chain / "advantages"), by_key(chain / "cutpoints")
    assert estimated.keys() == cutpoints.keys()
    for key, row in cutpoints.items():
        assert {name: estimated[key][name] for name in CUT_COLUMNS} == row


def test_advantages_telescope_from_the_first_estimated_state_to_the_reward(chain: Path):
    by_trajectory = defaultdict(list)
    for row in rows(chain / "advantages"):
        by_trajectory[row["trajectory_id"]].append(row)
    for name, trajectory in trajectories_of(chain / "trajectories").items():
        segments = by_trajectory[name]
        assert [row["segment_index"] for row in segments] == list(range(len(segments)))
        assert segments[-1]["value_end"] == trajectory["reward"]
        for row, following in pairwise(segments):
            assert row["value_end"] == following["value_start"]
        assert all(row["advantage"] == row["value_end"] - row["value_start"] for row in segments)
        total = sum(row["advantage"] for row in segments)
        assert total == pytest.approx(trajectory["reward"] - segments[0]["value_start"])


def test_the_prompt_is_estimated_only_if_the_first_token_is_a_cutpoint(chain: Path, tmp_path: Path):
    cut(tmp_path / "all", chain / "trajectories", rho=1.0, interval=3)  # every token with probability below 1
    value(tmp_path / "advantages", tmp_path / "all", rollouts=1)
    seen = set()
    for artefact in (chain / "advantages", tmp_path / "advantages"):
        for row in rows(artefact):
            if row["segment_index"] == 0:
                leading = row["cutpoints"][:1] == [0]
                seen.add(leading)
                assert (row["num_rollouts"] > 0) == leading
            else:
                assert row["num_rollouts"] > 0
            if not row["num_rollouts"]:
                assert (row["rewards"], row["value_std"], row["advantage"]) == ([], None, 0.0)
                assert row["value_start"] == row["value_end"]
    assert seen == {True, False}


@pytest.mark.parametrize("partition", ["fixed", "trajectory"])
def test_other_partitions_estimate_the_prompt(chain: Path, tmp_path: Path, partition: str):
    cut(tmp_path / "cutpoints", chain / "trajectories", partition=partition, segment_tokens=4)
    value(tmp_path / "advantages", tmp_path / "cutpoints", rollouts=2)
    assert {row["num_rollouts"] for row in rows(tmp_path / "advantages")} == {2}


def test_equal_states_are_estimated_once(chain: Path, tmp_path: Path):
    cut(tmp_path / "cutpoints", chain / "trajectories", partition="fixed", segment_tokens=2)
    value(tmp_path / "advantages", tmp_path / "cutpoints", rollouts=6)
    trajectories = trajectories_of(chain / "trajectories")
    rewards_at = defaultdict(set)
    for row in rows(tmp_path / "advantages"):
        trajectory = trajectories[row["trajectory_id"]]
        prefix = tuple(trajectory["token_ids"][: row["start"]])
        rewards_at[trajectory["question_id"], prefix].add(tuple(row["rewards"]))
    assert all(len(rewards) == 1 for rewards in rewards_at.values())
    counts = footer(tmp_path / "advantages" / PART)["counts"]
    assert counts["states"] == len(rewards_at) < len(rows(tmp_path / "advantages"))
    assert counts["rollouts"] == 6 * counts["states"]


class RecordingPool(SamplerPool):
    """A pool whose samplers record their requests and samples."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []
        self.samples: list[list[Sample]] = []

    def open(self, *arguments: Any, **options: Any) -> Any:
        sampler: Any = super().open(*arguments, **options)
        plain = type(sampler).sample.__get__(sampler)

        def recording(requests: Sequence[Request], *rest: Any, **options: Any) -> Any:
            samples, usage = plain(requests, *rest, **options)
            self.requests += requests
            self.samples += samples
            return samples, usage

        sampler.sample = recording
        return sampler


def test_rollouts_continue_the_token_ids_of_the_state_and_stay_within_max_tokens(chain: Path, tmp_path: Path):
    options: dict[str, Any] = {"rollouts": "3", "seed": 9, "threads": 1}
    with RecordingPool() as pool:
        estimate.run(estimate.Config(out=tmp_path / "advantages", cutpoints=chain / "cutpoints", **options), pool=pool)
    trajectories, expected = trajectories_of(chain / "trajectories"), {}
    for row in rows(tmp_path / "advantages"):
        if row["num_rollouts"]:
            trajectory = trajectories[row["trajectory_id"]]
            prefix = (*trajectory["prompt_token_ids"], *trajectory["token_ids"][: row["start"]])
            expected[prefix] = (row["start"], row["rewards"])
    requests = {tuple(request.prefix.tolist()): request for request in pool.requests}
    assert requests.keys() == expected.keys()
    assert all(requests[prefix].max_new_tokens == 24 - start for prefix, (start, _) in expected.items())
    keys = [key for request in requests.values() for key in request.keys]
    assert len(keys) == len(set(keys)) == 3 * len(requests)
    for request, drawn in zip(pool.requests, pool.samples, strict=True):
        start, rewards = expected[tuple(request.prefix.tolist())]
        assert all(start + len(one.token_ids) <= 24 for one in drawn)
        assert [one.finish_reason == "stop" for one in drawn] >= [reward == 1 for reward in rewards]


PROBABILITIES, END = {"#": 0.25, "1": 0.15, "4": 0.2, "x": 0.1}, 0.3
MAX_TOKENS = 6


@cache
def probability_of_reward(state: str, reference: str, left: int) -> float:
    """Return V by recursion for a model that samples every token from PROBABILITIES.

    Args:
      state: "#" after a mark, "#r" after a mark and the right digit alone, "" otherwise.
      left: number of tokens that may still be sampled, the end token included.
    """
    if left == 0:
        return 0.0
    total = END * (state == "#r")
    for character, probability in PROBABILITIES.items():
        if character == "#":
            after = "#"
        elif state == "#" and character == reference:
            after = "#r"
        else:
            after = ""
        total += probability * probability_of_reward(after, reference, left - 1)
    return total


def state_of(text: str, reference: str) -> str:
    """Return the state of `probability_of_reward` after a text."""
    _, mark, tail = text.rpartition("#")
    return ("#" if not tail else "#r" if tail == reference else "") if mark else ""


def by_hand(path: Path, responses: Sequence[tuple[str, str, str]]) -> Path:
    """Write trajectories of (question, reference, text) with pandas; each ends with the end token."""
    ids = [[*text.encode(), 256] for *_, text in responses]
    frame = {
        "trajectory_id": [f"{name}/{i}" for i, (name, *_) in enumerate(responses)],
        "question_id": [name for name, *_ in responses],
        "prompt_token_ids": [[*name.encode()] for name, *_ in responses],
        "token_ids": ids,
        "logprobs": [[-1.0] * len(row) for row in ids],
        "reference": [reference for _, reference, _ in responses],
        "reward": [float(state_of(text, reference) == "#r") for _, reference, text in responses],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(frame).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def constant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_constant(tmp_path_factory.mktemp("constant") / "model", PROBABILITIES, END)


def test_values_agree_with_the_exact_probability_of_a_known_model(constant: Path, tmp_path: Path):
    count = 2000
    responses = [("p", "4", "#4"), ("p", "4", "x#41"), ("q", "1", "#1#1"), ("q", "1", "4x4x4"), ("r", "7", "#")]
    trajectories = by_hand(tmp_path / "in.parquet", responses)
    cut(tmp_path / "cutpoints", trajectories, partition="token")
    options = {"model": str(constant), "task": "arithmetic", "temperature": 1.0, "max_tokens": MAX_TOKENS}
    value(tmp_path / "advantages", tmp_path / "cutpoints", rollouts=count, **options)
    deviations, found = [], by_key(tmp_path / "advantages")
    assert len(found) == sum(len(text) + 1 for *_, text in responses)
    for (name, _), row in found.items():
        _, reference, text = responses[int(name.split("/")[1])]
        start = row["start"]
        exact = probability_of_reward(state_of(text[:start], reference), reference, MAX_TOKENS - start)
        if exact in (0, 1):
            assert row["value_start"] == exact
        else:
            deviations.append((row["value_start"] - exact) / np.sqrt(exact * (1 - exact) / count))
    assert len(deviations) > 10
    assert np.abs(deviations).max() < 4, "standard errors"
    assert np.abs(deviations).max() > 0.1, "samples vary"


def test_the_rewards_of_different_states_are_independent(constant: Path, tmp_path: Path):
    """Neighboring states and rollouts must not share random numbers."""
    trajectories = by_hand(tmp_path / "in.parquet", [("p", "4", "x"), ("q", "4", "x")])
    cut(tmp_path / "cutpoints", trajectories, partition="token")
    options = {"model": str(constant), "task": "arithmetic", "temperature": 1.0, "max_tokens": MAX_TOKENS}
    value(tmp_path / "advantages", tmp_path / "cutpoints", rollouts=1000, **options)
    rewards = np.array([row["rewards"] for row in rows(tmp_path / "advantages")])
    assert rewards.shape == (4, 1000)
    correlations = np.corrcoef(rewards)[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 4 / np.sqrt(1000)


def test_a_stop_string_may_start_before_the_state(constant: Path, tmp_path: Path):
    """Two tokens are left after `#`: right are 4, which ends the response at once, and another # and 4."""
    trajectories = by_hand(tmp_path / "in.parquet", [("p", "4", "#1")])
    cut(tmp_path / "cutpoints", trajectories, partition="token")
    options = {"model": str(constant), "task": "arithmetic", "temperature": 1.0, "max_tokens": 3, "stop": ("#4",)}
    value(tmp_path / "advantages", tmp_path / "cutpoints", rollouts=1000, **options)
    after_mark = rows(tmp_path / "advantages")[1]["value_start"]
    exact = PROBABILITIES["4"] + PROBABILITIES["#"] * PROBABILITIES["4"]
    assert after_mark == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 1000))


def test_trajectories_of_another_tool_need_the_options_of_their_sampling(constant: Path, tmp_path: Path):
    trajectories = by_hand(tmp_path / "in.parquet", [("p", "4", "#4")])
    cut(tmp_path / "cutpoints", trajectories, partition="token")
    with pytest.raises(UserError, match=r"does not record .*: pass --model --task --temperature --max-tokens$"):
        value(tmp_path / "out", tmp_path / "cutpoints")
    with pytest.raises(UserError, match=r": pass --temperature --max-tokens$"):
        value(tmp_path / "out", tmp_path / "cutpoints", model=str(constant), task="arithmetic")
    assert not (tmp_path / "out").exists()


def test_a_limit_below_the_position_of_a_state_is_refused(constant: Path, tmp_path: Path):
    trajectories = by_hand(tmp_path / "in.parquet", [("p", "4", "x1x#4")])
    cut(tmp_path / "cutpoints", trajectories, partition="token")
    options = {"model": str(constant), "task": "arithmetic", "temperature": 1.0}
    with pytest.raises(UserError, match=r"p/0 has 6 tokens.* --max-tokens 3:"):
        value(tmp_path / "out", tmp_path / "cutpoints", max_tokens=3, **options)
    assert not (tmp_path / "out").exists()


def without_lineage(artefact: Path, target: Path, order: Sequence[int] | None = None) -> Path:
    frame = pd.DataFrame(rows(artefact))
    target.parent.mkdir(parents=True, exist_ok=True)
    (frame if order is None else frame.iloc[list(order)]).to_parquet(target)
    return target


def test_interleaved_questions_and_cutpoints_of_another_tool_have_the_same_values(chain: Path, tmp_path: Path):
    count = len(rows(chain / "trajectories"))
    mixed = [i for first in range(4) for i in range(first, count, 4)]
    trajectories = without_lineage(chain / "trajectories", tmp_path / "trajectories" / "a.parquet", mixed)
    cut(tmp_path / "cutpoints", trajectories, interval=2)
    options = {"model": str(chain / "policy"), "temperature": 0.8, "max_tokens": 24, **ARITHMETIC}
    value(tmp_path / "advantages", tmp_path / "cutpoints", chunk_trajectories=5, **options)
    assert by_key(tmp_path / "advantages") == by_key(chain / "advantages")

    segments = without_lineage(chain / "cutpoints", tmp_path / "foreign" / "a.parquet")
    value(tmp_path / "third", segments, trajectories=chain / "trajectories")
    found = by_key(tmp_path / "third")
    for key, row in by_key(chain / "advantages").items():
        if row["num_rollouts"]:
            assert found[key]["rewards"] == row["rewards"]
        assert found[key]["num_rollouts"] == 4, "the partition is unknown, so every state is estimated"


def test_chunks_batches_and_shards_do_not_change_a_byte(policy: Path, tmp_path: Path):
    for shard in range(3):
        sample(tmp_path / "trajectories", policy, num_questions=5, num_generations=2, shard=f"{shard}/3")
    cut(tmp_path / "cutpoints", tmp_path / "trajectories")
    value(tmp_path / "plain", tmp_path / "cutpoints")
    value(tmp_path / "chunked", tmp_path / "cutpoints", chunk_trajectories=1, max_batch_rows=3)
    for shard in (1, 0):
        value(tmp_path / "sharded", tmp_path / "cutpoints", shard=f"{shard}/2")
    assert len(list((tmp_path / "plain").glob("*.parquet"))) == 3
    assert files(tmp_path / "chunked") == files(tmp_path / "plain")
    assert files(tmp_path / "sharded") == files(tmp_path / "plain")


def test_an_empty_part_has_no_advantages(policy: Path, tmp_path: Path):
    for shard in range(2):
        sample(tmp_path / "trajectories", policy, num_questions=1, shard=f"{shard}/2")
    cut(tmp_path / "cutpoints", tmp_path / "trajectories")
    summary = value(tmp_path / "advantages", tmp_path / "cutpoints")
    assert summary.rows == len(rows(tmp_path / "advantages")) > 0
    assert value(tmp_path / "advantages", tmp_path / "cutpoints").up_to_date


def test_another_seed_samples_other_rollouts_of_the_same_states(chain: Path, tmp_path: Path):
    value(tmp_path / "advantages", chain / "cutpoints", seed=1)
    first, second = by_key(chain / "advantages"), by_key(tmp_path / "advantages")
    assert {key: row["num_rollouts"] for key, row in first.items()} == {
        key: row["num_rollouts"] for key, row in second.items()
    }
    assert {key: row["rewards"] for key, row in first.items()} != {key: row["rewards"] for key, row in second.items()}


def test_a_second_call_is_up_to_date_and_does_not_load_torch(chain: Path):
    script = f"""
import sys
from pathlib import Path
from stages import estimate
here = Path({str(chain)!r})
summary = estimate.run(estimate.Config(out=here / "advantages", cutpoints=here / "cutpoints", rollouts=4))
assert summary.up_to_date and summary.rows > 48 and summary.tokens_sampled == 0 and summary.figures["states"], summary
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_verifier_belongs_to_the_fingerprint(chain: Path):
    """Otherwise advantages from an edited reward function would pass as up to date."""
    (part,) = (chain / "advantages").glob("part-*")
    task = open_task("arithmetic", None, [ARITHMETIC["task_arg"][0]])
    assert [(s["path"], s["fingerprint"]) for s in footer(part)["inputs"] if s["stage"] == "task"] == [
        ("arithmetic", task.digest)
    ]


def test_a_rerun_with_other_options_is_refused_by_name(chain: Path):
    with pytest.raises(FingerprintMismatch, match="rollouts: found 4, requested 5"):
        value(chain / "advantages", chain / "cutpoints", rollouts=5)
    with pytest.raises(FingerprintMismatch, match=r"temperature: found 0.8, requested 0.5"):
        value(chain / "advantages", chain / "cutpoints", temperature=0.5)
    with pytest.raises(FingerprintMismatch, match=r"task_arg: found .*operations=1.*, requested .*operations=2.*"):
        value(chain / "advantages", chain / "cutpoints", task_arg=("operations=2",))


@pytest.fixture
def copied(chain: Path, tmp_path: Path) -> Path:
    """Return a chain to break: a directory with `model`, `trajectories` and `cutpoints`."""
    with_context(chain / "policy", tmp_path / "model", 100)
    sample(tmp_path / "trajectories", tmp_path / "model", num_questions=2)
    cut(tmp_path / "cutpoints", tmp_path / "trajectories")
    return tmp_path


def test_trajectories_that_moved_or_changed_are_refused(copied: Path):
    (copied / "trajectories").rename(copied / "moved")
    with pytest.raises(UserError, match=rf"are no longer at {copied / 'trajectories'}: pass --trajectories PATH"):
        value(copied / "out", copied / "cutpoints")
    value(copied / "out", copied / "cutpoints", trajectories=copied / "moved", model=str(copied / "model"))
    sample(copied / "trajectories", copied / "model", num_questions=2, seed=4)
    with pytest.raises(UserError, match=r"have changed since .*cutpoints was made from them"):
        value(copied / "other", copied / "cutpoints")


def test_a_model_that_moved_or_changed_is_refused(copied: Path):
    (copied / "model" / "config.json").write_text((copied / "model" / "config.json").read_text().replace("100", "90"))
    with pytest.raises(UserError, match=r"model .* has changed since .*trajectories .*sampled.*--model"):
        value(copied / "out", copied / "cutpoints")
    value(copied / "out", copied / "cutpoints", model=str(copied / "model"))
    (copied / "model").rename(copied / "moved")
    with pytest.raises(UserError, match=r"pass --model"):
        value(copied / "other", copied / "cutpoints")


def test_segments_that_do_not_fit_their_trajectories_are_refused(chain: Path, tmp_path: Path):
    frame = pd.DataFrame(rows(chain / "cutpoints"))
    for name, broken, message in [
        ("gap", frame.drop(index=1), "must cover each response without gaps"),
        ("short", frame.drop(index=frame.index[-1]), "must cover each response without gaps"),
        ("unknown", frame.assign(trajectory_id=frame["trajectory_id"] + "x"), "arithmetic-train-0/0x, which is not in"),
    ]:
        broken.to_parquet(tmp_path / f"{name}.parquet")
        with pytest.raises(UserError, match=message):
            value(tmp_path / "out", tmp_path / f"{name}.parquet", trajectories=chain / "trajectories")
    assert not (tmp_path / "out").exists()


def test_tokens_that_the_model_does_not_know_are_refused(chain: Path, tmp_path: Path):
    frame = pd.DataFrame(rows(chain / "trajectories"))
    options = {"model": str(chain / "policy"), "temperature": 0.8, "max_tokens": 24, **ARITHMETIC}
    identifier = frame["trajectory_id"][2]
    for column in ("prompt_token_ids", "token_ids"):
        broken = frame.assign(**{column: [*frame[column][:2], [300, *frame[column][2][1:]], *frame[column][3:]]})
        broken.to_parquet(tmp_path / f"{column}.parquet")
        cut(tmp_path / column, tmp_path / f"{column}.parquet")
        with pytest.raises(UserError, match=rf"{identifier} holds token 300, but .* knows 258"):
            value(tmp_path / "out", tmp_path / column, **options)
    assert not (tmp_path / "out").exists()


def test_trees_are_refused(chain: Path, tmp_path: Path):
    frame = pd.DataFrame(rows(chain / "trajectories"))
    frame.loc[1, "parent_id"] = frame.loc[0, "trajectory_id"]
    frame.to_parquet(tmp_path / "tree.parquet")
    cut(tmp_path / "cutpoints", tmp_path / "tree.parquet")
    options = {"model": str(chain / "policy"), "temperature": 0.8, "max_tokens": 24, **ARITHMETIC}
    with pytest.raises(UserError, match="holds trees; expected independent responses"):
        value(tmp_path / "out", tmp_path / "cutpoints", **options)


def test_an_input_of_another_stage_is_refused_with_the_command_that_reads_it(chain: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"made by `spo rollout`.*`spo segment` reads it"):
        value(tmp_path / "out", chain / "trajectories")
    with pytest.raises(UserError, match=r"made by `spo estimate`.*`spo train` reads it"):
        value(tmp_path / "out", chain / "advantages")


def test_a_run_that_is_moved_as_a_whole_still_finds_its_inputs(chain: Path, tmp_path: Path):
    for name in ("policy", "trajectories", "cutpoints", "advantages"):
        shutil.copytree(chain / name, tmp_path / "elsewhere" / name)
    assert value(tmp_path / "elsewhere" / "advantages", tmp_path / "elsewhere" / "cutpoints").up_to_date
    value(tmp_path / "elsewhere" / "again", tmp_path / "elsewhere" / "cutpoints")
    assert pq.read_table(tmp_path / "elsewhere" / "again" / PART).equals(pq.read_table(chain / "advantages" / PART))
