"""Every common reader of Parquet opens an artefact, and answers the questions of `examples/inspect_run.py` alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas
import pytest

from examples import inspect_run
from stages.shards.schemas import BY_STAGE
from tests.chains import ARITHMETIC, footer, rows, sample

polars = pytest.importorskip("polars", reason="needs the extra dev")
duckdb = pytest.importorskip("duckdb", reason="needs the extra dev")
datasets = pytest.importorskip("datasets", reason="needs the extra dev")


@pytest.fixture(scope="module")
def run(chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with one iteration of a real chain, and evaluations before and after it with known rewards."""
    here = tmp_path_factory.mktemp("readers")
    for name in ("trajectories", "cutpoints", "advantages", "_logs"):
        shutil.copytree(chain / name, here / "000" / name)
    rewards = {"start": [0, 1, 0, 1, 1], "000": [1, 0, 0, 1, 1], "001": [1, 0, 1, 1, 0]}  # of samples a0 b0 c0 c1 d0
    for iteration, values in rewards.items():
        (here / iteration / "eval").mkdir(parents=True)
        table = pandas.DataFrame({"question_id": ["a", "b", "c", "c", "d"], "reward": [float(one) for one in values]})
        table.to_parquet(here / iteration / "eval" / "part-00000-of-00001.parquet")
    return here


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let datasets keep its copies in a directory of the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("name", ["trajectories", "cutpoints", "advantages"])
def test_four_readers_open_the_same_artefact(run: Path, name: str):
    directory = run / "000" / name
    expected = rows(directory)
    assert expected
    assert [*expected[0]] == [
        *BY_STAGE[{"trajectories": "rollout", "cutpoints": "segment"}.get(name, "estimate")].names
    ]
    assert polars.read_parquet(directory).to_dicts() == expected
    found = duckdb.sql(f"FROM '{directory}/*.parquet'").to_arrow_table()
    assert found.to_pylist() == expected
    assert datasets.load_dataset("parquet", data_dir=str(directory), split="train").to_list() == expected
    frame = pandas.read_parquet(directory)
    assert [*frame.columns] == [*expected[0]]
    assert frame.iloc[:, 0].tolist() == [next(iter(row.values())) for row in expected]


def test_a_directory_of_an_artefact_holds_parts_only(run: Path):
    assert {path.name for path in (run / "000").rglob("*") if path.is_file() and "_logs" not in path.parts} == {
        "part-00000-of-00001.parquet"
    }
    assert (run / "000" / "_logs" / "advantages" / "part-00000-of-00001.log").read_text().count("finished: ") == 1


def test_four_readers_answer_alike(run: Path):
    expected = inspect_run.with_pandas(run, "000")
    assert expected.flips == [
        ("a", "000", "learned"),
        ("b", "000", "forgotten"),
        ("d", "001", "forgotten"),
    ]  # c is right from the start on: half of its responses are
    responses = {row["trajectory_id"]: row["token_ids"] for row in rows(run / "000" / "trajectories")}
    segments = rows(run / "000" / "advantages")
    cutpoints = [responses[row["trajectory_id"]][offset] for row in segments for offset in row["cutpoints"]]
    token, count = expected.cutpoint_tokens[0]
    assert cutpoints.count(token) == count == max(map(cutpoints.count, set(cutpoints)))
    assert sum(count for _, count, _ in expected.by_position) == len(segments)
    trained = sum(len(row["cutpoints"]) for row in segments if row["advantage"])
    assert 0 < trained < len(cutpoints)
    assert expected.share_with_gradient == trained / sum(map(len, responses.values()))
    for reader in (inspect_run.with_polars, inspect_run.with_duckdb, inspect_run.with_datasets):
        found = reader(run, "000")
        assert found.flips == expected.flips
        assert found.cutpoint_tokens == expected.cutpoint_tokens
        assert [one[:2] for one in found.by_position] == [one[:2] for one in expected.by_position]
        assert [one[2] for one in found.by_position] == pytest.approx([one[2] for one in expected.by_position])
        assert found.share_with_gradient == pytest.approx(expected.share_with_gradient)


def test_policy_and_seed_are_read_from_the_footers(run: Path):
    directory = run / "000" / "trajectories"
    lineage = footer(directory / "part-00000-of-00001.parquet")
    query = f"""
        SELECT (decode(value)::JSON ->> '$.model.fingerprint'), (decode(value)::JSON ->> '$.seed')::INT
        FROM parquet_kv_metadata('{directory}/*.parquet') WHERE key = 'spo'"""
    assert duckdb.sql(query).fetchall() == [(lineage["model"]["fingerprint"], lineage["seed"])]
    metadata = polars.read_parquet_metadata(directory / "part-00000-of-00001.parquet")
    assert json.loads(metadata["spo"]) == lineage
    assert metadata["spo"].startswith('{\n  "config": {\n')


def test_the_texts_of_tokens_are_written_on_request(policy: Path, tmp_path: Path):
    sample(tmp_path / "plain", policy, num_questions=2, num_generations=1, **ARITHMETIC)
    sample(tmp_path / "texts", policy, num_questions=2, num_generations=1, token_texts=True, **ARITHMETIC)
    assert "token_texts" not in footer(tmp_path / "plain" / "part-00000-of-00001.parquet")["config"]
    for plain, row in zip(rows(tmp_path / "plain"), rows(tmp_path / "texts"), strict=True):
        texts = row.pop("token_texts")
        assert row == plain
        assert len(texts) == len(row["token_ids"])
        ended = row["finish_reason"] == "stop"
        assert "".join(texts[: -1 if ended else None]) == row["text"]
