"""Packed prefixes: every example once, every shared token once, and the same gradients as padded rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from stages.core.errors import UserError
from stages.optimization.batches import Example, padded
from stages.optimization.objective import BatchTotals, MicroBatchExamples, Objective, micro_batch_loss
from stages.optimization.packing import ROW_LIMIT, collate_rows, pack, packed
from stages.optimization.step import score_all, update
from stages.optimization.torch import TorchEngine

VOCABULARY = 19
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 96,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def qwen(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(**SIZES)).double()


def example(tokens: list[int], kept: list[int], seed: int = 0) -> Example:
    generator = np.random.default_rng([seed, *tokens])
    column = generator.normal(size=(3, len(kept)))
    return Example(
        np.array(tokens, np.int32), np.array(kept), column[0], old=-3 + 0.3 * column[1], reference=-3 + 0.3 * column[2]
    )


def tree(shape: tuple[int, ...] = (3, 2, 2), length: int = 4, questions: int = 2, seed: int = 0) -> list[Example]:
    """Return every segment of some trees after its path; a third of the tokens is not kept."""
    generator = np.random.default_rng(seed)
    found: list[Example] = []

    def grow(path: list[int], left: tuple[int, ...]) -> None:
        for _ in range(left[0] if left else 0):
            segment = generator.integers(VOCABULARY, size=length + int(generator.integers(3))).tolist()
            kept = len(path) + np.flatnonzero(generator.random(len(segment)) < 0.67)
            found.append(example(path + segment, kept.tolist()))
            grow(path + segment, left[1:])

    for _ in range(questions):
        grow(generator.integers(VOCABULARY, size=5).tolist(), shape)
    return found


def gradients(model: PreTrainedModel, examples: list[Example], layout: Any, size: int) -> dict[str, torch.Tensor]:
    """Return the gradients of the loss of the whole batch, with clipping and the KL term."""
    engine, objective = TorchEngine(model), Objective(temperature=0.7, beta=0.05)
    totals = BatchTotals.of(examples, objective)
    for indices, inputs in layout(examples, size):
        group = [examples[index] for index in indices]
        advantages = np.concatenate([one.advantages for one in group])
        loss, *_ = micro_batch_loss(
            objective, MicroBatchExamples(indices, group, advantages), engine.score(inputs, 0.7), totals
        )
        engine.backward(loss)
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("size", [1, 4, 64])
def test_gradients_equal_those_of_padded_rows(dtype: torch.dtype, attention: str, size: int) -> None:
    plain, ours = qwen().to(dtype), qwen().to(dtype)  # pyright: ignore[reportArgumentType]
    ours.set_attn_implementation(attention)
    examples = tree()
    expected = gradients(plain, examples, padded, 8)
    found = gradients(ours, examples, packed, size)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        tolerance = 1e-8 if dtype == torch.float64 else 1e-6
        # RMS norms compute in float32 for both types, so an element is exact to float32 rounding.
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=tolerance, msg=name)


def test_a_packed_step_equals_the_padded_step_with_fewer_tokens() -> None:
    one, other = qwen(), qwen()
    given = {"objective": Objective(beta=0.01), "size": 8, "learning_rate": 1e-3}
    plain = update(TorchEngine(one), tree(), **given)
    ours = update(TorchEngine(other), tree(), **given, layout=packed)
    fed = {name for name in plain if name.startswith("tokens/fed")}
    assert {name: ours[name] for name in plain.keys() - fed} == pytest.approx(
        {name: plain[name] for name in plain.keys() - fed}, abs=1e-9
    )
    assert ours["tokens/fed"] < 0.6 * plain["tokens/fed"]
    for name, value in one.named_parameters():
        torch.testing.assert_close(dict(other.named_parameters())[name], value, rtol=0, atol=1e-8)


def test_a_trie_by_hand() -> None:
    """5 6 7 and 5 6 8 9 share the tokens 5 6; the last kept token itself is not fed."""
    examples = [example([5, 6, 7, 1], [3]), example([5, 6, 8, 9, 2], [2, 4])]
    (row,) = pack(examples, [0, 1], 100)
    assert row.tokens.tolist() == [5, 6, 7, 8, 9]
    assert row.depth.tolist() == [0, 1, 2, 2, 3]
    assert row.ends.tolist() == [5, 5, 3, 5, 5]
    assert [path.tolist() for path in row.paths] == [[0, 1, 2], [0, 1, 3, 4]]
    batch = collate_rows(examples, [row])
    assert batch.positions.tolist() == [2, 1, 4]  # the states before 1, before 8 and before 2
    assert batch.targets.tolist() == [1, 8, 2]


sequences = st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=9), min_size=1, max_size=12)


@given(sequences, st.integers(1, 40), st.integers(1, 5))
@settings(deadline=None)
def test_every_example_is_packed_once_and_sees_exactly_its_own_tokens(
    tokens: list[list[int]], limit: int, size: int
) -> None:
    examples = [example(sequence, [len(sequence) - 1]) for sequence in tokens]
    rows = pack(examples, range(len(examples)), limit)
    assert sorted(index for row in rows for index in row.examples) == list(range(len(examples)))
    for row in rows:
        token = np.arange(row.tokens.size)
        sees = (token <= token[:, None]) & (token[:, None] < row.ends)
        prefixes = set()
        for index, path in zip(row.examples, row.paths, strict=True):
            fed = examples[index].tokens[: examples[index].forward_tokens]
            assert row.tokens[path].tolist() == fed.tolist()
            assert row.depth[path].tolist() == list(range(fed.size))
            for depth, node in enumerate(path):  # an ancestor and itself, and nothing else
                assert np.flatnonzero(sees[node]).tolist() == path[: depth + 1].tolist()
            prefixes |= {tuple(fed[:stop]) for stop in range(1, fed.size + 1)}
        assert row.tokens.size == len(prefixes)  # each distinct prefix once
        assert row.tokens.size <= limit or len(row.examples) == 1 or len({len(path) for path in row.paths}) == 1
    passes = list(packed(examples, size))
    assert sorted(index for indices, _ in passes for index in indices) == list(range(len(examples)))
    longest = max(one.forward_tokens for one in examples)
    for _, batch in passes:
        assert batch.input_ids.size <= size * longest
        assert batch.input_ids.shape[1] <= ROW_LIMIT * longest


def test_examples_without_kept_tokens_make_no_pass() -> None:
    assert list(packed([example([1, 2, 3], [])], 4)) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
        lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=64)),
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=96, n_embd=16, n_layer=2, n_head=2)),
    ],
    ids=["llama", "mistral", "gpt2"],
)
def test_families_with_masked_attention_score_trees_as_sequences(make: Any) -> None:
    torch.manual_seed(0)
    engine = TorchEngine(make().double())
    examples = tree(questions=1)
    engine.check_trees(max(one.forward_tokens for one in examples))
    expected, found = (dict(score_all(engine, examples, 8, 1.0, layout)) for layout in (padded, packed))
    assert found.keys() == expected.keys()
    for index, logprobs in expected.items():
        np.testing.assert_allclose(found[index], logprobs, rtol=0, atol=1e-10)


def test_families_that_cannot_read_trees_are_rejected_with_the_option_to_pass() -> None:
    torch.manual_seed(0)
    window = TorchEngine(MistralForCausalLM(MistralConfig(**SIZES, sliding_window=16)))
    window.check_trees(16)
    with pytest.raises(UserError, match=r"family mistral .* reaches 16 tokens back, of 17; pass --no-packing"):
        window.check_trees(17)
    model = Lfm2ForCausalLM(Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0)  # fresh weights are so small that the convolution hardly matters
    convolving = TorchEngine(model)
    with pytest.raises(UserError, match=r"family lfm2 .* differ from those of a separate sequence; pass --no-packing"):
        convolving.check_trees(9)


def refuses_masked_bfloat16() -> str:
    """Return the error of torch's own attention in bfloat16 with a mask; empty where it runs.

    On a processor with AVX-512, torch raises while ATEN_CPU_CAPABILITY limits it to AVX2: its kernel selects the
    packing by the processor and was compiled for the limit.
    """
    query, mask = torch.ones(1, 1, 64, 16, dtype=torch.bfloat16), torch.ones(1, 1, 64, 64, dtype=torch.bool)
    try:
        torch.nn.functional.scaled_dot_product_attention(query, query, query, mask)
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return ""


def test_bfloat16_reads_trees() -> None:
    if reason := refuses_masked_bfloat16():
        pytest.skip(f"torch's attention does not run in bfloat16 here: {reason}")
    engine = TorchEngine(qwen().float(), compute=torch.bfloat16)
    exact = dict(score_all(TorchEngine(qwen().float()), tree(), 8, 1.0))
    for index, logprobs in score_all(engine, tree(), 8, 1.0, packed):
        np.testing.assert_allclose(logprobs, exact[index], rtol=0, atol=0.1)


def test_responses_to_one_question_share_their_prompt() -> None:
    prompt = list(range(10))
    examples = [example([*prompt, *[token] * 4], [12, 13]) for token in (3, 5, 7)]
    (_, batch), *rest = packed(examples, 3)
    assert not rest
    assert batch.input_ids.size == 10 + 3 * 3


def test_gradient_checkpointing_uses_the_same_mask() -> None:
    one, other = qwen(), qwen()
    update(TorchEngine(one), tree(), Objective(), 8, 1e-3, packed)
    update(TorchEngine(other, gradient_checkpointing=True), tree(), Objective(), 8, 1e-3, packed)
    for name, value in one.named_parameters():
        torch.testing.assert_close(dict(other.named_parameters())[name], value, rtol=0, atol=1e-12)


def test_examples_without_stored_log_probabilities_use_the_current_ones_as_old() -> None:
    examples = [replace(one, old=None if index % 2 else one.old) for index, one in enumerate(tree(questions=1))]
    engine = TorchEngine(qwen())
    own = dict(score_all(engine, examples, 4, 1.0))
    whole = [replace(one, old=one.old if one.old is not None else own[index]) for index, one in enumerate(examples)]
    found, expected = (update(TorchEngine(qwen()), batch, Objective(), 4, 1e-3, packed) for batch in (examples, whole))
    assert found == pytest.approx(expected, abs=1e-9)
