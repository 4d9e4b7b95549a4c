"""The released code's distillation loss, case by case, with its gradient; skipped where the numbers are absent."""

from __future__ import annotations

import torch

from stages.maths.losses import distillation_loss, policy_loss
from tests.maths.test_released_numbers import close, flat, golden


def test_distillation(shared):
    for case in golden(shared, "dvo_loss.json")["cases"]:
        theirs, kept = case["outputs"]["float64"], torch.tensor(case["inputs"]["mask"]) != 0
        logprobs = flat(case, "logprobs", kept).requires_grad_()
        segment = torch.arange(len(kept))[:, None].expand(kept.shape)[kept]
        advantages = torch.tensor(case["inputs"]["seq_advantages"], dtype=torch.float64)
        old, ref = flat(case, "old_logprobs", kept), flat(case, "ref_logprobs", kept)
        losses, sums = distillation_loss(logprobs, old, ref, segment, advantages, case["inputs"]["beta"])
        loss = policy_loss(losses, len(kept))
        close(loss.item(), theirs["loss"], case)
        (gradient,) = torch.autograd.grad(loss, logprobs)
        expected = torch.tensor(theirs["grad_logprobs"], dtype=torch.float64)
        close(gradient, expected[kept], case)
        assert not expected[~kept].any(), case["name"]
        for ours, name in (
            (sums.weight, "weight"),
            (sums.weight_clipped, "weight_clip_frac"),
            (sums.log_ratio, "avg_log_ratio"),
        ):
            close(ours.item() / len(kept), theirs["metrics"][f"actor/{name}"], case)
