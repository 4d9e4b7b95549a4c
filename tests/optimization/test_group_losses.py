"""A step with the flags that docs/from-grpo.md names has the loss and the gradient of TRL and verl, KL included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stages.optimization.batches import Example
from stages.optimization.head import Scored
from stages.optimization.objective import BatchTotals, MicroBatchExamples, Objective, micro_batch_loss
from tests.golden import load_golden

CASES = load_golden("group_losses.json")["cases"]
SEQUENCE, TOKENS = {"normalization": "sequence"}, {"normalization": "tokens"}
FLAGS: dict[tuple[str, str], dict[str, Any]] = {
    ("trl", "grpo"): SEQUENCE,
    ("trl", "bnpo"): TOKENS,
    ("trl", "dapo"): TOKENS,
    ("trl", "dr_grpo"): {"normalization": "constant", "constant": 8},
    ("verl", "token-mean"): TOKENS,
    ("verl", "seq-mean-token-mean"): SEQUENCE,
    ("verl", "seq-mean-token-sum"): {"normalization": "constant", "constant": 1},
    ("verl", "seq-mean-token-sum-norm"): {"normalization": "constant", "constant": 8 / 3},
}
"""(library, its name of the normalization) → the same in `Objective`; 8 tokens at most, 3 sequences."""


def loss_and_gradient(inputs: dict[str, Any], **changes: Any) -> tuple[float, np.ndarray]:
    """Return the loss of the batch and its gradient [B, T] with respect to the log-probabilities."""
    names = ("logprobs", "old", "ref", "mask")
    logprobs, old, reference, mask = (np.array(inputs[name], np.float64) for name in names)
    kept = [row > 0 for row in mask]
    batch = [
        Example(
            np.arange(1 + int(of.sum()), dtype=np.int32),
            np.arange(1, 1 + int(of.sum())),
            np.full(int(of.sum()), advantage),
            old=old[row, of],
            reference=reference[row, of],
        )
        for row, (of, advantage) in enumerate(zip(kept, inputs["advantages"], strict=True))
    ]
    common = {name: inputs[name] for name in ("beta", "epsilon", "epsilon_high")}
    objective = Objective(**common, whiten="none", kl_normalization="tokens", **changes)
    current = torch.tensor(logprobs, requires_grad=True)
    flat = current[torch.tensor(mask > 0)]
    group = MicroBatchExamples([*range(len(batch))], batch, np.concatenate([one.advantages for one in batch]))
    loss, *_ = micro_batch_loss(
        objective, group, Scored(flat, torch.zeros_like(flat)), BatchTotals.of(batch, objective)
    )
    return loss.item(), torch.autograd.grad(loss, current)[0].numpy()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
@pytest.mark.parametrize(("library", "kind"), FLAGS)
def test_loss_and_gradient_are_those_of_the_other_trainer(library: str, kind: str, case: dict[str, Any]) -> None:
    dual_clip = 3.0 if library == "verl" else None
    loss, gradient = loss_and_gradient(case["inputs"], **FLAGS[library, kind], dual_clip=dual_clip)
    expected = case["outputs"][library][kind]
    assert loss == pytest.approx(expected["loss"], rel=1e-6, abs=1e-8)
    np.testing.assert_allclose(gradient, expected["grad_logprobs"], rtol=1e-6, atol=1e-8)


def test_a_sum_over_sequences_weighs_more_than_a_mean_over_tokens() -> None:
    """The KL is the mean of the sequences' sums: 3 sequences of n tokens in all, so n/3 times the mean over tokens."""
    inputs = CASES[0]["inputs"] | {"advantages": [0.0, 0.0, 0.0]}
    tokens = np.array(inputs["mask"]).sum()
    of_tokens, _ = loss_and_gradient(inputs)
    batch_sum, _ = loss_and_gradient(inputs, normalization="constant", constant=1)
    assert batch_sum == pytest.approx(of_tokens * tokens / 3)
