"""Test the memory between calls: a tree sampled level by level prefills nothing twice and draws the same samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.maths.randomness import random_key
from stages.sampling.embedded import engine as engine_module
from stages.sampling.embedded.engine import TransformersSampler
from stages.sampling.embedded.prefix_memory import PrefixMemory
from stages.sampling.prefix_tree import build_paths
from stages.sampling.protocol import Request, Sample, SamplingParams, Usage
from tests.sampling.sampling_models import KINDS, Kind, make, random_prefixes, request, sampler


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def grow(
    engine: TransformersSampler, prompts: list[np.ndarray], shape: tuple[int, ...], node_tokens: int, *, remember: bool
) -> tuple[list[Sample], list[Usage]]:
    """Return the nodes of a tree over each prompt, level by level, and the usage of each level."""
    open_nodes = [(prompt, random_key("tree", i)) for i, prompt in enumerate(prompts)]
    nodes: list[Sample] = []
    usages = []
    for depth, branches in enumerate(shape):
        last = depth + 1 == len(shape)
        requests = [
            Request(prefix, tuple(random_key(key, j) for j in range(branches)), 40 if last else node_tokens)
            for prefix, key in open_nodes
        ]
        results, usage = engine.sample(requests, SamplingParams(), remember=remember and not last)
        usages.append(usage)
        open_nodes = [
            (np.concatenate([one.prefix, sample.token_ids]), key)
            for one, samples in zip(requests, results, strict=True)
            for key, sample in zip(one.keys, samples, strict=True)
            if sample.finish_reason == "length"
        ]
        nodes += [sample for samples in results for sample in samples]
    return nodes, usages


def bits(nodes: list[Sample]) -> list[tuple[bytes, bytes, str]]:
    return [(one.token_ids.tobytes(), one.logprobs.tobytes(), one.finish_reason) for one in nodes]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tree_prefills_only_its_prompts_and_draws_the_same_bits(kind: Kind) -> None:
    prompts = random_prefixes([9, 40, 250])
    prompts.append(np.concatenate([prompts[1][:30], prompts[0]]))
    engine = sampler(make(kind))
    grown, usages = grow(engine, prompts, (3, 2, 4), 25, remember=True)
    assert [usage.prefilled for usage in usages] == [9 + 40 + 250 + 9, 0, 0]
    assert engine.memory is None
    plain, _ = grow(sampler(make(kind)), prompts, (3, 2, 4), 25, remember=False)
    assert bits(grown) == bits(plain)


def test_sequences_that_do_not_fit_in_memory_are_prefilled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = random_prefixes([12, 30])
    plain, _ = grow(sampler(make("qwen2")), prompts, (3, 2), 20, remember=False)
    monkeypatch.setattr(engine_module, "_sizes", lambda *_: (32, 32, 2, 4))
    grown, usages = grow(sampler(make("qwen2")), prompts, (3, 2), 20, remember=True)
    assert bits(grown) == bits(plain)
    assert 0 < usages[1].prefilled <= usages[1].distinct_prefix_tokens - 12 - 20


def test_a_prefix_of_a_remembered_sequence_costs_its_last_token() -> None:
    engine = sampler(make("qwen2"))
    (prompt,) = random_prefixes([50])
    first = engine.sample([request(prompt, 1, 30)], SamplingParams(), remember=True)[0][0][0]
    whole = np.concatenate([prompt, first.token_ids])
    other = np.concatenate([whole[:60], random_prefixes([7], seed=3)[0]])
    requests = [request(whole[:45], 2, 10), request(other, 2, 10, 1), request(whole[:70], 2, 10, 2)]
    again, usage = engine.sample(requests, SamplingParams())
    assert usage.prefilled < len(whole)
    fresh, _ = sampler(make("qwen2")).sample(requests, SamplingParams())
    assert [bits(samples) for samples in again] == [bits(samples) for samples in fresh]


def test_memory_holds_each_sequence_once_up_to_its_capacity() -> None:
    engine = sampler(make("qwen2"))
    memory = PrefixMemory(engine.model, 2, 64, engine.split.width)
    one, two, three = random_prefixes([5, 6, 7])
    source, rows = memory.rows, np.array([0, 0, 0, 0])
    memory.keep(source, rows, [one, one, two, three], torch.zeros(4, 64))
    found = memory.recall(build_paths({0: one, 1: two, 2: three})[0])
    known = {len(path.token_ids): (path.known, path.known_row) for path in found}
    assert known == {5: (5, 0), 6: (6, 1), 7: (0, -1)}


def test_the_next_call_drops_sequences_that_it_does_not_continue() -> None:
    engine = sampler(make("qwen2"))
    one, two = random_prefixes([20, 30])
    engine.sample([request(one, 2, 5)], SamplingParams(), remember=True)
    assert engine.memory is not None
    engine.sample([request(two, 2, 5)], SamplingParams(), remember=True)
    _, usage = engine.sample([request(one, 2, 5)], SamplingParams())
    assert usage.prefilled == 20
    engine.sample([request(one, 2, 5)], SamplingParams(), remember=True)
    engine.sample([], SamplingParams())
    assert engine.memory is None
