"""Every loss adds up over micro-batches, and reductions between losses hold in the objective, too."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from stages.optimization.batches import Example
from stages.optimization.head import Scored
from stages.optimization.objective import BatchTotals, Loss, MicroBatchExamples, Objective, micro_batch_loss

LOSSES: tuple[Loss, ...] = ("ppo", "gspo", "segment-ratio", "cispo", "dppo", "sapo")
RANDOM = np.random.default_rng(3)
LENGTHS = (3, 1, 4)


def example(length: int, segments: list[int]) -> Example:
    old = -RANDOM.exponential(1.0, length)
    return Example(
        np.arange(length + 1, dtype=np.int32),
        np.arange(1, length + 1),
        RANDOM.normal(size=length),
        old=old,
        sampled=old + RANDOM.normal(0, 0.5, length),
        segment_ids=np.array(segments),
    )


BATCH = [example(3, [0, 0, 1]), example(1, [2]), example(4, [3, 4, 4, 4])]
CURRENT = [torch.tensor(one.old + RANDOM.normal(0, 0.4, one.kept.size)) for one in BATCH if one.old is not None]


def gradient(objective: Objective, passes: list[list[int]], batch: list[Example] = BATCH) -> tuple[float, np.ndarray]:
    """Return the loss of the batch and its gradient with respect to the log-probabilities of all tokens."""
    totals, loss, slopes = BatchTotals.of(batch, objective), 0.0, {}
    for indices in passes:
        logprobs = torch.cat([CURRENT[i] for i in indices]).requires_grad_()
        group = MicroBatchExamples(
            indices, [batch[i] for i in indices], np.concatenate([batch[i].advantages for i in indices])
        )
        own, *_ = micro_batch_loss(objective, group, Scored(logprobs, torch.zeros_like(logprobs)), totals)
        (slope,) = torch.autograd.grad(own, logprobs)
        loss += own.item()
        slopes |= dict(zip(indices, slope.split([LENGTHS[i] for i in indices]), strict=True))
    return loss, torch.cat([slopes[i] for i in range(len(batch))]).numpy()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("correction", [None, "tis", "mis"])
def test_micro_batches_add_up_to_the_batch(loss: Loss, correction: Any):
    objective = Objective(loss=loss, correction=correction, correction_level="sequence", correction_cap=1.5)
    whole, parts = gradient(objective, [[0, 1, 2]]), gradient(objective, [[2], [0, 1]])
    assert whole[0] == pytest.approx(parts[0])
    np.testing.assert_allclose(whole[1], parts[1], atol=1e-12)


def test_the_likelihood_of_selected_responses_has_the_gradient_of_fine_tuning():
    batch = [dataclasses.replace(one, advantages=np.ones(one.kept.size)) for one in BATCH]
    loss, slope = gradient(Objective(loss="nll", whiten="none"), [[2], [0, 1]], batch)
    np.testing.assert_allclose(slope, np.full(8, -1 / 8))
    assert loss == pytest.approx(-torch.cat(CURRENT).mean().item())


@pytest.mark.parametrize("loss", ["clip-cov", "kl-cov"])
def test_losses_by_covariance_restrain_tokens_within_a_forward_pass(loss: Loss):
    plain = gradient(Objective(loss="ppo", epsilon=0.9, epsilon_high=99.0), [[0, 1, 2]])[1]
    found = gradient(Objective(loss=loss, epsilon=0.9, epsilon_high=99.0, cov_fraction=0.25), [[0, 1, 2]])[1]
    assert (found != plain).sum() == (2 if loss == "kl-cov" else min(2, _candidates()))


def _candidates() -> int:
    """Return the number of tokens whose covariance lies between the bounds of Clip-Cov."""
    logprobs, advantages = torch.cat(CURRENT).numpy(), np.concatenate([one.advantages for one in BATCH])
    covariance = (advantages - advantages.mean()) * (logprobs - logprobs.mean())
    return int(((covariance > 1) & (covariance < 5)).sum())


def test_a_response_of_one_segment_has_the_ratio_of_gspo():
    batch = [dataclasses.replace(one, segment_ids=np.zeros(one.kept.size, np.int64)) for one in BATCH]
    found = [gradient(Objective(loss=loss), [[0, 1, 2]], batch) for loss in ("segment-ratio", "gspo")]
    assert found[0][0] == pytest.approx(found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-12)


def test_segments_of_one_token_have_the_ratios_of_ppo():
    batch = [dataclasses.replace(one, segment_ids=np.arange(one.kept.size)) for one in BATCH]
    found = [gradient(Objective(loss=loss), [[0, 1, 2]], batch) for loss in ("segment-ratio", "ppo")]
    assert found[0][0] == pytest.approx(found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_sampler_that_agrees_with_the_trainer_is_not_corrected(loss: Loss):
    batch = [dataclasses.replace(one, sampled=one.old) for one in BATCH]
    plain = gradient(Objective(loss=loss), [[0, 1, 2]], batch)
    corrected = gradient(Objective(loss=loss, correction="tis"), [[0, 1, 2]], batch)
    assert plain[0] == corrected[0]
    np.testing.assert_array_equal(plain[1], corrected[1])


def test_a_correction_multiplies_the_loss_of_a_token():
    plain, corrected = (gradient(Objective(correction=one), [[0, 1, 2]])[1] for one in (None, "tis"))
    sampled = np.concatenate([one.sampled for one in BATCH if one.sampled is not None])
    old = np.concatenate([one.old for one in BATCH if one.old is not None])
    np.testing.assert_allclose(corrected, plain * np.minimum(np.exp(old - sampled), 2.0), atol=1e-12)


def test_the_entropy_bonus_rewards_the_mean_entropy():
    objective = Objective(entropy_bonus=0.5)
    entropy = torch.arange(8.0, dtype=torch.float64).requires_grad_()
    logprobs = torch.cat(CURRENT)
    group = MicroBatchExamples([0, 1, 2], BATCH, np.concatenate([one.advantages for one in BATCH]))
    loss, metrics, _ = micro_batch_loss(objective, group, Scored(logprobs, entropy), BatchTotals.of(BATCH, objective))
    (slope,) = torch.autograd.grad(loss, entropy)
    assert slope.tolist() == pytest.approx([-0.5 / 8] * 8)
    assert metrics["entropy"].item() == pytest.approx(3.5)
