"""`spo segment`: every partition on rows computed by hand, Parquet of other tools, and user-defined partitions."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages.configs.segment import Config
from stages.core.errors import FingerprintMismatch, IncompleteInput, UserError
from stages.models.presets import make_byte_tokenizer
from stages.shards.schemas import CUTPOINTS
from tests.chains import cut, footer, rows, sample
from tests.shards.samples import files

SURE, UNSURE = math.log(0.95), math.log(0.5)

RESPONSES = {
    #  cutpoints  . . U . U . . U . U
    "mixed": [SURE, SURE, UNSURE, SURE, UNSURE, SURE, SURE, UNSURE, SURE, UNSURE],
    "leading": [UNSURE, SURE, UNSURE, UNSURE],
    "certain": [SURE, SURE, SURE],
    "single": [UNSURE],
}
"""The log-probabilities of the tokens of each trajectory. `mixed` has 10 tokens and cutpoints 2, 4, 7 and 9."""

Cut = tuple[int, int, list[int]]
WORKED: list[tuple[dict[str, object], dict[str, list[Cut]]]] = [
    (
        # A segment begins at the first and the third cutpoint of each response.
        {"partition": "cutpoints", "interval": 2},
        {
            "mixed": [(0, 2, []), (2, 7, [2, 4]), (7, 10, [7, 9])],
            "leading": [(0, 3, [0, 2]), (3, 4, [3])],
            "certain": [(0, 3, [])],
            "single": [(0, 1, [0])],
        },
    ),
    (
        {"partition": "fixed", "segment_tokens": 4},
        {
            "mixed": [(0, 4, [2]), (4, 8, [4, 7]), (8, 10, [9])],
            "leading": [(0, 4, [0, 2, 3])],
            "certain": [(0, 3, [])],
            "single": [(0, 1, [0])],
        },
    ),
    (
        # 10 = 4 + 3 + 3; 4 = 2 + 1 + 1
        {"partition": "count", "num_segments": 3},
        {
            "mixed": [(0, 4, [2]), (4, 7, [4]), (7, 10, [7, 9])],
            "leading": [(0, 2, [0]), (2, 3, [2]), (3, 4, [3])],
            "certain": [(0, 1, []), (1, 2, []), (2, 3, [])],
            "single": [(0, 1, [0])],
        },
    ),
    (
        {"partition": "trajectory"},
        {
            "mixed": [(0, 10, [2, 4, 7, 9])],
            "leading": [(0, 4, [0, 2, 3])],
            "certain": [(0, 3, [])],
            "single": [(0, 1, [0])],
        },
    ),
    (
        {"partition": "token"},
        {
            "mixed": [(i, i + 1, [i] if i in (2, 4, 7, 9) else []) for i in range(10)],
            "leading": [(0, 1, [0]), (1, 2, []), (2, 3, [2]), (3, 4, [3])],
            "certain": [(0, 1, []), (1, 2, []), (2, 3, [])],
            "single": [(0, 1, [0])],
        },
    ),
    (
        # With rho = 0.4 no token is a cutpoint.
        {"partition": "cutpoints", "interval": 1, "rho": 0.4},
        {name: [(0, len(logprobs), [])] for name, logprobs in RESPONSES.items()},
    ),
]


def by_pandas(path: Path, **columns: object) -> Path:
    """Write trajectories with pandas: lists of int64 and double, without lineage."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_parquet(path)
    return path


@pytest.fixture
def worked(tmp_path: Path) -> Path:
    return by_pandas(
        tmp_path / "trajectories" / "all.parquet",
        trajectory_id=list(RESPONSES),
        token_ids=[list(range(65, 65 + len(logprobs))) for logprobs in RESPONSES.values()],
        logprobs=list(RESPONSES.values()),
    ).parent


def cuts(artefact: Path) -> dict[str, list[Cut]]:
    """Return (start, end, cutpoints) of each segment, by trajectory; check that segments are numbered from 0."""
    found: dict[str, list[Cut]] = {}
    for row in rows(artefact):
        segments = found.setdefault(row["trajectory_id"], [])
        assert row["segment_index"] == len(segments)
        segments.append((row["start"], row["end"], row["cutpoints"]))
    return found


@pytest.mark.parametrize(("options", "expected"), WORKED)
def test_partitions_match_segments_computed_by_hand(worked: Path, tmp_path: Path, options, expected):
    summary = cut(tmp_path / "cutpoints", worked, **options)
    assert cuts(tmp_path / "cutpoints") == expected
    assert summary.rows == sum(map(len, expected.values()))
    assert summary.figures["segments per trajectory"] == summary.rows / 4


