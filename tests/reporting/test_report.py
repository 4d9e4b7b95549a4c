"""`spo report`: what it finds, what it leaves out and says so, where it writes, and its JSON twin."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from spo_cli.app import main
from stages.configs.report import Config
from stages.core.errors import UserError
from stages.reporting import page, report
from tests.chains import rows


def test_the_twin_has_every_response_and_advantage_of_a_run(chain: Path, tmp_path: Path):
    out = tmp_path / "report.html"
    summary = report.run(Config(paths=(chain,), out=out, json=True))
    twin = json.loads(out.with_suffix(".json").read_text())
    trajectories, advantages = rows(chain / "trajectories"), rows(chain / "advantages")
    assert summary.rows == len(trajectories) == len(twin["rows"]["name"])
    assert twin["rows"]["name"] == [row["trajectory_id"] for row in trajectories]
    assert twin["columns"]["row.reward"] == [row["reward"] for row in trajectories]
    assert sorted(twin["columns"]["segment.advantage"]) == sorted(row["advantage"] for row in advantages)
    words, first = twin["words"], twin["columns"]["row.first"]
    tokens = twin["columns"]["token.word"][first[0] : first[1]]
    assert "".join(words[one] for one in tokens).startswith(trajectories[0]["text"])
    assert twin["tables"][0]["options"]["estimator"] == "monte-carlo"


def test_a_single_artefact_is_shown_with_what_it_was_made_from(chain: Path, tmp_path: Path):
    for name, valued in (("trajectories", False), ("cutpoints", False), ("advantages", True)):
        out = tmp_path / f"{name}.html"
        report.run(Config(paths=(chain / name,), out=out, json=True))
        (table,) = json.loads(out.with_suffix(".json").read_text())["tables"]
        assert table["advantages"] is valued
        assert table["segments"] is (name != "trajectories")


def test_a_partial_report_names_the_rule_that_chose_its_questions(chain: Path, tmp_path: Path):
    out = tmp_path / "report.html"
    summary = report.run(Config(paths=(chain,), out=out, json=True, max_trajectories=13))
    twin = json.loads(out.with_suffix(".json").read_text())
    assert summary.rows == 12  # whole questions of 4 responses each
    assert len(set(twin["columns"]["row.question"])) == 3
    assert "12 of 48 responses are shown" in twin["rule"]
    assert twin["rule"] in summary.notes


def test_a_report_is_replaced_only_on_request_and_another_file_never(chain: Path, tmp_path: Path):
    out = tmp_path / "report.html"
    report.run(Config(paths=(chain,), out=out))
    with pytest.raises(UserError, match="--overwrite"):
        report.run(Config(paths=(chain,), out=out))
    before = out.read_bytes()
    report.run(Config(paths=(chain,), out=out, overwrite=True))
    assert out.read_bytes() == before
    out.write_text("<!doctype html> my own page")
    with pytest.raises(UserError, match="was not written by"):
        report.run(Config(paths=(chain,), out=out, overwrite=True))


def test_nothing_to_show_is_an_error_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path)])
    assert ended.value.code == 2
    assert "contains no complete trajectories, evaluation or audit" in capsys.readouterr().err


def test_the_policy_of_the_page_allows_its_own_script_and_style_alone(chain: Path, tmp_path: Path):
    out = tmp_path / "report.html"
    report.run(Config(paths=(chain,), out=out))
    text = out.read_text()
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    assert policy.startswith("default-src &#x27;none&#x27;; script-src &#x27;sha256-")
    assert "unsafe" not in policy
    assert not re.findall(r'(?:src|href)="', text)


def test_the_scripts_join_without_imports_and_with_distinct_names():
    script = page.join_scripts("main.js")
    assert not re.search(r"^(import|export) ", script, re.MULTILINE)
    for path in sorted((Path(page.__file__).parent / "page").glob("*.js")):
        assert path.read_text().startswith("// "), f"{path.name} does not say what it does"
