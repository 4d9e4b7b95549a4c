"""The released code's numbers for PPO with a critic, and what we do where it is quirky; see `test_released_numbers`.

Where theirs is another number, theirs is made from ours by the quirk that is named.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stages.maths.gae import Penalty, generalized_advantages, penalised_rewards, value_loss
from stages.maths.ragged import Ragged
from stages.maths.statistics import masked_mean, masked_var, whiten
from tests.maths.test_released_numbers import close, golden

KINDS: dict[str, Penalty] = {"kl": "k1", "mse": "k2", "control_variate": "k3", "abs": "abs"}


def arrays(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """values, rewards, mask [B, T]; what the mask leaves out is 0."""
    mask = np.array(case["inputs"]["mask"], np.float64)
    return np.array(case["inputs"]["values"]) * mask, np.array(case["inputs"]["rewards"]) * mask, mask


def padded(values: np.ndarray, rewards: np.ndarray, gamma: float, lam: float) -> tuple[np.ndarray, np.ndarray]:
    """Advantages and returns [B, T] of rows of full length."""
    offsets = np.arange(values.shape[0] + 1) * values.shape[1]
    found = generalized_advantages(Ragged(values.ravel(), offsets), Ragged(rewards.ravel(), offsets), gamma, lam)
    return found.advantage.reshape(values.shape), found.returns.reshape(values.shape)


def scale(values: np.ndarray, mask: np.ndarray, unbiased: bool) -> np.ndarray:
    return 1 / np.sqrt(masked_var(values, mask, unbiased) + 1e-8)


def theirs(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Their advantages and returns, from ours.

    Quirks: their returns are λ = 1 whatever λ is (ours are TD(λ), Â + V); rewards are whitened around their own mean
    with the biased variance, which fills the padding, and the padding is then summed into what comes before it.
    """
    values, rewards, mask = arrays(case)
    settings = case["inputs"]["hparams"]
    if settings["whiten_rewards"]:
        mean = masked_mean(rewards, mask)
        rewards = (rewards - mean) * scale(rewards, mask, unbiased=False) + mean
    advantages, _ = padded(values, rewards, settings["gamma"], settings["lam"])
    _, returns = padded(values, rewards, settings["gamma"], 1.0)
    if settings["whiten_advantages"]:
        advantages = (advantages - masked_mean(advantages, mask)) * scale(advantages, mask, unbiased=True)
    elif settings["grayen_advantages"]:
        advantages = advantages * scale(advantages, mask, unbiased=True)
    return advantages, returns


def test_advantages_and_returns(shared):
    for case in golden(shared, "gae.json")["cases"]:
        if case["name"] == "length_1_whiten_nan":  # told apart below
            continue
        advantages, returns = theirs(case)
        close(advantages, case["outputs"]["float64"]["advantages"], case)
        close(returns, case["outputs"]["float64"]["returns"], case)


def test_ragged_rows_of_the_kept_tokens_alone_give_the_same(shared):
    """Padding before and after the response changes nothing, and whitening is the step's own, over the kept tokens."""
    seen = set()
    for case in golden(shared, "gae.json")["cases"]:
        values, rewards, mask = arrays(case)
        settings, expected = case["inputs"]["hparams"], case["outputs"]["float64"]
        if settings["whiten_rewards"] or mask.sum() < 2:
            continue
        rows = [np.flatnonzero(row) for row in mask]
        own = [Ragged.of([x[i][row] for i, row in enumerate(rows)], np.float64) for x in (values, rewards)]
        ours = generalized_advantages(own[0], own[1], settings["gamma"], settings["lam"])
        kept = mask.astype(bool)
        advantage = whiten(ours.advantage) if settings["whiten_advantages"] else ours.advantage
        if settings["grayen_advantages"]:
            advantage = advantage / np.sqrt(np.var(advantage, ddof=1) + 1e-8)
        close(advantage, np.array(expected["advantages"])[kept], case)
        seen.add((settings["whiten_advantages"], settings["grayen_advantages"]))
    assert len(seen) == 3


def test_a_single_kept_token_is_not_whitened_into_a_nan(shared):
    """Deviation."""
    (case,) = [case for case in golden(shared, "gae.json")["cases"] if case["name"] == "length_1_whiten_nan"]
    assert np.isnan(case["outputs"]["float64"]["advantages"][0][0])
    values, rewards, _ = arrays(case)
    advantages, _ = padded(values, rewards, 1.0, 0.96)
    assert whiten(advantages[0]).tolist() == pytest.approx([0.6])  # 1 − 0.4, as it is


def test_our_returns_follow_lambda(shared):
    """Deviation: theirs are what was earned, whatever λ; ours are Â + V. With λ = 1 they are the same."""
    differ = []
    for case in golden(shared, "gae.json")["cases"]:
        settings = case["inputs"]["hparams"]
        if settings["whiten_rewards"]:
            continue
        values, rewards, mask = arrays(case)
        _, returns = padded(values, rewards, settings["gamma"], settings["lam"])
        same = np.allclose(returns * mask, np.array(case["outputs"]["float64"]["returns"]) * mask, atol=1e-9)
        assert same or settings["lam"] < 1, case["name"]
        differ.append(not same)
    assert any(differ)


def test_value_loss(shared):
    for case in golden(shared, "critic_loss.json")["cases"]:
        inputs, expected = case["inputs"], case["outputs"]["float64"]
        values = torch.tensor(inputs["values"], dtype=torch.float64, requires_grad=True)
        kept = torch.tensor(inputs["mask"]).bool()
        old, returns = (
            torch.tensor(inputs[name], dtype=torch.float64)[kept] for name in ("old_valid_values", "returns")
        )
        states = int(kept.sum())
        loss, sums = value_loss(values[:, :-1][kept], old, returns, states, inputs["cliprange_value"])
        loss.backward()
        close(loss.item(), expected["loss"], case)
        close(values.grad, expected["grad_values"], case)
        close(sums.value / states, expected["metrics"]["critic/value"], case)
        close(sums.squared_error / states, expected["metrics"]["critic/mse"], case)
        close(sums.clipped / states, expected["metrics"]["critic/clip_frac"], case)  # theirs is summed in float32


def test_penalised_rewards(shared):
    """Quirk: they penalise the padding too; a response of ours ends with its last token."""
    seen = set()
    for case in golden(shared, "rewards.json")["cases"]:
        inputs, expected = case["inputs"], case["outputs"]["float64"]
        settings, lengths = inputs["hparams"], torch.tensor(inputs["attention_mask"]).sum(1) - 1
        logprobs = torch.tensor(inputs["actor_logprobs"], dtype=torch.float64)
        inside = torch.arange(logprobs.shape[1]) < lengths[:, None]
        # A KL in the loss, or no reference, leaves nothing to pay for.
        free = settings["kl_penalty_loss_type"] is not None or inputs["ref_logprobs"] is None
        reference = logprobs if free else torch.tensor(inputs["ref_logprobs"], dtype=torch.float64)
        scores, kind = torch.tensor(inputs["scores"], dtype=torch.float64), KINDS[settings["kl_penalty"]]
        found = penalised_rewards(scores, lengths, logprobs[inside], reference[inside], settings["init_kl_coef"], kind)
        close(found, torch.tensor(expected["rewards"], dtype=torch.float64)[inside], case)
        if not free:
            seen.add(kind)
    assert seen == set(KINDS.values())
