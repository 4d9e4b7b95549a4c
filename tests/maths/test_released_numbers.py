"""The released code's numbers, case by case, and what we do where it is quirky.

Cases come from the project's shared folder and are skipped where it is absent. Each deviation is asserted: that our
number differs, and that theirs follows from ours by the quirk that is named.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.maths.advantages import chain_advantages, grpo, rloo, sibling_advantages, states_to_estimate
from stages.maths.losses import kl_estimate, kl_loss, policy_loss, ppo_clip
from stages.maths.partition import (
    find_cutpoints,
    partition_at_boundaries,
    partition_by_count,
    partition_by_cutpoints,
    segment_cutpoints,
)
from stages.maths.ragged import Ragged
from stages.maths.statistics import masked_mean, masked_var, whiten
from stages.maths.trees import node_values, states_above
from stages.maths.values import best_of_n_values

RHO = 0.9


def golden(shared: Path, name: str) -> dict[str, Any]:
    """A file of cases; NaN and infinities are strings in it."""

    def numbers(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: numbers(item) for key, item in value.items()}
        if isinstance(value, list):
            return [numbers(item) for item in value]
        return float(value) if value in ("nan", "NaN", "inf", "-inf", "Infinity", "-Infinity") else value

    content = json.loads((shared / "golden" / name).read_text())
    return {"meta": content["meta"], "cases": [{**case, **numbers(case)} for case in content["cases"]]}


def close(found: Any, expected: Any, case: dict[str, Any], tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(
        np.asarray(found, np.float64), np.asarray(expected, np.float64), 0, tolerance, err_msg=case["name"]
    )


# Cutpoints and chain advantages


def test_cutpoints_and_advantages(shared):
    by_interval = defaultdict(list)
    for case in golden(shared, "mc_advantages.json")["cases"]:
        if not case["inputs"].get("direct"):
            by_interval[case["inputs"]["cutpoint_interval"]].append(case)
    for interval, cases in by_interval.items():
        check_batch(cases, interval)
    assert len(by_interval) > 1


def check_batch(cases: list[dict[str, Any]], interval: int) -> None:
    """All cases of one interval as one ragged batch."""
    logprobs = Ragged.of(
        [case["inputs"]["shifted_logprobs"][case["inputs"]["query_len"] - 1 :] for case in cases], np.float64
    )
    is_cutpoint = find_cutpoints(logprobs, RHO)
    segments = partition_by_cutpoints(logprobs.lengths, is_cutpoint, interval)
    wanted = states_to_estimate(segments.start, segment_cutpoints(segments, logprobs.lengths, is_cutpoint))
    values = np.full(len(segments), np.nan)
    for i, case in enumerate(cases):
        own = wanted & (segments.trajectory == i)
        # Their index is the token before the low-probability one; ours is the segment's first token.
        assert (segments.start[own] - 1).tolist() == case["outputs"]["cutpoints"], case["name"]
        values[own] = case["inputs"]["cutpoint_values"]

    result = chain_advantages(segments, values, [case["inputs"]["score"] for case in cases])
    per_token = np.repeat(result.advantage, segments.end - segments.start) * is_cutpoint
    per_token = Ragged(per_token, logprobs.offsets)
    for i, case in enumerate(cases):
        close(np.exp(logprobs[i]), case["outputs"]["response_probs"], case)
        close(per_token[i], case["outputs"]["advantages"], case)
        own = segments.trajectory == i
        at_ends = [case["outputs"]["token_values"][end - 1] for end in segments.end[own]]
        close(result.value_end[own], at_ends, case)


def test_a_token_at_exactly_rho_is_not_a_cutpoint_anywhere(shared):
    """Deviation: they mask the loss with p < 0.9 but zero the advantage with p > 0.9, so p = 0.9 has an advantage."""
    for case in golden(shared, "mc_advantages.json")["cases"]:
        inputs, theirs = case["inputs"], np.array(case["outputs"]["advantages"])
        if not inputs.get("direct"):
            continue
        probabilities = np.array(inputs["response_probs"])
        is_cutpoint = find_cutpoints(Ragged.of([np.log(probabilities)], np.float64), RHO)
        starts = Ragged.of([[index + 1 for index in inputs["cutpoints"]]], np.int64)
        segments = partition_at_boundaries([probabilities.size], starts)
        values = np.array(inputs["cutpoint_values"])
        if len(segments) > values.size:
            values = np.concatenate([[np.nan], values])
        result = chain_advantages(segments, values, [inputs["score"]])
        per_token = np.repeat(result.advantage, segments.end - segments.start)
        close(per_token * (probabilities <= RHO), theirs, case)  # the segments agree
        close(per_token * is_cutpoint, np.where(probabilities < RHO, theirs, 0.0), case)


def test_equal_lengths(shared):
    for case in golden(shared, "mc_advantages.json")["meta"]["naive_partition"]["cases"]:
        tokens, ours = case["num_tokens"], partition_by_count([case["num_tokens"]], case["num_segments"])
        # They keep empty segments (boundaries that repeat, or stand at an end); we drop them.
        theirs = sorted({index + 1 for index in case["cutpoints"]} - {0, tokens})
        assert ours.start[1:].tolist() == theirs, case


# Groups


def test_group_advantages(shared):
    for case in golden(shared, "group_advantages.json")["cases"]:
        scores, groups = case["inputs"]["scores"], case["inputs"]["group_ids"]
        close(grpo(scores, groups).advantage, case["outputs"]["grpo"], case)
        close(rloo(scores, groups).advantage, case["outputs"]["rloo"], case)


# Trees


def flat_tree(tree: dict[str, Any]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, rows of parents and leaf rewards (NaN: inner) of every node but the root, in pre-order."""
    names: list[str] = []
    parents: list[int] = []
    rewards: list[float] = []

    def add(node: dict[str, Any], parent: int) -> None:
        for child in node["children"]:
            names.append(child["id"])
            parents.append(parent)
            rewards.append(child.get("leaf_reward", np.nan))
            if "children" in child:
                add(child, len(names) - 1)

    add(tree, -1)
    return names, np.array(parents, np.int64), np.array(rewards)


