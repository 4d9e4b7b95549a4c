"""`spo plot`: what its curves hold, worked by hand, and the figures that it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.configs.plot import Config
from stages.core.errors import UserError
from stages.reporting.plot import Curve, average, run, series
from tests.spo_cli.artefacts import make_run

POINTS: list[dict[str, Any]] = [
    {"iteration": -1, "accuracy": [0.3, 0.1], "stages": {"eval": {"sampled": 900}}},
    {
        "iteration": 0,
        "reward": [0.4, 0.05],
        "entropy": 1.5,
        "stages": {"rollout": {"sampled": 100, "seconds": 2.0}, "train": {"trained": 40, "seconds": 3.0}},
    },
    {
        "iteration": 1,
        "reward": [0.6],
        "accuracy": [0.7, 0.2],
        "stages": {"rollout": {"sampled": 50, "seconds": 1.0}, "eval": {"sampled": 900, "seconds": 9.0}},
    },
]


@pytest.mark.parametrize(
    ("axis", "figure", "x", "y"),
    [
        ("iteration", "reward", [0, 1], [0.4, 0.6]),
        ("sampled", "reward", [0, 100], [0.4, 0.6]),
        ("trained", "reward", [0, 40], [0.4, 0.6]),
        ("seconds", "reward", [0, 5], [0.4, 0.6]),
        ("iteration", "accuracy", [0, 2], [0.3, 0.7]),
        ("sampled", "accuracy", [0, 150], [0.3, 0.7]),
        ("iteration", "entropy", [0], [1.5]),
        ("iteration", "kl", [], []),
    ],
)
def test_a_curve_sums_the_cost_before_each_measurement(axis: Any, figure: str, x: list[float], y: list[float]):
    curve = series(POINTS, axis, figure)
    assert (curve.x.tolist(), curve.y.tolist()) == (x, y)


def test_the_band_of_a_run_is_its_standard_error_and_that_of_seeds_is_over_them():
    single = average([series(POINTS, "iteration", "reward")])
    assert single.spread[0] == 0.05
    assert np.isnan(single.spread[1])
    seeds = [Curve(*np.array([[0.0, 1.0, 2.0], y, [0.1, 0.1, 0.1]])) for y in ([0.0, 0.4, 9.0], [0.2, 0.8, 9.0])]
    shorter = Curve(*(column[:2] for column in seeds[1]))
    found = average([seeds[0], shorter])
    assert found.x.tolist() == [0.0, 1.0]
    assert found.y == pytest.approx([0.1, 0.6])
    assert found.spread == pytest.approx([0.1, 0.2])  # √(2·0.1²/1)/√2, √(2·0.2²/1)/√2


@pytest.mark.parametrize(("name", "magic"), [("a.svg", b"<?xml"), ("a.png", b"\x89PNG"), ("a.pdf", b"%PDF")])
def test_a_figure_of_runs_and_seeds_is_written_with_equal_bytes(tmp_path: Path, name: str, magic: bytes):
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    demo = make_run(tmp_path) / "runs" / "demo"
    config = Config(runs=(f"{demo},{demo}", str(demo)), out=tmp_path / name, x=("iteration", "sampled"))
    run(config)
    content = (tmp_path / name).read_bytes()
    assert content.startswith(magic)
    run(config)
    assert (tmp_path / name).read_bytes() == content


def test_wrong_requests_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"must end with \.png"):
        Config(runs=("a",), out=tmp_path / "a.gif")
    with pytest.raises(UserError, match=r"expected one per curve \(1\), got 2"):
        Config(runs=("a",), out=tmp_path / "a.svg", label=("x", "y"))
    demo = make_run(tmp_path) / "runs" / "demo"
    with pytest.raises(UserError, match="has no kl to draw"):
        run(Config(runs=(str(demo),), out=tmp_path / "a.svg", y="kl"))
