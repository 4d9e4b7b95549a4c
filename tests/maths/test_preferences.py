"""DPO-positive: worked by hand, and its gradient by the definition."""

from __future__ import annotations

import math

import pytest
import torch

from stages.maths.preferences import dpo_positive


def loss_and_gradients(right: float, wrong: float, beta: float, penalty: float) -> tuple[float, float, float]:
    ratios = torch.tensor([right, wrong], dtype=torch.float64, requires_grad=True)
    loss = dpo_positive(ratios[:1], ratios[1:], beta, penalty).sum()
    (gradient,) = torch.autograd.grad(loss, ratios)
    return loss.item(), *gradient.tolist()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("right", "wrong", "margin"),
    [
        (0.5, -1.5, 2.0),  # the right response is raised: no penalty, DPO
        (-0.5, -1.5, -1.5),  # both are lowered: 1 - 5 times 0.5
        (-0.5, 0.5, -3.5),
    ],
)
def test_loss_by_hand(right: float, wrong: float, margin: float):
    loss, of_right, of_wrong = loss_and_gradients(right, wrong, beta=0.2, penalty=5.0)
    assert loss == pytest.approx(math.log(1 + math.exp(-0.2 * margin)))
    slope = 0.2 * sigmoid(-0.2 * margin)
    assert of_wrong == pytest.approx(slope)
    assert of_right == pytest.approx(-slope * (6 if right < 0 else 1))


def test_without_a_penalty_it_is_dpo():
    assert loss_and_gradients(-0.5, -1.5, 0.2, 0.0)[0] == pytest.approx(math.log(1 + math.exp(-0.2)))


def test_values_out_of_range_are_refused():
    two = torch.zeros(2)
    for arguments in ((two, torch.zeros(3), 0.1, 1.0), (two, two, 0.0, 1.0), (two, two, 0.1, -1.0)):
        with pytest.raises(ValueError, match=r"expected"):
            dpo_positive(*arguments)