def test_tree_values_and_advantages(shared):
    """Their `rloo` is the difference to the mean of all siblings, `grpo` that over their standard deviation."""
    dropped = refused = 0
    for case in golden(shared, "tree.json")["cases"]:
        names, parent, reward = flat_tree(case["inputs"]["tree"])
        value, state = node_values(parent, reward), states_above(parent, np.zeros(parent.size, np.int64))
        theirs = case["outputs"]
        close(value, [theirs["node_stats"][name]["reward"] for name in names], case)
        for method, scale in (("rloo", False), ("grpo", True)):
            edges = {edge["node"]: edge for edge in theirs["edges"][f"{method}_all"]}
            ours = sibling_advantages(value, state, scale=scale)
            close(ours.value_end, [edges[name]["value"] for name in names], case)
            close(ours.advantage, [edges[name]["advantage"] for name in names], case)
            bonus = [edges[name]["prover_advantage"] for name in names]
            if np.all((value >= 0) & (value <= 1)):
                close(
                    best_of_n_values(ours.value_end, 4) - best_of_n_values(ours.value_start.clip(0, 1), 4), bonus, case
                )
            else:  # deviation: the best of n is of chances; theirs goes on with numbers that are none
                with pytest.raises(ValueError, match="probabilities"):
                    best_of_n_values(ours.value_end, 4)
                close((1 - ours.value_start) ** 4 - (1 - ours.value_end) ** 4, bonus, case)
                refused += 1
            # Deviation: ours is zero up to 1e-8, where theirs keeps the residues of rounding.
            kept = {name for name, a in zip(names, ours.advantage, strict=True) if abs(a) > 1e-8}
            residues = {edge["node"] for edge in theirs["edges"][f"{method}_nonzero_only"]} - kept
            assert kept <= {edge["node"] for edge in theirs["edges"][f"{method}_nonzero_only"]}, case["name"]
            values = dict(zip(names, ours.value_end - ours.value_start, strict=True))
            assert all(abs(values[name]) < 1e-15 for name in residues), case["name"]
            dropped += len(residues)
    assert dropped
    assert refused


# Masked statistics


