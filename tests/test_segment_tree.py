"""`spo segment` on trees (a segment for each node) and on groups of responses that diverge (partition branches)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from spo_cli.app import main
from stages import estimate
from stages.core.errors import UserError
from tests.chains import cut, footer, rows, sample
from tests.shards.samples import files
from tests.test_segment import by_pandas, cuts

SURE, UNSURE = math.log(0.95), math.log(0.5)


@pytest.fixture(scope="module")
def tree(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tree") / "trajectories"
    for shard in (0, 1):
        sample(out, policy, tree="3-2", segment_tokens=4, num_generations=None, shard=f"{shard}/2", temperature=0.8)
    return out


def test_each_node_of_a_tree_is_a_segment_with_its_cutpoints(tree: Path, tmp_path: Path):
    summary = cut(tmp_path / "out", tree, rho=0.8)
    for row, node in zip(rows(tmp_path / "out"), rows(tree), strict=True):
        assert row == {
            "trajectory_id": node["trajectory_id"],
            "segment_index": 0,
            "start": 0,
            "end": len(node["token_ids"]),
            "cutpoints": np.flatnonzero(np.exp(node["logprobs"]) < 0.8).tolist(),
        }
    assert summary.rows == len(rows(tree))
    metadata = footer(tmp_path / "out" / "part-00001-of-00002.parquet")
    assert metadata["config"]["partition"] == "tree"


def test_the_default_partition_depends_on_the_input(tree: Path, chain: Path, tmp_path: Path):
    cut(tmp_path / "tree", tree)
    assert cut(tmp_path / "tree", tree, partition="tree").up_to_date
    cut(tmp_path / "chain", chain / "trajectories")
    assert cut(tmp_path / "chain", chain / "trajectories", partition="cutpoints").up_to_date
    cut(tmp_path / "whole", chain / "trajectories", partition="tree")
    cut(tmp_path / "trajectory", chain / "trajectories", partition="trajectory")
    assert rows(tmp_path / "whole") == rows(tmp_path / "trajectory")


@pytest.mark.parametrize("partition", ["cutpoints", "fixed", "trajectory", "branches", "my_cuts:thirds"])
def test_another_partition_of_a_tree_is_rejected(tree: Path, tmp_path: Path, partition: str):
    with pytest.raises(UserError, match=f"nodes of trees, and each node is a segment.*{partition}"):
        cut(tmp_path / "out", tree, partition=partition)
    assert not (tmp_path / "out").exists()


def test_a_tree_of_one_level_is_a_tree(policy: Path, tmp_path: Path):
    sample(tmp_path / "in", policy, tree="3", num_generations=None)
    cut(tmp_path / "out", tmp_path / "in")
    assert footer(tmp_path / "out" / "part-00000-of-00001.parquet")["config"]["partition"] == "tree"


def test_trees_written_by_another_tool_are_recognized_by_their_parents(tmp_path: Path):
    source = by_pandas(
        tmp_path / "in.parquet",
        trajectory_id=["b", "a", "c"],
        parent_id=["a", None, "a"],
        token_ids=[[3], [1, 2], [4, 5]],
        logprobs=[[UNSURE], [SURE, UNSURE], [SURE, SURE]],
    )
    cut(tmp_path / "out", source)
    assert cuts(tmp_path / "out") == {"b": [(0, 1, [0])], "a": [(0, 2, [1])], "c": [(0, 2, [])]}
    with pytest.raises(UserError, match="nodes of trees"):
        cut(tmp_path / "other", source, partition="cutpoints")


def test_a_tree_written_by_another_tool_is_estimated_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = by_pandas(
        tmp_path / "in.parquet",
        trajectory_id=["a", "b", "c"],
        parent_id=[None, "a", "a"],
        prompt_token_ids=[[9]] * 3,
        token_ids=[[1, 2], [3], [4, 5]],
        logprobs=[[SURE, UNSURE], [UNSURE], [SURE, SURE]],
        reference=["7"] * 3,
        reward=[None, 1.0, 0.0],
    )
    cut(tmp_path / "out", source)
    estimate.run(estimate.Config(cutpoints=tmp_path / "out", out=tmp_path / "advantages", estimator="tree"))
    found = {row["trajectory_id"]: (row["value_start"], row["value_end"]) for row in rows(tmp_path / "advantages")}
    assert found == {"b": (0.5, 1.0), "c": (0.5, 0.0)}
    with pytest.raises(SystemExit):
        main(["show", str(source)])
    assert "nodes per depth               0 1  1 2" in capsys.readouterr().out


def test_parents_that_are_all_null_make_no_tree(tmp_path: Path):
    source = by_pandas(
        tmp_path / "in.parquet", trajectory_id=["a"], parent_id=[None], token_ids=[[1, 2]], logprobs=[[SURE, UNSURE]]
    )
    cut(tmp_path / "out", source)
    assert cuts(tmp_path / "out") == {"a": [(0, 1, []), (1, 2, [1])]}


def group(path: Path, *responses: tuple[str, str, str], uncertain: float = SURE) -> Path:
    """Write responses given as (question, id, text), with one token per byte."""
    return by_pandas(
        path,
        question_id=[question for question, *_ in responses],
        trajectory_id=[name for _, name, _ in responses],
        token_ids=[list(text.encode()) for *_, text in responses],
        logprobs=[[uncertain] * len(text) for *_, text in responses],
    )


def test_branches_are_where_the_responses_to_a_question_diverge(tmp_path: Path):
    source = group(
        tmp_path / "in.parquet",
        *[("q", "q/0", "xabc"), ("p", "p/0", "xabe"), ("q", "q/1", "xabd"), ("q", "q/2", "xay"), ("p", "p/1", "xabe")],
    )
    cut(tmp_path / "out", source, partition="branches")
    found = {name: [(start, end) for start, end, _ in segments] for name, segments in cuts(tmp_path / "out").items()}
    assert found == {
        "q/0": [(0, 2), (2, 3), (3, 4)],
        "q/1": [(0, 2), (2, 3), (3, 4)],
        "q/2": [(0, 2), (2, 3)],
        "p/0": [(0, 4)],
        "p/1": [(0, 4)],
    }


def test_branches_of_a_rollout_agree_with_counts_of_shared_prefixes(chain: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("stages.segment._BATCH_ROWS", 3)  # a batch of 3 rows would split a question
    cut(tmp_path / "out", chain / "trajectories", partition="branches")
    frame = pd.DataFrame(rows(chain / "trajectories"))
    found, several = cuts(tmp_path / "out"), 0
    for _, group_rows in frame.groupby("question_id"):
        responses = [tuple(ids) for ids in group_rows["token_ids"]]
        for name, ids in zip(group_rows["trajectory_id"], responses, strict=True):
            sharing = [sum(other[:t] == ids[:t] for other in responses) for t in range(len(ids) + 1)]
            expected = [t for t in range(1, len(ids)) if sharing[t + 1] < sharing[t]]
            assert [start for start, *_ in found[name]] == [0, *expected]
            several += len(expected) > 1
    assert several


def test_branches_reject_a_question_whose_responses_are_in_two_files(tmp_path: Path):
    group(tmp_path / "in" / "0.parquet", ("q", "q/0", "ab"), ("p", "p/0", "ab"))
    group(tmp_path / "in" / "1.parquet", ("q", "q/1", "ac"))
    with pytest.raises(
        UserError, match=r"responses to q are in .*0\.parquet and in .*1\.parquet: put them in one file"
    ):
        cut(tmp_path / "out", tmp_path / "in", partition="branches")
    assert not (tmp_path / "out").exists()


def test_branches_do_not_depend_on_the_shards(policy: Path, tmp_path: Path):
    sample(tmp_path / "one", policy)
    for shard in (0, 1):
        sample(tmp_path / "two", policy, shard=f"{shard}/2")
    cut(tmp_path / "whole", tmp_path / "one", partition="branches")
    for shard in (1, 0):
        cut(tmp_path / "parts", tmp_path / "two", partition="branches", shard=f"{shard}/2")
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    before = files(tmp_path / "parts")
    assert cut(tmp_path / "parts", tmp_path / "two", partition="branches").up_to_date
    assert files(tmp_path / "parts") == before


def test_without_question_ids_questions_are_identified_by_their_prompts(tmp_path: Path):
    tokens = {"token_ids": [[1, 2], [1, 3], [1, 4]], "logprobs": [[SURE, SURE]] * 3}
    source = by_pandas(tmp_path / "in.parquet", prompt_token_ids=[[7], [7], [8]], **tokens)
    cut(tmp_path / "out", source, partition="branches")
    assert [(row["start"], row["end"]) for row in rows(tmp_path / "out")] == [(0, 1), (1, 2), (0, 1), (1, 2), (0, 2)]
    source = by_pandas(tmp_path / "ids.parquet", trajectory_id=["a", "b", "c"], **tokens)
    with pytest.raises(UserError, match="lacks the column question_id"):
        cut(tmp_path / "other", source, partition="branches")
