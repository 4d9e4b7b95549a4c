"""Trees grown from first chains: whole trees, exact tokens and entropies, any division into chunks and parts."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import estimate, rollout, train
from stages.core.errors import UserError
from stages.core.progress import Silent
from stages.maths.branch_points import most_doubtful, spread_cutpoints
from stages.responses.branching import max_nodes, most_tokens
from stages.sampling import engines
from tests.chains import cut, rows, sample
from tests.responses.test_trees import by_id
from tests.test_rollout import forward_logprobs
from tests.test_rollout_tree import paths_to_leaves

HOWS = ("entropy", "surprisal", "cutpoints")


def grow(out: Path, model: Path, **options: Any):
    """Sample trees of two chains, each with three branches at its first cut and two at its second."""
    shape = {"tree": "2-3-2", "num_generations": None, "num_questions": 3, "temperature": 0.8}
    return sample(out, model, **shape | options)


def joined(path: list[dict[str, Any]], column: str) -> list[Any]:
    """Return the lists of a column of the nodes of a path, end to end."""
    return [value for node in path for value in node[column]]


@pytest.fixture(scope="module")
def forests(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with trees that branch by entropy, surprisal and at cutpoints."""
    here = tmp_path_factory.mktemp("branching")
    for how in HOWS:
        grow(here / how, policy, branch_at=how)
    return here


@pytest.mark.parametrize("how", HOWS)
def test_every_chain_branches_at_the_tokens_that_its_rule_chooses(policy: Path, forests: Path, how: str):
    nodes = {row["trajectory_id"]: row for row in rows(forests / how)}
    children: dict[str, list[str]] = defaultdict(list)
    for row in nodes.values():
        children[row["parent_id"] or row["question_id"]].append(row["trajectory_id"])
        assert (row["finish_reason"] == "segment") == (row["reward"] is None)
        assert len(row["token_ids"]) == len(row["logprobs"]) > 0
    for leaf in (path for path in paths_to_leaves(list(nodes.values())).values()):
        chain = [node for node in leaf if node["trajectory_id"].split("/")[1].split(".")[1:] == ["0"] * node["depth"]]
        if len(chain) < len(leaf):
            assert chain == leaf[:-1], "a fresh branch runs to the end of its response"
            continue
        whole = leaf[0] | {"token_ids": joined(leaf, "token_ids")}
        predicted = forward_logprobs(policy, whole, 0.8)
        drawn = predicted[np.arange(len(predicted)), whole["token_ids"]]
        entropy = -(np.exp(predicted) * predicted).sum(axis=-1)
        expected = {
            "entropy": most_doubtful(entropy, 2),
            "surprisal": most_doubtful(-drawn, 2),
            "cutpoints": spread_cutpoints(np.exp(drawn) < 0.9, 2),
        }[how]
        assert np.cumsum([len(node["token_ids"]) for node in leaf[:-1]]).tolist() == expected.tolist()
        assert [len(children[node["trajectory_id"]]) for node in leaf[:-1]] == [3, 2][: len(expected)]
    assert {len(children[row["question_id"]]) for row in nodes.values()} == {2}
    assert len(nodes) <= 3 * max_nodes((2, 3, 2))
    assert sum(len(node["token_ids"]) for node in nodes.values()) <= 3 * most_tokens((2, 3, 2), 24)


def test_the_tokens_of_every_path_have_the_log_probabilities_of_a_forward_pass(policy: Path, forests: Path):
    for path in list(paths_to_leaves(rows(forests / "surprisal")).values())[:8]:
        whole = path[0] | {name: joined(path, name) for name in ("token_ids", "logprobs")}
        predicted = forward_logprobs(policy, whole, 0.8)
        drawn = predicted[np.arange(len(predicted)), whole["token_ids"]]
        np.testing.assert_allclose(whole["logprobs"], drawn, atol=1e-4)


