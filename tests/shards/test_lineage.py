"""What a part says of itself: read back as written, the same for the same work, different where results could be."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import UserError
from stages.shards.lineage import Lineage, Source, combine, describe, differences, model_source, task_source
from stages.shards.schemas import CUTPOINTS, TRAJECTORIES
from tests.shards.samples import TINY, Settings, lineage

FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@given(
    temperature=FLOATS,
    seed=st.integers(0, 2**63),
    counts=st.dictionaries(st.text(), st.integers()),
    inputs=st.lists(st.builds(Source, st.text(), st.text(), st.text())),
    summary=st.dictionaries(st.text(), st.one_of(FLOATS, st.text(), st.none(), st.lists(st.booleans()))),
)
def test_json_round_trip(temperature: float, seed: int, counts: dict, inputs: list[Source], summary: dict):
    work = lineage(Settings(temperature=temperature, seed=seed), inputs=tuple(inputs)).at(3, 8)
    whole = dataclasses.replace(work, counts=counts, summary=summary)
    text = whole.to_json()
    assert Lineage.from_json(text) == whole
    assert Lineage.from_json(text).to_json() == text


def test_the_fingerprint_knows_what_can_change_the_rows():
    same = lineage()
    others = [
        lineage(Settings(temperature=0.6)),
        lineage(Settings(seed=1)),
        lineage(schema=CUTPOINTS),
        lineage(schema=dataclasses.replace(TRAJECTORIES, version=2)),
        lineage(inputs=(Source("a", "f0"),)),
        lineage(model=Source("models/tiny", "m1", "model")),
        lineage(model=None),
        same.at(0, 1),
        same.at(0, 2),
    ]
    assert len({work.fingerprint for work in [same, *others]}) == 1 + len(others)


def test_the_fingerprint_does_not_know_paths_batches_and_how_a_number_is_written():
    assert lineage(Settings(batch=99)).fingerprint == lineage().fingerprint
    assert lineage(model=Source("elsewhere", "m0", "model")).fingerprint == lineage().fingerprint
    assert lineage(Settings(temperature=1)) == lineage(Settings(temperature=1.0))  # a recipe may say 1


def test_differences_are_lines_a_user_understands():
    there = lineage(inputs=(Source("../cuts", "f0", "segment"),)).at(0, 2)
    asked = lineage(
        Settings(temperature=0.6), inputs=(Source("../cuts", "f1", "segment"),), model=Source("other", "m1", "model")
    ).at(1, 2)
    assert differences(there, asked) == [
        "temperature: found 1.0, requested 0.6",
        "part: found 0/2, requested 1/2",
        "segment: ../cuts has changed since",
        "model: found models/tiny, requested other",
    ]
    assert differences(there, there) == []


def test_a_task_is_its_data_and_the_reward_that_goes_with_them():
    there, asked = (lineage(inputs=(Source("../mine.jsonl", digest, "task"),)) for digest in ("f0", "f1"))
    assert differences(there, asked) == ["task: ../mine.jsonl, or the code of the reward, has changed since"]


def test_an_option_that_an_older_version_did_not_have_is_named():
    asked = lineage()
    there = dataclasses.replace(asked, config={"temperature": 1.0})
    assert differences(there, asked) == ["seed: found nothing, requested 0"]


def test_versions_only_of_what_was_used():
    assert set(lineage().versions) == {"spo-cli"}
    used = describe("rollout", TRAJECTORIES, Settings(), model=TINY, packages=("pyarrow",))
    assert set(used.versions) == {"spo-cli", "pyarrow"}
    assert used.fingerprint == lineage().fingerprint


def test_numpy_numbers_and_undefined_ones_are_plain_json():
    work = dataclasses.replace(lineage(), summary={"a": np.float32(0.5), "b": float("nan"), "c": (np.int64(1),)})
    assert Lineage.from_json(work.to_json()).summary == {"a": 0.5, "b": None, "c": [1]}


def test_local_models_are_relative_to_the_work_and_hub_models_named(tmp_path: Path):
    (tmp_path / "model").mkdir()
    assert model_source(tmp_path / "model", "d", tmp_path / "runs" / "out").path == "../../model"
    assert model_source("org/model", "d", tmp_path).path == "org/model"


def test_the_place_of_the_data_is_told_as_that_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "questions.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    for spelling in ("questions.jsonl", str(tmp_path / "questions.jsonl")):
        assert task_source("gsm8k", spelling, "d", Path("runs/out")) == Source("../../questions.jsonl", "d", "task")
    assert task_source("gsm8k", "openai/gsm8k", "d", tmp_path).path == "openai/gsm8k"
    assert task_source("arithmetic", None, "d", tmp_path).path == "arithmetic"


def test_one_fingerprint_is_itself_and_order_counts():
    assert combine(["a"]) == "a"
    assert len({combine(["a", "b"]), combine(["b", "a"]), combine(["ab"]), combine([])}) == 4


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"stage": "rollout"}', "null", "\x00"])
def test_what_is_no_lineage_is_refused(text: str):
    with pytest.raises(UserError, match="lineage"):
        Lineage.from_json(text)
