"""Compare PPO with a critic with the released code; `tests/golden/README.md` describes the numbers.

Each deviation is asserted: our number differs, and the released one follows from ours by the quirk that is named.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stages.maths.gae import generalized_advantages, value_loss
from stages.maths.losses import KLKind, kl_estimate
from stages.maths.ragged import Ragged
from stages.maths.statistics import whiten
from tests.golden import assert_close, load_golden

KL_KINDS: dict[str, KLKind] = {"kl": "k1", "mse": "k2", "control_variate": "k3"}


def arrays(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return values, rewards and mask, each [B, T]; masked-out entries are 0."""
    mask = np.array(case["inputs"]["mask"], np.float64)
    return np.array(case["inputs"]["values"]) * mask, np.array(case["inputs"]["rewards"]) * mask, mask


def padded_advantages(
    values: np.ndarray, rewards: np.ndarray, gamma: float, lam: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return our advantages and returns [B, T] for rows of full length, padding included."""
    offsets = np.arange(values.shape[0] + 1) * values.shape[1]
    found = generalized_advantages(Ragged(values.ravel(), offsets), Ragged(rewards.ravel(), offsets), gamma, lam)
    return found.advantage.reshape(values.shape), found.returns.reshape(values.shape)


def inverse_std(values: np.ndarray, ddof: int) -> float:
    return float(1 / np.sqrt(values.var(ddof=ddof) + 1e-8))


def released_advantages(case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Derive the released advantages and returns from ours.

    Quirks: the released returns use λ = 1 for every λ (ours are TD(λ), Â + V). Rewards are whitened around their own
    mean with the biased variance; this also changes the padding, which then enters the sums of earlier tokens.
    """
    values, rewards, mask = arrays(case)
    settings, kept = case["inputs"]["hparams"], mask.astype(bool)
    if settings["whiten_rewards"]:
        mean = rewards[kept].mean()
        rewards = (rewards - mean) * inverse_std(rewards[kept], ddof=0) + mean
    advantages, _ = padded_advantages(values, rewards, settings["gamma"], settings["lam"])
    _, returns = padded_advantages(values, rewards, settings["gamma"], 1.0)
    if settings["whiten_advantages"]:
        advantages = (advantages - advantages[kept].mean()) * inverse_std(advantages[kept], ddof=1)
    elif settings["grayen_advantages"]:
        advantages = advantages * inverse_std(advantages[kept], ddof=1)
    return advantages, returns


def test_advantages_and_returns():
    for case in load_golden("gae.json")["cases"]:
        if case["name"] == "length_1_whiten_nan":  # deviation, tested below
            continue
        advantages, returns = released_advantages(case)
        assert_close(advantages, case["outputs"]["float64"]["advantages"], case)
        assert_close(returns, case["outputs"]["float64"]["returns"], case)


def test_ragged_rows_of_kept_tokens_give_the_same_advantages():
    """Padding around the response has no effect; whitening is a separate step over the kept tokens."""
    seen = set()
    for case in load_golden("gae.json")["cases"]:
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
            advantage = advantage * inverse_std(advantage, ddof=1)
        assert_close(advantage, np.array(expected["advantages"])[kept], case)
        seen.add((settings["whiten_advantages"], settings["grayen_advantages"]))
    assert len(seen) == 3


def test_a_single_kept_token_is_left_unwhitened():
    """Deviation: the released advantage is NaN."""
    (case,) = [case for case in load_golden("gae.json")["cases"] if case["name"] == "length_1_whiten_nan"]
    assert np.isnan(case["outputs"]["float64"]["advantages"][0][0])
    values, rewards, _ = arrays(case)
    advantages, _ = padded_advantages(values, rewards, 1.0, 0.96)
    assert whiten(advantages[0]).tolist() == pytest.approx([0.6])  # 1 − 0.4


def test_our_returns_depend_on_lambda():
    """Deviation: the released returns are the sum of rewards for every λ, ours are Â + V; they agree for λ = 1."""
    differ = []
    for case in load_golden("gae.json")["cases"]:
        settings = case["inputs"]["hparams"]
        if settings["whiten_rewards"]:
            continue
        values, rewards, mask = arrays(case)
        _, returns = padded_advantages(values, rewards, settings["gamma"], settings["lam"])
        same = np.allclose(returns * mask, np.array(case["outputs"]["float64"]["returns"]) * mask, atol=1e-9)
        assert same or settings["lam"] < 1, case["name"]
        differ.append(not same)
    assert any(differ)


def test_value_loss():
    for case in load_golden("critic_loss.json")["cases"]:
        inputs, expected = case["inputs"], case["outputs"]["float64"]
        values = torch.tensor(inputs["values"], dtype=torch.float64, requires_grad=True)
        kept = torch.tensor(inputs["mask"]).bool()
        old, returns = (
            torch.tensor(inputs[name], dtype=torch.float64)[kept] for name in ("old_valid_values", "returns")
        )
        states = int(kept.sum())
        loss, sums = value_loss(values[:, :-1][kept], old, returns, states, inputs["cliprange_value"])
        loss.backward()
        assert_close(loss.item(), expected["loss"], case)
        assert_close(values.grad, expected["grad_values"], case)
        assert_close(sums.value / states, expected["metrics"]["critic/value"], case)
        assert_close(sums.squared_error / states, expected["metrics"]["critic/mse"], case)
        assert_close(
            sums.clipped / states, expected["metrics"]["critic/clip_frac"], case
        )  # the released sum is in float32


def test_kl_estimates_in_the_reward():
    """The released rewards are −β KL_t, plus the score at the last token; here KL_t is our estimate.

    Quirk: the padding is penalized as well, so only the tokens of the response are compared.
    """
    seen = set()
    for case in load_golden("rewards.json")["cases"]:
        inputs, expected = case["inputs"], case["outputs"]["float64"]
        settings = inputs["hparams"]
        if settings["kl_penalty_loss_type"] is not None or inputs["ref_logprobs"] is None:
            continue  # the KL is part of the loss, or there is no reference: the reward has no penalty
        lengths = torch.tensor(inputs["attention_mask"]).sum(1) - 1
        logprobs, reference, rewards = (
            torch.tensor(found, dtype=torch.float64)
            for found in (inputs["actor_logprobs"], inputs["ref_logprobs"], expected["rewards"])
        )
        inside = torch.arange(logprobs.shape[1]) < lengths[:, None]
        kind = settings["kl_penalty"]
        kls = kl_estimate(logprobs[inside], reference[inside], KL_KINDS.get(kind, "k1"))
        penalty = settings["init_kl_coef"] * (kls.abs() if kind == "abs" else kls)
        scores = torch.tensor(inputs["scores"], dtype=torch.float64)
        assert_close((-penalty).index_add(0, lengths.cumsum(0) - 1, scores), rewards[inside], case)
        seen.add(kind)
    assert seen == {*KL_KINDS, "abs"}
