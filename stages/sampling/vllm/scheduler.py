"""vLLM's scheduler, extended to share the last, partial block of a prefix.

vLLM's cache keeps whole blocks: of 16 tokens on most GPUs, of 32 on a CPU. Every request that continues a prefix would
compute the tokens after its last whole block again; nine rollouts from each of many states a few tokens apart would
compute several times their distinct tokens. The last block of each stem (`requests`) is therefore kept when the stem
ends, and requests that continue it get a copy: by vLLM's own copy-on-write, which it has for models whose caches end
within blocks.

`extra_args` name the stem and the requests that continue it (`launch.STEM`, `launch.SOURCE`). This changes speed, never
results: a block that was freed for lack of memory is computed again, and counted.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks  # pyright: ignore[reportMissingImports]
from vllm.v1.core.sched.async_scheduler import AsyncScheduler  # pyright: ignore[reportMissingImports]
from vllm.v1.core.sched.scheduler import Scheduler  # pyright: ignore[reportMissingImports]
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager  # pyright: ignore[reportMissingImports]

from stages.sampling.vllm.launch import SOURCE, STEM

_KEPT_SHARE = 8  # at most one block in eight is kept


def make_scheduler(**options: Any) -> Any:
    """Return the scheduler that vLLM would use, with shared last blocks. Its path is vLLM's `scheduler_cls`."""
    is_async = options["vllm_config"].scheduler_config.async_scheduling
    return (_AsyncSharing if is_async else _Sharing)(**options)


class _SharesBlocks:
    """Mixin for vLLM's schedulers: keep the last blocks of stems, and give them to the requests that continue them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        me: Any = self
        managers = me.kv_cache_manager.coordinator.single_type_managers
        self.shares = (
            me.cache_config.enable_prefix_caching
            and me.connector is None
            and me.vllm_config.speculative_config is None
            and me.parallel_config.decode_context_parallel_size == 1
            and len(managers) == 1
            and type(managers[0]) is FullAttentionManager
        )
        self.room = max(1, me.kv_cache_config.num_blocks // _KEPT_SHARE)
        self.kept: dict[str, tuple[Any, int]] = {}
        """Name of a stem → its last block, and the tokens of its prefix. Oldest first."""

    def _get_local_prefix_cache_hit(self, request: Any) -> Any:
        """Return the cached blocks and tokens of a request, including the kept block of its stem."""
        me: Any = super()
        blocks, tokens, boundary, diverged = me._get_local_prefix_cache_hit(request)
        block, length = self.kept.get(_extra(request, SOURCE), (None, 0))
        size = self.block_size  # type: ignore[attr-defined]
        usable = min(length, request.num_tokens - 1)
        if block is None or tokens != length // size * size or usable <= tokens:
            return blocks, tokens, boundary, diverged
        return KVCacheBlocks(([*blocks.blocks[0], block],)), usable, boundary, diverged

    def _free_request(self, request: Any, delay_free_blocks: bool = False) -> Any:
        """Free a request; keep the last block of a stem whose prefix is computed."""
        me: Any = self
        name, length = _extra(request, STEM), request.num_prompt_tokens
        if self.shares and name and length % me.block_size and request.num_computed_tokens >= length:
            (blocks,) = me.kv_cache_manager.get_blocks(request.request_id).blocks
            block = blocks[length // me.block_size]
            me.kv_cache_manager.block_pool.touch([block])
            self.kept[name] = block, length
            if len(self.kept) > self.room:
                self._free_kept(next(iter(self.kept)))
        owner: Any = super()
        return owner._free_request(request, delay_free_blocks)

    def schedule(self, *args: Any, **options: Any) -> Any:
        """Schedule a step; free all kept blocks if nothing runs and nothing fits: what waits may need every block.

        With asynchronous scheduling a step also schedules nothing when all rows have drawn their last token and are not
        removed yet. A request that waits then waits for a row, not for memory.
        """
        owner: Any = super()
        output = owner.schedule(*args, **options)
        me: Any = self
        if output.total_num_scheduled_tokens == 0 and me.waiting and not me.running:
            self._free_all_kept()
        return output

    def reset_prefix_cache(self, *args: Any, **options: Any) -> bool:
        """Clear the cache and the kept blocks: they belong to the previous model."""
        self._free_all_kept()
        owner: Any = super()
        return owner.reset_prefix_cache(*args, **options)

    def _free_all_kept(self) -> None:
        for name in list(self.kept):
            self._free_kept(name)

    def _free_kept(self, name: str) -> None:
        me: Any = self
        block, _ = self.kept.pop(name)
        me.kv_cache_manager.block_pool.free_blocks([block])


class _Sharing(_SharesBlocks, Scheduler): ...


class _AsyncSharing(_SharesBlocks, AsyncScheduler): ...


def _extra(request: Any, name: str) -> Any:
    params = request.sampling_params
    return ((params and params.extra_args) or {}).get(name)
