"""ReST-EM: responses that an estimator has selected are trained on by their likelihood, and by nothing else."""

from __future__ import annotations

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
