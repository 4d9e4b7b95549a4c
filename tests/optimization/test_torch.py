"""The policy step on the one-process engine equals a plain full-logits update, for any split and after saving."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from stages.core.errors import UserError
from stages.models.checkpoints import OPTIMIZER_FILE
from stages.optimization.batches import Example, MicroBatch, collate, micro_batches
from stages.optimization.objective import Objective
from stages.optimization.optimizer import AdamWConfig
from stages.optimization.step import score_all, update
from stages.optimization.torch import TorchEngine
from tests.families import make_model as make_family_model

VOCABULARY = 23
ADAM = AdamWConfig(weight_decay=0.1, max_grad_norm=0.5)
RATE = 1e-2


def make_model(seed: int = 0, *, tied: bool = True) -> PreTrainedModel:
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(config).double()


def make_examples(seed: int = 0, count: int = 7) -> list[Example]:
    """Trajectories of uneven length; the third keeps no token, old and reference differ from the policy."""
    generator = np.random.default_rng(seed)
    examples = []
    for index in range(count):
        prompt, response = generator.integers(2, 6), generator.integers(3, 20)
        kept = prompt + np.flatnonzero(generator.random(response) < (0.0 if index == 2 else 0.5))
        examples.append(
            Example(
                tokens=generator.integers(VOCABULARY, size=prompt + response).astype(np.int32),
                kept=kept.astype(np.int64),
                advantages=generator.normal(size=kept.size),
                old=-3.0 + 0.3 * generator.normal(size=kept.size),
                reference=-3.0 + 0.3 * generator.normal(size=kept.size),
                response_tokens=int(response),
                reward=float(index % 2),
            )
        )
    return examples


OBJECTIVE = Objective(temperature=0.7, epsilon=0.2, epsilon_high=0.3, beta=0.05, max_ratio=1e9)


def plain_update(model: PreTrainedModel, examples: Sequence[Example], objective: Objective, adam: AdamWConfig) -> float:
    """Take the step with an attention mask, [B, T, V] logits, multiplicative masks and torch's AdamW."""
    length = max(example.tokens.size for example in examples)
    shape = (len(examples), length)
    ids, attended = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    mask, advantages, old, reference = (torch.zeros(shape, dtype=torch.float64) for _ in range(4))
    flat = np.concatenate([example.advantages for example in examples])
    for row, example in enumerate(examples):
        ids[row, : example.tokens.size] = torch.from_numpy(example.tokens).long()
        attended[row, : example.tokens.size] = 1
        mask[row, example.kept] = 1.0
        whitened = (example.advantages - flat.mean()) / np.sqrt(flat.var(ddof=1) + 1e-8)
        advantages[row, example.kept] = torch.from_numpy(whitened)
        assert example.old is not None
        assert example.reference is not None
        old[row, example.kept] = torch.from_numpy(example.old)
        reference[row, example.kept] = torch.from_numpy(example.reference)

    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": adam.weight_decay}, {"params": others, "weight_decay": 0.0}], lr=RATE
    )
    logits = model(input_ids=ids, attention_mask=attended).logits[:, :-1] / objective.temperature
    logprobs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    mask, advantages, old, reference = (tensor[:, 1:] for tensor in (mask, advantages, old, reference))
    ratio = (logprobs - old).clamp(-10, 10).exp()
    high = objective.epsilon if objective.epsilon_high is None else objective.epsilon_high
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - objective.epsilon, 1 + high) * advantages)
    difference = (reference - logprobs).clamp(-10, 10)
    kl = ((difference.exp() - difference - 1) * mask).sum(-1).mean()
    loss = -(surrogate * mask).sum() / mask.sum() + objective.beta * kl
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), adam.max_grad_norm)
    optimizer.step()
    return loss.item()


def weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same(one: PreTrainedModel, other: PreTrainedModel, tolerance: float) -> None:
    for name, value in weights(one).items():
        torch.testing.assert_close(dict(other.named_parameters())[name], value, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_step_equals_the_plain_full_logits_update(tied: bool, checkpointing: bool) -> None:
    plain, ours = make_model(tied=tied), make_model(tied=tied)
    expected = plain_update(plain, make_examples(), OBJECTIVE, ADAM)
    engine = TorchEngine(ours, ADAM, gradient_checkpointing=checkpointing, head_chunk=5)
    metrics = update(engine, make_examples(), OBJECTIVE, 3, RATE)
    assert metrics["loss"] == pytest.approx(expected, abs=1e-12)
    assert_same(plain, ours, 1e-9)


def test_the_split_into_micro_batches_does_not_change_the_step() -> None:
    models = [make_model() for _ in range(4)]
    metrics = [
        update(TorchEngine(model, ADAM), make_examples(), OBJECTIVE, size, RATE)
        for model, size in zip(models, (1, 2, 4, 64), strict=True)
    ]
    for model, other in zip(models[1:], metrics[1:], strict=True):
        assert_same(models[0], model, 1e-9)
        same = {name: value for name, value in other.items() if not name.startswith("tokens/fed")}  # padding counts
        assert same == pytest.approx({name: metrics[0][name] for name in same}, abs=1e-9)


def test_micro_batch_whitening_changes_the_step() -> None:
    one, other = make_model(), make_model()
    update(TorchEngine(one, ADAM), make_examples(), OBJECTIVE, 2, RATE)
    update(TorchEngine(other, ADAM), make_examples(), replace(OBJECTIVE, whiten="micro-batch"), 2, RATE)
    name = "model.embed_tokens.weight"
    assert not torch.allclose(weights(one)[name], weights(other)[name], atol=1e-6)


def test_padded_rows_score_the_same_as_alone_with_an_attention_mask() -> None:
    """Right padding needs no attention mask under causal attention."""
    model = make_model()
    engine = TorchEngine(model)
    examples = [example for example in make_examples() if example.kept.size]
    together = dict(score_all(engine, examples, 64, 0.7))
    for index, example in enumerate(examples):
        ids = torch.from_numpy(example.tokens).long()[None]
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1] / 0.7
        expected = logits.log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1).numpy()[example.kept - 1]
        np.testing.assert_allclose(together[index], expected, rtol=0, atol=1e-12)


def test_nothing_after_the_last_kept_token_is_fed() -> None:
    example = Example(np.arange(9, dtype=np.int32), np.array([3, 5]), np.ones(2))
    batch = collate([example, Example(np.arange(9, dtype=np.int32), np.array([2]), np.ones(1))])
    assert batch.input_ids.tolist() == [[0, 1, 2, 3, 4], [0, 1, 0, 0, 0]]
    assert batch.positions.tolist() == [2, 4, 5 + 1]
    assert batch.targets.tolist() == [3, 5, 2]


def test_micro_batches_group_similar_lengths_and_leave_out_examples_without_kept_tokens() -> None:
    examples = make_examples(count=9)
    groups = micro_batches(examples, 3)
    fed = [examples[index].forward_tokens for group in groups for index in group]
    assert fed == sorted(fed, reverse=True)
    assert sorted(index for group in groups for index in group) == [0, 1, 3, 4, 5, 6, 7, 8]


def test_a_batch_without_kept_tokens_is_skipped_and_counted() -> None:
    model = make_model()
    before = weights(model)
    metrics = update(TorchEngine(model, ADAM), [make_examples()[2]], OBJECTIVE, 2, RATE)
    assert metrics["skipped/empty"] == 1.0
    assert "loss" not in metrics
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_a_batch_with_too_large_a_ratio_is_skipped_and_leaves_no_gradient() -> None:
    model, fresh = make_model(), make_model()
    engine = TorchEngine(model, ADAM)
    far = [replace(example, old=np.full(example.kept.size, -8.0)) for example in make_examples()]
    metrics = update(engine, far, replace(OBJECTIVE, max_ratio=10.0), 2, RATE)
    assert metrics["ratio/mean"] > 10
    assert metrics["skipped/ratio"] == 1.0
    assert_same(model, fresh, 0.0)
    update(engine, make_examples(), OBJECTIVE, 2, RATE)
    update(TorchEngine(fresh, ADAM), make_examples(), OBJECTIVE, 2, RATE)
    assert_same(model, fresh, 0.0)


def test_a_single_kept_token_is_trained_unwhitened_and_finite() -> None:
    example = Example(np.arange(6, dtype=np.int32), np.array([4]), np.array([2.0]), response_tokens=3)
    metrics = update(TorchEngine(make_model(), ADAM), [example], Objective(), 2, RATE)
    assert metrics["loss"] == pytest.approx(-2.0)  # ratio 1, advantage unchanged
    assert all(np.isfinite(value) for value in metrics.values())


def test_a_loss_that_is_not_finite_is_an_error_and_leaves_the_weights_unchanged() -> None:
    model = make_model()
    before = weights(model)
    broken = [replace(example, old=example.old * np.nan) for example in make_examples() if example.old is not None]
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        update(TorchEngine(model, ADAM), broken, OBJECTIVE, 2, RATE)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_steps_raise_probabilities_under_positive_advantages_and_lower_the_others() -> None:
    model = make_model()
    engine = TorchEngine(model)
    examples = [
        replace(example, advantages=np.full(example.kept.size, 1.0 if index % 2 else -1.0), old=None, reference=None)
        for index, example in enumerate(make_examples())
        if example.kept.size
    ]
    before = dict(score_all(engine, examples, 8, 1.0))
    for _ in range(5):
        update(engine, examples, Objective(), 4, 1e-3)
    after = dict(score_all(engine, examples, 8, 1.0))
    for index, example in enumerate(examples):
        change = float((after[index] - before[index]).mean())
        assert change * float(example.advantages[0]) > 0, (index, change)


