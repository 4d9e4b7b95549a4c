"""PPO with a critic: advantages, penalised rewards and the value loss, by hand and by what must always hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.maths.gae import Penalty, generalized_advantages, penalised_rewards, value_loss
from stages.maths.ragged import Ragged

unit = st.floats(0, 1, allow_subnormal=False)
step = st.tuples(st.floats(-2, 2), st.floats(-2, 2))
rows = st.lists(st.lists(step, max_size=9), max_size=6)


def ragged(found: list[list[tuple[float, float]]]) -> tuple[Ragged, Ragged]:
    """Values and rewards of rows of (value, reward)."""
    values, rewards = ([[pair[i] for pair in row] for row in found] for i in (0, 1))
    return Ragged.of(values, np.float64), Ragged.of(rewards, np.float64)


def test_advantages_by_hand():
    """γ = 0.5, λ = 0.5; the second trajectory has one step, the third none."""
    values, rewards = Ragged.of([[1, 2, 4], [3], []], np.float64), Ragged.of([[0, 1, 8], [1], []], np.float64)
    # δ = 0 + ½·2 − 1 = 0, 1 + ½·4 − 2 = 1, 8 − 4 = 4;  Â_2 = 4, Â_1 = 1 + ¼·4 = 2, Â_0 = 0 + ¼·2 = ½
    advantage, returns = generalized_advantages(values, rewards, 0.5, 0.5)
    assert advantage.tolist() == [0.5, 2.0, 4.0, -2.0]
    assert returns.tolist() == [1.5, 4.0, 8.0, 1.0]


def test_no_trajectory_has_no_advantage():
    nothing = Ragged.of([], np.float64)
    assert generalized_advantages(nothing, nothing).advantage.size == 0


@given(rows, unit)
def test_lambda_1_is_what_was_earned_less_the_value(found: list[list[tuple[float, float]]], gamma: float):
    values, rewards = ragged(found)
    advantage, returns = generalized_advantages(values, rewards, gamma, 1.0)
    earned = [sum(gamma**i * r for i, r in enumerate(row[t:])) for row in rewards for t in range(row.size)]
    np.testing.assert_allclose(returns, earned, rtol=0, atol=1e-12)
    np.testing.assert_allclose(advantage, earned - values.flat, rtol=0, atol=1e-12)


@given(rows, unit)
def test_lambda_0_is_the_one_step_error(found: list[list[tuple[float, float]]], gamma: float):
    values, rewards = ragged(found)
    following = [value for row in values for value in [*row[1:], 0.0][: row.size]]
    expected = rewards.flat + gamma * np.array(following).reshape(-1) - values.flat
    np.testing.assert_allclose(generalized_advantages(values, rewards, gamma, 0.0).advantage, expected, atol=1e-15)


@given(rows)
def test_one_step_errors_telescope(found: list[list[tuple[float, float]]]):
    """γ = 1, λ = 0: along a trajectory they sum to what was earned less the value of the prompt."""
    values, rewards = ragged(found)
    advantage = Ragged(generalized_advantages(values, rewards, 1.0, 0.0).advantage, values.offsets)
    for value, reward, errors in zip(values, rewards, advantage, strict=True):
        if value.size:
            assert errors.sum() == pytest.approx(reward.sum() - value[0], abs=1e-12)


@given(rows, unit, unit, st.randoms())
def test_a_trajectory_does_not_see_the_others(found: list[list[tuple[float, float]]], gamma: float, lam: float, random):
    order = list(range(len(found)))
    random.shuffle(order)
    values, rewards = ragged(found)
    together = Ragged(
        generalized_advantages(*ragged([found[i] for i in order]), gamma, lam).advantage,
        ragged([found[i] for i in order])[0].offsets,
    )
    for place, i in enumerate(order):
        value, reward = values[i], rewards[i]
        later, expected = 0.0, np.zeros(value.size)
        for t in reversed(range(value.size)):  # the recursion of the paper, one step at a time
            following = value[t + 1] if t + 1 < value.size else 0.0
            later = reward[t] + gamma * following - value[t] + gamma * lam * later
            expected[t] = later
        np.testing.assert_allclose(together[place], expected, rtol=0, atol=1e-12)


def test_a_slice_of_a_larger_table_is_read_as_it_is():
    values = Ragged(np.array([9.0, 1.0, 2.0, 9.0]), np.array([1, 3]))
    rewards = Ragged(np.array([0.0, 1.0]), np.array([0, 2]))
    assert generalized_advantages(values, rewards, 1.0, 1.0).advantage.tolist() == [0.0, -1.0]


@pytest.mark.parametrize(
    ("values", "rewards", "gamma", "problem"),
    [
        ([[1.0]], [[1.0]], 1.5, "from 0 to 1"),
        ([[1.0]], [[1.0, 2.0]], 1.0, "row by row"),
        ([[np.nan]], [[1.0]], 1.0, "finite"),
    ],
)
def test_what_cannot_be_is_refused(values, rewards, gamma, problem):
    with pytest.raises(ValueError, match=problem):
        generalized_advantages(Ragged.of(values, np.float64), Ragged.of(rewards, np.float64), gamma)


def test_penalised_rewards_by_hand():
    """d = log π_ref − log π = (0.5, −1 | 2): k1 = −d, k2 = ½d²; β = 0.1; the scores come with the last tokens."""
    logprobs = torch.tensor([-1.0, -1.0, -3.0], dtype=torch.float64)
    reference = torch.tensor([-0.5, -2.0, -1.0], dtype=torch.float64)
    scores, lengths = torch.tensor([1.0, 0.0], dtype=torch.float64), torch.tensor([2, 1])
    expected: dict[Penalty, list[float]] = {
        "k1": [0.05, 1.0 - 0.1, 0.2],
        "abs": [-0.05, 1.0 - 0.1, -0.2],
        "k2": [-0.0125, 1.0 - 0.05, -0.2],
        "k3": [-0.1 * (np.exp(0.5) - 1.5), 1.0 - 0.1 * np.exp(-1), -0.1 * (np.exp(2) - 3)],
    }
    for kind, wanted in expected.items():
        found = penalised_rewards(scores, lengths, logprobs, reference, 0.1, kind)
        np.testing.assert_allclose(found, wanted, atol=1e-12, err_msg=kind)


def test_penalties_cost_a_trajectory_what_they_sum_to():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3, 1, 5])
    logprobs, reference = torch.rand(2, 9, dtype=torch.float64, generator=generator)
    scores = torch.rand(3, dtype=torch.float64, generator=generator)
    found = penalised_rewards(scores, lengths, logprobs, reference, 0.3).split(lengths.tolist())
    for reward, score, ours, theirs in zip(
        found, scores, logprobs.split([3, 1, 5]), reference.split([3, 1, 5]), strict=True
    ):
        torch.testing.assert_close(reward.sum(), score - 0.3 * (ours - theirs).sum())


def test_penalised_rewards_refuse_lengths_that_do_not_fit():
    one = torch.zeros(1)
    with pytest.raises(ValueError, match="sum of the lengths"):
        penalised_rewards(one, torch.tensor([2]), one, one, 0.1)
    with pytest.raises(ValueError, match="at least 1"):
        penalised_rewards(one, torch.tensor([0]), one, one, 0.1)


def test_value_loss_by_hand():
    """c = 0.2. The first is clipped to 0.7, further from 1 than 0.9 is; the second too, but nearer to 0: not taken."""
    values = torch.tensor([0.9, 0.9, 0.5], dtype=torch.float64, requires_grad=True)
    old, returns = torch.tensor([0.5, 0.5, 0.4]).double(), torch.tensor([1.0, 0.0, 1.0]).double()
    loss, sums = value_loss(values, old, returns, 4, 0.2)
    # squared errors 0.01, 0.81, 0.25; of the clipped 0.09, 0.49, 0.25 → maxima 0.09, 0.81, 0.25
    assert loss.item() == pytest.approx(0.5 * (0.09 + 0.81 + 0.25) / 4)
    loss.backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([0.0, 0.9 / 4, -0.5 / 4])  # the clipped branch does not move
    assert (sums.value.item(), sums.error.item()) == pytest.approx((2.3, 0.3))
    assert (sums.squared_error.item(), sums.clipped.item()) == pytest.approx((1.07, 1.0))


@given(st.lists(st.tuples(*[st.floats(-3, 3)] * 3), max_size=8), st.floats(0.01, 3), st.integers(0, 8))
def test_shares_add_up_and_clipping_never_lowers_the_loss(found, clip: float, cut: int):
    values, old, returns = torch.tensor(found, dtype=torch.float64).reshape(-1, 3).T
    whole, sums = value_loss(values, old, returns, len(found), clip)
    parts = [value_loss(values[p], old[p], returns[p], len(found), clip)[0] for p in (slice(cut), slice(cut, None))]
    torch.testing.assert_close(parts[0] + parts[1], whole)
    plain, unclipped = value_loss(values, old, returns, len(found), None)
    assert whole >= plain
    assert (sums.clipped == 0) == bool(torch.isclose(whole, plain, rtol=0, atol=0))
    assert unclipped.clipped == 0


def test_no_state_has_no_loss_but_a_gradient_to_flow_back():
    values = torch.zeros(0, requires_grad=True)
    loss, _ = value_loss(values, torch.zeros(0), torch.zeros(0), 0)
    loss.backward()
    assert loss.item() == 0.0


def test_value_loss_refuses_what_does_not_fit():
    two = torch.zeros(2)
    with pytest.raises(ValueError, match="one shape"):
        value_loss(two, two, torch.zeros(1), 2)
    with pytest.raises(ValueError, match="at least 2 states"):
        value_loss(two, two, two, 1)
    with pytest.raises(ValueError, match="clip above 0"):
        value_loss(two, two, two, 2, 0.0)
