"""Test the training examples: whole responses with their segments, nodes of trees with their prefixes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.core.errors import UserError
from stages.shards.parts import open_artefact
from stages.shards.schemas import ADVANTAGES, TRAJECTORIES
from stages.training.experience import Experience, load_experience


def trajectory(name: str, tokens: list[int], parent: str | None = None, **more: Any) -> dict[str, Any]:
    question = name.split("/")[0]
    row = dict.fromkeys(TRAJECTORIES.names) | {"trajectory_id": name, "parent_id": parent, "question_id": question}
    row |= {"depth": name.count("."), "prompt_token_ids": [90, 91], "token_ids": tokens, "reference": "7"}
    row |= {"logprobs": [-0.5 * token for token in tokens], "finish_reason": "stop", "reward": 1.0}
    return row | more


def segment(name: str, start: int, end: int, advantage: float, cutpoints: list[int], number: int = 0) -> dict[str, Any]:
    row = dict.fromkeys(ADVANTAGES.names) | {"trajectory_id": name, "segment_index": number, "start": start, "end": end}
    row |= {"cutpoints": cutpoints, "value_start": 0.0, "value_end": 0.0, "advantage": advantage}
    return row | {"num_rollouts": 0, "rewards": []}


def load(
    folder: Path, trajectories: list[dict[str, Any]], segments: list[dict[str, Any]], **options: Any
) -> Experience:
    for name, rows, schema in (("t", trajectories, TRAJECTORIES), ("a", segments, ADVANTAGES)):
        table = pa.Table.from_pylist(rows, schema=schema.arrow).replace_schema_metadata(None)
        pq.write_table(table, folder / f"{name}.parquet")
    given: dict[str, Any] = {"mask": "all", "recorded": False} | options
    return load_experience(
        open_artefact(folder / "a.parquet", ADVANTAGES), open_artefact(folder / "t.parquet", TRAJECTORIES), **given
    )


INNER = {"finish_reason": "segment", "reward": None}
TREE = [
    trajectory("q/0", [1, 2], **INNER),
    trajectory("q/0.0", [3], "q/0", **INNER),
    trajectory("q/0.0.0", [4, 5], "q/0.0"),
    trajectory("q/0.0.1", [6, 7], "q/0.0", finish_reason="length", reward=0.0),
    trajectory("q/1", [8, 9]),
]


def test_a_node_follows_the_prompt_and_its_ancestors_which_have_no_loss(tmp_path: Path) -> None:
    segments = [segment("q/0.0.1", 0, 2, -0.5, [1]), segment("q/0.0", 0, 1, 0.25, []), segment("q/1", 0, 2, 1.0, [0])]
    found = load(tmp_path, TREE, segments)
    assert found.ids == ["q/0.0", "q/0.0.1", "q/1"]
    assert [one.tokens.tolist() for one in found.examples] == [
        [90, 91, 1, 2, 3],
        [90, 91, 1, 2, 3, 6, 7],
        [90, 91, 8, 9],
    ]
    assert [one.kept.tolist() for one in found.examples] == [[4], [5, 6], [2, 3]]
    assert [one.advantages.tolist() for one in found.examples] == [[0.25], [-0.5, -0.5], [1.0, 1.0]]
    assert [one.response_tokens for one in found.examples] == [1, 2, 2]
    assert [one.reward == one.reward for one in found.examples] == [False, True, True]  # inner nodes have none
    assert found.shares_prefixes


def test_siblings_share_a_group_and_each_whole_response_is_its_own_group(tmp_path: Path) -> None:
    names = [row["trajectory_id"] for row in TREE]
    found = load(tmp_path, TREE, [segment(name, 0, 1, 1.0, []) for name in names])
    assert found.groups == ["q/", "q/0/", "q/0.0/", "q/0.0/", "q/"]
    assert load(tmp_path, [trajectory("q/0", [1])], [segment("q/0", 0, 1, 1.0, [])]).groups == ["q/0"]


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    segments = [segment(row["trajectory_id"], 0, 1, 1.0, []) for row in TREE]
    straight, turned = load(tmp_path, TREE, segments), load(tmp_path, TREE[::-1], segments)
    tokens = dict(zip(straight.ids, (one.tokens.tolist() for one in straight.examples), strict=True))
    assert dict(zip(turned.ids, (one.tokens.tolist() for one in turned.examples), strict=True)) == tokens


def test_every_token_of_a_tree_has_loss_once(tmp_path: Path) -> None:
    segments = [segment(row["trajectory_id"], 0, len(row["token_ids"]), 1.0, []) for row in TREE]
    found = load(tmp_path, TREE, segments)
    trained = [int(token) for one in found.examples for token in one.tokens[one.kept]]
    assert sorted(trained) == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_old_log_probabilities_can_be_the_recorded_ones_of_the_kept_tokens(tmp_path: Path) -> None:
    found = load(tmp_path, TREE, [segment("q/0.0.1", 0, 2, 1.0, [1])], mask="cutpoints", recorded=True)
    (one,) = found.examples
    assert one.old is not None
    assert one.old.tolist() == [-3.5]
    assert one.kept.tolist() == [6]


def test_tokens_of_dropped_segments_have_no_loss(tmp_path: Path) -> None:
    """The prefix-tree estimator drops segments of whole responses."""
    rows = [trajectory("q/0", [1, 2, 3, 4, 5])]
    segments = [segment("q/0", 4, 5, 2.0, [4], number=2), segment("q/0", 0, 2, 1.0, [0, 1])]
    (one,) = load(tmp_path, rows, segments).examples
    assert one.kept.tolist() == [2, 3, 6]
    assert one.advantages.tolist() == [1.0, 1.0, 2.0]
    assert one.segment_starts.tolist() == [0, 2]
    assert one.segments == 2
    assert one.response_tokens == 5


def test_questions_without_signal_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [trajectory("p/0", [1]), trajectory("p/1", [2]), trajectory("q/0", [3]), trajectory("q/1", [4])]
    segments = [segment(row["trajectory_id"], 0, 1, a, []) for row, a in zip(rows, (0.0, 1e-9, 0.0, 0.5), strict=True)]
    found = load(tmp_path, rows, segments, drop_uniform=True)
    assert found.ids == ["q/0", "q/1"]
    assert found.left_out == {"questions_uniform": 1}


def test_a_segment_without_kept_tokens_counts_as_signal(tmp_path: Path) -> None:
    found = load(
        tmp_path, [trajectory("q/0", [1])], [segment("q/0", 0, 1, 0.5, [])], mask="cutpoints", drop_uniform=True
    )
    assert found.ids == ["q/0"]


def test_unfinished_responses_are_left_out_and_counted(tmp_path: Path) -> None:
    found = load(tmp_path, TREE, [segment(row["trajectory_id"], 0, 1, 1.0, []) for row in TREE], drop_unfinished=True)
    assert "q/0.0.1" not in found.ids
    assert len(found.ids) == 4
    assert found.left_out == {"trajectories_unfinished": 1}


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"parent_id": "q/7"}, "q/0.0 continues q/7, which is missing"),
        (
            {"parent_id": "q/0.0"},
            r"t\.parquet: the parents of nodes form a cycle: .* row 1",
        ),
    ],
)
def test_a_node_without_a_path_to_a_prompt_is_refused(tmp_path: Path, changed: dict[str, Any], problem: str) -> None:
    rows = [TREE[0], TREE[1] | changed]
    with pytest.raises(UserError, match=problem):
        load(tmp_path, rows, [segment("q/0.0", 0, 1, 1.0, [])])


def test_overlapping_segments_are_refused_even_if_no_token_is_kept_twice(tmp_path: Path) -> None:
    segments = [segment("q/0", 0, 3, 1.0, [0]), segment("q/0", 2, 4, 1.0, [3], number=1)]
    with pytest.raises(UserError, match="overlaps another one"):
        load(tmp_path, [trajectory("q/0", [1, 2, 3, 4])], segments, mask="cutpoints")


def test_an_empty_prompt_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the prompt of trajectory q/0 .* is empty"):
        load(tmp_path, [trajectory("q/0", [1, 2], prompt_token_ids=[])], [segment("q/0", 0, 2, 1.0, [0])])
