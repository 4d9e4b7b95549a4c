"""The code of a sampling worker: one engine, kept open from call to call. Functions for
`cluster.worker.Worker.call`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages.cluster.worker import WorkerLost, Workspace
from stages.core.errors import SpoError, UserError
from stages.sampling.pool import SamplerPool
from stages.sampling.protocol import ReloadableSampler, Request, Sample, Sampler, SamplingParams, Usage

_POOL, _SAMPLER = "pool", "sampler"


class Opened(NamedTuple):
    """Properties of a worker's engine that the driver needs; as in `Sampler`."""

    context_length: int
    caveat: str | None
    is_plain: bool


def open_engine(workspace: Workspace, report: Any, model_dir: str, options: dict[str, Any], share: bool) -> Opened:
    """Open an engine, or load another model into the open one, as `SamplerPool.open` does.

    Args:
      options: arguments of `SamplerPool.open`.
      share: whether the engine must be able to free the memory of its GPU.

    Raises:
      UserError: this node does not see the directory; else as `SamplerPool.open`.
    """
    if not Path(model_dir).is_dir():
        raise UserError(
            f"a node of the cluster does not see {model_dir}: the run and its models must be on a file system that all "
            "nodes share"
        )
    pool = workspace.kept.setdefault(_POOL, SamplerPool(keep_while_training=share))
    sampler = pool.open(model_dir=Path(model_dir), **options)
    workspace.kept[_SAMPLER] = sampler
    return Opened(sampler.context_length, sampler.caveat, sampler.is_plain)


def sample_requests(
    workspace: Workspace,
    report: Callable[[tuple[int, int, int]], None],
    requests: Sequence[Request],
    params: SamplingParams,
    remember: bool,
) -> tuple[list[list[Sample]], Usage]:
    """Sample as `Sampler.sample`; the reports are (samples finished, tokens drawn, tokens prefilled).

    Raises:
      WorkerLost: the engine has ended itself, so this worker must be replaced.
    """
    sampler: Sampler = workspace.kept[_SAMPLER]

    def send(done: int, tokens: int, prefilled: int = 0) -> None:
        report((done, tokens, prefilled))

    try:
        return sampler.sample(requests, params, send, remember=remember)
    except SpoError as error:
        if isinstance(sampler, ReloadableSampler) and sampler.closed:
            raise WorkerLost(str(error)) from error
        raise


def free_engine(workspace: Workspace, report: Any) -> None:
    """Free the memory of the engine; `open_engine` takes it again."""
    pool: SamplerPool | None = workspace.kept.get(_POOL)
    if pool:
        pool.free_memory()
        workspace.kept.pop(_SAMPLER, None)
        torch = sys.modules.get("torch")
        if torch and torch.cuda.is_available():
            torch.cuda.empty_cache()
