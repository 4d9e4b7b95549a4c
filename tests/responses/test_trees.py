"""Trees: statistics worked by hand, parents of rows, and the way from sampling to advantages."""

from __future__ import annotations

import signal
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import estimate
from stages.core.errors import UserError
from stages.maths.randomness import random_key
from stages.responses.generation import Sampling
from stages.responses.trees import are_trees, max_nodes, most_tokens, parent_rows, sample_trees, statistics
from stages.sampling.protocol import Request, Sample, SamplingParams, Usage
from stages.shards.parts import open_artefact
from stages.shards.schemas import TRAJECTORIES
from stages.tasks import Question
from tests.chains import cut, rows, sample
from tests.command_server import Commands
from tests.shards.samples import files
from tests.test_segment import by_pandas

# Two questions. q: V(0) = (1 + 0) / 2, V(prompt) = (1/2 + 0) / 2. p: one branch, which ends its response.
#                 id      parent  tokens  finish    reward
HAND = [
    ("q/0", None, 3, "segment", None),
    ("q/0.0", "q/0", 2, "stop", 1.0),
    ("q/0.1", "q/0", 4, "length", 0.0),
    ("q/1", None, 1, "stop", 0.0),
    ("p/0", None, 5, "stop", 1.0),
]


def table(nodes: list[tuple[Any, ...]]) -> pa.Table:
    names = ("trajectory_id", "parent_id", "token_ids", "finish_reason", "reward")
    columns: dict[str, list[Any]] = {name: [node[i] for node in nodes] for i, name in enumerate(names)}
    columns["token_ids"] = [[0] * count for count in columns["token_ids"]]
    columns["answer"] = ["5" if reward else None for reward in columns["reward"]]
    columns["question_id"] = [name.split("/")[0] for name in columns["trajectory_id"]]
    types = {name: column.type for name, column in zip(TRAJECTORIES.names, TRAJECTORIES.columns, strict=True)}
    return pa.table({name: pa.array(values, types[name]) for name, values in columns.items()})


def test_statistics_worked_by_hand():
    for nodes in (HAND, HAND[::-1]):
        assert statistics(table(nodes)) == {
            "reward": (0.25 + 1) / 2,
            "frac_reward_zero_std": 0.5,
            # q: lengths 5, 7 and 1 with probabilities 1/4, 1/4 and 1/2; p: length 5
            "completions/mean_length": (3.5 + 5) / 2,
            "completions/no_answer_ratio": 0.5 / 2,  # q/1
            "completions/clipped_ratio": 0.25 / 2,
            "nodes": 5,
            "leaves": 4,
            "leaves/depth_0": 2,
            "leaves/depth_1": 2,
        }


def test_an_empty_table_has_no_statistics():
    assert statistics(table(HAND).slice(0, 0)) == {}


def test_parents_are_found_in_any_order_and_a_missing_one_is_named():
    assert parent_rows(table(HAND)).tolist() == [-1, 0, 0, -1, -1]
    assert parent_rows(table(HAND[::-1])).tolist() == [-1, -1, 4, 4, -1]
    with pytest.raises(UserError, match=r"q/0\.1 continues q/0, which is missing"):
        parent_rows(table(HAND[2:]))


@pytest.mark.parametrize(("branches", "nodes"), [((6, 6, 6), 258), ((4, 5, 6), 144), ((8,), 8), ((), 0)])
def test_max_nodes_is_the_sum_over_the_levels(branches: tuple[int, ...], nodes: int):
    assert max_nodes(branches) == nodes


@pytest.mark.parametrize(
    ("branches", "size", "limit", "tokens"),
    [
        ((4,), 10, 30, 4 * 30),
        ((6, 6), 10, 30, 6 * 10 + 36 * 20),
        ((2, 3, 2), 10, 64, 2 * 10 + 6 * 10 + 12 * 44),
        ((2, 3, 2), 40, 64, 2 * 40 + 6 * 24),  # the limit ends the second level, so there is no third
    ],
)
def test_most_tokens_is_the_sum_over_the_levels(branches: tuple[int, ...], size: int, limit: int, tokens: int):
    assert most_tokens(branches, size, limit) == tokens


