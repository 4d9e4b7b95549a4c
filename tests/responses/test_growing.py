"""Trees within a budget of tokens: whole trees, the rule that grows them, any division into chunks, parts and runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import estimate, train
from stages.core.errors import UserError
from stages.maths.growth import Leaves, find_leaves, widest_state
from stages.responses.growing import Growth, find_places
from stages.sampling.protocol import Sample
from tests.chains import cut, footer, make_constant, rows, sample, value
from tests.responses.test_trees import by_id
from tests.test_rollout import forward_logprobs
from tests.test_rollout_tree import paths_to_leaves

BUDGET = 60
HOWS: dict[str, dict[str, Any]] = {
    "tokens": {"segment_tokens": 3},
    **{how: {"branch_at": how} for how in ("entropy", "surprisal", "cutpoints")},
}


def grow(out: Path, model: Path, **options: Any):
    """Sample trees of about 60 tokens; a correct response has 9."""
    shape = {"tree_budget": BUDGET, "num_generations": None, "num_questions": 4, "temperature": 0.8}
    return sample(out, model, **shape | options)


def reported(nodes: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the nodes of each question."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for node in nodes:
        found[node["question_id"]].append(node)
    return found


@pytest.fixture(scope="module")
def grown(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with trees of every way to branch."""
    here = tmp_path_factory.mktemp("growing")
    for name, how in HOWS.items():
        grow(here / name, policy, **how)
    return here


def test_the_leaves_of_states_by_hand():
    """Response 0 is 1, response 1 leaves it after 4 tokens, response 2 leaves 1 after 6; response 3 is a second one."""
    parent, offset, length = np.array([-1, 0, 1, -1]), np.array([0, 4, 6, 0]), np.array([10, 12, 8, 5])
    reward = np.array([1.0, 0.0, 1.0, np.nan])
    owner, place = np.array([-1, 0, 0, 0, 1, 1, 3]), np.array([0, 2, 4, 5, 6, 7, 2])
    leaves = find_leaves(parent, offset, length, reward, owner, place)
    assert leaves.graded.tolist() == [3, 3, 3, 1, 2, 1, 0]
    np.testing.assert_allclose(leaves.mean, [2 / 3, 2 / 3, 2 / 3, 1, 1 / 2, 0, 0])
    np.testing.assert_allclose(leaves.tokens_left, [35 / 4, 10 - 2, 10 - 4, 5, 10 - 6, 5, 3])


def test_the_widest_interval_that_fits_is_chosen_by_hand():
    """Widths at 95 %: 1 of 2 is .81, 1 of 1 and 0 of 1 are .79, 3 of 3 is .56; without a graded leaf it is 1."""
    leaves = Leaves(np.array([1, 0.5, 0, 1, 1]), np.array([3, 2, 1, 1, 1]), np.array([9.0, 6.0, 4.0, 4.0, 5.0]))
    doubt, none = np.array([9.0, 0.0, 0.1, 0.3, 0.3]), np.zeros(5)
    assert widest_state(leaves, doubt, 9) == 1
    assert widest_state(leaves._replace(graded=np.array([3, 2, 1, 1, 0])), doubt, 9) == 4
    assert widest_state(leaves, doubt, 5) == 3, "of equal widths the largest doubt, then the first"
    assert widest_state(leaves, none, 5) == 2
    shorter = leaves._replace(tokens_left=np.array([9.0, 6.0, 4.0, 3.0, 5.0]))
    assert widest_state(shorter, none, 5) == 3, "without doubt the fewest tokens left"
    assert widest_state(leaves, doubt, 3.9) is None


def test_every_m_tokens_and_cutpoints_by_hand():
    tokens, logprobs = np.zeros(8, np.int32), np.log([0.5, 0.95, 0.3, 1.0, 0.8, 0.99, 0.6, 0.1]).astype(np.float32)
    end = Sample(tokens, logprobs, "stop")
    assert find_places(end, 0, Growth(9, 1, 3, None, 0.9))[0].tolist() == [3, 6]
    assert find_places(end, 6, Growth(9, 1, 3, None, 0.9))[0].tolist() == [9, 12]
    places, doubt = find_places(end, 10, Growth(9, 1, 3, "cutpoints", 0.9))
    assert places.tolist() == [12, 14, 16, 17]  # not the first token, where the response leaves another one
    np.testing.assert_allclose(doubt, -np.log([0.3, 0.8, 0.6, 0.1]), rtol=1e-6)
    assert find_places(end, 10, Growth(9, 1, 3, "surprisal", 0.9))[0].tolist() == [11, 12, 14, 15, 16, 17]


@pytest.mark.parametrize("how", HOWS)
def test_trees_are_whole_and_their_tokens_are_those_of_the_policy(policy: Path, grown: Path, how: str):
    for nodes in reported(rows(grown / how)).values():
        children: dict[str | None, list[str]] = defaultdict(list)
        for node in nodes:
            children[node["parent_id"]].append(node["trajectory_id"])
            assert (node["finish_reason"] == "segment") == (node["reward"] is None)
            assert len(node["token_ids"]) == len(node["logprobs"]) > 0
        for parent, names in children.items():
            prefix = f"{nodes[0]['question_id']}/" if parent is None else f"{parent}."
            assert names == [f"{prefix}{i}" for i in range(len(names))]
        inner = {node["trajectory_id"] for node in nodes if node["finish_reason"] == "segment"}
        assert inner == children.keys() - {None}
        assert all(len(children[name]) > 1 for name in inner)
        for path in list(paths_to_leaves(nodes).values())[::5]:
            whole = path[0] | {
                name: [item for node in path for item in node[name]] for name in ("token_ids", "logprobs")
            }
            predicted = forward_logprobs(policy, whole, 0.8)
            drawn = predicted[np.arange(len(predicted)), whole["token_ids"]]
            np.testing.assert_allclose(whole["logprobs"], drawn, atol=1e-4)


