"""The entropy mask keeps the least certain tokens, the random mask a fraction by name; both in a real call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import train
from stages.core.errors import UserError
from stages.optimization.batches import Example
from stages.training.token_masks import random_tokens, uncertain_tokens


def example(size: int) -> Example:
    every = np.arange(size)
    return Example(
        np.arange(size + 1, dtype=np.int32), every + 1, every * 1.0, old=-1.0 * every, segment_ids=every // 2
    )


def test_the_entropy_mask_keeps_the_upper_fraction_of_all_tokens():
    entropies = np.array([0.1, 0.9, 0.2, 0.8, 0.3, 0.0, 0.05, 0.4, 0.5, 0.01])
    found = uncertain_tokens([example(4), example(6)], entropies, 0.2)
    assert [one.kept.tolist() for one in found] == [[2, 4], []]
    assert found[0].advantages.tolist() == [1.0, 3.0]
    assert found[0].segment_ids is not None
    assert found[0].segment_ids.tolist() == [0, 1]


def test_the_random_mask_depends_on_the_name_and_keeps_about_the_fraction():
    many = [example(1000), example(1000)]
    found = random_tokens(["a", "b"], many, 0.2, seed=1)
    assert all(150 < one.kept.size < 250 for one in found)
    assert found[0].kept.tolist() != found[1].kept.tolist()
    again = random_tokens(["b"], [many[1]], 0.2, seed=1)
    assert again[0].kept.tolist() == found[1].kept.tolist()


@pytest.mark.parametrize("mask", ["entropy", "random"])
def test_a_call_trains_the_fraction_of_the_tokens(chain: Path, tmp_path: Path, mask: str):
    options: dict[str, Any] = {"mask": mask, "mask_fraction": 0.25, "threads": 1, "learning_rate": 1e-4}
    summary = train.run(train.Config(out=tmp_path / "model", advantages=(chain / "advantages",), **options))
    assert summary.figures["mask/fraction"] == pytest.approx(0.25, abs=0.06)


def test_a_fraction_without_such_a_mask_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="--mask-fraction requires --mask entropy or random"):
        train.Config(out=tmp_path / "model", advantages=(tmp_path,), mask_fraction=0.5)
