"""Find the `Plan` under which this CPU computes rows whose bits do not depend on their batch.

Candidates are tried in a fixed order, the fastest first, on random numbers of the model's own shapes. The result is the
first one that gives a row the same bits at every place and in every size of batch that the engine uses. The order and
the amount of work are fixed and nothing is timed, so that every process on a machine finds the same plan.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from stages.sampling.embedded.invariance import AttentionPlan, LinearPlan, Plan, Shape, attend, linear

_WORK = 3e9  # maximum floating-point operations to probe one linear layer: about 0.05 s on a core
_MOST_ROWS = (512, 256, 128, 64, 32)  # candidates for the rows of one product; all multiples of 32 up to it are tried
_BLOCKS = (32, 64, 16, 128, 4, 1)  # candidates for the rows of products of one fixed shape
_ATTENTION = (
    AttentionPlan(2),  # MKL on Intel with AVX-512
    AttentionPlan(16),
    AttentionPlan(4, terms=128, whole_terms=True),  # MKL on AMD: fewer than 4 rows take another kernel
    AttentionPlan(16, terms=64, whole_terms=True),
    AttentionPlan(4, terms=64, whole_terms=True, blocked=True),
    AttentionPlan(16, terms=64, whole_terms=True, blocked=True),
    AttentionPlan(2, terms=64, whole_terms=True, blocked=True),
    AttentionPlan(1, terms=64, whole_terms=True, blocked=True),
)
_SPAN = 544  # positions that attention is probed on: the order of a sum changes with its length up to 512 and more
_BLOCKED_SPAN = 160  # the same for blocked plans, where longer sums only have more products of the same shape
_MOST_SEQUENCES = 33  # one more than a block of rows
_ELEMENTS = 2**22  # maximum size of a tensor that row-wise functions are probed on

Cache = tuple[torch.Tensor, torch.Tensor]
"""Keys [B, 1, D, L] and values [B, 1, L, D]."""


@dataclass(frozen=True)
class Products:
    """The products of a model whose bits may depend on the batch.

    Attributes:
      linears: shapes of its linear layers.
      heads, groups, width: query heads, key heads and dimensions per head of its attention.
    """

    linears: frozenset[Shape]
    heads: int
    groups: int
    width: int


@functools.lru_cache(maxsize=64)
def find_plan(products: Products, threads: int) -> Plan:
    """Return the fastest plan that is bitwise on this machine, with `threads` CPU threads if possible, else with fewer.

    If no plan is bitwise, the result has `bitwise=False` and computes all rows in one product.
    """
    # A power of two divides the numbers of a tensor evenly among the threads, in whole vectors.
    power_of_two = 1 << (threads.bit_length() - 1)
    for count in dict.fromkeys((threads, power_of_two, 1)):
        with cpu_threads(count), torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(0)
            plan = _find(products, count)
        if plan is not None:
            return plan
    return Plan(threads=threads)


def _find(products: Products, threads: int) -> Plan | None:
    """Return the fastest bitwise plan with torch's current number of threads; None if there is none."""
    if not all(_rows_hold(width) for width in sorted({shape.inputs for shape in products.linears})):
        return None
    attention = next((plan for plan in _ATTENTION if _attention_holds(products, plan)), None)
    if attention is None:
        return None
    linears: dict[Shape, LinearPlan] = {}
    for shape in sorted(products.linears):
        found = next((plan for plan in _linear_candidates(shape) if _linear_holds(shape, plan)), None)
        if found is None:
            return None
        linears[shape] = found
    return Plan(attention, linears, threads, bitwise=True)


def _linear_candidates(shape: Shape) -> Iterator[LinearPlan]:
    """Yield plans with many rows per product, as many as `_WORK` allows to probe, then blocks of one fixed shape."""
    cost = 2 * shape.inputs * shape.outputs
    most = next((rows for rows in _MOST_ROWS if cost * sum(range(32, rows + 32, 32)) <= _WORK), 32)
    if most > 32:
        yield LinearPlan(32, most)
    if most > 64:
        yield LinearPlan(64, most)
    yield from (LinearPlan(rows, rows) for rows in _BLOCKS)


