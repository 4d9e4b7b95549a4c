"""Surrogate losses and mismatch weights: worked by hand, by reduction to PPO, and against numbers of verl."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stages.maths.losses import policy_loss, ppo_clip, token_divisors
from stages.maths.surrogates import cispo, correction_weights, dppo, sapo, shared_ratio
from tests.golden import assert_close, load_golden

VERL = load_golden("verl_losses.json")["cases"]
NUMBERS = st.lists(st.floats(-2, 2), min_size=1, max_size=8)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def bounded(loss: Any, bound: float) -> Any:
    """Return a loss with the same bound below and above."""
    return lambda logprobs, old, advantages: loss(logprobs, old, advantages, bound, bound)


def loss_and_gradient(loss: Any, ratio: float, advantage: float, old: float = -3.0) -> tuple[float, float]:
    logprobs = vector(old + math.log(ratio)).requires_grad_()
    losses, _ = loss(logprobs, vector(old), vector(advantage))
    (gradient,) = torch.autograd.grad(losses.sum(), logprobs)
    return losses.item(), gradient.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "gradient"),
    [(1.1, 2.0, -2.2), (1.5, 2.0, -2.4), (1.5, -2.0, 2.4), (0.5, -2.0, 1.6), (0.5, 2.0, -1.6)],
)
def test_cispo_bounds_the_weight_and_drops_no_token(ratio: float, advantage: float, gradient: float):
    found = loss_and_gradient(bounded(cispo, 0.2), ratio, advantage)
    assert found == pytest.approx((gradient * (-3.0 + math.log(ratio)), gradient))


@pytest.mark.parametrize(
    ("old", "ratio", "advantage", "kept"),
    [
        (0.01, 5.0, 1.0, True),  # 0.01 → 0.05: ratio 5, difference 0.04
        (0.6, 1.5, 1.0, False),  # 0.6 → 0.9: ratio 1.5, difference 0.3
        (0.6, 1.5, -1.0, True),  # moves back towards the old policy
        (0.6, 0.5, -1.0, False),
        (0.02, 0.1, -1.0, True),
    ],
)
def test_dppo_drops_by_the_difference_of_probabilities(old: float, ratio: float, advantage: float, kept: bool):
    _, gradient = loss_and_gradient(bounded(dppo, 0.15), ratio, advantage, math.log(old))
    assert gradient == pytest.approx(-advantage * ratio if kept else 0.0)


def test_ppo_drops_improbable_tokens_that_dppo_keeps():
    """A token of probability 0.01 that became 0.05 has moved by 0.04, yet PPO stops its gradient."""
    _, of_ppo = loss_and_gradient(ppo_clip, 5.0, 1.0, math.log(0.01))
    _, of_dppo = loss_and_gradient(bounded(dppo, 0.15), 5.0, 1.0, math.log(0.01))
    assert (of_ppo, of_dppo) == (0.0, pytest.approx(-5.0))


def test_the_weight_of_dppo_is_truncated():
    _, gradient = loss_and_gradient(bounded(dppo, 0.15), 100.0, 1.0, math.log(1e-4))
    assert gradient == pytest.approx(-20.0)


def test_sapo_has_the_gradient_of_ppo_on_policy_and_closes_on_both_sides():
    for advantage in (2.0, -2.0):
        assert loss_and_gradient(sapo, 1.0, advantage)[1] == pytest.approx(-advantage)
    # σ'(τ (r − 1)) · 4 r A with τ = 1, r = 3: σ(2) (1 − σ(2)) = 0.104994
    assert loss_and_gradient(sapo, 3.0, 1.0)[1] == pytest.approx(-4 * 3 * 0.1049936, rel=1e-5)


def test_dual_clip_bounds_the_loss_of_negative_advantages():
    logprobs = vector(math.log(5.0), math.log(2.0), math.log(5.0)).requires_grad_()
    losses, sums = ppo_clip(logprobs, torch.zeros(3).double(), vector(-1.0, -1.0, 1.0), dual_clip=3.0)
    (gradient,) = torch.autograd.grad(losses.sum(), logprobs)
    assert losses.tolist() == pytest.approx([3.0, 2.0, -1.2])
    assert gradient.tolist() == pytest.approx([0.0, 2.0, 0.0])
    assert (sums.clip_low.item(), sums.clip_high.item()) == (1, 1)


@given(NUMBERS, st.integers(0, 1000))
def test_one_token_per_segment_is_ppo(numbers: list[float], seed: int):
    torch.manual_seed(seed)
    old, advantages = -torch.rand(len(numbers)).double() - 2, torch.randn(len(numbers)).double()
    found = []
    for own_ratio in (True, False):
        logprobs = (old + vector(*numbers)).requires_grad_()
        each = torch.arange(len(numbers))
        denominator = old if own_ratio else shared_ratio(logprobs, old, each, len(numbers))
        losses, _ = ppo_clip(logprobs, denominator, advantages)
        found.append((losses.detach(), torch.autograd.grad(losses.sum(), logprobs)[0]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


def test_the_ratio_of_a_segment_is_the_geometric_mean_of_its_tokens():
    logprobs = vector(math.log(2), math.log(8), 0.0).requires_grad_()
    old = torch.zeros(3).double()
    shared = shared_ratio(logprobs, old, torch.tensor([0, 0, 1]), 2)
    ratios = (logprobs.detach() - shared).exp()
    assert ratios.tolist() == pytest.approx([4.0, 4.0, 1.0])
    losses, _ = ppo_clip(logprobs, shared, vector(-1.0, -1.0, -1.0))
    (gradient,) = torch.autograd.grad(losses.sum(), logprobs)
    assert gradient.tolist() == pytest.approx([4.0, 4.0, 1.0])


@given(NUMBERS)
def test_equal_engines_are_not_corrected(numbers: list[float]):
    logprobs, each = vector(*numbers) - 3, torch.zeros(len(numbers), dtype=torch.int64)
    for kind in ("tis", "mis"):
        for level in ("token", "sequence"):
            assert (correction_weights(logprobs, logprobs, each, 1, kind, level, 2.0) == 1).all()


def test_the_weights_of_the_correction():
    trainer, sampler = vector(0.0, math.log(3.0), 0.0), vector(math.log(2.0), 0.0, float("nan"))
    sequence = torch.tensor([0, 0, 1])
    expected = {
        ("tis", "token"): [0.5, 2.0, 1.0],
        ("mis", "token"): [0.5, 0.0, 1.0],
        ("tis", "sequence"): [1.5, 1.5, 1.0],
        ("mis", "sequence"): [1.5, 1.5, 1.0],
    }
    for (kind, level), weights in expected.items():
        found = correction_weights(trainer, sampler, sequence, 2, kind, level, 2.0)  # pyright: ignore
        assert found.tolist() == pytest.approx(weights)


def kept(case: dict[str, Any], name: str) -> Tensor:
    mask = torch.tensor(case["inputs"]["mask"]) != 0
    return torch.tensor(case["inputs"][name], dtype=torch.float64)[mask]


@pytest.mark.parametrize("case", VERL, ids=lambda case: case["name"])
@pytest.mark.parametrize("name", ["vanilla", "gspo", "sapo", "cispo"])
def test_losses_and_gradients_agree_with_verl(case: dict[str, Any], name: str):
    mask = torch.tensor(case["inputs"]["mask"]) != 0
    old, advantages = kept(case, "old_logprobs"), kept(case, "advantages")
    logprobs = kept(case, "logprobs").requires_grad_()
    sequence = mask.nonzero()[:, 0]
    low, high = case["inputs"]["clip_ratio_low"], case["inputs"]["clip_ratio_high"]
    if name == "vanilla":
        losses, sums = ppo_clip(logprobs, old, advantages, low, high, dual_clip=case["inputs"]["clip_ratio_c"])
    elif name == "gspo":
        losses, sums = ppo_clip(logprobs, shared_ratio(logprobs, old, sequence, len(mask)), advantages, low, high)
    elif name == "sapo":
        losses, sums = sapo(logprobs, old, advantages)
    else:
        losses, sums = cispo(logprobs, old, advantages, low, high)
    how = "sequence" if name in ("gspo", "sapo") else "tokens"
    divisors = torch.from_numpy(token_divisors(mask.sum(1).numpy(), how))[sequence]
    loss = policy_loss(losses, divisors)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    expected = case["outputs"][name]
    assert_close(loss.item(), expected["loss"], case)
    assert_close(gradient, torch.tensor(expected["grad_logprobs"])[mask], case)
    if name != "vanilla":  # verl counts the tokens of the dual clip apart
        clipped = (sums.clip_low + sums.clip_high).item()
        assert clipped == pytest.approx(expected["clipfrac"] * mask.sum().item(), abs=1e-5)


@pytest.mark.parametrize("case", VERL, ids=lambda case: case["name"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_truncated_weights_agree_with_verl(case: dict[str, Any], level: Any):
    mask = torch.tensor(case["inputs"]["mask"]) != 0
    trainer, sampler = kept(case, "old_logprobs"), kept(case, "sampler_logprobs")
    sequence = mask.nonzero()[:, 0]
    found = correction_weights(trainer, sampler, sequence, len(mask), "tis", level, case["inputs"]["cap"])
    assert_close(found, torch.tensor(case["outputs"][f"tis_{level}"])[mask], case)
