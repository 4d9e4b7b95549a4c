"""`spo audit` on a small real chain: its figures, computed again from the Parquet files with pandas alone."""

# The types of pandas are wider than what its methods return:
# pyright: reportArgumentType=false

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from spo_cli.app import main
from stages.configs.audit import Config
from stages.core.errors import UserError
from stages.core.progress import Silent
from stages.models import loading
from stages.reporting import report
from stages.reporting.audit import ESTIMATES, Audit, run
from stages.reporting.audit_gradients import WeightedResponse, gradient_rows, summarize
from tests.browser import Browser, find_browser
from tests.chains import cut, sample, value

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


def test_the_variance_of_the_gradient_follows_from_its_norms(audit: Audit):
    rows: Any = pandas.read_parquet(audit.out / "gradients")
    found: Any = pandas.DataFrame(audit.figures["gradients"]).set_index("method")
    assert found.index.tolist() == ["GRPO", "SPO-chain", "SPO-tree of shared prefixes"]
    for method, own in rows.groupby("method"):
        n, norm = len(own), own["along_mean"].mean()
        assert n == RESPONSES
        variance = (own["squared_norm"].sum() - n * norm) / (n - 1)
        assert found.loc[method, "variance"] == pytest.approx(variance)
        assert found.loc[method, "signal"] == pytest.approx(norm - variance / n)
    assert found["at_equal_tokens"].tolist() == pytest.approx((found["variance"] * found["tokens"]).tolist())
    assert (found["at_equal_tokens"] > 0).any()
    assert found.loc["SPO-chain", "tokens"] > found.loc["GRPO", "tokens"]


def test_a_report_of_an_audit_holds_its_figures(audit: Audit, tmp_path: Path):
    out = tmp_path / "report.html"
    report.run(report.Config(paths=(audit.out,), out=out, json=True))
    content = json.loads(out.with_suffix(".json").read_text())
    assert [one["figures"] for one in content["audits"]] == [audit.figures]
    assert content["tables"]
    report.run(report.Config(paths=(Path(str(audit.out)).parent,), out=out, overwrite=True))


@pytest.mark.skipif(find_browser() is None, reason="needs Chromium: apt-get install chromium")
def test_the_page_of_an_audit_draws_its_figures(audit: Audit, tmp_path: Path):
    out = tmp_path / "report.html"
    report.run(report.Config(paths=(audit.out,), out=out))
    with Browser(tmp_path / "profile") as page:
        for width, dark in ((1440, False), (390, True)):
            page.resize(width, 900, dark)
            page.open(f"file://{out}#view=audit")
            assert page.run("document.querySelectorAll('.bin').length") == len(audit.figures["calibration"])
            shown = page.run("[...document.querySelectorAll('.gradients tbody th')].map((one) => one.textContent)")
            assert shown == [one["method"] for one in audit.figures["gradients"]]
            assert page.run("document.querySelectorAll('.audit .chart').length") == 4
            assert page.run("document.documentElement.scrollWidth") <= width
        assert page.console == []
        assert {address.partition("#")[0] for address in page.requests} == {f"file://{out}"}


def test_trees_are_audited_along_their_paths(policy: Path, tmp_path: Path):
    shape = {"tree": "3-2", "segment_tokens": 3, "num_generations": None, "num_questions": 4, "temperature": 0.8}
    sample(tmp_path / "trajectories", policy, **shape)
    cut(tmp_path / "cutpoints", tmp_path / "trajectories")
    estimated = {"rollouts": None, "estimator": "tree", "keep_zero": True}
    value(tmp_path / "advantages", tmp_path / "cutpoints", **estimated)
    found = run(Config(advantages=tmp_path / "advantages", trajectories=6, rollouts=20, threads=1))
    nodes: Any = pandas.read_parquet(tmp_path / "trajectories").set_index("trajectory_id")
    paths: Any = pandas.read_parquet(found.out / "trajectories")
    assert found.figures["responses"] == len(paths) == 6
    recorded: Any = pandas.read_parquet(tmp_path / "advantages").set_index("trajectory_id")
    reference: Any = pandas.read_parquet(found.out / "reference").sort_values(["trajectory_id", "start"])
    states: dict[Any, tuple[float, float]] = {}
    walked = set()
    for path in paths.itertuples():
        line = [path.trajectory_id]
        while isinstance(nodes.loc[line[0], "parent_id"], str):
            line.insert(0, nodes.loc[line[0], "parent_id"])
        assert [*path.token_ids] == [token for node in line for token in nodes.loc[node, "token_ids"]]
        own = reference[reference["trajectory_id"] == path.trajectory_id]
        assert own["end"].tolist() == np.cumsum([len(nodes.loc[node, "token_ids"]) for node in line]).tolist()
        for node, start, rewards in zip(line, own["start"], own["rewards"], strict=True):
            key = (path.question_id, *path.token_ids[:start])
            states.setdefault(key, (recorded.loc[node, "value_start"], rewards[ESTIMATES:].mean()))
            walked.add(node)
    assert found.figures["segments"] == len(walked)
    assert found.figures["states"] == len(states)
    error = np.mean([abs(estimate - truth) for estimate, truth in states.values()])
    assert found.figures["recorded"]["absolute"] == pytest.approx(error)
    assert [one["method"] for one in found.figures["gradients"]] == ["GRPO", "SPO-chain", "SPO-tree"]
    tokens = {one["method"]: one["tokens"] for one in found.figures["gradients"]}
    leaves = nodes["reward"].notna().sum()
    assert tokens["SPO-tree"] == pytest.approx(nodes["token_ids"].map(len).sum() / leaves)
    assert tokens["GRPO"] == pytest.approx(paths["token_ids"].map(len).mean())


def test_norms_of_gradients_are_those_of_the_whole_vectors(policy: Path):
    model = loading.load_model(policy, torch.device("cpu"), torch.float32)
    generator = np.random.default_rng(0)
    responses, vectors = [], []
    for i in range(4):
        tokens, advantages = generator.integers(40, 90, 9), generator.normal(size=5)
        responses.append(WeightedResponse(f"q/{i}", tokens, {"one": advantages, "other": np.zeros(5)}))
        model.zero_grad()
        logits = model(input_ids=torch.from_numpy(tokens)[None]).logits[0] / 0.7
        chosen = logits.log_softmax(-1)[torch.arange(3, 8), torch.from_numpy(tokens[4:])]
        (chosen * torch.from_numpy(advantages).float()).sum().backward()
        vectors.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double().numpy())
    table = gradient_rows(model, responses, {"one": 9.0, "other": 9.0}, 0.7, Silent())
    one, other = summarize(table)
    assert one["variance"] == pytest.approx(variance(vectors), rel=1e-4)
    assert one["signal"] == pytest.approx(np.square(np.mean(vectors, 0)).sum() - one["variance"] / 4, rel=1e-4)
    assert one["at_equal_tokens"] == pytest.approx(9 * one["variance"])
    assert (one["relative"], other["variance"], other["relative"]) == (1, 0, 0)


def variance(vectors: list[Any]) -> float:
    """Return the trace of the covariance of gradients."""
    return float(np.var(np.stack(vectors), axis=0, ddof=1).sum())


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
