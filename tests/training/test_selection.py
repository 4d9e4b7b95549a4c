"""Responses that an estimator has selected or paired are trained on with the loss that is made for them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from stages import estimate, train
from stages.core.errors import UserError
from tests.chains import cut, rows


def test_selected_responses_become_more_likely_and_another_loss_is_refused(chain: Path, tmp_path: Path):
    cut(tmp_path / "cutpoints", chain / "trajectories", partition="trajectory")
    selected = tmp_path / "advantages"
    estimate.run(estimate.Config(out=selected, cutpoints=tmp_path / "cutpoints", estimator="restem", threads=1))
    right = {row["trajectory_id"] for row in rows(chain / "trajectories") if row["reward"] == 1}
    assert {row["trajectory_id"] for row in rows(selected)} == right
    options: dict[str, Any] = {"advantages": (selected,), "mask": "all", "beta": 0.0, "threads": 1, "epochs": 4}
    with pytest.raises(UserError, match=r"restem selected.*pass --loss nll in place of --loss ppo"):
        train.run(train.Config(out=tmp_path / "wrong", **options))
    summary = train.run(train.Config(out=tmp_path / "out", loss="nll", learning_rate=1e-3, **options))
    assert summary.rows == len(right)
    assert 0 < summary.figures["loss"] < 2


def test_a_likelihood_has_no_ratio(tmp_path: Path):
    for name, value in {"epsilon": 0.1, "mismatch_correction": "tis", "dual_clip": 3.0}.items():
        with pytest.raises(UserError, match=r"nll|dual-clip"):
            train.Config(out=tmp_path, advantages=(tmp_path,), loss="nll", **{name: value})  # pyright: ignore


def test_right_responses_of_pairs_gain_on_wrong_ones(chain: Path, tmp_path: Path):
    cut(tmp_path / "cutpoints", chain / "trajectories", partition="trajectory")
    pairs, grpo = tmp_path / "pairs", tmp_path / "grpo"
    for out, name in ((pairs, "pairs"), (grpo, "grpo")):
        estimate.run(estimate.Config(out=out, cutpoints=tmp_path / "cutpoints", estimator=name, threads=1))  # pyright: ignore
    options: dict[str, Any] = {"mask": "all", "beta": 0.1, "threads": 1, "epochs": 3}
    with pytest.raises(UserError, match=r"--estimator pairs paired: pass --loss dpo-positive in place of --loss ppo"):
        train.run(train.Config(out=tmp_path / "wrong", advantages=(pairs,), **options))
    options |= {"loss": "dpo-positive", "learning_rate": 1e-3, "gradient_accumulation_steps": 2}
    with pytest.raises(UserError, match=r"is of --estimator grpo: use `spo estimate --estimator pairs`"):
        train.run(train.Config(out=tmp_path / "wrong", advantages=(grpo,), **options))
    train.run(train.Config(out=tmp_path / "out", advantages=(pairs,), **options))
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    gains = [line["pairs/right_log_ratio_mean"] - line["pairs/wrong_log_ratio_mean"] for line in lines]
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert gains[0] == pytest.approx(0, abs=1e-6)
    assert gains[-1] > 0.1
    assert lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"beta": 0.0}, "--beta greater than 0"),
        ({"mask": "cutpoints"}, "pass --mask all"),
        ({"whiten": "batch"}, "does not read --whiten"),
        ({"replay": 2}, "--replay may divide a pair"),
        ({"packing": True}, "--packing may divide a pair"),
        ({"per_device_batch_size": 1, "gradient_accumulation_steps": 3}, "an even number of trajectories per step"),
        ({"mismatch_correction": "tis"}, "has no ratio"),
        ({"loss": "ppo", "pair_penalty": 1.0}, "--pair-penalty requires --loss dpo-positive"),
    ],
)
def test_options_that_do_not_fit_pairs_are_refused(options: dict[str, Any], problem: str, tmp_path: Path):
    with pytest.raises(UserError, match=problem):
        train.Config(**{"out": tmp_path, "advantages": (tmp_path,), "loss": "dpo-positive", "mask": "all"} | options)
