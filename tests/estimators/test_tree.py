"""`spo estimate --estimator tree`: values from the leaves up, on handmade trees and on sampled ones."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stages.core.errors import UserError
from tests.chains import cut, footer, rows, sample
from tests.estimators.handmade import advantages, estimate_rows, tree_rows, write_trajectories

PART = "part-00000-of-00001.parquet"
TWO_TREES = tree_rows("a", [[1.0, 0.0], 1.0]) + tree_rows("b", [[[0.0, 1.0], 1.0], [0.0, 0.0], 0.0])


@pytest.fixture
def cutpoints(tmp_path: Path) -> Path:
    cut(tmp_path / "cutpoints", write_trajectories(tmp_path / "trajectories", TWO_TREES))
    return tmp_path / "cutpoints"


def test_two_trees_by_hand(cutpoints: Path, tmp_path: Path):
    found, summary = estimate_rows(tmp_path / "out", cutpoints, estimator="tree", keep_zero=True)
    # a: V(0) = 1/2, V(prompt) = 3/4. b: V(0.0) = 1/2, V(0) = 3/4, V(1) = 0, V(prompt) = 1/4
    assert advantages(found) == {
        "a/0": -0.25,
        "a/0.0": 0.5,
        "a/0.1": -0.5,
        "a/1": 0.25,
        "b/0": 0.5,
        "b/0.0": -0.25,
        "b/0.0.0": -0.5,
        "b/0.0.1": 0.5,
        "b/0.1": 0.25,
        "b/1": -0.25,
        "b/1.0": 0,
        "b/1.1": 0,
        "b/2": -0.25,
    }
    row = found["b/0.1", 0]
    assert (row["start"], row["end"], row["cutpoints"]) == (0, 2, [0, 1])
    assert (row["value_start"], row["value_end"]) == (0.75, 1.0)
    assert (row["rewards"], row["num_rollouts"]) == ([0, 1, 1], 3), "of the leaves below the state where it starts"
    assert row["value_std"] == pytest.approx(np.std([0.5, 1.0], ddof=1)), "of the siblings' values"
    assert found["b/2", 0]["rewards"] == [0, 1, 1, 0, 0, 0]
    assert list(found) == [(record["trajectory_id"], 0) for record in TWO_TREES], "pre-order"
    assert summary.figures == {
        "questions": 2,
        "segments": 13,
        "frac_zero_advantage": 2 / 13,
        "frac_reward_zero_std": 0,
    }


def test_rows_without_advantage_are_dropped_and_counted(cutpoints: Path, tmp_path: Path):
    found, summary = estimate_rows(tmp_path / "out", cutpoints, estimator="tree")
    assert summary.rows == len(found) == 11
    assert not {("b/1.0", 0), ("b/1.1", 0)} & found.keys()
    assert footer(tmp_path / "out" / PART)["counts"]["dropped"] == summary.figures["dropped"] == 2


def test_leave_one_out_and_normalization(cutpoints: Path, tmp_path: Path):
    others, _ = estimate_rows(tmp_path / "loo", cutpoints, estimator="tree", baseline="leave-one-out", keep_zero=True)
    assert others["a/0.0", 0]["advantage"] == 1  # its sibling has reward 0
    assert others["b/0", 0]["advantage"] == 0.75 - 0
    assert others["b/0", 0]["value_start"] == 0
    scaled, _ = estimate_rows(tmp_path / "scaled", cutpoints, estimator="tree", normalize_by="siblings", keep_zero=True)
    assert scaled["a/0", 0]["advantage"] == pytest.approx(-1)
    assert scaled["a/0", 0]["value_start"] == 0.75
    # Population std of 3/4, 0, 0 around 1/4
    assert scaled["b/0", 0]["advantage"] == pytest.approx(0.5 / np.sqrt((0.25 + 2 * 0.0625) / 3))


def test_the_best_of_n_bonus(cutpoints: Path, tmp_path: Path):
    found, _ = estimate_rows(tmp_path / "out", cutpoints, estimator="tree", best_of=4)
    row = found["a/0", 0]  # from 3/4 to 1/2
    assert row["advantage"] == pytest.approx(-0.25 + (1 - 0.5**4) - (1 - 0.25**4))
    assert (row["value_start"], row["value_end"]) == (0.75, 0.5), "the values remain those of the policy"


def test_values_outside_0_to_1_have_no_best_of_n(tmp_path: Path):
    cut(tmp_path / "c", write_trajectories(tmp_path / "t", tree_rows("a", [[-1.0, 0.0], 1.0])))
    with pytest.raises(UserError, match=r"--best-of .* but trajectory a/0.0 has -0.5"):
        estimate_rows(tmp_path / "out", tmp_path / "c", estimator="tree", best_of=2)
    assert not (tmp_path / "out").exists()


def test_the_order_of_rows_and_parts_does_not_matter(cutpoints: Path, tmp_path: Path):
    expected, _ = estimate_rows(tmp_path / "out", cutpoints, estimator="tree", keep_zero=True)
    records = list(TWO_TREES)
    random.Random(3).shuffle(records)
    for name, parts in (("shuffled", 1), ("spread", 3)):  # distributed in turn, so each tree is in several files
        cut(tmp_path / f"{name}-cut", write_trajectories(tmp_path / name, records, parts))
        found, _ = estimate_rows(tmp_path / f"{name}-out", tmp_path / f"{name}-cut", estimator="tree", keep_zero=True)
        assert found == expected


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (tree_rows("a", [[], 1.0]), r"a/0 is unfinished \(finish_reason segment\), but has no children"),
        ([{**tree_rows("a", [0.0])[0], "parent_id": "a/9"}], "a/0 continues a/9, which is missing"),
        (
            [{**row, "finish_reason": "stop", "reward": 1.0} for row in tree_rows("a", [[1.0, 0.0]])],
            r"a/0 is finished \(finish_reason is not segment\), but has children",
        ),
    ],
)
def test_rows_that_are_not_complete_trees_are_refused_by_name(records, message, tmp_path: Path):
    write_trajectories(tmp_path / "t", [*records, *tree_rows("b", [[1.0], 0.0])])
    cut(tmp_path / "c", tmp_path / "t")
    with pytest.raises(UserError, match=message):
        estimate_rows(tmp_path / "out", tmp_path / "c", estimator="tree")
    assert not (tmp_path / "out").exists()


def test_a_divided_node_is_refused(tmp_path: Path):
    cut(tmp_path / "c", write_trajectories(tmp_path / "t", tree_rows("a", [1.0, 0.0])), partition="token")
    with pytest.raises(UserError, match="divides node a/0; expected one segment per node"):
        estimate_rows(tmp_path / "out", tmp_path / "c", estimator="tree")


@pytest.fixture(scope="module")
def sampled(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("trees")
    for shard in range(2):
        sample(
            here / "trajectories",
            policy,
            tree="3-2-2",
            num_generations=None,
            segment_tokens=3,
            num_questions=6,
            shard=f"{shard}/2",
        )
    cut(here / "cutpoints", here / "trajectories")
    return here


def test_advantages_of_a_sampled_tree_telescope_to_the_reward_of_every_leaf(sampled: Path):
    found, _ = estimate_rows(sampled / "all", sampled / "cutpoints", estimator="tree", keep_zero=True)
    nodes = {row["trajectory_id"]: row for row in rows(sampled / "trajectories")}
    assert found.keys() == {(name, 0) for name in nodes}
    leaves = 0
    for name, node in nodes.items():
        if node["finish_reason"] != "segment":
            path = [name]
            while nodes[path[-1]]["parent_id"] is not None:
                path.append(nodes[path[-1]]["parent_id"])
            total = sum(found[step, 0]["advantage"] for step in path)
            assert total == pytest.approx(node["reward"] - found[path[-1], 0]["value_start"])
            assert found[name, 0]["value_end"] == node["reward"]
            leaves += 1
    assert leaves > 40
    assert any(row["advantage"] for row in found.values())


def test_the_number_of_parts_changes_no_row(sampled: Path, policy: Path, tmp_path: Path):
    sample(tmp_path / "t", policy, tree="3-2-2", num_generations=None, segment_tokens=3, num_questions=6)
    cut(tmp_path / "c", tmp_path / "t")
    one, _ = estimate_rows(tmp_path / "out", tmp_path / "c", estimator="tree")
    two, _ = estimate_rows(sampled / "two", sampled / "cutpoints", estimator="tree")
    assert one == two


METHODS = (
    ("dr-grpo", {}),
    ("grpo", {"normalize_by": "siblings"}),
    ("rloo", {"baseline": "leave-one-out"}),
)


@pytest.mark.parametrize(("method", "options"), METHODS)
def test_a_tree_of_one_level_is_the_group_method(policy: Path, tmp_path: Path, method, options):
    sample(tmp_path / "tree", policy, tree="4", num_generations=None, num_questions=12)
    sample(tmp_path / "group", policy, num_generations=4, num_questions=12)
    cut(tmp_path / "nodes", tmp_path / "tree")
    cut(tmp_path / "responses", tmp_path / "group", partition="trajectory")
    tree, _ = estimate_rows(tmp_path / "a", tmp_path / "nodes", estimator="tree", keep_zero=True, **options)
    group, _ = estimate_rows(tmp_path / "b", tmp_path / "responses", estimator=method)
    assert tree == group
    assert len({row["advantage"] for row in tree.values()}) > 1


def test_no_model_is_needed(sampled: Path, tmp_path: Path):
    script = f"""
