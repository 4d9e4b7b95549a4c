"""The page of a report in a headless Chromium: it makes no request, computes what the stages do, and runs no text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages import train
from stages.configs.report import Config
from stages.maths.partition import find_cutpoints, partition_by_cutpoints
from stages.maths.ragged import Ragged
from stages.reporting import report
from tests.browser import Browser, find_browser
from tests.chains import cut, rows, sample, value

pytestmark = [
    pytest.mark.skipif(find_browser() is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.xdist_group("browser"),
]
ESTIMATES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": ({"partition": "trajectory"}, {"estimator": "grpo"}),
    "rloo": ({"partition": "trajectory"}, {"estimator": "rloo"}),
    "dr-grpo": ({"partition": "trajectory"}, {"estimator": "dr-grpo", "best_of": 3}),
    "prefix-tree": ({"partition": "branches"}, {"estimator": "prefix-tree"}),
    "leave-one-out": ({"interval": 2}, {"estimator": "prefix-tree", "baseline": "leave-one-out", "keep_zero": True}),
}
TREES: dict[str, dict[str, Any]] = {
    "tree": {},
    "tree-siblings": {"normalize_by": "siblings", "keep_zero": True},
    "tree-others": {"baseline": "leave-one-out", "best_of": 2},
}
RECOMPUTE = """(() => {
  const { model } = report, found = [];
  for (const row of model.leaves) {
    const estimator = model.table(row).options.estimator;
    for (const one of report.segmentsWith(row, { estimator })) {
      found.push([model.table(row).label, model.name(one.node ?? row), one.start, one.advantage]);
    }
  }
  return found;
})()"""


@pytest.fixture(scope="module")
def run(policy: Path, chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run whose iterations hold the same responses, or trees, under every estimator."""
    run = tmp_path_factory.mktemp("reported") / "run"
    value(run / "000" / "advantages", chain / "cutpoints", keep_rollouts=True)
    train.run(
        train.Config(
            advantages=(run / "000" / "advantages",),
            out=run / "000" / "policy",
            learning_rate=1e-3,
            per_device_batch_size=4,
            gradient_accumulation_steps=1,
            token_metrics=True,
            threads=1,
        )
    )
    for number, (cuts, values) in enumerate(ESTIMATES.values(), 1):
        cut(run / f"{number:03d}" / "cutpoints", chain / "trajectories", **cuts)
        value(run / f"{number:03d}" / "advantages", run / f"{number:03d}" / "cutpoints", rollouts=None, **values)
    trees = {"tree": "3-2-2", "segment_tokens": 3, "num_generations": None, "num_questions": 4, "temperature": 0.8}
    sample(run.parent / "trees" / "trajectories", policy, **trees)
    cut(run.parent / "trees" / "cutpoints", run.parent / "trees" / "trajectories")
    for number, values in enumerate(TREES.values(), 1 + len(ESTIMATES)):
        out = run / f"{number:03d}" / "advantages"
        value(out, run.parent / "trees" / "cutpoints", rollouts=None, estimator="tree", **values)
    report.run(Config(paths=(run,)))
    return run


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(run: Path, browser: Browser) -> Iterator[Browser]:
    """Open the report; afterwards check that nothing left the file and the console is silent."""
    browser.open(f"file://{run}/report.html#view=reader")
    yield browser
    assert browser.console == []
    assert {address.partition("#")[0] for address in browser.requests} <= {f"file://{run}/report.html"}


def test_advantages_recomputed_in_the_browser_are_those_of_the_parquet_files(run: Path, page: Browser):
    found: dict[tuple[str, str, int], float] = {}
    for label, name, start, advantage in page.run(RECOMPUTE):
        found[label, name, start] = advantage
    compared = 0
    for number in range(1 + len(ESTIMATES) + len(TREES)):
        label = f"{number:03d}"
        lengths: dict[str, int] = {}
        if number > len(ESTIMATES):  # offsets along the whole response: after the tokens of the nodes above
            nodes = {row["trajectory_id"]: row for row in rows(run.parent / "trees" / "trajectories")}
            for name, row in nodes.items():
                parent = nodes.get(row["parent_id"])
                lengths[name] = lengths[row["parent_id"]] + len(parent["token_ids"]) if parent else 0
        for row in rows(run / label / "advantages"):
            start = row["start"] + lengths.get(row["trajectory_id"], 0)
            assert found[label, row["trajectory_id"], start] == pytest.approx(row["advantage"], abs=1e-9), label
            compared += 1
    assert compared > 300