def test_a_probability_equal_to_rho_is_not_a_cutpoint(tmp_path: Path):
    source = by_pandas(tmp_path / "in.parquet", trajectory_id=["a"], token_ids=[[1, 2]], logprobs=[[0.0, -1e-6]])
    cut(tmp_path / "out", source, rho=1.0, partition="trajectory")
    assert cuts(tmp_path / "out") == {"a": [(0, 2, [1])]}


def test_missing_ids_are_derived_from_the_prompts(tmp_path: Path):
    tokens = {"token_ids": [[65], [66, 67], [68]], "logprobs": [[SURE], [SURE, SURE], [UNSURE]]}
    by_pandas(tmp_path / "in" / "0.parquet", prompt_token_ids=[[1, 2], [3], [1, 2]], **tokens)
    by_pandas(tmp_path / "in" / "1.parquet", prompt_token_ids=[[3], [3], [3]], **tokens)
    cut(tmp_path / "out", tmp_path / "in", shard="0/1")
    names = [row["trajectory_id"].split("/") for row in rows(tmp_path / "out")]
    questions, numbers = [name[0] for name in names], [name[1] for name in names]
    assert numbers == ["0", "1", "2", "3", "4", "5"]
    assert questions[0] == questions[2] != questions[1] == questions[3] == questions[4]


def test_parquet_of_another_tool_is_accepted_and_reported_as_without_lineage(worked: Path, tmp_path: Path):
    summary = cut(tmp_path / "out", worked)
    assert summary.notes == (f"{worked} has no lineage: another tool wrote it",)
    assert list(pd.read_parquet(tmp_path / "out").columns) == list(CUTPOINTS.names)
    assert cut(tmp_path / "out", worked).up_to_date
    frame = pd.read_parquet(worked / "all.parquet").iloc[:2]
    frame.to_parquet(worked / "all.parquet")
    with pytest.raises(FingerprintMismatch, match="rollout"):
        cut(tmp_path / "out", worked)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"trajectory_id": ["a"], "token_ids": [[1]]}, r"lacks the column logprobs .*found: trajectory_id, token_ids"),
        ({"token_ids": [[1]], "logprobs": [[-1.0]]}, "lacks the column trajectory_id"),
        ({"trajectory_id": ["a", "b"], "token_ids": [[1], [1, 2]], "logprobs": [[-1.0], [-1.0]]}, "length: row 1"),
        ({"trajectory_id": ["a", "a"], "token_ids": [[1], [2]], "logprobs": [[-1.0], [-1.0]]}, "must be unique"),
        ({"trajectory_id": ["a"], "token_ids": [[1]], "logprobs": [[0.7]]}, "natural logs, at most 0"),
        ({"trajectory_id": ["a"], "token_ids": ["b"], "logprobs": [[-0.7]]}, "column token_ids"),
    ],
)
def test_invalid_columns_are_rejected(tmp_path: Path, columns, message):
    source = by_pandas(tmp_path / "in.parquet", **columns)
    with pytest.raises(UserError, match=message):
        cut(tmp_path / "out", source)
    assert not (tmp_path / "out").exists()


def test_an_input_of_another_stage_is_rejected_with_the_command_that_reads_it(chain: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"made by `spo segment`.*`spo estimate` reads it"):
        cut(tmp_path / "out", chain / "cutpoints")


