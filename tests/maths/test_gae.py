"""GAE and the value loss of PPO: numbers worked by hand, reduction to simpler cases, and properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.maths.gae import generalized_advantages, value_loss
from stages.maths.ragged import Ragged

unit = st.floats(0, 1, allow_subnormal=False)
step = st.tuples(st.floats(-2, 2), st.floats(-2, 2))
rows = st.lists(st.lists(step, max_size=9), max_size=6)


def to_ragged(pairs: list[list[tuple[float, float]]]) -> tuple[Ragged, Ragged]:
    """Return the values and the rewards of rows of (value, reward)."""
    values, rewards = ([[pair[i] for pair in row] for row in pairs] for i in (0, 1))
    return Ragged.of(values, np.float64), Ragged.of(rewards, np.float64)


def test_advantages_by_hand():
    """γ = 0.5, λ = 0.5; the second trajectory has one step, the third none."""
    values, rewards = Ragged.of([[1, 2, 4], [3], []], np.float64), Ragged.of([[0, 1, 8], [1], []], np.float64)
    # δ = 0 + ½·2 − 1 = 0, 1 + ½·4 − 2 = 1, 8 − 4 = 4;  Â_2 = 4, Â_1 = 1 + ¼·4 = 2, Â_0 = 0 + ¼·2 = ½
    advantage, returns = generalized_advantages(values, rewards, 0.5, 0.5)
    assert advantage.tolist() == [0.5, 2.0, 4.0, -2.0]
    assert returns.tolist() == [1.5, 4.0, 8.0, 1.0]


def test_no_trajectories_have_no_advantages():
    nothing = Ragged.of([], np.float64)
    assert generalized_advantages(nothing, nothing).advantage.size == 0


@given(rows, unit)
def test_with_lambda_1_the_advantage_is_the_sum_of_later_rewards_minus_the_value(
    trajectories: list[list[tuple[float, float]]], gamma: float
):
    values, rewards = to_ragged(trajectories)
    advantage, returns = generalized_advantages(values, rewards, gamma, 1.0)
    earned = [sum(gamma**i * r for i, r in enumerate(row[t:])) for row in rewards for t in range(row.size)]
    np.testing.assert_allclose(returns, earned, rtol=0, atol=1e-12)
    np.testing.assert_allclose(advantage, earned - values.flat, rtol=0, atol=1e-12)


@given(rows, unit)
def test_with_lambda_0_the_advantage_is_the_one_step_error(trajectories: list[list[tuple[float, float]]], gamma: float):
    values, rewards = to_ragged(trajectories)
    following = [value for row in values for value in [*row[1:], 0.0][: row.size]]
    expected = rewards.flat + gamma * np.array(following).reshape(-1) - values.flat
    np.testing.assert_allclose(generalized_advantages(values, rewards, gamma, 0.0).advantage, expected, atol=1e-15)


@given(rows)
def test_one_step_errors_telescope(trajectories: list[list[tuple[float, float]]]):
    """With γ = 1 and λ = 0, they sum to the reward of the trajectory minus the value of the prompt."""
    values, rewards = to_ragged(trajectories)
    advantage = Ragged(generalized_advantages(values, rewards, 1.0, 0.0).advantage, values.offsets)
    for value, reward, errors in zip(values, rewards, advantage, strict=True):
        if value.size:
            assert errors.sum() == pytest.approx(reward.sum() - value[0], abs=1e-12)


@given(rows, unit, unit, st.randoms())
def test_advantages_do_not_depend_on_the_other_trajectories(
    trajectories: list[list[tuple[float, float]]], gamma: float, lam: float, random
):
    order = list(range(len(trajectories)))
    random.shuffle(order)
    values, rewards = to_ragged(trajectories)
    together = Ragged(
        generalized_advantages(*to_ragged([trajectories[i] for i in order]), gamma, lam).advantage,
        to_ragged([trajectories[i] for i in order])[0].offsets,
    )
    for place, i in enumerate(order):
        value, reward = values[i], rewards[i]
        later, expected = 0.0, np.zeros(value.size)
        for t in reversed(range(value.size)):  # the recursion of the paper, one step at a time
            following = value[t + 1] if t + 1 < value.size else 0.0
            later = reward[t] + gamma * following - value[t] + gamma * lam * later
            expected[t] = later
        np.testing.assert_allclose(together[place], expected, rtol=0, atol=1e-12)


def test_views_into_larger_arrays_are_read_from_their_offsets():
    values = Ragged(np.array([9.0, 1.0, 2.0, 9.0]), np.array([1, 3]))
    rewards = Ragged(np.array([0.0, 1.0]), np.array([0, 2]))
    assert generalized_advantages(values, rewards, 1.0, 1.0).advantage.tolist() == [0.0, -1.0]


@pytest.mark.parametrize(
    ("values", "rewards", "gamma", "problem"),
    [
        ([[1.0]], [[1.0]], 1.5, "from 0 to 1"),
        ([[1.0]], [[1.0, 2.0]], 1.0, "in every row"),
        ([[np.nan]], [[1.0]], 1.0, "finite"),
    ],
)
def test_invalid_arguments_are_refused(values, rewards, gamma, problem):
    with pytest.raises(ValueError, match=problem):
        generalized_advantages(Ragged.of(values, np.float64), Ragged.of(rewards, np.float64), gamma)


def test_value_loss_by_hand():
    """c = 0.2. The first value is clipped to 0.7, further from 1 than 0.9; the second also, but closer to 0: unused."""
    values = torch.tensor([0.9, 0.9, 0.5], dtype=torch.float64, requires_grad=True)
    old, returns = torch.tensor([0.5, 0.5, 0.4]).double(), torch.tensor([1.0, 0.0, 1.0]).double()
    loss, sums = value_loss(values, old, returns, 4, 0.2)
    # squared errors 0.01, 0.81, 0.25; of the clipped 0.09, 0.49, 0.25 → maxima 0.09, 0.81, 0.25
    assert loss.item() == pytest.approx(0.5 * (0.09 + 0.81 + 0.25) / 4)
    loss.backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([0.0, 0.9 / 4, -0.5 / 4])  # the clipped branch has no gradient
    assert (sums.value.item(), sums.error.item()) == pytest.approx((2.3, 0.3))
    assert (sums.squared_error.item(), sums.clipped.item()) == pytest.approx((1.07, 1.0))


@given(st.lists(st.tuples(*[st.floats(-3, 3)] * 3), max_size=8), st.floats(0.01, 3), st.integers(0, 8))
def test_micro_batches_add_up_and_clipping_never_lowers_the_loss(found, clip: float, cut: int):
    values, old, returns = torch.tensor(found, dtype=torch.float64).reshape(-1, 3).T
    whole, sums = value_loss(values, old, returns, len(found), clip)
    parts = [value_loss(values[p], old[p], returns[p], len(found), clip)[0] for p in (slice(cut), slice(cut, None))]
    torch.testing.assert_close(parts[0] + parts[1], whole)
    plain, unclipped = value_loss(values, old, returns, len(found), None)
    assert whole >= plain
    assert (sums.clipped == 0) == bool(torch.isclose(whole, plain, rtol=0, atol=0))
    assert unclipped.clipped == 0


def test_without_states_the_loss_is_0_and_can_be_differentiated():
    values = torch.zeros(0, requires_grad=True)
    loss, _ = value_loss(values, torch.zeros(0), torch.zeros(0), 0)
    loss.backward()
    assert loss.item() == 0.0


def test_value_loss_refuses_invalid_arguments():
    two = torch.zeros(2)
    with pytest.raises(ValueError, match="one shape"):
        value_loss(two, two, torch.zeros(1), 2)
    with pytest.raises(ValueError, match="at least 2 states"):
        value_loss(two, two, two, 1)
    with pytest.raises(ValueError, match="clip above 0"):
        value_loss(two, two, two, 2, 0.0)
