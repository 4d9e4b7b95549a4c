"""The soft overlong penalty reaches the rewards of responses, of leaves of trees, and of Monte Carlo rollouts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.core.errors import UserError
from stages.maths.length_penalty import soft_overlong_penalty
from tests.chains import cut, rows, sample, value
from tests.test_rollout_tree import paths_to_leaves

PENALTY: dict[str, Any] = {"overlong_buffer": 16, "overlong_penalty": 0.5}


def expected(length: int) -> float:
    return float(soft_overlong_penalty([length], 24, 16, 0.5)[0])


def test_responses_leaves_and_rollouts_lose_the_penalty_of_their_length(policy: Path, tmp_path: Path):
    for name, options in {"flat": {}, "tree": {"tree": "2-2", "segment_tokens": 6, "num_generations": None}}.items():
        for penalty in ({}, PENALTY):
            sample(tmp_path / f"{name}{len(penalty)}", policy, temperature=1.5, **options, **penalty)
    flat, plain = (rows(tmp_path / name) for name in ("flat2", "flat0"))
    for row, without in zip(flat, plain, strict=True):
        assert row["token_ids"] == without["token_ids"]
        assert row["reward"] == pytest.approx(without["reward"] + expected(len(row["token_ids"])))
    assert len({row["reward"] for row in flat}) > 2
    leaves, without = (paths_to_leaves(rows(tmp_path / name)) for name in ("tree2", "tree0"))
    for name, path in leaves.items():
        length = sum(len(node["token_ids"]) for node in path)
        assert path[-1]["reward"] == pytest.approx(without[name][-1]["reward"] + expected(length))
    cut(tmp_path / "cutpoints", tmp_path / "flat2", interval=2)
    value(tmp_path / "kept" / "advantages", tmp_path / "cutpoints", rollouts="3", keep_rollouts=True)
    rollouts = rows(tmp_path / "kept" / "rollouts")
    lengths = [row["start"] + len(row["token_ids"]) for row in rollouts]
    verdicts = {round(row["reward"] - expected(length), 4) for row, length in zip(rollouts, lengths, strict=True)}
    assert verdicts <= {0.0, 1.0}
    assert max(lengths) > 8, "some rollouts must end where the penalty is not 0"


def test_a_penalty_that_fits_no_response_is_refused(tmp_path: Path):
    wrong: list[tuple[dict[str, Any], str]] = [({"overlong_penalty": 0.5}, "requires --overlong-buffer")]
    wrong.append(({"overlong_buffer": 25}, "at most --max-tokens, 24; got 25"))
    for options, message in wrong:
        with pytest.raises(UserError, match=message):
            sample(tmp_path / "out", tmp_path / "no model", **options)
    assert np.isclose(expected(24), -0.5)