def test_missing_parts_are_named(policy: Path, tmp_path: Path):
    for shard in (0, 2):
        sample(tmp_path / "in", policy, shard=f"{shard}/4")
    with pytest.raises(IncompleteInput, match=r"parts 1, 3 of 4 are missing in .*in: run `spo rollout`"):
        cut(tmp_path / "out", tmp_path / "in")
    with pytest.raises(IncompleteInput, match="does not exist"):
        cut(tmp_path / "out", tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


def test_parts_match_those_of_the_input_and_are_split_over_shards(policy: Path, tmp_path: Path):
    for shard in range(4):
        sample(tmp_path / "in", policy, shard=f"{shard}/4")
    cut(tmp_path / "whole", tmp_path / "in")
    assert [path.name for path in sorted((tmp_path / "whole").glob("*.parquet"))] == [
        path.name for path in sorted((tmp_path / "in").glob("*.parquet"))
    ]
    for shard in (2, 0, 1):
        cut(tmp_path / "shared", tmp_path / "in", shard=f"{shard}/3")
    assert files(tmp_path / "shared") == files(tmp_path / "whole")


def test_an_empty_input_part_gives_an_empty_part(policy: Path, tmp_path: Path):
    for shard in range(2):
        sample(tmp_path / "in", policy, num_questions=1, shard=f"{shard}/2")
    assert cut(tmp_path / "out", tmp_path / "in").rows == len(rows(tmp_path / "out")) >= 3
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 2


def test_segments_join_their_trajectories_completely(chain: Path):
    segments, trajectories = pd.read_parquet(chain / "cutpoints"), pd.read_parquet(chain / "trajectories")
    joined = segments.merge(trajectories, on="trajectory_id", validate="many_to_one")
    assert len(joined) == len(segments)
    assert set(segments["trajectory_id"]) == set(trajectories["trajectory_id"])
    for _, segment_rows in joined.groupby("trajectory_id"):
        assert segment_rows["start"].tolist() == [0, *segment_rows["end"].tolist()[:-1]]
        assert segment_rows["end"].iloc[-1] == len(segment_rows["token_ids"].iloc[0])
        below = np.flatnonzero(np.exp(segment_rows["logprobs"].iloc[0]) < 0.9)
        assert np.concatenate(segment_rows["cutpoints"].tolist()).tolist() == below.tolist()


@pytest.fixture(scope="module")
def bytes_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a model directory with a byte-level tokenizer."""
    from stages.models.presets import make_model

    directory = tmp_path_factory.mktemp("byte-model")
    make_model("tiny", 0)[0].save_pretrained(directory)
    make_byte_tokenizer().save_pretrained(directory)
    return directory


def written(path: Path, *texts: str) -> Path:
    """Write responses with one token per byte, followed by the end token."""
    ids = [[*text.encode(), 256] for text in texts]
    names = [f"r{i}" for i in range(len(texts))]
    return by_pandas(path, trajectory_id=names, token_ids=ids, logprobs=[[SURE] * len(row) for row in ids])


def test_a_delimiter_ends_a_segment_after_each_match(bytes_tokenizer: Path, tmp_path: Path):
    source = written(tmp_path / "in.parquet", "one\ntwo\n\n3", "\nx", "none", "end\n")
    cut(tmp_path / "out", source, partition="delimiter", tokenizer=str(bytes_tokenizer))
    assert {name: [(start, end) for start, end, _ in found] for name, found in cuts(tmp_path / "out").items()} == {
        "r0": [(0, 4), (4, 8), (8, 9), (9, 11)],
        "r1": [(0, 1), (1, 3)],
        "r2": [(0, 5)],
        "r3": [(0, 4), (4, 5)],
    }


def test_a_delimiter_may_be_any_pattern_and_any_character(bytes_tokenizer: Path, tmp_path: Path):
    source = written(tmp_path / "in.parquet", "a. b.c, d", "αβ。γδ。é")
    cut(tmp_path / "out", source, partition="delimiter", delimiter=r"[.,] |。", tokenizer=str(bytes_tokenizer))
    found = {name: [(start, end) for start, end, _ in segments] for name, segments in cuts(tmp_path / "out").items()}
    assert found["r0"] == [(0, 3), (3, 8), (8, 10)]
    assert found["r1"] == [(0, 7), (7, 14), (14, 17)]  # α β γ δ é are two bytes each, 。 is three


def test_the_delimiter_uses_the_tokenizer_of_the_sampling_model(chain: Path, tmp_path: Path):
    cut(tmp_path / "out", chain / "trajectories", partition="delimiter", delimiter="[;.,]")
    tokens = {row["trajectory_id"]: row["token_ids"] for row in rows(chain / "trajectories")}
    found = cuts(tmp_path / "out")
    assert any(len(segments) > 1 for segments in found.values())
    for name, segments in found.items():
        borders = [i + 1 for i, token in enumerate(tokens[name]) if chr(token) in ";.," and i + 1 < len(tokens[name])]
        assert [start for start, *_ in segments] == [0, *borders]


def test_a_delimiter_without_a_tokenizer_or_a_valid_pattern_is_rejected(bytes_tokenizer: Path, tmp_path: Path):
    source = written(tmp_path / "in.parquet", "a")
    with pytest.raises(UserError, match="pass --tokenizer MODEL"):
        cut(tmp_path / "out", source, partition="delimiter")
    with pytest.raises(UserError, match=r"^--delimiter must be a regular expression; got '\(' \(missing \)"):
        Config(trajectories=tmp_path / "unread", out=tmp_path / "out", partition="delimiter", delimiter="(")
    with pytest.raises(UserError, match="no model directory"):
        cut(tmp_path / "out", source, partition="delimiter", tokenizer="./nowhere")
    assert not (tmp_path / "out").exists()


FUNCTIONS = """
def thirds(token_ids, logprobs, cutpoints):
    assert len(token_ids) == len(logprobs)
    return range(0, len(token_ids), 3)

def at_cutpoints(token_ids, logprobs, cutpoints):
    return cutpoints

def nowhere(token_ids, logprobs, cutpoints):
    return []

def raising(token_ids, logprobs, cutpoints):
    raise KeyError("oops")


def exiting(token_ids, logprobs, cutpoints):
    raise SystemExit("enough")

def nothing(token_ids, logprobs, cutpoints):
    pass

def fractions(token_ids, logprobs, cutpoints):
    return [0.5]

def text(token_ids, logprobs, cutpoints):
    return "3"

def nested(token_ids, logprobs, cutpoints):
    return [[0], [1, 2]]

def falling(token_ids, logprobs, cutpoints):
    return [2, 1]

def outside(token_ids, logprobs, cutpoints):
    return [len(token_ids)]

def changing(token_ids, logprobs, cutpoints):
    token_ids[:] = 0
    return []
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a user's module to the working directory, and return its name."""
    (tmp_path / "my_cuts.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.modules.pop("my_cuts", None)
    return "my_cuts"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("thirds", {"mixed": [0, 3, 6, 9], "leading": [0, 3], "certain": [0], "single": [0]}),
        ("at_cutpoints", {"mixed": [0, 2, 4, 7, 9], "leading": [0, 2, 3], "certain": [0], "single": [0]}),
        ("nowhere", {"mixed": [0], "leading": [0], "certain": [0], "single": [0]}),
    ],
)
def test_a_user_defined_function_decides_where_segments_begin(
    functions: str, worked: Path, tmp_path: Path, name, expected
):
    cut(tmp_path / "out", worked, partition=f"{functions}:{name}")
    assert {name: [start for start, *_ in segments] for name, segments in cuts(tmp_path / "out").items()} == expected
    inputs = footer(tmp_path / "out" / "part-00000-of-00001.parquet")["inputs"]
    assert inputs[1]["path"] == f"{functions}:{name}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raising", r"my_cuts:raising failed: KeyError: 'oops'"),
        ("exiting", "my_cuts:exiting failed: SystemExit: enough"),
        ("nothing", "must return a list of token offsets; got None"),
        ("fractions", r"must return a list of token offsets; got \[0.5\]"),
        ("text", "must return a list of token offsets; got '3'"),
        ("nested", "my_cuts:nested"),
        ("falling", r"must increase and be in \[0, 10\)"),
        ("outside", r"must increase and be in \[0, 10\)"),
        ("changing", "my_cuts:changing failed: ValueError"),
        ("absent", "has no absent"),
    ],
)
def test_a_failing_function_is_a_user_error_and_nothing_is_written(
    functions: str, worked: Path, tmp_path: Path, name, message
):
    with pytest.raises(UserError, match=message):
        cut(tmp_path / "out", worked, partition=f"{functions}:{name}")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.parquet"))