@pytest.mark.parametrize("how", HOWS)
def test_a_tree_takes_about_its_budget(grown: Path, how: str):
    """A branch begins only if its expected length fits; it may be longer, and no state may be short enough."""
    spent = [sum(len(node["token_ids"]) for node in nodes) for nodes in reported(rows(grown / how)).values()]
    assert all(BUDGET - 9 <= one <= BUDGET + 24 for one in spent)
    assert np.mean(spent) == pytest.approx(BUDGET, abs=8)


def test_a_tree_begins_with_the_independent_responses(policy: Path, grown: Path, tmp_path: Path):
    grow(tmp_path / "alone", policy, tree_budget=None, num_generations=2)
    alone = {row["trajectory_id"]: row["token_ids"] for row in rows(tmp_path / "alone")}
    for how in HOWS:
        first: dict[str, list[int]] = defaultdict(list)
        for row in rows(grown / how):
            number, *others = row["trajectory_id"].split("/")[1].split(".")
            if set(others) <= {"0"} and int(number) < 2:
                first[f"{row['question_id']}/{number}"] += row["token_ids"]
        assert dict(first) == alone


@pytest.mark.parametrize("how", ["tokens", "entropy"])
def test_chunks_parts_batches_and_resumed_runs_do_not_change_a_row(
    policy: Path, grown: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
):
    for shard in range(2):
        grow(tmp_path / "parts", policy, shard=f"{shard}/2", chunk_questions=1, max_batch_rows=3, **HOWS[how])
    expected = sorted(rows(grown / how), key=lambda row: row["trajectory_id"])
    assert sorted(rows(tmp_path / "parts"), key=lambda row: row["trajectory_id"]) == expected
    calls = iter(range(100))

    def interrupt(*args: Any) -> None:
        if next(calls) == 9:
            raise KeyboardInterrupt

    monkeypatch.setattr("stages.responses.growing._check_reward", interrupt)
    with pytest.raises(KeyboardInterrupt):
        grow(tmp_path / "killed", policy, chunk_questions=2, **HOWS[how])
    monkeypatch.undo()
    grow(tmp_path / "killed", policy, chunk_questions=2, **HOWS[how])
    assert sorted(rows(tmp_path / "killed"), key=lambda row: row["trajectory_id"]) == expected


def test_every_credit_rule_and_training_take_them(policy: Path, grown: Path, tmp_path: Path):
    cut(tmp_path / "cutpoints", grown / "surprisal")
    assert footer(next((tmp_path / "cutpoints").glob("*.parquet")))["config"]["partition"] == "tree"
    for credit in ("parent", "siblings", "treerl", "treepo", "treeadv", "tree-grpo"):
        config = estimate.Config(
            out=tmp_path / credit,
            cutpoints=tmp_path / "cutpoints",
            estimator="tree",
            credit=credit,
            keep_zero=True,
            threads=1,
        )
        assert estimate.run(config).rows == len(rows(grown / "surprisal"))
    (tmp_path / "trajectories").symlink_to(grown / "surprisal")
    for path in paths_to_leaves(list(by_id(tmp_path / "parent").values())).values():
        total = sum(node["advantage"] for node in path)
        assert total == pytest.approx(path[-1]["reward"] - path[0]["value_start"])
    options = {"mask": "all", "epochs": 1, "threads": 1, "learning_rate": 1e-3}
    config = train.Config(out=tmp_path / "checkpoint", advantages=(tmp_path / "parent",), model=str(policy), **options)
    assert train.run(config).rows
    with pytest.raises(UserError, match="holds trees"):
        value(tmp_path / "values", tmp_path / "cutpoints")


def test_rewards_outside_0_and_1_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = make_constant(tmp_path / "model", {"a": 0.8}, 0.2)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "growing_reward.py").write_text("def reward(completions):\n    return [2.0] * len(completions)\n")
    (tmp_path / "data.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    options = {"task": "custom", "task_arg": ("reward=growing_reward:reward",), "num_questions": 1}
    with pytest.raises(UserError, match=r"--tree-budget needs rewards from 0 to 1; .* has 2"):
        grow(tmp_path / "out", model, data=str(tmp_path / "data.jsonl"), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tree": "3-2"}, "--tree-budget determines the tree: omit --tree"),
        ({"num_generations": 4}, "omit --num-generations"),
        ({"branch_at": "entropy", "segment_tokens": 3}, "omit --segment-tokens"),
        ({"branch_at": "entropy", "engine": "vllm"}, "vLLM reports no entropies"),
        ({"rho": 0.5}, "--rho defines the cutpoints"),
        ({"tree_budget": 3, "num_trees": 4}, "less than one token for each of the 4 responses"),
        ({"unfinished_reward": -1.0}, "omit --unfinished-reward"),
        ({"overlong_buffer": 4}, "omit --overlong-buffer"),
        ({"tree_budget": 0}, "--tree-budget must be"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(map(str, value)),
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        grow(tmp_path / "out", tmp_path / "no model", **options)
