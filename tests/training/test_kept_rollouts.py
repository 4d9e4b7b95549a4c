"""Training on kept rollouts: the tokens after the state carry the rollout's advantage, those before it no loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages import train
from stages.core.config import results_config
from stages.core.errors import UserError
from stages.shards.parts import open_artefact
from stages.shards.schemas import ROLLOUTS, TRAJECTORIES
from stages.training.experience import Experience
from stages.training.kept_rollouts import load_rollouts
from tests.chains import rows, sample, value
from tests.training.test_experience import trajectory


def rollout(state: str, number: int, tokens: list[int], advantage: float | None, **more: Any) -> dict[str, Any]:
    name, start = state.split(":")
    row = dict.fromkeys(ROLLOUTS.names) | {"rollout_id": f"{state}/{number}", "state_id": state, "sample": number}
    row |= {"question_id": name.split("/")[0], "trajectory_ids": [name], "start": int(start), "token_ids": tokens}
    row |= {"logprobs": [-0.5 * token for token in tokens], "cutpoints": [0], "text": "", "finish_reason": "stop"}
    return row | {"reward": 1.0, "advantage": advantage} | more


ROWS = [
    rollout("q/0:1", 0, [5, 6], 0.5),
    rollout("q/0:1", 1, [7], -0.5, finish_reason="length"),
    rollout("q/0:1", 2, [8, 9, 9], 0.0),
    rollout("q/0:2", 0, [3], 0.0),
    rollout("q/0:2", 1, [4], 0.0),
    rollout("q/0:0", 0, [4], None),
]


def load(folder: Path, rollouts: list[dict[str, Any]] = ROWS, **options: Any) -> Experience:
    for name, table, schema in (("t", [trajectory("q/0", [1, 2, 3])], TRAJECTORIES), ("r", rollouts, ROLLOUTS)):
        pq.write_table(
            pa.Table.from_pylist(table, schema=schema.arrow).replace_schema_metadata(None), folder / f"{name}.parquet"
        )
    given: dict[str, Any] = {"mask": "all", "only_signal": False, "per_state": None, "recorded": False} | options
    return load_rollouts(
        open_artefact(folder / "r.parquet", ROLLOUTS), open_artefact(folder / "t.parquet", TRAJECTORIES), **given
    )


def test_a_rollout_follows_the_prompt_and_the_tokens_before_its_state(tmp_path: Path):
    found = load(tmp_path, recorded=True)
    assert found.examples[0].tokens.tolist() == [90, 91, 1, 5, 6]
    assert found.examples[0].kept.tolist() == [3, 4]
    assert found.examples[0].advantages.tolist() == [0.5, 0.5]
    assert found.examples[0].old is not None
    assert found.examples[0].old.tolist() == [-2.5, -3.0]
    assert [one.tokens.tolist() for one in found.examples[3:]] == [[90, 91, 1, 2, 3], [90, 91, 1, 2, 4]]


def test_under_the_mask_only_cutpoints_carry_loss(tmp_path: Path):
    assert [one.kept.tolist() for one in load(tmp_path, mask="cutpoints").examples] == [[3], [3], [3], [4], [4]]


def test_the_rollouts_of_a_state_are_a_group_that_shares_its_prefix(tmp_path: Path):
    found = load(tmp_path)
    assert found.groups == ["q/0:1/"] * 3 + ["q/0:2/"] * 2
    assert found.shares_prefixes


@pytest.mark.parametrize(
    ("options", "kept", "left_out"),
    [
        ({}, ["q/0:1/0", "q/0:1/1", "q/0:1/2", "q/0:2/0", "q/0:2/1"], {}),
        ({"only_signal": True}, ["q/0:1/0", "q/0:1/1", "q/0:1/2"], {"rollouts_without_signal": 2}),
        ({"per_state": 1}, ["q/0:1/0", "q/0:2/0"], {"rollouts_beyond_limit": 3}),
        ({"drop_unfinished": True, "only_signal": True}, ["q/0:1/0", "q/0:1/2"], {"rollouts_unfinished": 1}),
    ],
    ids=["all", "signal", "per state", "unfinished"],
)
def test_which_rollouts_are_trained_on(tmp_path: Path, options: dict[str, Any], kept: list[str], left_out: Any):
    found = load(tmp_path, **options)
    assert found.ids == kept
    assert {name: left_out.get(name, found.left_out[name]) for name in found.left_out} == found.left_out
    assert left_out.items() <= found.left_out.items()
    assert found.left_out["rollouts_without_advantage"] == 1


def test_a_rollout_from_an_unknown_state_is_refused(tmp_path: Path):
    for state in ("q/1:0", "q/0:4"):
        with pytest.raises(UserError, match=r"which .* does not have"):
            load(tmp_path, [rollout(state, 0, [1], 1.0)])


def test_the_trainer_takes_the_rollouts_with_the_rest_and_reads_their_prefix_once(chain: Path, tmp_path: Path):
    value(tmp_path / "advantages", chain / "cutpoints", keep_rollouts=True)
    kept = len(rows(tmp_path / "rollouts"))
    trajectories = len(rows(chain / "trajectories"))
    lineages = {}
    for name, options in {"packed": {}, "padded": {"packing": False}, "without": {"train_rollouts": "none"}}.items():
        given = {"train_rollouts": "all", "learning_rate": 1e-4, "threads": 1, "per_device_batch_size": 32} | options
        summary = train.run(train.Config(out=tmp_path / name, advantages=(tmp_path / "advantages",), **given))
        lineages[name] = summary
    assert lineages["packed"].rows == lineages["padded"].rows == trajectories + kept
    assert lineages["without"].rows == trajectories
    fed = {name: summary.figures["tokens/fed_per_trained"] for name, summary in lineages.items()}
    assert fed["packed"] < 0.7 * fed["padded"]
    assert lineages["packed"].figures["loss"] == pytest.approx(lineages["padded"].figures["loss"], abs=1e-5)


def test_missing_rollouts_and_those_of_other_trajectories_are_refused(chain: Path, policy: Path, tmp_path: Path):
    options: dict[str, Any] = {"train_rollouts": "signal", "out": tmp_path / "model", "threads": 1}
    with pytest.raises(UserError, match="run `spo estimate` with --keep-rollouts"):
        train.run(train.Config(advantages=(chain / "advantages",), **options))
    value(tmp_path / "advantages", chain / "cutpoints", keep_rollouts=True)
    sample(tmp_path / "others", policy, num_questions=12, num_generations=4, temperature=0.8, seed=5)
    with pytest.raises(UserError, match="have changed since"):
        train.run(train.Config(advantages=(tmp_path / "advantages",), trajectories=(tmp_path / "others",), **options))
    with pytest.raises(UserError, match="--rollouts-per-state requires --train-rollouts"):
        train.Config(advantages=(chain / "advantages",), out=tmp_path / "model", rollouts_per_state=2)


def test_an_option_at_its_default_leaves_the_fingerprint_of_earlier_work_unchanged(tmp_path: Path):
    options = results_config(train.Config(out=tmp_path / "model", advantages=(tmp_path,)))
    assert not {"train_rollouts", "rollouts_per_state"} & options.keys()
