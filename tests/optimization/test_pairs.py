"""DPO-positive in the objective: the numbers of VinePPO's code, and pairs that may be in any forward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stages.optimization.batches import Example
from stages.optimization.head import Scored
from stages.optimization.objective import BatchTotals, MicroBatchExamples, Objective, micro_batch_loss
from tests.golden import load_golden

CASES = load_golden("dpo_positive.json")["cases"]


def loss_and_gradient(inputs: dict[str, Any], passes: list[list[int]]) -> tuple[float, np.ndarray]:
    """Return the loss and its gradient [2, P, T] with respect to the log-probabilities of all tokens.

    Examples 2k and 2k + 1 of the batch are pair k; in odd pairs the wrong response comes first.
    """
    logprobs, reference, mask = (np.array(inputs[name]) for name in ("logprobs", "ref", "mask"))
    places = [(side ^ (pair % 2), pair) for pair in range(mask.shape[1]) for side in (0, 1)]
    batch = []
    for side, pair in places:
        kept = mask[side, pair] > 0
        length = int(kept.sum())
        sign = np.full(length, 1.0 - 2 * side)
        batch.append(
            Example(
                np.arange(length + 1, dtype=np.int32),
                np.arange(1, length + 1),
                sign,
                reference=reference[side, pair, kept],
            )
        )
    objective = Objective(loss="dpo-positive", whiten="none", beta=inputs["beta"], pair_penalty=inputs["penalty"])
    current = torch.tensor(logprobs, requires_grad=True)
    total, gradient = 0.0, torch.zeros_like(current)
    for indices in passes:
        flat = torch.cat([current[places[i]][torch.tensor(mask[places[i]] > 0)] for i in indices])
        group = MicroBatchExamples(
            indices, [batch[i] for i in indices], np.concatenate([batch[i].advantages for i in indices])
        )
        totals = BatchTotals.of(batch, objective)
        loss, *_ = micro_batch_loss(objective, group, Scored(flat, torch.zeros_like(flat)), totals)
        gradient += torch.autograd.grad(loss, current)[0]
        total += loss.item()
    return total, gradient.numpy()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
@pytest.mark.parametrize("passes", [[[0, 1, 2, 3, 4, 5]], [[2, 3], [5, 4, 0, 1]]], ids=["one pass", "two passes"])
def test_loss_and_gradient_are_those_of_the_released_code(case: dict[str, Any], passes: list[list[int]]):
    loss, gradient = loss_and_gradient(case["inputs"], passes)
    assert loss == pytest.approx(case["outputs"]["loss"], rel=1e-9)
    np.testing.assert_allclose(gradient, case["outputs"]["grad_logprobs"], rtol=1e-9, atol=1e-12)