@pytest.mark.parametrize(("rho", "interval"), [(0.9, 2), (0.5, 1), (0.99, 5)])
def test_segments_recut_by_the_knobs_are_those_of_the_partition(chain: Path, page: Browser, rho: float, interval: int):
    responses = rows(chain / "trajectories")
    logprobs = Ragged.of([row["logprobs"] for row in responses], np.float32)
    expected = partition_by_cutpoints(logprobs.lengths, find_cutpoints(logprobs, rho), interval)
    knobs = json.dumps({"partition": "cutpoints", "rho": rho, "interval": interval})
    found = page.run(
        "report.model.leaves.filter((row) => report.model.table(row).iteration === 0)"
        f".flatMap((row, i) => report.segmentsWith(row, {knobs}).map((one) => [i, one.start, one.end]))"
    )
    assert found == np.stack([expected.trajectory, expected.start, expected.end], 1).tolist()


def test_moving_a_knob_repaints_the_response_and_the_formula(page: Browser):
    page.run("report.change({row: report.model.leaves[0], token: 0})")
    marked = "document.querySelectorAll('.token.cut').length"
    page.run("report.change({rho: 1})")
    tokens = page.run("document.querySelectorAll('.token').length")
    assert page.run(marked) == page.run("report.model.tokens(report.state.row).logprob.filter((one) => one < 0).length")
    page.run("report.change({rho: 0.01})")
    assert page.run(marked) < tokens
    assert "ρ = 0.01" in page.run("document.querySelector('.formula').textContent")
    page.run("report.change({estimator: 'grpo'})")
    assert "std" in page.run("document.querySelector('.formula').textContent")
    assert "estimator=grpo" in page.run("location.hash")


def test_filters_select_responses_and_keys_move_between_them(page: Browser):
    counter = "document.querySelector('.counter').textContent"
    right = page.run("report.model.leaves.filter((row) => report.model.reward(row) >= 1).length")
    page.run("report.change({verdict: 'right'})")
    assert page.run(counter).startswith(f"{right} of ")
    page.run("report.change({verdict: 'all', iterations: [0, 0]})")
    assert page.run(counter).startswith("48 of ")
    first = page.run("report.state.row")
    page.press("j")
    assert page.run("report.state.row") != first
    page.press("k")
    assert page.run("report.state.row") == first
    page.press("/")
    assert page.run("document.activeElement.type") == "search"


def test_a_click_on_the_matrix_opens_the_question_and_the_tree_compares_siblings(page: Browser):
    page.press("2")
    page.wait("report.state.view === 'questions'")
    page.click(".cell[data-question]")
    page.wait("report.state.view === 'reader'")
    assert page.run("report.state.question") is not None
    page.run("report.change({row: report.model.leaves.at(-1), view: 'tree'})")
    page.click('.node[data-node="0"]')
    page.click('.node[data-node="1"]')
    assert "difference of V" in page.run("document.querySelector('.compare').textContent")
    assert page.run("document.querySelectorAll('.sibling').length") == 2


