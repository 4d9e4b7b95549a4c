"""Open the pool that a stage samples with, in its own process or in workers, and work on several chunks at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any, TypeVar

from stages.cluster.environment import WORKER_LOGS, open_session
from stages.configs.execution import ExecutorOptions
from stages.core.paths import AnyPath, log_directory
from stages.core.progress import Progress
from stages.sampling.pool import SamplerPool
from stages.sampling.protocol import Sampler, SharedSampler

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def use_pool(
    pool: SamplerPool | None, options: ExecutorOptions, out: AnyPath, progress: Progress
) -> Iterator[SamplerPool]:
    """Yield the caller's pool, which stays open, or a new one that is closed at the end.

    Args:
      options: where a new pool samples.
      out: the artefact, beside which workers write their logs.

    Raises:
      UserError: Ray is requested and not installed.
    """
    cluster = options.cluster()
    with ExitStack() as stack:
        if pool is None and cluster is None:
            pool = stack.enter_context(SamplerPool())
        elif pool is None and cluster is not None:
            session = stack.enter_context(open_session(cluster, log_directory(out) / WORKER_LOGS, progress))
            pool = stack.enter_context(remote_pool(session))
        assert pool is not None
        yield pool


def remote_pool(session: Any) -> SamplerPool:
    """Return a pool whose samplers are in the workers of a session."""
    from stages.sampling.ray.sampler import RaySampler  # imports Ray

    return SamplerPool(remote=lambda model_dir, options: RaySampler(session, model_dir, options))


def overlap(sampler: Sampler | None, items: Iterable[T], work: Callable[[T], R]) -> Iterator[tuple[T, R]]:
    """Yield (item, work(item)) for each item: in order in this process, else as they finish.

    Several items are worked on at a time where several workers sample, so that no worker waits for the longest sample
    of an item. A user's reward function need not be thread-safe: `responses.grading` calls one at a time.
    """
    lanes = sampler.lanes if isinstance(sampler, SharedSampler) else 1
    if lanes == 1:
        for item in items:
            yield item, work(item)
        return
    waiting, running = iter(items), {}
    threads = ThreadPoolExecutor(lanes, thread_name_prefix="chunk")
    try:
        while True:
            for item in islice(waiting, lanes - len(running)):
                running[threads.submit(work, item)] = item
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
