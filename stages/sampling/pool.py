"""Open a model directory for sampling, and reuse the open sampler in the calls that follow.

torch and the engines are imported when a sampler is opened: a stage whose output is up to date must not wait for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from stages.core.progress import Progress, Silent
from stages.models import loading
from stages.models.pruning import check_weights
from stages.sampling.engines import EngineName, choose_engine
from stages.sampling.protocol import ReloadableSampler, Sampler, SharedSampler

Remote = Callable[[Path, dict[str, Any]], ReloadableSampler]
"""(model directory, arguments of `SamplerPool.open`) → a sampler in other processes."""


@dataclass
class _Kept:
    """The open sampler.

    Attributes:
      settings: engine and options that it was opened with.
      model: directory of its model, with names, sizes and times of the files; None: its memory is freed.
      gpus: number of GPUs that it computes on.
    """

    settings: tuple[object, ...]
    model: object
    sampler: Sampler
    gpus: int = 0


class SamplerPool:
    """Hold one open sampler, so that stages that share a pool load a model once.

    `spo run` holds one pool for the whole run and passes it to its stages; a single command makes its own
    (`stages.sampling.executors`).
    Leaving the `with` block closes the sampler.
    """

    def __init__(self, *, keep_while_training: bool = False, remote: Remote | None = None) -> None:
        """Make an empty pool.

        Args:
          remote: opens samplers in other processes; None: they are opened in this one.
          keep_while_training: whether `free_memory` keeps the processes of a sampler that takes long to start (vLLM),
            which then loads the weights of the trained model in place.
        """
        self.keep_while_training, self.remote = keep_while_training, remote
        self._kept: _Kept | None = None

    def open(
        self,
        engine: EngineName,
        model_dir: Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        max_batch_rows: int | None = None,
        threads: int | None = None,
        max_model_len: int | None = None,
        progress: Progress = Silent(),
        **vllm: Any,
    ) -> Sampler:
        """Return a sampler for a model directory: the open one if model and options are the same, else a new one.

        A sampler that can load other weights in place does so when only the model differs. Any other sampler is closed
        before the next model is loaded, so that two models are never in memory at once.

        Args:
          engine: which engine; `auto` is resolved by `choose_engine`.
          model_dir: a local Hugging Face directory (see `checkpoints.resolve`).
          device, dtype: as in `devices.pick_device` and `devices.pick_dtype`.
          max_batch_rows: maximum number of samples in flight; None: set by the engine. It changes speed, never results.
          threads: CPU threads; None: set by the engine.
          max_model_len: upper limit of the context length, in tokens; None: the model's own.
          progress: receives the sampler's caveat.
          vllm: further options of `stages.sampling.vllm.engine.VllmSampler.open`.

        Raises:
          UserError: the weights were pruned, the engine is not installed, or it cannot sample from this model.
        """
        engine = choose_engine(engine, device)
        check_weights(model_dir)
        model = _identify(model_dir)
        shared = {"device": device, "dtype": dtype, "max_batch_rows": max_batch_rows, "max_model_len": max_model_len}
        settings, busy = (engine, *shared.values()), None
        if engine == "vllm" or self.remote:
            settings = (*settings, threads, *sorted(vllm.items()))
        else:
            from stages.models.devices import use_threads

            busy = use_threads(threads)
        if (sampler := self._reuse(settings, model, model_dir)) is not None:
            return sampler
        self.close()
        if self.remote:
            threads = threads or (None if engine == "vllm" else _own_threads())
            sampler = self.remote(model_dir, {"engine": engine, **shared, "threads": threads, **vllm})
        elif engine == "vllm":
            from stages.sampling.vllm.engine import VllmSampler

            sampler = VllmSampler.open(
                model_dir, **shared, threads=threads, can_free_memory=self.keep_while_training, **vllm
            )
        else:
            from stages.sampling.transformers import open_sampler

            sampler = open_sampler(model_dir, **shared)
        for line in filter(None, (busy, sampler.caveat, loading.describe_limit(model_dir, max_model_len))):
            progress.note(line)
        self._kept = _Kept(settings, model, sampler, _count_gpus(sampler, device, vllm))
        return sampler

    @property
    def gpus(self) -> int:
        """Number of GPUs that the open sampler computes on; 0 on a CPU, or where none is open."""
        return self._kept.gpus if self._kept else 0

    def _reuse(self, settings: tuple[object, ...], model: object, model_dir: Path) -> Sampler | None:
        """Return the open sampler with this model, loaded in place if necessary; None if that is impossible."""
        kept = self._kept
        if kept is None or kept.settings != settings:
            return None
        sampler = kept.sampler
        if isinstance(sampler, ReloadableSampler) and sampler.closed:  # it ended itself after a failure
            return None
        if kept.model == model:
            return sampler
        if isinstance(sampler, ReloadableSampler) and sampler.reload(model_dir):
            kept.model = model
            return sampler
        return None

    def free_memory(self) -> None:
        """Free the sampler's memory for training; with `keep_while_training` its processes stay."""
        kept = self._kept
        if (self.keep_while_training or self.remote) and kept and isinstance(kept.sampler, ReloadableSampler):
            kept.sampler.free_memory()
            kept.model = None
        else:
            self.close()

    def report(self) -> tuple[str, ...]:
        """Return a line on how busy the workers were since the last call; none if this process samples."""
        sampler = self._kept.sampler if self._kept else None
        return (sampler.report(),) if isinstance(sampler, SharedSampler) and not sampler.closed else ()

    def close(self) -> None:
        """Close the sampler; the pool is empty then and may be used again."""
        kept, self._kept = self._kept, None
        if kept and isinstance(kept.sampler, ReloadableSampler):
            kept.sampler.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _count_gpus(sampler: Sampler, device: str, vllm: dict[str, Any]) -> int:
    """Return the number of GPUs that a sampler computes on."""
    if isinstance(sampler, SharedSampler):
        return sampler.gpus
    from stages.models.devices import count_gpus, pick_device

    return count_gpus(pick_device(device), vllm.get("tensor_parallel_size", 1))


def _own_threads() -> int:
    """Return the number of threads of this process, for workers: their samples then have the bits of this process."""
    import torch

    return torch.get_num_threads()


def _identify(model_dir: Path) -> object:
    """Return what differs when a model directory has changed: its path, and names, sizes and times of its files."""
    files = tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(model_dir.iterdir()))
    return model_dir.resolve(), files
