"""Clip-Cov and KL-Cov: worked by hand, by reduction, and against numbers of verl."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.maths.covariance_losses import clip_cov, kl_cov
from stages.maths.losses import policy_loss, ppo_clip
from tests.golden import assert_close, load_golden

VERL = load_golden("verl_covariance.json")["cases"]


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


LOGPROBS, ADVANTAGES = vector(-1.0, -3.0, -2.0, -2.0), vector(2.0, -2.0, 1.0, -1.0)
"""The means are −2 and 0, so the covariances are 2, 2, 0 and 0."""


def test_clip_cov_drops_a_token_of_large_covariance_by_hand():
    losses, sums = clip_cov(LOGPROBS, LOGPROBS, ADVANTAGES, 0.2, 0.2, fraction=0.5)
    assert losses.tolist() == [0.0, 0.0, -1.0, 1.0]
    assert (sums.ratio.item(), sums.clip_low.item(), sums.clip_high.item()) == (4.0, 0.0, 0.0)
    one, _ = clip_cov(LOGPROBS, LOGPROBS, ADVANTAGES, 0.2, 0.2, fraction=0.25)
    assert one.tolist() == [0.0, 2.0, -1.0, 1.0]
    outside, _ = clip_cov(LOGPROBS, LOGPROBS, ADVANTAGES, 0.2, 0.2, fraction=1.0, bounds=(2.0, 5.0))
    assert outside.tolist() == [-2.0, 2.0, -1.0, 1.0], "the bounds are strict: without a candidate it is PPO"


def test_a_token_that_ppo_clips_is_no_candidate():
    old = LOGPROBS - vector(math.log(1.5), 0, 0, 0)
    losses, _ = clip_cov(LOGPROBS, old, ADVANTAGES, 0.2, 0.2, fraction=0.25)
    assert losses.tolist() == pytest.approx([-2.4, 0.0, -1.0, 1.0])


def test_kl_cov_penalizes_the_largest_covariances_by_hand():
    old = LOGPROBS - vector(0.5, -0.5, 0.0, 0.25)
    losses, sums = kl_cov(LOGPROBS, old, ADVANTAGES, fraction=0.5, weight=3.0)
    expected = [-2 * math.exp(0.5) + 1.5, 2 * math.exp(-0.5) + 1.5, -1.0, math.exp(0.25)]
    assert losses.tolist() == pytest.approx(expected)
    assert sums.approx_kl.item() == pytest.approx(0.5 * (0.25 + 0.25 + 0.0625))
    plain, _ = kl_cov(LOGPROBS, old, ADVANTAGES, fraction=0.5, weight=0.0)
    unclipped, _ = ppo_clip(LOGPROBS, old, ADVANTAGES, 0.99, 100.0)
    assert torch.equal(plain, unclipped)


@pytest.mark.parametrize("case", VERL, ids=lambda case: case["name"])
def test_losses_and_gradients_are_those_of_verl(case: dict[str, Any]):
    inputs = case["inputs"]
    kept = torch.tensor(inputs["mask"]) != 0
    old, advantages = (torch.tensor(inputs[n], dtype=torch.float64)[kept] for n in ("old_logprobs", "advantages"))
    for name in ("clip_cov", "kl_cov"):
        released = case["outputs"][name]
        logprobs = torch.tensor(inputs["logprobs"], dtype=torch.float64)[kept].requires_grad_()
        if name == "clip_cov":
            bounds = (inputs["clip_cov_lb"], inputs["clip_cov_ub"])
            low, high = inputs["clip_ratio_low"], inputs["clip_ratio_high"]
            losses, _ = clip_cov(logprobs, old, advantages, low, high, inputs["clip_cov_ratio"], bounds)
            assert_close((losses == 0).double().mean(), released["clipfrac"], case)
        else:
            losses, _ = kl_cov(logprobs, old, advantages, inputs["kl_cov_ratio"], inputs["ppo_kl_coef"])
        loss = policy_loss(losses, int(kept.sum()))
        assert_close(loss.item(), released["loss"], case)
        (gradient,) = torch.autograd.grad(loss, logprobs)
        expected = torch.tensor(released["grad_logprobs"], dtype=torch.float64)
        assert_close(gradient, expected[kept], case)
        assert not expected[~kept].any()


def test_parameters_out_of_range_are_refused():
    for fraction, bounds in ((0.0, (1.0, 5.0)), (0.5, (5.0, 1.0))):
        with pytest.raises(ValueError, match="expected"):
            clip_cov(LOGPROBS, LOGPROBS, ADVANTAGES, 0.2, 0.2, fraction, bounds)
    for fraction, weight in ((1.5, 1.0), (0.5, -1.0)):
        with pytest.raises(ValueError, match="expected"):
            kl_cov(LOGPROBS, LOGPROBS, ADVANTAGES, fraction, weight)


def test_a_micro_batch_without_tokens_has_no_loss():
    assert clip_cov(vector(), vector(), vector(), 0.2, 0.2)[0].numel() == 0
    assert kl_cov(vector(), vector(), vector())[0].numel() == 0
