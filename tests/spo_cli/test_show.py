"""`spo show` on a small real run, with the values computed by hand in artefacts.py."""

import dataclasses
import json
import shutil
from pathlib import Path

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spo_cli.app import main
from stages.shards.lineage import Source, describe, write_lineage
from stages.shards.schemas import BY_STAGE, EVALUATION, TOKEN_METRICS
from tests.chains import value
from tests.spo_cli.artefacts import RESPONSES, Options, write


def show(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the output of a successful `spo show`, without trailing spaces."""
    with pytest.raises(SystemExit) as exited:
        main(["show", *map(str, arguments)])
    captured = capsys.readouterr()
    assert (exited.value.code, captured.err) == (0, "")
    return "\n".join(line.rstrip() for line in captured.out.splitlines())


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[object, str]:
    """Return the exit code and stderr of a `spo show` that fails."""
    with pytest.raises(SystemExit) as exited:
        main(["show", *map(str, arguments)])
    return exited.value.code, capsys.readouterr().err


def statistics(capsys: pytest.CaptureFixture[str], path: Path) -> dict:
    return json.loads(show(capsys, path, "--json"))["statistics"]


def test_an_artefact_is_shown_with_lineage_statistics_and_an_example_trajectory(run_directory, capsys):
    text = show(capsys, run_directory / "000" / "advantages")
    assert text.index("lineage") < text.index("statistics of 1 part") < text.index("trajectory\n")
    # q0/1 has the advantage of largest magnitude: its wrong token 6 in place of 5
    assert "q0/1  reward 0  answer 6  reference 5  finish reason stop  tokens 6" in text
    assert "prompt  ask q0:" in text
    assert "  0  0.50 → 0.75  +0.25  4  ‹2›+3=\n" in text
    assert "  1  0.75 → 0.00  -0.75  4  ‹6›<|endoftext|>\n" in text


def test_the_lineage_leads_back_to_the_task(run_directory, capsys):
    text = show(capsys, run_directory / "000" / "advantages")
    tree = text.split("\n\n")[0].strip().splitlines()
    fingerprints = {path.name: json.loads(show(capsys, path, "--json"))["fingerprint"][:8]
                    for path in [*(run_directory / "000").glob("[!_]*"), run_directory / "start"]}  # fmt: skip
    assert tree == [
        "lineage",
        f"estimate  {fingerprints['advantages']}  runs/demo/000/advantages  seed 3, temperature 0.7",
        f"├── segment  {fingerprints['cutpoints']}  runs/demo/000/cutpoints  seed 3, temperature 0.7",
        f"│   └── rollout  {fingerprints['trajectories']}  runs/demo/000/trajectories  seed 3, temperature 0.7",
        "│       ├── task  7a5c7a5c  arithmetic",
        f"│       └── sft  {fingerprints['start']}  runs/demo/start  seed 3, temperature 0.7",
        "│           └── task  7a5c7a5c  arithmetic",
        f"├── rollout  {fingerprints['trajectories']}  runs/demo/000/trajectories  as above",
        f"└── sft  {fingerprints['start']}  runs/demo/start  as above",
    ]


def test_the_lineage_stops_at_the_requested_depth(run_directory, capsys):
    text = show(capsys, run_directory / "000" / "advantages", "--depth", "0")
    assert "…" in text
    assert "task" not in text


def test_an_option_at_its_default_is_not_part_of_the_lineage_shown():
    from spo_cli.ancestry import _chosen_options
    from stages.rollout import Config
    from stages.shards.lineage import describe

    config = Config(model="m", task="arithmetic", out=Path("o"), temperature=0.6)
    assert _chosen_options(describe("rollout", None, config)) == "task arithmetic, temperature 0.6"


def test_a_moved_input_is_reported_as_missing(run_directory, capsys):
    shutil.move(run_directory / "000" / "trajectories", "elsewhere")
    text = show(capsys, run_directory / "000" / "cutpoints")
    assert "../trajectories (no longer exists)" in text
    assert "no trajectory drawn: the trajectories of" in text
    code, err = refused(capsys, run_directory / "000" / "cutpoints", "--row", "0")
    assert code == 2
    assert "--trajectories PATH" in err
    drawn = show(capsys, run_directory / "000" / "cutpoints", "--row", "0", "--trajectories", "elsewhere")
    assert "‹2›+3" in drawn


def test_an_input_that_is_not_a_table_or_is_truncated_is_named_and_not_followed(run_directory, capsys):
    model = run_directory / "start"
    (model / "optimizer.state").write_bytes(b"\xc0 no Parquet")
    state = Source("optimizer.state", "5747" * 8, "optimizer")
    write_lineage(model, describe("train", None, Options(), (state,)))
    assert "└── optimizer  57475747  runs/demo/start/optimizer.state" in show(capsys, model)
    part = run_directory / "000" / "trajectories" / "part-00000-of-00002.parquet"
    part.write_bytes(part.read_bytes()[:100])
    assert "└── rollout" in show(capsys, run_directory / "000" / "cutpoints")


def test_statistics_of_trajectories(run_directory, capsys):
    assert statistics(capsys, run_directory / "000" / "trajectories") == {
        "rows": 4,
        "questions": 2,
        "reward": {"mean": 0.25, "standard_error": 0.25},  # means 1/2 and 0: std √(1/8), over √2
        "questions_with_equal_rewards": 0.5,
        "response_length": {"mean": 5.0, "median": 5.0, "min": 4, "max": 6},
        "finish_reasons": {"stop": 4},
        "tokens": 20,
    }


def test_statistics_of_advantages(run_directory, capsys):
    found = statistics(capsys, run_directory / "000" / "advantages")
    assert found["trajectories"] == 4
    assert found["segments_per_trajectory"] == {"mean": 1.75, "median": 2.0, "min": 1, "max": 2}
    assert found["cutpoints_per_trajectory"] == {"mean": 1.25, "median": 1.5, "min": 0, "max": 2}
    assert found["share_of_tokens_that_are_cutpoints"] == 0.25
    assert found["boundaries_estimated"] == 5
    assert found["rollouts_per_boundary"] == {"mean": 4.0, "median": 4.0, "min": 4, "max": 4}
    assert found["value_at_those_boundaries"]["mean"] == 0.5  # 0.5 0.75 0.5 0.75 0
    assert found["advantage"]["mean"] == 0.0  # 0.25 0.25 0.25 −0.75 0 0 0
    assert found["advantage"]["std"] == pytest.approx((0.75 / 7) ** 0.5)
    assert found["share_of_advantages_that_are_zero"] == pytest.approx(3 / 7)
    assert found["reward_of_the_trajectories"]["mean"] == 0.25


def test_statistics_of_an_evaluation_cover_all_parts(run_directory, capsys):
    more = {"task": "t", "subject": None, "level": None, "max_tokens": 8}
    responses = [
        {**row, **more, "response_id": row["trajectory_id"], "sample": i % 2} for i, row in enumerate(RESPONSES)
    ]
    write(Path("eval"), EVALUATION, [responses[:2], responses[2:]])
    found = statistics(capsys, Path("eval"))
    assert found["avg@2"] == {"mean": 0.25, "standard_error": 0.25}
    assert found["pass@2"] == {"mean": 0.5, "standard_error": 0.5}
    assert "avg@2                         0.25 ± 0.25" in show(capsys, "eval")


def test_an_artefact_without_rows_is_shown(run_directory, capsys):
    for schema in BY_STAGE.values():
        write(Path("empty") / schema.stage, schema, [[]])
        assert "rows  0" in show(capsys, Path("empty") / schema.stage)


@pytest.mark.parametrize(
    ("arguments", "drawn"),
    [
        (["--trajectory", "q1/1"], "q1/1  reward 0"),
        (["--row", "0"], "q0/0  reward 1"),
        (["--row", "2"], "q0/1  reward 0"),  # row 2 is the first segment of q0/1
    ],
)
def test_the_requested_trajectory_is_drawn(run_directory, capsys, arguments, drawn):
    assert drawn in show(capsys, run_directory / "000" / "cutpoints", *arguments)


def test_a_character_of_several_tokens_is_drawn_once(run_directory, capsys):
    text = show(capsys, run_directory / "000" / "cutpoints", "--trajectory", "q1/1")
    assert "  0  é\n" in text
    assert "  1  ‹3›<|endoftext|>\n" in text


def test_a_single_part_is_shown_even_when_others_are_missing(run_directory, capsys):
    directory = run_directory / "000" / "trajectories"
    (directory / "part-00000-of-00002.parquet").unlink()
    code, err = refused(capsys, directory)
    assert code == 3
    assert "part 0 of 2 is missing" in err
    text = show(capsys, directory / "part-00001-of-00002.parquet")
    assert "rows                          2" in text
    assert "q1/0  reward 0" in text


def test_a_model_directory_is_shown_with_its_lineage_and_last_metrics(run_directory, capsys):
    model = run_directory / "start"
    (model / "metrics.jsonl").write_text('{"loss": 2.5}\n{"loss": 1.5, "kl": 0.25}\n')
    text = show(capsys, model)
    assert "└── task  7a5c7a5c  arithmetic" in text
    assert "architecture          Qwen2ForCausalLM" in text
    assert "last step             loss 1.5  kl 0.25" in text
    assert json.loads(show(capsys, model, "--json"))["stage"] == "sft"


def test_samples_excluded_from_training_are_counted(run_directory, capsys):
    model = run_directory / "start"
    counts = {"trajectories": 96, "tokens": 5000, "waiting": 40, "aged_out": 7, "crowded_out": 0}
    write_lineage(model, dataclasses.replace(describe("train", None, Options()), counts=counts))
    assert statistics(capsys, model)["counted"] == {"trajectories": 96, "waiting": 40, "aged_out": 7}
    assert "counted               trajectories 96  waiting 40  aged_out 7" in show(capsys, model)


def test_sampled_and_saved_rollouts_are_summed_over_all_parts(chain, tmp_path, capsys):
    given = {"rollouts": "2..6", "interval_width": 0.5}
    figures = value(tmp_path / "advantages", chain / "cutpoints", **given).figures
    counted = statistics(capsys, tmp_path / "advantages")["counted"]
    names = ("states", "rollouts", "rollouts_saved")
    assert {name: counted[name] for name in names} == {name: figures[name] for name in names}


def test_a_run_lists_its_complete_and_partial_artefacts(run_directory, capsys):
    (run_directory / "000" / "trajectories" / "part-00001-of-00002.parquet").unlink()
    unfinished = run_directory / "001" / "trajectories" / ".part-00000-of-00001"
    unfinished.mkdir(parents=True)
    lines = [" ".join(line.split()) for line in show(capsys, run_directory, "--files").splitlines()]
    assert lines[1:8] == [
        "runs/demo",
        "path made by state rows reward",
        "start spo sft complete",
        "000/trajectories spo rollout partial",
        "000/cutpoints spo segment complete 7",
        "000/advantages spo estimate complete 7",
        "001/trajectories partial",
    ]
    assert "part 1 of 2 is missing" in lines[8]
    entries = json.loads(show(capsys, "runs", "--json"))
    assert entries[0]["path"] == "demo/start"
    assert {entry["state"] for entry in entries} == {"complete", "partial"}


def test_an_unreadable_table_does_not_hide_the_others(run_directory, capsys):
    (run_directory / "002").mkdir()
    foreign = pandas.DataFrame({"prompt_token_ids": [[1]], "token_ids": [[2]], "logprobs": [[-0.5]]})
    foreign.to_parquet(run_directory / "002" / "rows.parquet")
    text = show(capsys, run_directory, "--files")
    assert "000/advantages" in text
    assert "lacks the column reward" in text


def test_the_list_of_a_run_contains_the_reward(run_directory, capsys):
    lines = [line.split() for line in show(capsys, run_directory, "--files").splitlines()]
    assert ["000/trajectories", "spo", "rollout", "complete", "4", "0.25"] in lines


def test_the_schema_describes_every_column(run_directory, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    all_schemas = show(capsys, "--schema")
    cutpoints = show(capsys, run_directory / "000" / "cutpoints", "--schema")
    for schema in BY_STAGE.values():
        assert all(column.doc in all_schemas for column in schema.columns)
    assert cutpoints.splitlines()[0] == "cutpoints, made by spo segment, version 2"
    assert "advantage" not in cutpoints


def test_rows_of_another_tool_are_shown_without_lineage(run_directory, capsys):
    columns = ["prompt", "prompt_token_ids", "token_ids", "logprobs", "text", "reward", "reference"]
    pandas.DataFrame(RESPONSES)[columns].to_parquet("foreign.parquet")
    text = show(capsys, "foreign.parquet")
    assert "no lineage: made by another tool" in text
    assert "questions                     2" in text
    assert "‹2›+3‹=›5<end>" in text  # without a tokenizer, the text is split into one byte per token


def test_tokens_without_a_tokenizer_are_shown_as_ids(run_directory, capsys):
    table = pa.table({"prompt_token_ids": [[1]], "token_ids": [[7, 8]], "logprobs": [[-0.01, -0.5]], "reward": [1.0]})
    pq.write_table(table, "foreign.parquet")
    text = show(capsys, "foreign.parquet")
    assert "7 ‹8 ›" in text
    assert "The tokenizer is not available" in text


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "expected PATH"),
        (["nowhere"], "nowhere does not exist"),
        (["runs/demo/000/cutpoints", "--trajectory", "q9/9"], "has no trajectory 'q9/9'; its ids look like 'q0/0'"),
        (["runs/demo/000/cutpoints", "--row", "7"], "has 7 rows, the last is 6"),
        (["runs/demo/000/cutpoints", "--row", "1", "--trajectory", "x"], "exclude each other: pass one of them"),
        (["notes"], "contains no artefact, model directory or run"),
        (["notes/a.txt"], "is not a Parquet file"),
        (["table.parquet"], "is not a table of spo: its columns are a"),
    ],
)
def test_invalid_requests_are_reported_in_one_line(run_directory, capsys, arguments, line):
    Path("notes").mkdir()
    Path("notes/a.txt").write_text("hello")
    pq.write_table(pa.table({"a": [1]}), "table.parquet")
    code, err = refused(capsys, *arguments)
    assert code == 2
    assert line in err
    assert len(err.splitlines()) == 1


def test_token_metrics_are_described_and_not_listed(run_directory, capsys):
    tokens = {"step": 1, "trajectory_id": "q0/0", "age": 0, "position": 0, "token_id": 50, "old_logprob": -1.0}
    tokens |= {"new_logprob": -1.0, "sampler_logprob": -1.5, "entropy": 2.0, "ratio": 1.0, "clipped": False}
    rows = [
        tokens | {"advantage": 0.5},
        tokens | {"step": 2, "advantage": 0.5, "clipped": True, "sampler_logprob": None},
    ]
    write(Path("tokens"), TOKEN_METRICS, [rows])
    found = statistics(capsys, Path("tokens"))
    assert (found["steps"], found["trajectories"], found["share_of_tokens_that_are_clipped"]) == (2, 1, 0.5)
    assert found["log_probability_minus_that_of_the_sampler"]["mean"] == 0.5
    assert "no trajectory drawn: tokens holds single tokens" in show(capsys, "tokens").replace("\n", " ")
    with pytest.raises(SystemExit, match="2"):
        main(["show", "tokens", "--where", "step=1"])
    assert "holds single tokens, not responses" in capsys.readouterr().err