def test_a_saved_optimizer_state_continues_exactly(tmp_path: Path) -> None:
    whole, parted = make_model(), make_model()
    first, second = make_examples(1), make_examples(2)
    engine = TorchEngine(whole, ADAM)
    update(engine, first, OBJECTIVE, 3, RATE)
    update(engine, second, OBJECTIVE, 3, RATE)

    engine = TorchEngine(parted, ADAM)
    update(engine, first, OBJECTIVE, 3, RATE)
    engine.optimizer.save(tmp_path / OPTIMIZER_FILE)
    engine = TorchEngine(parted, ADAM)
    engine.optimizer.load(tmp_path / OPTIMIZER_FILE)
    update(engine, second, OBJECTIVE, 3, RATE)
    assert_same(whole, parted, 0.0)


def test_the_state_of_another_model_is_rejected(tmp_path: Path) -> None:
    engine = TorchEngine(make_model(tied=False), ADAM)
    update(engine, make_examples(), OBJECTIVE, 3, RATE)
    engine.optimizer.save(tmp_path / OPTIMIZER_FILE)
    with pytest.raises(UserError, match=r"belongs to another model \(lm_head.weight\).*--optimizer-state fresh"):
        TorchEngine(make_model(tied=True), ADAM).optimizer.load(tmp_path / OPTIMIZER_FILE)


def test_bfloat16_keeps_float32_masters() -> None:
    model = make_model().float()
    engine = TorchEngine(model, ADAM, compute=torch.bfloat16)
    exact = dict(score_all(TorchEngine(make_model().float()), make_examples(), 8, 0.7))
    for index, logprobs in score_all(engine, make_examples(), 8, 0.7):
        assert logprobs.dtype == np.float32
        np.testing.assert_allclose(logprobs, exact[index], rtol=0, atol=0.1)
    before = weights(model)
    update(engine, make_examples(), OBJECTIVE, 3, 1e-6)
    moved = [not torch.equal(value, before[name]) for name, value in weights(model).items()]
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert sum(moved) > len(moved) // 2  # a step of 1e-6 is below bfloat16's resolution of most weights


@pytest.mark.parametrize("family", ["cohere", "nanochat", "modernbert-decoder", "llama4_text", "gpt_oss", "jamba"])
def test_scores_and_gradients_are_those_of_the_models_own_forward_pass(family: str) -> None:
    """Scaled and capped logits, a head of several layers, chunks and sinks in attention, recurrence and experts."""
    model = make_family_model(family)
    plain = copy.deepcopy(model)
    engine = TorchEngine(model, head_chunk=7)
    random = np.random.default_rng(0)
    tokens = [random.integers(0, 250, length).astype(np.int32) for length in (50, 20)]
    examples = [Example(one, np.arange(1, one.size, 3), np.ones(len(range(1, one.size, 3)))) for one in tokens]
    scored = engine.score(collate(examples), 0.7).logprobs
    scored.sum().backward()
    expected = []
    for example in examples:
        ids = torch.from_numpy(example.tokens).long()
        logprobs = (plain(input_ids=ids[None]).logits[0, :-1] / 0.7).log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
        expected.append(logprobs[example.kept - 1])
    torch.testing.assert_close(scored, torch.cat(expected), rtol=0, atol=1e-4)
    torch.cat(expected).sum().backward()
    for found, other in zip(model.parameters(), plain.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(found.grad, other.grad, rtol=1e-3, atol=1e-4 * float(other.grad.abs().max() + 1))


def test_a_model_whose_scores_depend_on_padding_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_family_model("qwen2")
    own = model.base_model.forward

    def pooled(*args: Any, **more: Any) -> Any:
        out = own(*args, **more)
        out.last_hidden_state += out.last_hidden_state.mean(1, keepdim=True)
        return out

    monkeypatch.setattr(model.base_model, "forward", pooled)
    with pytest.raises(UserError, match=r"qwen2 model differ by .* nats per token"):
        TorchEngine(model)


def test_the_engine_reads_positions_of_a_micro_batch_as_documented() -> None:
    """Positions index the flattened rows; rows are padded on the right."""
    engine = TorchEngine(make_model())
    ids = np.array([[1, 2, 3], [4, 5, 0]], np.int64)
    batch = MicroBatch(ids, np.array([2, 3, 4]), np.array([6, 5, 7]))
    with torch.no_grad():
        found = engine.score(batch, 1.0).logprobs
        logits = engine.model(input_ids=torch.from_numpy(ids)).logits.log_softmax(-1)
    expected = torch.stack([logits[0, 2, 6], logits[1, 0, 5], logits[1, 1, 7]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
