"""Lineage: it is read back as written, equal for the same work, and different where results can differ."""

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
def test_a_lineage_survives_a_round_trip_through_json(
    temperature: float, seed: int, counts: dict, inputs: list[Source], summary: dict
):
    work = lineage(Settings(temperature=temperature, seed=seed), inputs=tuple(inputs)).at(3, 8)
    finished = dataclasses.replace(work, counts=counts, summary=summary)
    text = finished.to_json()
    assert Lineage.from_json(text) == finished
    assert Lineage.from_json(text).to_json() == text


def test_the_fingerprint_depends_on_everything_that_can_change_the_rows():
    same = lineage()
    others = [
        lineage(Settings(temperature=0.6)),
        lineage(Settings(seed=1)),
        lineage(schema=CUTPOINTS),
        lineage(schema=dataclasses.replace(TRAJECTORIES, version=TRAJECTORIES.version + 1)),
        lineage(inputs=(Source("a", "f0"),)),
        lineage(model=Source("models/tiny", "m1", "model")),
        lineage(model=None),
        same.at(0, 1),
        same.at(0, 2),
    ]
    assert len({work.fingerprint for work in [same, *others]}) == 1 + len(others)


def test_the_fingerprint_ignores_paths_batch_sizes_and_number_formats():
    assert lineage(Settings(batch=99)).fingerprint == lineage().fingerprint
    assert lineage(model=Source("elsewhere", "m0", "model")).fingerprint == lineage().fingerprint
    assert lineage(Settings(temperature=1)) == lineage(Settings(temperature=1.0))  # a recipe may say 1


def test_differences_are_readable_lines():
    found = lineage(inputs=(Source("../cuts", "f0", "segment"),)).at(0, 2)
    requested = lineage(
        Settings(temperature=0.6), inputs=(Source("../cuts", "f1", "segment"),), model=Source("other", "m1", "model")
    ).at(1, 2)
    assert differences(found, requested) == [
        "temperature: found 1.0, requested 0.6",
        "part: found 0/2, requested 1/2",
        "segment: ../cuts has changed since",
        "model: found models/tiny, requested other",
    ]
    assert differences(found, found) == []


def test_a_changed_task_names_its_data_and_the_code_of_the_reward():
    found, requested = (lineage(inputs=(Source("../mine.jsonl", digest, "task"),)) for digest in ("f0", "f1"))
    assert differences(found, requested) == ["task: ../mine.jsonl, or the code of the reward, has changed since"]


def test_an_option_that_is_missing_in_the_older_lineage_is_named():
    requested = lineage()
    found = dataclasses.replace(requested, config={"temperature": 1.0})
    assert differences(found, requested) == ["seed: found nothing, requested 0"]


def test_only_versions_of_used_packages_are_recorded():
    assert set(lineage().versions) == {"spo-cli"}
    used = describe("rollout", TRAJECTORIES, Settings(), model=TINY, packages=("pyarrow",))
    assert set(used.versions) == {"spo-cli", "pyarrow"}
    assert used.fingerprint == lineage().fingerprint


def test_numpy_numbers_and_nan_become_plain_json():
    work = dataclasses.replace(lineage(), summary={"a": np.float32(0.5), "b": float("nan"), "c": (np.int64(1),)})
    assert Lineage.from_json(work.to_json()).summary == {"a": 0.5, "b": None, "c": [1]}


def test_local_models_are_relative_paths_and_hub_models_are_names(tmp_path: Path):
    (tmp_path / "model").mkdir()
    assert model_source(tmp_path / "model", "d", tmp_path / "runs" / "out").path == "../../model"
    assert model_source("org/model", "d", tmp_path).path == "org/model"


def test_the_data_of_a_task_is_a_relative_path_like_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "questions.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    for spelling in ("questions.jsonl", str(tmp_path / "questions.jsonl")):
        assert task_source("gsm8k", spelling, "d", Path("runs/out")) == Source("../../questions.jsonl", "d", "task")
    assert task_source("gsm8k", "openai/gsm8k", "d", tmp_path).path == "openai/gsm8k"
    assert task_source("arithmetic", None, "d", tmp_path).path == "arithmetic"


def test_combined_fingerprints_depend_on_the_order_and_a_single_one_is_unchanged():
    assert combine(["a"]) == "a"
    assert len({combine(["a", "b"]), combine(["b", "a"]), combine(["ab"]), combine([])}) == 4


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"stage": "rollout"}', "null", "\x00"])
def test_text_that_is_not_a_lineage_is_refused(text: str):
    with pytest.raises(UserError, match="lineage"):
        Lineage.from_json(text)
