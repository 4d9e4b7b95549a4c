"""Losses: worked by hand, finite at extreme inputs, and additive over micro-batches."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.maths.losses import distillation_loss, kl_estimate, kl_loss, policy_loss, ppo_clip, token_divisors


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def one_token(ratio: float, advantage: float, **options: float) -> tuple[float, float]:
    """Return the loss of a token with this ratio, and its gradient with respect to the log-probability."""
    logprobs = vector(math.log(ratio) - 1.0).requires_grad_()
    loss, _ = ppo_clip(logprobs, vector(-1.0), vector(advantage), **options)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    return loss.item(), gradient.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),  # on policy
        (1.1, 2.0, -2.2, -2.2),  # inside: −rA, and d(rA)/dlogp = rA
        (1.5, 2.0, -2.4, 0.0),  # ratio up, A > 0: clipped at 1 + ε
        (0.5, 2.0, -1.0, -1.0),  # ratio down, A > 0: never clipped
        (0.5, -2.0, 1.6, 0.0),  # ratio down, A < 0: clipped at 1 − ε
        (1.5, -2.0, 3.0, 3.0),  # ratio up, A < 0: never clipped
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_each_side_of_the_clip(ratio, advantage, loss, gradient):
    assert one_token(ratio, advantage) == pytest.approx((loss, gradient))


def test_the_upper_clip_range_may_differ():
    assert one_token(1.3, 1.0, epsilon_high=0.28)[0] == pytest.approx(-1.28)
    assert one_token(0.5, -1.0, epsilon_high=0.28)[0] == pytest.approx(0.8)


def test_the_importance_cap_truncates_the_weight_and_keeps_the_gradient():
    assert one_token(5.0, -1.0) == pytest.approx((5.0, 5.0))
    assert one_token(5.0, -1.0, importance_cap=2.0) == pytest.approx((2.0, 2.0))
    assert one_token(1.5, -1.0, importance_cap=2.0) == pytest.approx((1.5, 1.5))
    assert one_token(5.0, 1.0, importance_cap=2.0) == pytest.approx((-1.2, 0.0))


def test_the_sums_count_tokens():
    logprobs = vector(math.log(1.5), math.log(1.5), math.log(0.5), math.log(0.5), 0.0)
    _, sums = ppo_clip(logprobs, torch.zeros_like(logprobs), vector(1, -1, 1, -1, 1))
    assert sums.ratio.item() == pytest.approx(5.0)
    assert (sums.clip_low.item(), sums.clip_high.item()) == (1, 1)
    assert sums.approx_kl.item() == pytest.approx(math.log(1.5) ** 2 + math.log(0.5) ** 2)


def test_approx_kl_is_of_the_log_ratios_before_they_are_limited() -> None:
    """½ · 30² = 450; the ratio itself is limited."""
    _, sums = ppo_clip(torch.tensor([-1.0]), torch.tensor([-31.0]), torch.tensor([1.0]), 0.2)
    assert sums.approx_kl.item() == pytest.approx(450.0)
    assert math.log(sums.ratio.item()) < 30


def test_extreme_log_probabilities_stay_finite():
    logprobs = vector(-math.inf, -1e9, 0.0, -50.0).requires_grad_()
    loss, _ = ppo_clip(logprobs, vector(-1.0, -1.0, -1e9, -0.0), vector(1, -1, -1, 1))
    assert loss.tolist() == pytest.approx([-math.exp(-10), 0.8, math.exp(10), -math.exp(-10)])
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    assert gradient.tolist() == [0, 0, 0, 0]
    assert kl_estimate(vector(-60.0, 0.0), vector(0.0, -60.0), "k3").tolist() == pytest.approx(
        [math.exp(10) - 11, math.exp(-10) + 9]
    )


@pytest.mark.parametrize(
    ("kind", "value", "gradient"),
    # log π_θ = −1, log π_ref = −1.5, so d = −0.5
    [("k1", 0.5, 1.0), ("k2", 0.125, 0.5), ("k3", math.exp(-0.5) - 0.5, 1 - math.exp(-0.5))],
)
def test_kl_estimators_by_hand(kind, value, gradient):
    logprobs = vector(-1.0).requires_grad_()
    estimate = kl_estimate(logprobs, vector(-1.5), kind)
    assert estimate.item() == pytest.approx(value)
    assert torch.autograd.grad(estimate.sum(), logprobs)[0].item() == pytest.approx(gradient)


def test_k1_may_be_negative():
    assert kl_estimate(vector(-2.0), vector(-1.0), "k1").item() == -1


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_an_estimator_averages_to_the_kl(kind):
    policy, reference = vector(0.7, 0.2, 0.1), vector(0.5, 0.1, 0.4)
    exact = (policy * (policy / reference).log()).sum().item()
    assert (policy * kl_estimate(policy.log(), reference.log(), kind)).sum().item() == pytest.approx(exact)


tokens = st.lists(st.tuples(*[st.floats(-5, 0)] * 3, st.floats(-2, 2)), max_size=12)


@given(tokens, st.lists(st.integers(0, 12), max_size=3), st.integers(1, 5))
def test_micro_batches_add_up_to_the_batch(batch, cuts, sequences):
    columns = torch.tensor(batch, dtype=torch.float64).reshape(-1, 4)

    def loss_and_gradient(parts: list[torch.Tensor]) -> tuple[float, torch.Tensor]:
        total, gradients = 0.0, []
        for part in parts:
            logprobs, old, ref, advantages = part.unbind(1)
            logprobs = logprobs.clone().requires_grad_()
            per_token, _ = ppo_clip(logprobs, old, advantages)
            loss = policy_loss(per_token, len(batch)) + kl_loss(kl_estimate(logprobs, ref), sequences, 0.1)
            loss.backward()
            total += loss.item()
            assert logprobs.grad is not None
            gradients.append(logprobs.grad)
        return total, torch.cat(gradients)

    borders = [0, *sorted(min(cut, len(batch)) for cut in cuts), len(batch)]
    parts = [columns[a:b] for a, b in pairwise(borders)]
    whole, gradient = loss_and_gradient([columns])
    summed, gathered = loss_and_gradient(parts)
    assert summed == pytest.approx(whole, abs=1e-9)
    torch.testing.assert_close(gathered, gradient)


def test_without_kept_tokens_the_loss_is_0_and_can_be_differentiated():
    logprobs = vector().requires_grad_()
    loss, sums = ppo_clip(logprobs, vector(), vector())
    total = policy_loss(loss, 0) + kl_loss(kl_estimate(logprobs, vector()), 4, 0.1)
    total.backward()
    assert total.item() == 0
    assert sums.ratio.item() == 0


def test_distillation_by_hand():
    """Two segments: tokens 0 and 1, and token 2."""
    logprobs = vector(-1.0, -2.0, -1.5).requires_grad_()
    old, ref = vector(-1.1, -2.1, -1.0), vector(-1.5, -2.0, -1.5)
    segment = torch.tensor([0, 0, 1])
    loss, sums = distillation_loss(logprobs, old, ref, segment, vector(1.0, -0.5), beta=2.0)
    # log-ratios to the reference 0.5 and 0, to the sampler 0.2 and −0.5
    weights = [math.exp(0.2), math.exp(-0.5)]
    assert loss.tolist() == pytest.approx([0.5 * weights[0] * (2 * 0.5 - 1.0) ** 2, 0.5 * weights[1] * 0.25])
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    # w (β Σ − A) β for each token of the segment; the weight has no gradient
    assert gradient.tolist() == pytest.approx([0.0, 0.0, weights[1] * 0.5 * 2.0])
    assert (sums.weight.item(), sums.log_ratio.item()) == pytest.approx((sum(weights), 0.5))
    assert sums.weight_clipped.item() == 0


def test_the_weight_of_a_distilled_segment_is_clipped_at_10():
    logprobs = vector(-1.0, -1.0, -400.0).requires_grad_()
    old = vector(-4.0, -1.0, -1200.0)  # ratios e³ = 20, 1 and infinity
    loss, sums = distillation_loss(logprobs, old, logprobs.detach(), torch.arange(3), vector(1.0, 1.0, 1.0), beta=0.5)
    assert loss.tolist() == pytest.approx([5.0, 0.5, 5.0])
    assert (sums.weight.item(), sums.weight_clipped.item()) == (21.0, 2)


def test_normalizations_by_hand():
    """Sequences of 1, 3 and 0 kept tokens, with losses 6 and 1, 2, 3."""
    lengths, losses = np.array([1, 3, 0]), vector(6, 1, 2, 3)

    def loss(normalization, constant=None) -> float:
        divisors = np.repeat(token_divisors(lengths, normalization, constant), lengths)
        return policy_loss(losses, torch.from_numpy(divisors)).item()

    assert loss("tokens") == pytest.approx(12 / 4)
    assert loss("sequence") == pytest.approx((6 + 2) / 2)  # the mean over sequences with kept tokens
    assert loss("constant", 10.0) == pytest.approx(12 / 30)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9))
def test_normalizations_agree_for_sequences_of_equal_length(lengths):
    tokens = max(lengths) + 1
    same = np.full(len(lengths), tokens)
    expected = np.full(len(lengths), float(tokens * len(lengths)))
    for normalization in ("tokens", "sequence", "constant"):
        assert token_divisors(same, normalization, float(tokens)).tolist() == expected.tolist()


def test_invalid_arguments_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        ppo_clip(vector(-1, -1), vector(-1), vector(1, 1))
    with pytest.raises(ValueError, match="one shape"):
        kl_estimate(vector(-1).reshape(1, 1), vector(-1).reshape(1, 1))
    with pytest.raises(ValueError, match="importance_cap"):
        ppo_clip(vector(-1), vector(-1), vector(1), importance_cap=0.5)
    with pytest.raises(ValueError, match="k1, k2 or k3"):
        kl_estimate(vector(-1), vector(-1), "k4")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="at least one sequence"):
        kl_loss(vector(), 0, 0.1)
    with pytest.raises(ValueError, match="beta > 0"):
        distillation_loss(vector(-1), vector(-1), vector(-1), torch.tensor([0]), vector(1), beta=0.0)
    with pytest.raises(ValueError, match="a constant above 0"):
        token_divisors(np.array([1]), "constant")