def test_masked_statistics(shared):
    for case in golden(shared, "masked_stats.json")["cases"]:
        values, mask = np.array(case["inputs"]["values"]), np.array(case["inputs"]["mask"]) != 0
        theirs = case["outputs"]["float64"]
        if mask.any():  # they: NaN; we: 0
            close(masked_mean(values, mask), theirs["masked_mean"], case)
        rows = mask.any(axis=1)
        close(masked_mean(values, mask, axis=1)[rows], np.array(theirs["masked_mean_axis1"])[rows], case)
        if mask.sum() > 1:
            close(masked_var(values, mask), theirs["masked_var_unbiased"], case)
            close(masked_var(values, mask, unbiased=False), theirs["masked_var_biased"], case)
            rescaled = values / np.sqrt(masked_var(values, mask) + 1e-8)
            close(rescaled, theirs["masked_rescale_by_std_unbiased"], case)


def test_whitening(shared):
    for case in golden(shared, "masked_stats.json")["cases"]:
        values, mask = np.array(case["inputs"]["values"]), np.array(case["inputs"]["mask"]) != 0
        theirs = case["outputs"]["float64"]
        effective = mask
        if case["inputs"]["logprobs"] is not None:
            logprobs = np.array(case["inputs"]["logprobs"])
            lengths = np.full(len(logprobs), logprobs.shape[1])
            below = find_cutpoints(Ragged(logprobs.ravel(), np.r_[0, np.cumsum(lengths)]), RHO).reshape(mask.shape)
            effective = mask & below
            assert effective.astype(int).tolist() == theirs["effective_mask"], case["name"]
        for name, kept in (("prob_mask", effective), ("no_prob_mask", mask)):
            for shift in ("shift", "noshift"):
                for kind in ("unbiased", "biased"):
                    key = f"masked_whiten_{name}_{shift}_{kind}"
                    if key in theirs:
                        check_whitening(values, kept, mask, np.array(theirs[key]), shift, kind, case)


def check_whitening(
    values: np.ndarray, kept: np.ndarray, mask: np.ndarray, theirs: np.ndarray, shift: str, kind: str, case: Any
) -> None:
    options = {"shift_mean": shift == "shift", "unbiased": kind == "unbiased"}
    ours = whiten(values[kept], **options)
    if kept.sum() > 1:
        close(ours, theirs[kept], case)
    elif kept.sum() == 1:  # deviation: left as it is, where theirs is NaN (or 0, biased)
        assert ours.tolist() == values[kept].tolist(), case["name"]
    else:  # deviation: nothing is kept, where they fall back to the whole mask
        assert ours.size == 0, case["name"]
        if mask.sum() > 1:
            close(whiten(values[mask], **options), theirs[mask], case)


# Actor loss


KL_KINDS = {"kl": "k1", "mse": "k2", "control_variate": "k3"}


def flat(case: dict[str, Any], name: str, kept: torch.Tensor) -> torch.Tensor:
    return torch.tensor(case["inputs"][name], dtype=torch.float64)[kept]


def kept_tokens(case: dict[str, Any]) -> torch.Tensor:
    """[B, T] the tokens of the responses that the probability mask, if it is on, keeps."""
    mask = torch.tensor(case["inputs"]["mask"]) != 0
    if not case["inputs"]["hparams"]["use_prob_mask"]:
        return mask
    old = np.array(case["inputs"]["old_logprobs"], np.float64)
    below = find_cutpoints(Ragged(old.ravel(), np.arange(len(old) + 1) * old.shape[1]), RHO)
    return mask & torch.from_numpy(below.reshape(old.shape))