import sys
from pathlib import Path
from stages import estimate
out, cutpoints = Path({str(tmp_path)!r}) / "out", Path({str(sampled)!r}) / "cutpoints"
summary = estimate.run(estimate.Config(out=out, cutpoints=cutpoints, estimator="tree"))
assert summary.rows and summary.tokens_sampled == 0, summary
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    recorded = footer(tmp_path / "out" / "part-00000-of-00002.parquet")
    assert recorded["model"] is None
    assert recorded["config"].keys() == {"estimator", "baseline", "normalize_by", "keep_zero", "best_of"}


def test_the_rules_of_credit_reach_the_rows(cutpoints: Path, tmp_path: Path):
    """Tree a: leaves 0.0 (reward 1), 0.1 (0) and 1 (1); V(prompt) over leaves is 2/3, V(0) is 1/2."""
    expected = {
        "siblings": {"a/0": -1.0, "a/0.0": 1.0, "a/0.1": -1.0, "a/1": 1.0},
        "treerl": {"a/0": -2 / 6 / 2**0.5, "a/0.0": 5 / 6, "a/0.1": -7 / 6, "a/1": 2 / 3},
        "treepo": {"a/0": -1 / 12, "a/0.0": 5 / 12, "a/0.1": -7 / 12, "a/1": 1 / 3},
        "treeadv": {"a/0": -1 / 8**0.5, "a/0.0": 0.5**0.5, "a/0.1": -(2**0.5), "a/1": 0.5**0.5},
        "tree-grpo": {"a/0": -1 / 8**0.5, "a/0.0": 1 + 0.5**0.5, "a/0.1": -1 - 2**0.5, "a/1": 0.5**0.5},
    }
    for rule, by_node in expected.items():
        found, _ = estimate_rows(tmp_path / rule, cutpoints, estimator="tree", credit=rule, keep_zero=True)
        assert {name: found[name, 0]["advantage"] for name in by_node} == pytest.approx(by_node, abs=1e-6), rule


def test_the_value_of_a_node_may_be_the_mean_over_its_leaves(cutpoints: Path, tmp_path: Path):
    found, _ = estimate_rows(tmp_path / "out", cutpoints, estimator="tree", node_value="leaves", keep_zero=True)
    assert (found["a/0", 0]["value_start"], found["a/0", 0]["value_end"]) == pytest.approx((2 / 3, 1 / 2))
    assert found["b/0.1", 0]["advantage"] == pytest.approx(1 - 2 / 3)


def test_a_rule_of_credit_refuses_the_options_of_another(cutpoints: Path, tmp_path: Path):
    with pytest.raises(UserError, match="--credit treerl is a rule of its own: omit --baseline"):
        estimate_rows(tmp_path / "out", cutpoints, estimator="tree", credit="treerl", baseline="leave-one-out")
    with pytest.raises(UserError, match="--credit is an option of --estimator tree"):
        estimate_rows(tmp_path / "out", cutpoints, estimator="rloo", credit="treerl")
    with pytest.raises(UserError, match="--node-value leaves compares with all leaves"):
        estimate_rows(tmp_path / "out", cutpoints, estimator="tree", node_value="leaves", baseline="leave-one-out")