def _linear_holds(shape: Shape, plan: LinearPlan) -> bool:
    """Return whether a row has the same bits at any place among any number of rows."""
    size = (shape.inputs, shape.outputs) if shape.transposed else (shape.outputs, shape.inputs)
    weight = torch.randn(size).t() if shape.transposed else torch.randn(size)
    bias = torch.randn(shape.outputs) if shape.bias else None
    rows = torch.randn(plan.most, shape.inputs)
    expected = linear(rows, weight, bias, plan)

    def holds(count: int) -> bool:
        order = torch.randperm(plan.most)[:count]
        return torch.equal(linear(rows[order], weight, bias, plan), expected[order])

    return all(holds(count) for count in [*range(plan.multiple, plan.most + 1, plan.multiple), plan.most])


def _attention_holds(products: Products, plan: AttentionPlan) -> bool:
    """Return whether a token's attention output has the same bits in every case that the engine runs.

    The cases: drawn alone or prefilled, among few or many sequences, with more or fewer masked keys. One key head is
    enough: heads, like the sequences of a batch, are separate products.
    """
    heads, width = products.heads // products.groups, products.width
    span = _BLOCKED_SPAN if plan.blocked else _SPAN
    longest = plan.key_length(span)
    query = torch.randn(_MOST_SEQUENCES, heads, span, width)
    keys = torch.randn(_MOST_SEQUENCES, 1, width, longest)
    values = torch.randn(_MOST_SEQUENCES, 1, longest, width)
    longer_cache = F.pad(keys, (0, 33)), F.pad(values, (0, 0, 0, 33))

    def attended(sequences: int, first: int, last: int, length: int, cache: Cache) -> torch.Tensor:
        """Return the outputs of the first of `sequences` sequences at positions first … last, with `length` keys."""
        visible = torch.arange(length) <= torch.arange(first, last)[:, None]
        bias = torch.where(visible, 0.0, float("-inf")).expand(sequences, 1, -1, -1)
        some_keys, some_values = cache[0][:sequences, ..., :length], cache[1][:sequences, :, :length]
        return attend(query[:sequences, :, first:last], some_keys, some_values, bias, width**-0.5, plan)[:1]

    expected = attended(1, 0, span, longest, (keys, values))

    def prefilled() -> Iterator[tuple[int, int, int, int]]:
        for last in range(32, span + 1, 32):
            yield 1, 0, last, plan.key_length(last)
            yield 1, last - 32, last, plan.key_length(last)
        yield 2, 64, 128, plan.key_length(128)
        yield 3, 64, 128, longest

    def drawn() -> Iterator[tuple[int, int, int, int]]:
        for position in (*range(0, span, 15), span // 2 - 1, span // 2):
            length = plan.key_length(position + 1)
            yield 1, position, position + 1, length
            yield 2, position, position + 1, min(longest, length + plan.key_length(1))
        for position in (7, span // 3, span - 1):
            yield _MOST_SEQUENCES, position, position + 1, plan.key_length(position + 1)

    def holds(case: tuple[int, int, int, int], cache: Cache) -> bool:
        return torch.equal(attended(*case, cache), expected[:, case[1] : case[2]])

    return all(holds(case, (keys, values)) for case in prefilled()) and all(
        holds(case, longer_cache) for case in drawn()
    )


def _rows_hold(width: int) -> bool:
    """Return whether row-wise functions give the same bits for any number of rows: threads may split a row."""
    functions: list[Callable[[torch.Tensor], torch.Tensor]] = [
        F.silu,
        F.gelu,
        functools.partial(F.gelu, approximate="tanh"),
        functools.partial(F.rms_norm, normalized_shape=(width,)),
        functools.partial(F.layer_norm, normalized_shape=(width,)),
        functools.partial(torch.log_softmax, dim=-1),
    ]
    most = max(32, min(4096, _ELEMENTS // width // 32 * 32))
    rows = torch.randn(most, width)
    for function in functions:
        expected = function(rows)
        for count in (32, 96, 160, 512, 1760):
            if count < most and not torch.equal(function(rows[-count:]), expected[-count:]):
                return False
    return True


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Set the number of torch's CPU threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