def test_trees_are_recognized_by_lineage_or_parents(chain: Path, tmp_path: Path):
    assert not are_trees(open_artefact(chain / "trajectories"))
    tokens = {"token_ids": [[1], [2]], "logprobs": [[-0.5], [-0.5]]}
    for name, parents in {"chain": [None, None], "tree": [None, "a"]}.items():
        source = by_pandas(tmp_path / f"{name}.parquet", trajectory_id=["a", "b"], parent_id=parents, **tokens)
        assert are_trees(open_artefact(source)) == (name == "tree")
    source = by_pandas(tmp_path / "plain.parquet", trajectory_id=["a", "b"], **tokens)
    assert not are_trees(open_artefact(source))


@pytest.fixture(scope="module")
def sampled_trees(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with 3-3-2 trees of 6 questions: trajectories, cutpoints and advantages."""
    here = tmp_path_factory.mktemp("trees")
    sample(
        here / "trajectories",
        policy,
        tree="3-3-2",
        segment_tokens=3,
        num_generations=None,
        num_questions=6,
        temperature=0.8,
    )
    cut(here / "cutpoints", here / "trajectories")
    for name, keep_zero in {"advantages": True, "dropped": False}.items():
        config = estimate.Config(
            out=here / name, cutpoints=here / "cutpoints", estimator="tree", keep_zero=keep_zero, threads=1
        )
        estimate.run(config)
    return here


def by_id(advantages: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of advantages joined with their nodes, by id."""
    nodes = {row["trajectory_id"]: row for row in rows(advantages.parent / "trajectories")}
    return {row["trajectory_id"]: row | nodes[row["trajectory_id"]] for row in rows(advantages)}


def test_advantages_along_every_path_sum_to_the_reward_minus_the_value_of_the_prompt(sampled_trees: Path):
    nodes = by_id(sampled_trees / "advantages")
    assert list(nodes) == [row["trajectory_id"] for row in rows(sampled_trees / "trajectories")]
    children: dict[str, list[float]] = defaultdict(list)
    for node in nodes.values():
        children[node["parent_id"] or node["question_id"]].append(node["value_end"])
    for node in nodes.values():
        assert node["value_start"] == pytest.approx(np.mean(children[node["parent_id"] or node["question_id"]]))
        if node["finish_reason"] == "segment":
            continue
        total, name = 0.0, node["trajectory_id"]
        while name is not None:
            total, name = total + nodes[name]["advantage"], nodes[name]["parent_id"]
        assert total == pytest.approx(node["reward"] - np.mean(children[node["question_id"]]))


def test_dropped_rows_have_no_advantage_and_the_others_still_find_their_prefixes(sampled_trees: Path):
    every, kept = rows(sampled_trees / "advantages"), rows(sampled_trees / "dropped")
    assert kept == [row for row in every if abs(row["advantage"]) > 1e-8]
    assert 0 < len(kept) < len(every)
    nodes, advantages = (pd.read_parquet(sampled_trees / name) for name in ("trajectories", "dropped"))
    joined = advantages.merge(nodes, on="trajectory_id", validate="one_to_one")
    joined = joined.merge(nodes, left_on="parent_id", right_on="trajectory_id", how="left", suffixes=("", "_of_parent"))
    assert len(joined) == len(kept)
    assert joined["token_ids_of_parent"].isna().tolist() == [depth == 0 for depth in joined["depth"]]


def test_a_killed_and_resumed_rollout_of_trees_writes_the_same_bytes(policy: Path, tmp_path: Path):
    task = ("--task", "arithmetic", "--task-arg", "operations=1", "--num-questions", "8", "--max-tokens", "24")
    shape = ("--tree", "3-2-2", "--segment-tokens", "3", "--threads", "1", "--chunk-questions", "2")

    def command(out: Path) -> list[str | Path]:
        return ["rollout", "--model", policy, *task, *shape, "--out", out]

    with Commands() as spo:
        spo.finish(*command(tmp_path / "unbroken"))
        killed = spo.run(*command(tmp_path / "out"), chunks=2)
        assert killed.code == -signal.SIGKILL
        resumed = spo.finish(*command(tmp_path / "out"))
        assert "resuming" in resumed.stderr
        wrong = spo.run(*command(tmp_path / "wrong"), "--num-generations", "4")
    assert files(tmp_path / "out") == files(tmp_path / "unbroken")
    assert "leaves/depth_2" in resumed.stdout
    assert (wrong.code, len(wrong.stderr.splitlines())) == (2, 1)


class KeyedSampler:
    """A stand-in for the engine: a sample depends on its key alone; `calls` records (requests, remember)."""

    context_length = 40

    def __init__(self, length: int) -> None:
        self.length = length  # maximum length of a sample
        self.calls: list[tuple[int, bool]] = []

    def sample(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        on_tokens: Callable[[int, int], None] | None = None,
        *,
        remember: bool = False,
    ) -> tuple[list[list[Sample]], Usage]:
        self.calls.append((len(requests), remember))
        samples = [[self._draw(request, key) for key in request.keys] for request in requests]
        flat = [sample for group in samples for sample in group]
        tokens = sum(sample.token_ids.size for sample in flat)
        if on_tokens:
            on_tokens(len(flat), tokens)
        return samples, Usage(tokens, 0, 0)

    def _draw(self, request: Request, key: int) -> Sample:
        assert request.text_start == 3
        room = min(request.max_new_tokens, self.context_length - request.prefix.size)
        assert room >= 1
        length = key % self.length + 1
        ids = np.full(min(length, room), key % 1000, np.int32)
        return Sample(ids, np.zeros(ids.size, np.float32), "stop" if length <= room else "length")


shapes = st.lists(st.integers(1, 3), min_size=1, max_size=4)


@given(shapes, st.integers(1, 12), st.integers(1, 60), st.integers(1, 30), st.integers(0, 3))
def test_every_tree_is_complete_and_within_its_limits(
    branches: list[int], segment_tokens: int, max_tokens: int, length: int, questions: int
):
    engine = KeyedSampler(length)
    sampler: Any = engine
    unused: Any = None
    sampling = Sampling(sampler, unused, unused, SamplingParams(), max_tokens, (0, "rollout"))
    reports: list[tuple[int, int]] = []

    def note(done: int, tokens: int, prefilled: int = 0) -> None:
        reports.append((done, tokens))

    nodes, usage = sample_trees(
        [Question(f"q{i}", "", "", "") for i in range(questions)],
        [np.arange(3, dtype=np.int32)] * questions,
        branches,
        segment_tokens,
        sampling,
        note,
    )
    limit = min(max_tokens, KeyedSampler.context_length - 3)
    assert sum(finished for finished, _ in reports) == questions * max_nodes(branches)
    assert sum(tokens for _, tokens in reports) == usage.sampled == sum(node.sample.token_ids.size for node in nodes)
    assert [remembered for _, remembered in engine.calls] == [True] * (len(branches) - 1) + [False]
    assert [(node.question, node.path) for node in nodes] == sorted((node.question, node.path) for node in nodes)
    by_path = {(node.question, node.path): node for node in nodes}
    for (question, path), node in by_path.items():
        above = by_path.get((question, path[:-1]))
        before = above.response if above else np.empty(0, np.int32)
        assert node.response.tolist() == [*before, *node.sample.token_ids]
        assert node.key == random_key(*((above.key,) if above else (0, "rollout", f"q{question}")), path[-1])
        below = [other for other in by_path if other == (question, (*path, other[1][-1]))]
        if node.finish_reason == "segment":
            assert len(below) == branches[len(path)]
            assert node.sample.token_ids.size == segment_tokens
            assert node.response.size < limit
        else:
            assert not below
            assert node.finish_reason == node.sample.finish_reason
            assert len(path) == len(branches) or node.finish_reason == "stop" or node.response.size == limit
