"""`spo audit` on a small real chain: its figures, computed again from the Parquet files with pandas alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from spo_cli.app import main
from stages.configs.audit import Config
from stages.core.errors import UserError
from stages.reporting.audit import ESTIMATES, Audit, run

RESPONSES, ROLLOUTS = 5, 40


@pytest.fixture(scope="module")
def audit(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    """Return an audit of a few responses of the chain, with a figure."""
    here = tmp_path_factory.mktemp("audit")
    for name in ("policy", "trajectories", "cutpoints", "advantages"):
        shutil.copytree(chain / name, here / name)
    options: dict[str, Any] = {
        "trajectories": RESPONSES,
        "rollouts": ROLLOUTS,
        "threads": 1,
        "figure": here / "audit.svg",
    }
    return run(Config(advantages=here / "advantages", **options))


@pytest.fixture(scope="module")
def table(audit: Audit) -> Any:
    """Return the audited segments with the rewards of their starts and ends, from the Parquet files."""
    here = Path(str(audit.out)).parent
    responses: Any = pandas.read_parquet(here / "trajectories").set_index("trajectory_id")
    rows: Any = (
        pandas.read_parquet(here / "audit" / "reference").sort_values(["trajectory_id", "start"]).reset_index(drop=True)
    )
    rows = rows.join(responses[["question_id", "token_ids", "reward"]], on="trajectory_id")
    rows["state"] = [
        (row.question_id, *row.token_ids[: row.start]) for row in rows.itertuples()
    ]  # responses of a question share states
    following = rows.set_index(["trajectory_id", "start"])["rewards"]
    rows["after"] = [
        np.full(ESTIMATES + ROLLOUTS, row.reward)
        if row.end == len(row.token_ids)
        else following[row.trajectory_id, row.end]
        for row in rows.itertuples()
    ]
    recorded = pandas.read_parquet(here / "advantages")[
        ["trajectory_id", "segment_index", "value_start", "num_rollouts"]
    ]
    return rows.drop(columns=["value_start", "num_rollouts"]).merge(
        recorded, how="left", on=["trajectory_id", "segment_index"]
    )


def states(table: Any) -> Any:
    return table.groupby("state", sort=False).first()


def truth(rewards: Any) -> Any:
    return rewards.map(lambda one: one[ESTIMATES:].mean())


def test_whole_responses_are_audited_with_rollouts_of_their_own(audit: Audit, table: Any):
    figures = audit.figures
    assert figures["responses"] == table["trajectory_id"].nunique() == RESPONSES
    assert figures["segments"] == len(table)
    assert figures["states"] == len(states(table)) > RESPONSES
    assert figures["rollouts"] == ROLLOUTS
    assert set(table["rewards"].map(len)) == {ESTIMATES + ROLLOUTS}
    assert json.loads((audit.out / "audit.json").read_text()) == figures


@pytest.mark.parametrize("n", [1, 4, 64])
def test_errors_and_signs_follow_from_the_rewards(audit: Audit, table: Any, n: int):
    (found,) = [one for one in audit.figures["by_rollouts"] if one["rollouts"] == n]
    distinct = states(table)
    estimate, reference = distinct["rewards"].map(lambda one: one[:n].mean()), truth(distinct["rewards"])
    assert found["absolute"] == pytest.approx((estimate - reference).abs().mean())
    assert found["rank"] == pytest.approx(estimate.rank().corr(reference.rank()), nan_ok=True)
    advantage = truth(table["after"]) - truth(table["rewards"])
    square = table["rewards"].map(lambda one: one[ESTIMATES:].var() / ROLLOUTS)
    square += table["after"].map(lambda one: one[ESTIMATES:].var() / ROLLOUTS)
    certain = advantage.abs() > 2 * square**0.5
    estimated = table["after"].map(lambda one: one[:n].mean()) - table["rewards"].map(lambda one: one[:n].mean())
    assert found["segments"] == certain.sum() > 0
    right = (np.sign(estimated) == np.sign(advantage))[certain].mean()
    zero = (estimated[certain] == 0).mean()
    assert (found["right"], found["zero"]) == pytest.approx((right, zero))
    assert found["right"] + found["zero"] + found["wrong"] == pytest.approx(1)


def test_calibration_and_spent_rollouts_follow_from_the_tables(audit: Audit, table: Any):
    distinct = states(table)
    known = distinct[distinct["value_start"].notna()]
    tenth = (known["value_start"] * 10).astype(int).clip(upper=9)
    expected: Any = pandas.DataFrame({"estimate": known["value_start"], "reference": truth(known["rewards"])}).groupby(
        tenth
    )
    found: Any = pandas.DataFrame(audit.figures["calibration"])
    assert found["states"].tolist() == expected.size().tolist()
    assert found["estimate"].tolist() == pytest.approx(expected["estimate"].mean().tolist())
    assert found["reference"].tolist() == pytest.approx(expected["reference"].mean().tolist())
    assert ((found["low"] <= found["reference"]) & (found["reference"] <= found["high"])).all()
    spent, fixed = distinct["num_rollouts"].fillna(0), distinct["rewards"].map(lambda one: len(set(one)) == 1)
    assert audit.figures["spent"] == {
        "rollouts": spent.sum(),
        "where_the_value_cannot_move": spent[fixed].sum(),
    }


def test_shares_of_the_mask_follow_from_the_log_probabilities(audit: Audit, table: Any):
    trajectories: Any = pandas.read_parquet(Path(str(audit.out)).parent / "trajectories")
    logprobs = trajectories.set_index("trajectory_id")["logprobs"]
    chances = [np.exp(logprobs[row.trajectory_id][row.start : row.end].astype(float)) for row in table.itertuples()]
    size = (truth(table["after"]) - truth(table["rewards"])).abs()
    for share in audit.figures["mask"]:
        assert share["tokens"] == pytest.approx(np.mean(np.concatenate(chances) < share["rho"]))
        lies = np.array([one.min() < share["rho"] for one in chances])
        assert share["advantage"] == pytest.approx(size[lies].sum() / size.sum())


def test_an_audit_that_is_done_prints_its_figures_again(audit: Audit, capsys: pytest.CaptureFixture[str]):
    figure = audit.config.figure
    assert figure is not None
    assert figure.read_bytes().startswith(b"<?xml")
    arguments = ["--trajectories", str(RESPONSES), "--rollouts", str(ROLLOUTS), "--threads", "1"]
    with pytest.raises(SystemExit):  # the rollouts are up to date: only the figures are computed
        main(["audit", str(audit.config.advantages), *arguments])
    out = capsys.readouterr().out
    assert f"{audit.figures['states']} states and {audit.figures['segments']} segments of {RESPONSES} responses" in out
    assert max(map(len, out.splitlines())) <= 120


def test_a_figure_of_another_format_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"must end with \.png"):
        Config(advantages=tmp_path, figure=tmp_path / "audit.gif")
