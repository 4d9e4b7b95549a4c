"""Mismatch of trainer and sampler: difference, KL, truncated tokens and multiplicative error, worked by hand."""

import math

import pytest
import torch

from stages.maths.mismatch import multiplicative_error
from stages.maths.mismatch_sums import mismatch_sums


def logs(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_equal_log_probabilities_have_no_mismatch():
    found = mismatch_sums(logs(0.5, 0.1), logs(0.5, 0.1))
    assert [value.item() for value in found] == [0.0, 0.0, 0.0, 0.0]
    assert multiplicative_error(0.0) == 1.0


def test_three_tokens_by_hand():
    # ratios trainer / sampler: 0.5/0.25 = 2, 0.1/0.4 = 1/4, 0.3/0.1 = 3
    found = mismatch_sums(logs(0.5, 0.1, 0.3), logs(0.25, 0.4, 0.1), cap=2.5)
    # |d| = ln 2, ln 4, ln 3, whose sum is ln 24
    assert found.difference.item() == pytest.approx(math.log(24))
    # k3 = r − 1 − ln r: 1 − ln 2, −3/4 + ln 4, 2 − ln 3
    assert found.kl.item() == pytest.approx((1 - math.log(2)) + (math.log(4) - 0.75) + (2 - math.log(3)))
    assert found.truncated.item() == 1  # only 3 is above 2.5
    assert found.largest.item() == pytest.approx(math.log(4))
    # the cube root of 2 · 4 · 3
    assert multiplicative_error(found.difference.item() / 3) == pytest.approx(24 ** (1 / 3))


def test_the_kl_estimate_is_unbiased():
    """Weighted by the probabilities of the sampler, the k3 of all tokens sum to KL(sampler ‖ trainer)."""
    sampler, trainer = logs(0.7, 0.2, 0.1), logs(0.5, 0.3, 0.2)
    per_token = [mismatch_sums(trainer[i : i + 1], sampler[i : i + 1]).kl.item() for i in range(3)]
    expected = float((sampler.exp() * (sampler - trainer)).sum())
    assert sum(p * k for p, k in zip((0.7, 0.2, 0.1), per_token, strict=True)) == pytest.approx(expected)


def test_micro_batches_add_up_and_an_empty_one_is_0():
    trainer, sampler = logs(0.5, 0.1, 0.3), logs(0.25, 0.4, 0.1)
    total, micro_batches = (
        mismatch_sums(trainer, sampler),
        [mismatch_sums(trainer[p], sampler[p]) for p in (slice(2), slice(2, 3))],
    )
    for place in range(3):
        assert total[place].item() == pytest.approx(micro_batches[0][place].item() + micro_batches[1][place].item())
    assert total.largest == torch.maximum(micro_batches[0].largest, micro_batches[1].largest)
    none = mismatch_sums(trainer[:0], sampler[:0])
    assert [value.item() for value in none] == [0.0, 0.0, 0.0, 0.0]


def test_no_gradient_flows_and_shapes_must_agree():
    trainer = logs(0.5, 0.1).requires_grad_()
    assert not any(value.requires_grad for value in mismatch_sums(trainer, logs(0.25, 0.4)))
    with pytest.raises(ValueError, match="shape"):
        mismatch_sums(trainer, logs(0.25))
