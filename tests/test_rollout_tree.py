"""Test `spo rollout --tree`: whole trees, one row per node, equal bytes for every division into chunks and shards."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import accumulate
from operator import mul
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages.core.errors import FingerprintMismatch, UserError
from stages.responses import trees
from stages.tasks import open_task
from tests.chains import ARITHMETIC, footer, make_constant, rows, sample, with_context
from tests.shards.samples import files
from tests.test_rollout import forward_logprobs

TASK = open_task("arithmetic", None, ARITHMETIC["task_arg"])


def grow(out: Path, model: Path, **options):
    """Sample small trees: a correct response has 9 tokens and ends on the third level."""
    return sample(out, model, **{"tree": "3-2-2", "segment_tokens": 3, "num_generations": None} | options)


def paths_to_leaves(nodes: list[dict]) -> dict[str, list[dict]]:
    """Return, by the id of each leaf, the nodes from the first level to the leaf."""
    by_id = {node["trajectory_id"]: node for node in nodes}

    def path(node: dict) -> list[dict]:
        return [*(path(by_id[node["parent_id"]]) if node["parent_id"] else []), node]

    return {name: path(node) for name, node in by_id.items() if node["finish_reason"] != "segment"}


@pytest.fixture(scope="module")
def tree(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sample trees of 3-2-2 over 6 questions."""
    out = tmp_path_factory.mktemp("tree") / "trajectories"
    grow(out, policy, num_questions=6, temperature=0.8)
    return out


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a model that draws a and b with equal probability and never ends."""
    return make_constant(tmp_path_factory.mktemp("endless") / "model", {"a": 0.5, "b": 0.5}, 1e-30)


def test_rows_are_the_nodes_of_whole_trees_in_preorder(tree: Path):
    found = rows(tree)
    paths = []
    for row in found:
        question, _, path = row["trajectory_id"].rpartition("/")
        numbers = [int(number) for number in path.split(".")]
        paths.append((int(question.rpartition("-")[2]), numbers))
        assert row["question_id"] == question
        assert row["depth"] == len(numbers) - 1
        assert row["parent_id"] == (f"{question}/{path.rpartition('.')[0]}" if row["depth"] else None)
        assert bytes(row["prompt_token_ids"]).decode() == row["prompt"]
    assert paths == sorted(paths)
    children = defaultdict(list)
    for row in found:
        children[row["parent_id"] or row["question_id"]].append(int(row["trajectory_id"][-1]))
    assert {name: len(numbers) for name, numbers in children.items()} == {
        **{row["question_id"]: 3 for row in found},
        **{row["trajectory_id"]: 2 for row in found if row["finish_reason"] == "segment"},
    }
    assert all(numbers == list(range(len(numbers))) for numbers in children.values())


def test_a_node_has_m_tokens_or_ends_the_response(tmp_path: Path):
    short = make_constant(tmp_path / "model", {"a": 0.8}, 0.2)
    grow(tmp_path / "out", short, max_tokens=200)
    ends = Counter()
    for row in rows(tmp_path / "out"):
        ends[row["depth"], row["finish_reason"]] += 1
        assert len(row["token_ids"]) == len(row["logprobs"])
        assert (row["token_ids"][-1] == 256) == (row["finish_reason"] == "stop")
        if row["finish_reason"] == "segment":
            assert len(row["token_ids"]) == 3
        elif row["depth"] < 2:
            assert len(row["token_ids"]) <= 3
    assert set(ends) == {(0, "stop"), (0, "segment"), (1, "stop"), (1, "segment"), (2, "stop")}
    assert max(len(row["token_ids"]) for row in rows(tmp_path / "out") if row["depth"] == 2) > 3


def test_leaves_are_graded_on_the_whole_response_and_inner_nodes_are_not(tree: Path):
    found = rows(tree)
    for path in paths_to_leaves(found).values():
        leaf = path[-1]
        verdict = TASK.verify("".join(node["text"] for node in path), leaf["reference"])
        assert leaf["answer"] == verdict.answer
        assert leaf["reward"] == (verdict.reward if leaf["finish_reason"] == "stop" else 0)
    inner = [row for row in found if row["finish_reason"] == "segment"]
    assert inner
    assert all(row["reward"] is None and row["answer"] is None for row in inner)
    assert {row["reward"] for row in found} == {None, 0.0, 1.0}


def test_logprobs_match_a_forward_pass_over_the_whole_path(policy: Path, tree: Path):
    for path in list(paths_to_leaves(rows(tree)).values())[::7]:
        joined = {
            "prompt_token_ids": path[0]["prompt_token_ids"],
            "token_ids": [token for node in path for token in node["token_ids"]],
        }
        expected = forward_logprobs(policy, joined, 0.8)
        chosen = expected[np.arange(len(joined["token_ids"])), joined["token_ids"]]
        np.testing.assert_allclose([p for node in path for p in node["logprobs"]], chosen, atol=1e-4)


def test_a_tree_of_one_level_equals_independent_responses(policy: Path, tmp_path: Path):
    sample(tmp_path / "chain", policy, num_generations=8)
    grow(tmp_path / "tree", policy, tree="8")
    assert rows(tmp_path / "tree") == rows(tmp_path / "chain")


def test_every_greedy_path_is_the_greedy_response(policy: Path, tmp_path: Path):
    sample(tmp_path / "chain", policy, temperature=0, num_generations=1)
    grow(tmp_path / "tree", policy, temperature=0, tree="2-1-2-1", segment_tokens=2)
    expected = {row["question_id"]: row for row in rows(tmp_path / "chain")}
    for path in paths_to_leaves(rows(tmp_path / "tree")).values():
        response = expected[path[0]["question_id"]]
        assert [token for node in path for token in node["token_ids"]] == response["token_ids"]
        np.testing.assert_allclose([p for node in path for p in node["logprobs"]], response["logprobs"], atol=1e-5)
        assert [path[-1][name] for name in ("finish_reason", "answer", "reward")] == [
            response[name] for name in ("finish_reason", "answer", "reward")
        ]


@pytest.mark.parametrize("shape", ["4-4-4", "8-8-8", "4-5-6", "2-2-2-2", "6-6-6", "8", "1-1", "1"])
def test_the_branches_determine_the_number_of_nodes(endless: Path, tmp_path: Path, shape: str):
    summary = grow(tmp_path / "out", endless, num_questions=1, tree=shape, segment_tokens=1, max_tokens=6)
    branches = [int(count) for count in shape.split("-")]
    found = rows(tmp_path / "out")
    assert Counter(row["depth"] for row in found) == dict(enumerate(accumulate(branches, mul)))
    assert len(found) == trees.max_nodes(branches) == summary.figures["nodes"]
    assert {sum(len(node["token_ids"]) for node in path) for path in paths_to_leaves(found).values()} == {6}
    lineage = footer(tmp_path / "out" / "part-00000-of-00001.parquet")
    assert (lineage["config"]["tree"], lineage["config"]["segment_tokens"]) == (branches, 1)
    assert lineage["config"]["num_generations"] is None


def test_siblings_and_cousins_draw_different_tokens(endless: Path, tmp_path: Path):
    grow(tmp_path / "out", endless, num_questions=2, tree="4-4", segment_tokens=30, max_tokens=60)
    drawn = [tuple(row["token_ids"]) for row in rows(tmp_path / "out")]
    assert len(set(drawn)) == len(drawn) == 40


def test_a_response_that_reaches_a_limit_is_a_leaf_on_any_level(policy: Path, endless: Path, tmp_path: Path):
    grow(tmp_path / "tokens", endless, segment_tokens=4, max_tokens=8)
    grow(tmp_path / "fewer", endless, segment_tokens=4, max_tokens=6)
    grow(tmp_path / "context", with_context(endless, tmp_path / "short", 5 + 8), segment_tokens=4)
    for name, last in {"tokens": 4, "fewer": 2, "context": 4}.items():
        assert Counter(
            (row["depth"], row["finish_reason"], len(row["token_ids"])) for row in rows(tmp_path / name)
        ) == {
            (0, "segment", 4): 12,
            (1, "length", last): 24,
        }
        assert {row["reward"] for row in rows(tmp_path / name) if row["depth"] == 1} == {0.0}


def test_a_stop_string_may_span_nodes(endless: Path, tmp_path: Path):
    grow(tmp_path / "out", endless, tree="2-2-2-2", segment_tokens=1, stop=("ab",), max_tokens=12)
    ends = Counter()
    for path in paths_to_leaves(rows(tmp_path / "out")).values():
        text = "".join(node["text"] for node in path)
        assert ("ab" in text) == (path[-1]["finish_reason"] == "stop")
        assert text.find("ab") in (-1, len(text) - 2)
        ends[path[-1]["depth"]] += 1
    assert ends[1], "some response must end after two nodes of one token"


def test_batches_chunks_and_shards_do_not_change_what_is_drawn(policy: Path, tree: Path, tmp_path: Path):
    options = {"num_questions": 6, "temperature": 0.8}
    for name, layout in {
        "narrow": {"max_batch_rows": 2},
        "chunked": {"chunk_questions": 1},
        "both": {"chunk_questions": 4, "max_batch_rows": 5},
    }.items():
        grow(tmp_path / name, policy, **options, **layout)
        assert files(tmp_path / name) == files(tree)
    for shard in (2, 0, 1):
        grow(tmp_path / "shards", policy, **options, shard=f"{shard}/3")
    assert rows(tmp_path / "shards") == rows(tree)


def test_an_interrupted_call_resumes_to_the_same_bytes(policy: Path, tree: Path, tmp_path: Path, monkeypatch):
    options = {"num_questions": 6, "temperature": 0.8, "chunk_questions": 2}
    calls = []

    def interrupt_second_call(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return tree_table(*arguments)

    tree_table = trees.tree_table
    monkeypatch.setattr(trees, "tree_table", interrupt_second_call)
    with pytest.raises(KeyboardInterrupt):
        grow(tmp_path / "out", policy, **options)
    assert not list((tmp_path / "out").glob("*.parquet"))
    grow(tmp_path / "out", policy, **options)
    assert len(calls) == 4, "the first chunk must not be drawn again"
    assert files(tmp_path / "out") == files(tree)
    assert grow(tmp_path / "out", policy, **options).up_to_date


def test_no_prompt_token_is_prefilled_twice(policy: Path, tmp_path: Path):
    summary = grow(tmp_path / "out", policy, chunk_questions=2)
    found = rows(tmp_path / "out")
    assert summary.tokens_sampled == sum(len(row["token_ids"]) for row in found)
    prompts = {tuple(row["prompt_token_ids"]) for row in found}
    by_chunk = [sorted(prompts)[i : i + 2] for i in (0, 2)]
    assert summary.tokens_prefilled <= sum(len(prompt) for chunk in by_chunk for prompt in chunk)


def test_another_shape_is_a_fingerprint_mismatch(policy: Path, tmp_path: Path):
    grow(tmp_path / "out", policy, tree="2-2", num_questions=1)
    with pytest.raises(FingerprintMismatch, match=r"tree: found \[2, 2\], requested \[2, 3\]"):
        grow(tmp_path / "out", policy, tree="2-3", num_questions=1)
    with pytest.raises(FingerprintMismatch, match=r"segment_tokens: found 3, requested 5"):
        grow(tmp_path / "out", policy, tree="2-2", num_questions=1, segment_tokens=5)


@pytest.mark.parametrize("shape", ["0", "6-0-6", "", "6-", "-6", "6--6", "six", "6x6", "6-6-x", "-1", "1.5", "6 6"])
def test_an_invalid_shape_is_an_error_before_any_work(policy: Path, tmp_path: Path, shape: str):
    with pytest.raises(UserError, match=r"--tree must hold the branches of each level.*such as 6-6-6; got"):
        grow(tmp_path / "out", policy, tree=shape)
    assert not (tmp_path / "out").exists()


def test_contradictory_options_are_an_error_before_any_work(tmp_path: Path):
    missing = tmp_path / "no-model"
    with pytest.raises(UserError, match="omit --num-generations"):
        grow(tmp_path / "out", missing, num_generations=8)
    with pytest.raises(UserError, match="requires --tree"):
        sample(tmp_path / "out", missing, segment_tokens=4)
    with pytest.raises(UserError, match="--segment-tokens must be at least 1"):
        grow(tmp_path / "out", missing, segment_tokens=0)


def test_the_footer_counts_the_tree_and_the_summary_agrees(tree: Path, policy: Path):
    found, lineage = rows(tree), footer(tree / "part-00000-of-00001.parquet")
    leaves = paths_to_leaves(found)
    assert lineage["counts"] == {"sampled": sum(len(row["token_ids"]) for row in found), "ungradable": 0}
    assert lineage["summary"]["nodes"] == len(found)
    assert lineage["summary"]["leaves"] == len(leaves)
    depths = Counter(path[-1]["depth"] for path in leaves.values())
    assert [lineage["summary"][f"leaves/depth_{depth}"] for depth in range(3)] == [depths[depth] for depth in range(3)]

    frame = pd.DataFrame(found)
    values = {row["trajectory_id"]: row["reward"] for row in found}
    for depth in (2, 1, 0):  # mean of means, bottom up
        for name, siblings in frame[frame["depth"] == depth].groupby(
            frame["parent_id"].fillna(frame["question_id"]), sort=False
        ):
            values[name] = np.mean([values[child] for child in siblings["trajectory_id"]])
    questions = frame["question_id"].unique()
    assert lineage["summary"]["reward"] == pytest.approx(np.mean([values[name] for name in questions]))
    summary = grow(tree, policy, num_questions=6, temperature=0.8)
    assert summary.up_to_date
    assert summary.reward == lineage["summary"]["reward"]
    distinct_rewards = frame.dropna(subset="reward").groupby("question_id")["reward"].nunique()
    assert summary.figures["frac_reward_zero_std"] == pytest.approx(np.mean(distinct_rewards == 1))