def test_editing_the_function_changes_the_fingerprint(functions: str, worked: Path, tmp_path: Path):
    cut(tmp_path / "out", worked, partition=f"{functions}:thirds")
    assert cut(tmp_path / "out", worked, partition=f"{functions}:thirds").up_to_date
    (tmp_path / "my_cuts.py").write_text(FUNCTIONS.replace(", 3)", ", 2)"))
    with pytest.raises(FingerprintMismatch, match="my_cuts:thirds has changed since"):
        cut(tmp_path / "out", worked, partition=f"{functions}:thirds")


def test_an_unknown_partition_is_reported_with_the_known_ones(worked: Path, tmp_path: Path):
    known = "branches, tree, package.module:function; got 'cutpoint'. Did you mean 'cutpoints'"
    with pytest.raises(UserError, match=known):
        cut(tmp_path / "out", worked, partition="cutpoint")


def test_the_batch_size_does_not_change_the_rows(chain: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("stages.segment._BATCH_ROWS", 7)
    shutil.copytree(chain / "trajectories", tmp_path / "trajectories")
    cut(tmp_path / "cutpoints", tmp_path / "trajectories", interval=2)
    assert rows(tmp_path / "cutpoints") == rows(chain / "cutpoints")
    metadata = footer(tmp_path / "cutpoints" / "part-00000-of-00001.parquet")
    assert json.dumps(metadata["config"]["interval"]) == "2"