def policy_part(case: dict[str, Any], kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Our policy loss over the kept tokens, and the log-probabilities it came from."""
    logprobs = flat(case, "logprobs", kept).requires_grad_()
    per_token, _ = ppo_clip(
        logprobs,
        flat(case, "old_logprobs", kept),
        flat(case, "advantages", kept),
        case["inputs"]["hparams"]["cliprange"],
    )
    return policy_loss(per_token, int(kept.sum())), logprobs


def test_actor_loss(shared):
    """Loss and gradient: the policy part always; the KL part as ours wherever their clamps do not bind."""
    whole = 0
    for case in golden(shared, "actor_loss.json")["cases"]:
        hparams, theirs = case["inputs"]["hparams"], case["outputs"]["float64"]
        if theirs["is_skipped"]:
            continue
        kept = kept_tokens(case)
        if not kept.any():
            continue
        loss, logprobs = policy_part(case, kept)
        kl_term, fkl_term = (theirs["metrics"].get(f"actor/{name}", 0.0) for name in ("ref_kl_loss", "fkl_loss"))
        close(loss.item(), theirs["loss"] - kl_term - fkl_term, case)
        if hparams["kl_penalty_loss_type"] in KL_KINDS:
            kl = kl_estimate(
                logprobs,
                flat(case, "ref_logprobs", kept),
                KL_KINDS[hparams["kl_penalty_loss_type"]],  # pyright: ignore[reportArgumentType]
            )
            low, high = hparams["kl_penalty_loss_clip_min"], hparams["kl_penalty_loss_clip_max"]
            clamped = kl.clamp(low, high)
            close(clamped.detach(), torch.tensor(theirs["ref_kl"], dtype=torch.float64)[kept], case)
            ours, theirs_kl = (kl_loss(x, len(kept), hparams["init_kl_coef"]) for x in (kl, clamped))
            close(theirs_kl.item(), kl_term, case)
            if not torch.equal(kl, clamped):  # deviation: our estimators are not clamped
                assert abs(ours.item() - kl_term) > 1e-6, case["name"]
                loss = loss + theirs_kl
            else:
                close((loss + ours).item(), theirs["loss"], case)
                loss, whole = loss + ours, whole + 1
        elif hparams["kl_penalty_loss_type"] == "abs":  # not offered; formed here so that the gradient can be compared
            difference = logprobs - flat(case, "ref_logprobs", kept)
            loss = loss + kl_loss(difference.abs(), len(kept), hparams["init_kl_coef"])
        (gradient,) = torch.autograd.grad(loss, logprobs)
        expected = torch.tensor(theirs["grad_logprobs"], dtype=torch.float64)
        close(gradient, expected[kept], case)
        assert not expected[~kept].any(), case["name"]
    assert whole > 3


def test_actor_metrics(shared):
    """Ratio, clip fraction and KL to the sampling policy, as means over the kept tokens."""
    for case in golden(shared, "actor_loss.json")["cases"]:
        kept = kept_tokens(case)
        tokens = int(kept.sum())
        if not tokens:
            continue
        _, sums = ppo_clip(
            flat(case, "logprobs", kept),
            flat(case, "old_logprobs", kept),
            flat(case, "advantages", kept),
            case["inputs"]["hparams"]["cliprange"],
        )
        theirs = case["outputs"]["float64"]["metrics"]
        close(sums.ratio / tokens, theirs["actor/ratio"], case)
        close((sums.clip_low + sums.clip_high) / tokens, theirs["actor/clip_frac"], case)
        close(sums.approx_kl / tokens, theirs["actor/approx_kl"], case)
        # Skipping is the trainer's decision, made from the mean ratio; they multiply the loss by 0.
        skipped = sums.ratio.item() / tokens > case["inputs"]["hparams"]["ratio_threshold"]
        assert skipped == case["outputs"]["float64"]["is_skipped"], case["name"]


@pytest.mark.parametrize("name", ["kl_loss_negative_clamped_to_zero", "kl_loss_clip_max", "control_variate_clamped"])
def test_their_clamps_of_the_kl_are_not_ours(shared, name):
    case = next(case for case in golden(shared, "actor_loss.json")["cases"] if case["name"] == name)
    kept = kept_tokens(case)
    ours = kl_estimate(
        flat(case, "logprobs", kept),
        flat(case, "ref_logprobs", kept),
        KL_KINDS[case["inputs"]["hparams"]["kl_penalty_loss_type"]],  # pyright: ignore[reportArgumentType]
    )
    expected = {
        "kl_loss_negative_clamped_to_zero": [-1.0, -2.0],
        "kl_loss_clip_max": [32.0, 0.32],
        "control_variate_clamped": [np.exp(10) - 11, np.exp(-10) + 9],
    }
    close(ours, expected[name], case)
    assert not np.allclose(ours, torch.tensor(case["outputs"]["float64"]["ref_kl"], dtype=torch.float64)[kept])
