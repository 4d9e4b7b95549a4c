"""Compare the losses of the policy step with the released code; `tests/golden/README.md` describes the numbers.

Each deviation is asserted: our number differs, and the released one follows from ours by the quirk that is named.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stages.maths.losses import KLKind, distillation_loss, kl_estimate, kl_loss, policy_loss, ppo_clip
from stages.maths.partition import find_cutpoints
from stages.maths.ragged import Ragged
from tests.golden import assert_close, load_golden

RHO = 0.9
KL_KINDS: dict[str, KLKind] = {"kl": "k1", "mse": "k2", "control_variate": "k3"}


def kept_values(case: dict[str, Any], name: str, kept: torch.Tensor) -> torch.Tensor:
    return torch.tensor(case["inputs"][name], dtype=torch.float64)[kept]


def kept_tokens(case: dict[str, Any]) -> torch.Tensor:
    """Return [B, T] bool: the response tokens, restricted to cutpoints if the case uses the probability mask."""
    mask = torch.tensor(case["inputs"]["mask"]) != 0
    if not case["inputs"]["hparams"]["use_prob_mask"]:
        return mask
    old = np.array(case["inputs"]["old_logprobs"], np.float64)
    below = find_cutpoints(Ragged(old.ravel(), np.arange(len(old) + 1) * old.shape[1]), RHO)
    return mask & torch.from_numpy(below.reshape(old.shape))


def policy_part(case: dict[str, Any], kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return our policy loss over the kept tokens, and the log-probabilities that it depends on."""
    logprobs = kept_values(case, "logprobs", kept).requires_grad_()
    per_token, _ = ppo_clip(
        logprobs,
        kept_values(case, "old_logprobs", kept),
        kept_values(case, "advantages", kept),
        case["inputs"]["hparams"]["cliprange"],
    )
    return policy_loss(per_token, int(kept.sum())), logprobs


def test_actor_loss():
    """Loss and gradient of the policy part agree always, those of the KL part where the released clamps do not bind."""
    whole = 0
    for case in load_golden("actor_loss.json")["cases"]:
        hparams, released = case["inputs"]["hparams"], case["outputs"]["float64"]
        if released["is_skipped"]:
            continue
        kept = kept_tokens(case)
        if not kept.any():
            continue
        loss, logprobs = policy_part(case, kept)
        kl_term, fkl_term = (released["metrics"].get(f"actor/{name}", 0.0) for name in ("ref_kl_loss", "fkl_loss"))
        assert_close(loss.item(), released["loss"] - kl_term - fkl_term, case)
        if hparams["kl_penalty_loss_type"] in KL_KINDS:
            kl = kl_estimate(
                logprobs,
                kept_values(case, "ref_logprobs", kept),
                KL_KINDS[hparams["kl_penalty_loss_type"]],
            )
            low, high = hparams["kl_penalty_loss_clip_min"], hparams["kl_penalty_loss_clip_max"]
            clamped = kl.clamp(low, high)
            assert_close(clamped.detach(), torch.tensor(released["ref_kl"], dtype=torch.float64)[kept], case)
            ours, clamped_loss = (kl_loss(x, len(kept), hparams["init_kl_coef"]) for x in (kl, clamped))
            assert_close(clamped_loss.item(), kl_term, case)
            if not torch.equal(kl, clamped):  # deviation: our estimators are not clamped
                assert abs(ours.item() - kl_term) > 1e-6, case["name"]
                loss = loss + clamped_loss
            else:
                assert_close((loss + ours).item(), released["loss"], case)
                loss, whole = loss + ours, whole + 1
        elif hparams["kl_penalty_loss_type"] == "abs":  # spo has no "abs"; computed here to compare the gradient
            difference = logprobs - kept_values(case, "ref_logprobs", kept)
            loss = loss + kl_loss(difference.abs(), len(kept), hparams["init_kl_coef"])
        (gradient,) = torch.autograd.grad(loss, logprobs)
        expected = torch.tensor(released["grad_logprobs"], dtype=torch.float64)
        assert_close(gradient, expected[kept], case)
        assert not expected[~kept].any(), case["name"]
    assert whole > 3


def test_actor_metrics():
    """Ratio, clip fraction and KL to the sampling policy, as means over the kept tokens."""
    for case in load_golden("actor_loss.json")["cases"]:
        kept = kept_tokens(case)
        tokens = int(kept.sum())
        if not tokens:
            continue
        _, sums = ppo_clip(
            kept_values(case, "logprobs", kept),
            kept_values(case, "old_logprobs", kept),
            kept_values(case, "advantages", kept),
            case["inputs"]["hparams"]["cliprange"],
        )
        released = case["outputs"]["float64"]["metrics"]
        assert_close(sums.ratio / tokens, released["actor/ratio"], case)
        assert_close((sums.clip_low + sums.clip_high) / tokens, released["actor/clip_frac"], case)
        assert_close(sums.approx_kl / tokens, released["actor/approx_kl"], case)
        # In spo the trainer skips the batch; the released code multiplies the loss by 0.
        skipped = sums.ratio.item() / tokens > case["inputs"]["hparams"]["ratio_threshold"]
        assert skipped == case["outputs"]["float64"]["is_skipped"], case["name"]


@pytest.mark.parametrize("name", ["kl_loss_negative_clamped_to_zero", "kl_loss_clip_max", "control_variate_clamped"])
def test_kl_estimates_are_not_clamped_as_in_the_released_code(name):
    case = next(case for case in load_golden("actor_loss.json")["cases"] if case["name"] == name)
    kept = kept_tokens(case)
    ours = kl_estimate(
        kept_values(case, "logprobs", kept),
        kept_values(case, "ref_logprobs", kept),
        KL_KINDS[case["inputs"]["hparams"]["kl_penalty_loss_type"]],
    )
    expected = {
        "kl_loss_negative_clamped_to_zero": [-1.0, -2.0],
        "kl_loss_clip_max": [32.0, 0.32],
        "control_variate_clamped": [np.exp(10) - 11, np.exp(-10) + 9],
    }
    assert_close(ours, expected[name], case)
    assert not np.allclose(ours, torch.tensor(case["outputs"]["float64"]["ref_kl"], dtype=torch.float64)[kept])


def test_distillation():
    for case in load_golden("dvo_loss.json")["cases"]:
        released, kept = case["outputs"]["float64"], torch.tensor(case["inputs"]["mask"]) != 0
        logprobs = kept_values(case, "logprobs", kept).requires_grad_()
        segment = torch.arange(len(kept))[:, None].expand(kept.shape)[kept]
        advantages = torch.tensor(case["inputs"]["seq_advantages"], dtype=torch.float64)
        old, ref = kept_values(case, "old_logprobs", kept), kept_values(case, "ref_logprobs", kept)
        losses, sums = distillation_loss(logprobs, old, ref, segment, advantages, case["inputs"]["beta"])
        loss = policy_loss(losses, len(kept))
        assert_close(loss.item(), released["loss"], case)
        (gradient,) = torch.autograd.grad(loss, logprobs)
        expected = torch.tensor(released["grad_logprobs"], dtype=torch.float64)
        assert_close(gradient, expected[kept], case)
        assert not expected[~kept].any(), case["name"]
        for ours, name in (
            (sums.weight, "weight"),
            (sums.weight_clipped, "weight_clip_frac"),
            (sums.log_ratio, "avg_log_ratio"),
        ):
            assert_close(ours.item() / len(kept), released["metrics"][f"actor/{name}"], case)