def test_chains_are_the_independent_responses_and_one_level_is_nothing_else(
    policy: Path, forests: Path, tmp_path: Path
):
    grow(tmp_path / "alone", policy, tree=None, num_generations=2)
    alone = {row["trajectory_id"]: (row["token_ids"], row["logprobs"]) for row in rows(tmp_path / "alone")}
    for how in HOWS:
        chains: dict[str, tuple[list[int], list[float]]] = defaultdict(lambda: ([], []))
        for row in rows(forests / how):
            number, *others = row["trajectory_id"].split("/")[1].split(".")
            if set(others) <= {"0"}:
                tokens, logprobs = chains[f"{row['question_id']}/{number}"]
                tokens += row["token_ids"]
                logprobs += row["logprobs"]
        assert dict(chains) == alone
    grow(tmp_path / "one", policy, tree="2", branch_at="entropy")
    assert rows(tmp_path / "one") == rows(tmp_path / "alone")


@pytest.mark.parametrize("how", ["entropy", "cutpoints"])
def test_chunks_parts_and_batches_do_not_change_a_row(policy: Path, forests: Path, tmp_path: Path, how: str):
    for shard in range(2):
        options = {"shard": f"{shard}/2", "chunk_questions": 1, "max_batch_rows": 3}
        grow(tmp_path / "parts", policy, branch_at=how, **options)
    divided = sorted(rows(tmp_path / "parts"), key=lambda row: row["trajectory_id"])
    assert divided == sorted(rows(forests / how), key=lambda row: row["trajectory_id"])


def test_several_trees_of_a_question_share_the_prompt(policy: Path, tmp_path: Path):
    grow(tmp_path / "two", policy, tree="1-2", num_trees=2, segment_tokens=3)
    summary = grow(tmp_path / "two", policy, tree="2-2", segment_tokens=3)
    assert summary.up_to_date, "two trees 1-2 are one tree 2-2"


@pytest.mark.parametrize("credit", ["parent", "siblings", "treerl", "treepo", "treeadv", "tree-grpo"])
def test_estimators_and_training_take_segments_of_unequal_length(
    policy: Path, forests: Path, tmp_path: Path, credit: str
):
    cut(tmp_path / "cutpoints", forests / "surprisal")
    config = estimate.Config(
        out=tmp_path / "advantages",
        cutpoints=tmp_path / "cutpoints",
        estimator="tree",
        credit=credit,  # pyright: ignore[reportArgumentType]
        keep_zero=True,
        threads=1,
    )
    summary = estimate.run(config)
    assert summary.rows == len(rows(forests / "surprisal"))
    assert len({len(row["token_ids"]) for row in rows(forests / "surprisal") if row["finish_reason"] == "segment"}) > 1
    if credit == "parent":
        (tmp_path / "trajectories").symlink_to(forests / "surprisal")
        found = by_id(tmp_path / "advantages")
        for path in paths_to_leaves(list(found.values())).values():
            total = sum(node["advantage"] for node in path)
            assert total == pytest.approx(path[-1]["reward"] - path[0]["value_start"])
        options = {"mask": "all", "epochs": 1, "threads": 1, "learning_rate": 1e-3}
        train.run(
            train.Config(
                out=tmp_path / "checkpoint", advantages=(tmp_path / "advantages",), model=str(policy), **options
            )
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tree": None, "branch_at": "entropy"}, "--branch-at requires --tree"),
        ({"tree": None, "num_trees": 2}, "--num-trees requires --tree"),
        ({"branch_at": "entropy", "segment_tokens": 3}, "omit --segment-tokens"),
        ({"branch_at": "entropy", "rho": 0.5}, "--rho defines the cutpoints"),
        ({"branch_at": "entropy", "engine": "vllm"}, "vLLM reports no entropies"),
        ({"branch_at": "doubt"}, "--branch-at must be"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(tmp_path: Path, options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        grow(tmp_path / "out", tmp_path / "no model", **options)


@pytest.mark.parametrize("shape", [{"tree": "2-2"}, {"tree_budget": 99}], ids=str)
def test_entropies_are_refused_where_the_machine_chooses_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: dict[str, Any]
):
    """The engine is known before a model is opened; the other two ways to branch need no entropies."""
    monkeypatch.setattr(engines, "_obstacle_to_vllm", lambda *_: None)
    options = {"out": tmp_path / "out", "model": "none", "task": "arithmetic", **shape}
    with pytest.raises(UserError, match="vLLM reports no entropies: pass --branch-at surprisal"):
        engines.with_engine(rollout.Config(branch_at="entropy", **options), Silent())
    assert engines.with_engine(rollout.Config(branch_at="surprisal", **options), Silent()).engine == "vllm"
