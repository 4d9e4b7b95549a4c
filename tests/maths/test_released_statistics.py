"""Compare whitening with the released code; `tests/golden/README.md` describes the numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from stages.maths.partition import find_cutpoints
from stages.maths.ragged import Ragged
from stages.maths.statistics import whiten
from tests.golden import assert_close, load_golden

RHO = 0.9


def test_whitening():
    for case in load_golden("masked_stats.json")["cases"]:
        values, mask = np.array(case["inputs"]["values"]), np.array(case["inputs"]["mask"]) != 0
        released = case["outputs"]["float64"]
        effective = mask
        if case["inputs"]["logprobs"] is not None:
            logprobs = np.array(case["inputs"]["logprobs"])
            lengths = np.full(len(logprobs), logprobs.shape[1])
            below = find_cutpoints(Ragged(logprobs.ravel(), np.r_[0, np.cumsum(lengths)]), RHO).reshape(mask.shape)
            effective = mask & below
            assert effective.astype(int).tolist() == released["effective_mask"], case["name"]
        for name, kept in (("prob_mask", effective), ("no_prob_mask", mask)):
            for shift in ("shift", "noshift"):
                for kind in ("unbiased", "biased"):
                    key = f"masked_whiten_{name}_{shift}_{kind}"
                    if key in released:
                        check_whitening(values, kept, mask, np.array(released[key]), shift, kind, case)


def check_whitening(
    values: np.ndarray, kept: np.ndarray, mask: np.ndarray, released: np.ndarray, shift: str, kind: str, case: Any
) -> None:
    options = {"shift_mean": shift == "shift", "unbiased": kind == "unbiased"}
    ours = whiten(values[kept], **options)
    if kept.sum() > 1:
        assert_close(ours, released[kept], case)
    elif kept.sum() == 1:  # deviation: unchanged; the released value is NaN (0 for the biased variance)
        assert ours.tolist() == values[kept].tolist(), case["name"]
    else:  # deviation: no values; the released code then uses the mask of the whole response
        assert ours.size == 0, case["name"]
        if mask.sum() > 1:
            assert_close(whiten(values[mask], **options), released[mask], case)
