"""`spo show` on two trees with values computed by hand: figures over leaves, full paths, and drawn trees."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stages.core.config import option
from stages.shards.parts import artefact_source, open_artefact
from stages.shards.schemas import ADVANTAGES, CUTPOINTS, TRAJECTORIES
from tests.chains import cut, sample
from tests.spo_cli.artefacts import Options, response, segment, write
from tests.spo_cli.test_show import refused, show, statistics


@dataclass(frozen=True, kw_only=True)
class TreeOptions(Options):
    tree: tuple[int, ...] = option("", default=(2, 2))
    partition: str = option("", default="tree")


def node(path: str, text: str, reward: float | None) -> dict[str, Any]:
    """Return a node whose first token is a cutpoint; a leaf (reward given) ends with the end token."""
    row = response("q1" if path.startswith("q1") else "q0", 0, text, (0,), 0.0)
    name, _, parent = path, *path.rpartition(".")[1::-1]
    inner = reward is None
    return row | {
        "trajectory_id": name,
        "parent_id": parent or None,
        "depth": path.count("."),
        "reward": reward,
        "answer": None if inner else text[-1],
        "finish_reason": "segment" if inner else "stop",
        **({"token_ids": row["token_ids"][:-1], "logprobs": row["logprobs"][:-1]} if inner else {}),
    }


# q0: V(0) = 1/2, V(prompt) = (1/2 + 0) / 2 = 1/4. q1: both 0.
NODES = [
    node("q0/0", "2+", None),
    node("q0/0.0", "3=5", 1.0),
    node("q0/0.1", "3=6", 0.0),
    node("q0/1", "x", 0.0),
    node("q1/0", "7", 0.0),
    node("q1/1", "8", 0.0),
]
SEGMENTS = [
    segment("q0/0", 0, 0, 2, [0], 0.25, 0.5, [1, 0, 0]),
    segment("q0/0.0", 0, 0, 4, [0], 0.5, 1.0, [1, 0]),
    segment("q0/0.1", 0, 0, 4, [0], 0.5, 0.0, [1, 0]),
    segment("q0/1", 0, 0, 2, [0], 0.25, 0.0, [1, 0, 0]),
    segment("q1/0", 0, 0, 2, [0], 0.0, 0.0, [0, 0]),
    segment("q1/1", 0, 0, 2, [0], 0.0, 0.0, [0, 0]),
]
KEPT = [SEGMENTS[0], SEGMENTS[2]]


@pytest.fixture
def trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    run = Path("run")
    write(run / "trajectories", TRAJECTORIES, [NODES[:4], NODES[4:]], TreeOptions())
    sampled = open_artefact(run / "trajectories")
    made_from = (artefact_source(sampled, run / "cutpoints"),)
    write(run / "cutpoints", CUTPOINTS, [SEGMENTS], TreeOptions(), inputs=made_from)
    write(run / "advantages", ADVANTAGES, [SEGMENTS], TreeOptions(), inputs=made_from)
    write(run / "kept", ADVANTAGES, [KEPT], TreeOptions(), inputs=made_from)
    return run


COMMON = {
    "questions": 2,
    "reward": {"mean": 0.125, "standard_error": 0.125},  # 1/4 and 0
    "questions_with_equal_rewards": 0.5,
    "nodes_per_depth": {"0": 4, "1": 2},
    "leaves_per_depth": {"0": 3, "1": 2},
}


def test_figures_of_trajectories_are_over_the_leaves(trees, capsys):
    assert statistics(capsys, trees / "trajectories") == {
        "rows": 6,
        **COMMON,
        "response_length": {"mean": 3.6, "median": 2.0, "min": 2, "max": 6},  # 6 6 2 2 2
        "finish_reasons": {"stop": 5, "segment": 1},
        "tokens": 16,
    }


def test_figures_of_segments_and_advantages_cover_the_whole_tree(trees, capsys):
    cutpoints = statistics(capsys, trees / "cutpoints")
    assert cutpoints | COMMON == cutpoints
    assert cutpoints["tokens_per_segment"] == {"mean": 16 / 6, "median": 2.0, "min": 2, "max": 4}
    assert "trajectories" not in cutpoints
    complete, kept = (statistics(capsys, trees / name) for name in ("advantages", "kept"))
    for found, rows in ((complete, 6), (kept, 2)):
        assert found | COMMON == found
        assert (found["rows"], found["segments_without_advantage_left_out"]) == (rows, 6 - rows)
    assert kept["advantage"]["mean"] == -0.125  # 1/4 and −1/2


def test_trees_without_trajectories_are_described_by_their_segments(trees, capsys):
    shutil.rmtree(trees / "trajectories")
    assert statistics(capsys, trees / "kept")["advantage"]["mean"] == -0.125
    text = show(capsys, trees / "kept")
    assert "no trajectory drawn: the trajectories of" in text
    code, err = refused(capsys, trees / "kept", "--tree", "q0")
    assert (code, "--trajectories PATH" in err) == (2, True)


def test_a_leaf_is_drawn_with_its_whole_path(trees, capsys):
    text = show(capsys, trees / "advantages", "--trajectory", "q0/0.1")
    assert "q0/0.1  reward 0  answer 6  reference 5  finish reason stop  tokens 6" in text
    assert "  0  0.25 → 0.50  +0.25  3  ‹2›+\n" in text
    assert "0.1  0.50 → 0.00  -0.50  2  ‹3›=6<end>\n" in text
    cutpoints = show(capsys, trees / "cutpoints", "--trajectory", "q0/0.0")
    assert "  0  ‹2›+\n" in cutpoints
    assert "0.0  ‹3›=5<end>\n" in cutpoints
    sampled = show(capsys, trees / "trajectories", "--trajectory", "q0/0.0")
    assert "0.0  ‹3›=5<end>\n" in sampled
    assert "sampled with probability below 0.9" in sampled


def test_an_inner_node_is_drawn_up_to_its_end(trees, capsys):
    text = show(capsys, trees / "trajectories", "--trajectory", "q0/0")
    assert "q0/0  reference 5  finish reason segment  tokens 2" in text


def test_by_default_a_whole_response_is_drawn(trees, capsys):
    assert "q0/0.1  reward 0" in show(capsys, trees / "kept")  # this leaf has the advantage of largest magnitude, −1/2
    assert "q0/0.0  reward 1" in show(capsys, trees / "cutpoints")  # the first leaf below the first row
    assert "q0/0.0  reward 1" in show(capsys, trees / "trajectories")


def test_omitted_nodes_are_drawn_without_numbers(trees, capsys):
    text = show(capsys, trees / "kept", "--trajectory", "q0/0.0")
    assert "  0  0.25 → 0.50  +0.25  3  ‹2›+\n" in text
    assert "0.0                         3=5<end>\n" in text
    assert "no numbers: omitted, A is 0" in text
    none = show(capsys, trees / "kept", "--trajectory", "q1/1")
    assert "  1  8<end>\n" in none
    assert "None of its segments is here" in none


def test_omitted_segments_of_a_response_leave_a_gap(run_directory, capsys):
    """The rows have the form that the prefix-tree estimator writes."""
    made_from = (artefact_source(open_artefact(run_directory / "000" / "trajectories"), Path("kept")),)
    rows = [segment("q0/1", 1, 2, 4, [], 0.5, 0.75, [1, 0]), segment("q0/0", 2, 5, 6, [], 0.75, 1.0, [1])]
    write(Path("kept"), ADVANTAGES, [rows], inputs=made_from)
    text = show(capsys, "kept", "--trajectory", "q0/1")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    index = lines.index("1 0.50 → 0.75 +0.25 2 3=")
    assert (lines[index - 1], lines[index + 1]) == ("2+", "6<|endoftext|>")


def test_the_tree_of_a_question_is_drawn(trees, capsys):
    drawn = show(capsys, trees / "advantages", "--tree", "q0").split("tree\n")[-1].splitlines()
    assert drawn == [
        "q0  V 0.25",
        "├── 0  2 tokens  V 0.50  A +0.25  2+",
        "│   ├── 0.0  4 tokens  reward 1  stop  A +0.50  3=5",
        "│   └── 0.1  4 tokens  reward 0  stop  A -0.50  3=6",
        "└── 1  2 tokens  reward 0  stop  A -0.25  x",
    ]
    kept = show(capsys, trees / "kept", "--tree", "q0")
    assert "├── 0.0  4 tokens  reward 1  stop  3=5" in kept
    assert "├── 0  2 tokens  V 0.50  2+" in show(capsys, trees / "trajectories", "--tree", "q0")


def test_the_list_of_a_run_contains_the_reward_of_its_trees(trees, capsys):
    entries = {entry["path"]: entry for entry in json.loads(show(capsys, trees, "--json"))}
    assert entries["trajectories"]["reward"] == 0.125


def test_an_inner_node_without_children_is_reported(trees, capsys):
    write(trees / "incomplete", TRAJECTORIES, [[node("q0/0", "2+", None)]], TreeOptions())
    code, err = refused(capsys, trees / "incomplete", "--tree", "q0")
    assert (code, "q0/0 is unfinished (finish_reason segment), but has no children" in err) == (2, True)


def test_a_leaf_that_could_not_be_graded_is_left_out_of_the_values(trees, capsys):
    rows = [row | {"reward": None} if row["trajectory_id"] in ("q0/0.1", "q1/0", "q1/1") else row for row in NODES]
    write(trees / "ungradable", TRAJECTORIES, [rows], TreeOptions())
    drawn = show(capsys, trees / "ungradable", "--tree", "q0").split("tree\n")[-1].splitlines()
    assert drawn[0] == "q0  V 0.50"  # V(0) is 1, from its only graded leaf
    assert drawn[3] == "│   └── 0.1  4 tokens  not gradable  stop  3=6"
    assert "q1  V nan" in show(capsys, trees / "ungradable", "--tree", "q1")
    assert statistics(capsys, trees / "ungradable")["reward"] == {"mean": 0.5}, "q1 has no graded leaf"


def test_whole_responses_are_a_tree_of_one_level(run_directory, capsys):
    drawn = show(capsys, run_directory / "000" / "advantages", "--tree", "q0").split("tree\n")[-1].splitlines()
    assert drawn == ["q0  V 0.50", "├── 0  6 tokens  reward 1  stop  2+3=5", "└── 1  6 tokens  reward 0  stop  2+3=6"]


def test_control_characters_of_a_response_are_escaped_in_a_tree(trees, capsys):
    write(trees / "escapes", TRAJECTORIES, [[node("q0/0", "\x1b[2J[red]\n", 0.0)]], TreeOptions())
    assert "\\x1b[2J[red]⏎" in show(capsys, trees / "escapes", "--tree", "q0")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run/trajectories", "--tree", "q7"], "there is no question 'q7'; ids look like 'q0'"),
        (["run/trajectories", "--tree", "q0", "--row", "1"], "exclude each other: pass one of them"),
        (["run/trajectories", "--trajectory", "q0/2"], "has no trajectory 'q0/2'"),
        (["run/kept", "--trajectory", "q0/2"], "has no trajectory 'q0/2'"),
    ],
)
def test_invalid_trees_are_reported_in_one_line(trees, capsys, arguments, line):
    code, err = refused(capsys, *arguments)
    assert code == 2
    assert line in err
    assert len(err.splitlines()) == 1


def test_a_real_tree_is_shown_stage_by_stage(policy: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    sampled = tmp_path / "trajectories"
    summary = sample(sampled, policy, tree="3-2", segment_tokens=4, num_generations=None, temperature=0.8)
    cut(tmp_path / "cutpoints", sampled)
    found = statistics(capsys, sampled)
    assert found["reward"]["mean"] == pytest.approx(summary.reward)
    assert sum(found["nodes_per_depth"].values()) == found["rows"] == summary.rows
    assert sum(found["leaves_per_depth"].values()) == summary.figures["leaves"]
    assert statistics(capsys, tmp_path / "cutpoints")["reward"] == found["reward"]
    assert "<|endoftext|>" in show(capsys, tmp_path / "cutpoints")
    assert "arithmetic-train-3  V" in show(capsys, sampled, "--tree", "arithmetic-train-3")