def test_a_click_on_a_state_lists_its_kept_rollouts_with_their_texts(run: Path, page: Browser):
    kept: dict[tuple[str, int], list[tuple[str, float]]] = {}
    for row in rows(run / "000" / "rollouts"):
        for name in row["trajectory_ids"]:
            kept.setdefault((name, row["start"]), []).append((row["text"], row["reward"]))
    found = page.run(
        "report.model.leaves.filter((row) => report.model.table(row).iteration === 0).flatMap((row) =>"
        " report.segmentsWith(row).map((one) => [report.model.name(row), one.start, report.model.rolloutsAt(row,"
        " one.start).map(({ text, reward }) => [text, reward]), [...one.rewards]]))"
    )
    assert sum(bool(texts) for _, _, texts, _ in found) > 40
    for name, start, texts, rewards in found:
        assert [tuple(one) for one in texts] == kept.get((name, start), [])
        assert sorted(reward for _, reward in texts) == sorted(rewards) or not rewards
    name, start = next((name, start) for name, start, texts, _ in found if len({text for text, _ in texts}) > 1)
    page.run(f"report.change({{view: 'reader', row: report.model.find('{name.rpartition('/')[0]}', '{name}', 0)}})")
    page.click(f'.state[aria-label^="state before token {start}:"] .knot')
    page.wait("document.querySelectorAll('.rollout-list li bdi').length > 0")
    shown = page.run("[...document.querySelectorAll('.rollout-list li bdi')].map((one) => one.textContent)")
    assert len(shown) == len(kept[name, start])
    assert all(text[:20].isprintable() and text for text in shown)


def test_the_audit_of_grades_shows_the_reason_of_each_verdict_and_the_suspicious_first(page: Browser):
    page.run("report.change({view: 'grades'})")
    found = page.run("report.model.leaves.map((row) => [report.model.reward(row), report.model.reason(row)])")
    for reward, reason in found:
        assert (reason or "").startswith("equal") == (reward == 1), (reward, reason)
    assert {(reason or "").partition(",")[0] for reward, reason in found if reward == 0} >= {"different value"}
    lines = "[...document.querySelectorAll('.grade-line[data-row] .why')]"
    shown = page.run(f"{lines}.map((one) => one.querySelector('small')?.textContent)")
    assert all(shown)
    assert page.run("document.querySelector('.grade-line[data-row] .why').firstChild.textContent") not in ("stop", "")


def test_the_states_of_a_tree_list_the_responses_below_them(page: Browser):
    page.run("report.change({view: 'reader', row: report.model.leaves.at(-1), estimator: 'recorded'})")
    page.click(".state .knot")
    page.wait("document.querySelectorAll('.rollout-list li .chip').length > 0")
    count = page.run("document.querySelectorAll('.rollout-list li').length")
    assert count == page.run("report.segmentsWith(report.state.row, { estimator: 'tree' })[0].rewards.length")
    page.click(".rollout-list li:first-child .chip")
    assert page.run("report.model.isTree(report.state.row)")


def test_the_reader_colors_by_the_ratios_that_the_trainer_saw(run: Path, page: Browser):
    expected = {(row["trajectory_id"], row["position"]): row for row in rows(run / "000" / "policy" / "token-metrics")}
    found = page.run(
        "report.model.leaves.filter((row) => report.model.table(row).iteration === 0).flatMap((row) =>"
        " [...report.model.seen(row)].map(([at, [one]]) => ({ name: report.model.name(row), at, ...one })))"
    )
    assert len(found) == len(expected) > 50
    for one in found:
        row = expected[one["name"], one["at"]]
        names = {"old": "old_logprob", "now": "new_logprob", "ratio": "ratio", "entropy": "entropy", "step": "step"}
        assert {name: one[name] for name in names} == {name: row[column] for name, column in names.items()}
        assert one["clipped"] is row["clipped"]
        assert one["advantage"] == np.float32(row["advantage"])
    moved = next(one for one in found if one["ratio"] != 1)
    question, _, _ = moved["name"].rpartition("/")
    page.run(f"report.change({{row: report.model.find('{question}', '{moved['name']}', 0), token: {moved['at']}}})")
    page.click('[data-choice="color=ratio"]')
    assert page.run("report.state.color") == "ratio"
    color = f"document.querySelector('.token[data-t=\"{moved['at']}\"]').style.backgroundColor"
    assert page.run(color) not in ("", "transparent")
    assert f"step {moved['step']}" in page.run("document.querySelector('.formula').textContent")
    page.run("report.change({row: report.model.leaves.at(-1), color: 'advantage'})")
    assert page.run("document.querySelector('[data-choice=\"color=ratio\"]').disabled")


