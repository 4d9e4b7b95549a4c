"""vLLM's scheduler, told to share what of a prefix does not fill a block of its cache.

vLLM's cache keeps whole blocks: of 16 tokens on most GPUs, of 32 on a CPU. Whatever goes on from a prefix would compute
its last tokens again, from the last whole block on; nine rollouts from each of many states a few tokens apart would
compute several times the tokens there are. So the last block of each prefix that several requests go on from is kept
when the request that computed it ends, and those that go on from there get a copy of it: vLLM's own copying on write,
which it has for models whose caches end within blocks.

Which requests go on from which is said in their `extra_args` (`vllm_start.STEM`, `vllm_start.SOURCE`). Changes speed,
never results: a block that was given back for lack of room is computed again, and counted.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks  # pyright: ignore[reportMissingImports]
from vllm.v1.core.sched.async_scheduler import AsyncScheduler  # pyright: ignore[reportMissingImports]
from vllm.v1.core.sched.scheduler import Scheduler  # pyright: ignore[reportMissingImports]
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager  # pyright: ignore[reportMissingImports]

from stages.sampling.vllm.launch import SOURCE, STEM

_SHARE = 8  # at most one block in so many is kept


def make_scheduler(**options: Any) -> Any:
    """The scheduler that vLLM would take (`scheduler_cls`), sharing blocks."""
    is_async = options["vllm_config"].scheduler_config.async_scheduling
    return (_AsyncSharing if is_async else _Sharing)(**options)


class _SharesBlocks:
    """Beside `Scheduler`: keeps last blocks, and hands them out."""

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
        self.room = max(1, me.kv_cache_config.num_blocks // _SHARE)
        self.kept: dict[str, tuple[Any, int]] = {}
        """Name of a stem → its last block, and the tokens of its prefix. Oldest first."""

    def _get_local_prefix_cache_hit(self, request: Any) -> Any:
        """What the cache has of a request's tokens, the kept block of what it goes on from included."""
        me: Any = super()
        blocks, tokens, boundary, diverged = me._get_local_prefix_cache_hit(request)
        block, length = self.kept.get(_extra(request, SOURCE), (None, 0))
        size = self.block_size  # type: ignore[attr-defined]
        usable = min(length, request.num_tokens - 1)
        if block is None or tokens != length // size * size or usable <= tokens:
            return blocks, tokens, boundary, diverged
        return KVCacheBlocks(([*blocks.blocks[0], block],)), usable, boundary, diverged

    def _free_request(self, request: Any, delay_free_blocks: bool = False) -> Any:
        """Keeps the last block of a stem whose prefix is computed."""
        me: Any = self
        name, length = _extra(request, STEM), request.num_prompt_tokens
        if self.shares and name and length % me.block_size and request.num_computed_tokens >= length:
            (blocks,) = me.kv_cache_manager.get_blocks(request.request_id).blocks
            block = blocks[length // me.block_size]
            me.kv_cache_manager.block_pool.touch([block])
            self.kept[name] = block, length
            if len(self.kept) > self.room:
                self._give_back(next(iter(self.kept)))
        owner: Any = super()
        return owner._free_request(request, delay_free_blocks)

    def schedule(self, *args: Any, **options: Any) -> Any:
        """Gives all back where nothing runs and there is room for nothing: what waits may need every block.

        A step that schedules nothing may also be one before which all rows have drawn their last token, and are not
        told yet (asynchronous scheduling): who waits then waits for a row.
        """
        owner: Any = super()
        output = owner.schedule(*args, **options)
        me: Any = self
        if output.total_num_scheduled_tokens == 0 and me.waiting and not me.running:
            self._give_all_back()
        return output

    def reset_prefix_cache(self, *args: Any, **options: Any) -> bool:
        """Forgets the blocks, too: they are another model's."""
        self._give_all_back()
        owner: Any = super()
        return owner.reset_prefix_cache(*args, **options)

    def _give_all_back(self) -> None:
        for name in list(self.kept):
            self._give_back(name)

    def _give_back(self, name: str) -> None:
        me: Any = self
        block, _ = self.kept.pop(name)
        me.kv_cache_manager.block_pool.free_blocks([block])


class _Sharing(_SharesBlocks, Scheduler): ...


class _AsyncSharing(_SharesBlocks, AsyncScheduler): ...


def _extra(request: Any, name: str) -> Any:
    params = request.sampling_params
    return ((params and params.extra_args) or {}).get(name)
