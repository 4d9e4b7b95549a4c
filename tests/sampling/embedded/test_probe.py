"""Test the choice of a plan: the fastest one whose results are bitwise invariant on this machine, if there is one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from stages.sampling.embedded import probe
from stages.sampling.embedded.invariance import AttentionPlan, LinearPlan, Shape, linear
from stages.sampling.embedded.probe import Products, find_plan
from stages.sampling.protocol import SamplingParams
from tests.sampling.sampling_models import make, random_prefixes, request, sampler

PRODUCTS = Products(frozenset({Shape(64, 192, bias=True), Shape(128, 64), Shape(64, 96, transposed=True)}), 4, 2, 16)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Clear the cached plans before and after each test."""
    probe.find_plan.cache_clear()
    yield
    probe.find_plan.cache_clear()


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_a_bitwise_plan_is_invariant_to_position_and_batch_size(threads: int) -> None:
    plan = find_plan(PRODUCTS, threads)
    if not plan.bitwise:
        pytest.skip("no plan is bitwise invariant on this machine")
    assert plan.threads is not None
    assert plan.threads <= threads
    torch.manual_seed(7)
    with probe.cpu_threads(plan.threads):
        for shape in PRODUCTS.linears:
            weight, rows = torch.randn(shape.outputs, shape.inputs), torch.randn(700, shape.inputs)
            if shape.transposed:
                weight = torch.randn(shape.inputs, shape.outputs).t()
            bias = torch.randn(shape.outputs) if shape.bias else None
            expected = linear(rows, weight, bias, plan.linears[shape])
            for count in (1, 5, 32, 33, 257, 600):
                some = torch.randperm(len(rows))[:count]
                assert torch.equal(linear(rows[some], weight, bias, plan.linears[shape]), expected[some])


def test_the_same_machine_finds_the_same_plan_again() -> None:
    first = find_plan(PRODUCTS, 1)
    probe.find_plan.cache_clear()
    assert find_plan(PRODUCTS, 1) == first


def test_probing_does_not_change_the_random_state_or_the_threads() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state(), torch.get_num_threads()
    find_plan(PRODUCTS, 2)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]


def test_a_plan_whose_rows_depend_on_their_position_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a product that rounds its last row differently, as some kernels do for rows of an incomplete block."""

    def uneven(x: torch.Tensor, *weights: object) -> torch.Tensor:
        out = linear(x, *weights)  # type: ignore[arg-type]
        out[-1] = torch.nextafter(out[-1], torch.tensor(9.0))
        return out

    monkeypatch.setattr(probe, "linear", uneven)
    assert not probe._linear_holds(Shape(64, 192), LinearPlan(32, 512))
    assert not probe._linear_holds(Shape(64, 192), LinearPlan(32, 32))


def test_attention_that_depends_on_the_batch_size_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = probe.attend

    def batch_dependent(query: torch.Tensor, *rest: object) -> torch.Tensor:
        out = attend(query, *rest)  # type: ignore[arg-type]
        return out if len(query) < 33 else torch.nextafter(out, torch.tensor(9.0))

    monkeypatch.setattr(probe, "attend", batch_dependent)
    assert not probe._attention_holds(PRODUCTS, AttentionPlan(2))
    assert not find_plan(PRODUCTS, 1).bitwise


def test_an_engine_without_a_plan_has_a_caveat_and_still_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_linear_holds", lambda *_: False)
    engine = sampler(make("qwen2"))
    assert engine.caveat is not None
    assert "--num-shards" in engine.caveat
    (prefix,) = random_prefixes([20])
    ((sample, _),) = engine.sample([request(prefix, 2, 5)], SamplingParams())[0]
    assert len(sample.token_ids) >= 1