def test_an_address_leads_to_its_token(run: Path, page: Browser):
    page.run("report.change({row: report.model.leaves[5], token: 3})")
    address = page.run("location.href")
    page.open(address)
    assert page.run("report.state.row === report.model.leaves[5] && report.state.token === 3")
    assert page.run("document.querySelector('.token.chosen').dataset.t") == "3"


def test_every_view_draws_in_light_and_dark_on_a_desktop_and_on_a_phone(page: Browser):
    for width, height, dark in ((1440, 900, False), (390, 844, True)):
        page.resize(width, height, dark)
        for view in ("overview", "questions", "reader", "tree", "grades"):
            page.run(f"report.change({{view: '{view}'}})")
            assert page.run("document.querySelector('main').textContent.length") > 40
            assert page.run("document.documentElement.scrollWidth") <= width, view
    page.resize(1440, 900)


HOSTILE = "</script><script>hacked=1</script><img src=x onerror=hacked=1>\x1b[31m\x1b]0;t\x07\u202ereversed\u2066\u200f"


def test_text_of_a_model_stays_inert(browser: Browser, tmp_path: Path):
    data = HOSTILE.encode()
    table = pd.DataFrame(
        {
            "question_id": [HOSTILE, HOSTILE],
            "prompt": [HOSTILE] * 2,
            "prompt_token_ids": [[1]] * 2,
            "token_ids": [list(data)] * 2,
            "logprobs": [[-0.5] * len(data)] * 2,
            "text": [HOSTILE] * 2,
            "answer": [HOSTILE] * 2,
            "reference": [HOSTILE] * 2,
            "reward": [1.0, 0.0],
        }
    )
    table.to_parquet(tmp_path / "foreign.parquet")
    out = tmp_path / "report.html"
    report.run(Config(paths=(tmp_path / "foreign.parquet",), out=out))
    browser.open(f"file://{out}")
    for view in ("overview", "questions", "reader", "tree", "grades"):
        browser.run(f"report.change({{view: '{view}'}})")
        assert browser.run("document.querySelectorAll('#app script, #app img').length") == 0
        shown = browser.run("document.getElementById('app').textContent")
        assert not set("\x1b\x07\u202e\u2066\u200f") & set(shown)
        if view == "reader":
            assert "␛" in shown
            assert "\\u202e" in shown
    assert browser.run("typeof hacked") == "undefined"
    assert browser.console == []


def test_five_thousand_responses_take_at_most_15_megabytes_and_are_ready_within_two_seconds(
    browser: Browser, tmp_path: Path
):
    rng, count, length = np.random.default_rng(0), 5000, 300
    words = rng.integers(97, 123, (count, length))
    logprobs = np.where(rng.random((count, length)) < 0.2, np.log(rng.random((count, length))), -1e-4 * rng.random())
    table = pd.DataFrame(
        {
            "question_id": [f"q{i // 8}" for i in range(count)],
            "prompt_token_ids": [[1]] * count,
            "token_ids": list(words.astype(np.int32)),
            "logprobs": list(logprobs.astype(np.float32)),
            "text": [bytes(row.tolist()).decode() for row in words],
            "reference": ["1"] * count,
            "reward": (rng.random(count) < 0.5).astype(np.float32),
        }
    )
    table.to_parquet(tmp_path / "foreign.parquet")
    out = tmp_path / "report.html"
    assert report.run(Config(paths=(tmp_path / "foreign.parquet",), out=out)).rows == count
    assert out.stat().st_size <= 15e6
    browser.call("Performance.enable")
    seconds = []
    for _ in range(3):
        browser.open(f"file://{out}#view=reader")
        metrics = {entry["name"]: entry["value"] for entry in browser.call("Performance.getMetrics")["metrics"]}
        seconds.append(metrics["ThreadTime"])  # processor time of the page's thread: the clock would measure the load
    assert min(seconds) <= 2
    assert browser.run("document.querySelectorAll('.item').length") < 60  # rows in view alone exist
