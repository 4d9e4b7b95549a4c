"""The vLLM engine behind the sampling protocol: paged attention, prefix caching, many GPUs.

Here it is started, given other weights, put to rest and ended; `vllm_requests` asks it for samples. Tokens are chosen
by `vllm_worker`: as in the embedded engine they depend on the prefix, the key and the position, and on the logits,
whose last bits vary with what else is in vLLM's batch. So the same command gives the same rows but where rounding
decides between two tokens; with VLLM_BATCH_INVARIANT=1, on GPUs that have it, without exception.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.core.errors import UserError
from stages.models import devices, loading
from stages.models.checkpoints import OPTIMIZER_FILE
from stages.models.lora import whole_directory
from stages.sampling.protocol import Request, Sample, SamplingParams, Usage, check_request
from stages.sampling.stopping import end_tokens
from stages.sampling.vllm.launch import (
    EngineLog,
    describe_failure,
    engine_arguments,
    environment,
    prepare_environment,
)
from stages.sampling.vllm.requests import Call

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_CPU_BLOCK = 32  # tokens; the smallest that vLLM's attention takes on a CPU: less of a prefix falls between blocks
_CPU_CACHE = 4 * 2**30  # bytes, or a quarter of the memory if that is less
_WORKER = "stages.sampling.vllm.worker"
_UNREAD = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
"""Of a model's configuration, what may differ between models that take one another's weights."""


@dataclass(frozen=True)
class _LoadedModel:
    """What is told of a model beside its weights."""

    tokenizer: PreTrainedTokenizerBase
    ends: list[int]

    @classmethod
    def read(cls, model_dir: Path) -> _LoadedModel:
        from transformers import GenerationConfig

        config, tokenizer = loading.load_config(model_dir), loading.load_tokenizer(model_dir)
        has_settings = (model_dir / "generation_config.json").is_file()
        settings = GenerationConfig.from_pretrained(model_dir) if has_settings else config.get_text_config()
        return cls(tokenizer, np.flatnonzero(end_tokens(settings, tokenizer, loading.vocabulary_size(config))).tolist())


class _WeightDirectories:
    """Directories of a model's whole weights and nothing but, on the disk for as long as an engine may read them."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self._scratch = dtype, TemporaryDirectory(prefix="spo-merged-")

    def whole(self, model_dir: Path) -> Path:
        """The model's own, or of an adapter base and adapter in one.

        Of a checkpoint, links to all but the optimiser's state: vLLM takes every safetensors file for weights.
        """

        scratch = Path(self._scratch.name)
        whole = whole_directory(model_dir, scratch, self.dtype)
        if not (whole / OPTIMIZER_FILE).is_file():
            return whole
        links = scratch / "checkpoint"
        shutil.rmtree(links, ignore_errors=True)
        links.mkdir()
        for file in whole.iterdir():
            if file.is_file() and file.name != OPTIMIZER_FILE:
                (links / file.name).symlink_to(file.resolve())
        return links


class VllmSampler:
    """A running vLLM engine with a model, ready to sample; made by `open`.

    Attributes:
      caveat: None; that vLLM's last bits depend on its batch is no surprise of one machine.
    """

    caveat = None

    def __init__(
        self, llm: Any, model: _LoadedModel, architecture: dict[str, Any], log: EngineLog, merged: _WeightDirectories
    ) -> None:
        self.llm, self.model, self.architecture, self.log, self.merged = llm, model, architecture, log, merged
        self.context_length = int(llm.model_config.max_model_len)
        self.numbers = count()
        self.asleep = self.closed = False

    @classmethod
    def open(
        cls,
        model_dir: Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        max_batch_rows: int | None = None,
        max_model_len: int | None = None,
        threads: int | None = None,
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float | None = None,
        enforce_eager: bool = False,
        engine_arg: Sequence[str] = (),
        can_free_memory: bool = False,
    ) -> VllmSampler:
        """Starts vLLM, which takes a minute or so.

        Args:
          device: auto, or what this build of vLLM runs on.
          dtype: as `devices.pick_dtype` takes it.
          max_batch_rows: most sequences in flight; None lets vLLM choose.
          max_model_len: the context ends here, if the model's own does not end before.
          threads: of a worker on a CPU, which are then bound to no core; None lets vLLM choose and bind.
          tensor_parallel_size: GPUs that share each layer.
          gpu_memory_utilization: share of each GPU's memory (on a CPU, of the machine's) that vLLM takes; None: vLLM's
            own share of a GPU, up to 4 GiB of a CPU's memory for the cache.
          enforce_eager: neither compile nor capture graphs.
          engine_arg: further arguments of vLLM as `key=value`.
          can_free_memory: start vLLM so that `free_memory` can free a GPU's memory.

        Raises:
          UserError: whatever keeps vLLM from starting, in one line.
        """
        prepare_environment()
        import torch
        from vllm import LLM  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
        from vllm.platforms import current_platform  # pyright: ignore[reportMissingImports]

        on_cpu = current_platform.is_cpu()
        _check_device(device, on_cpu)
        whole = loading.context_length(loading.load_config(model_dir))
        number_format = devices.pick_dtype(dtype, torch.device("cpu" if on_cpu else "cuda"))
        merged = _WeightDirectories(number_format)
        model_dir = merged.whole(model_dir)
        model = _LoadedModel.read(model_dir)
        arguments: dict[str, Any] = {
            "enable_prefix_caching": True,
            "disable_log_stats": True,
            "seed": 0,
            **(_cpu_arguments(gpu_memory_utilization) if on_cpu else {"enable_sleep_mode": can_free_memory}),
            **engine_arguments(engine_arg),
            "model": str(model_dir),
            "dtype": str(number_format).removeprefix("torch."),
            "max_model_len": min(whole, max_model_len or whole),
            "tensor_parallel_size": tensor_parallel_size,
            "enforce_eager": enforce_eager,
            "logits_processors": [f"{_WORKER}:KeyedChoice"],
            "worker_extension_cls": f"{_WORKER}.Worker",
            "scheduler_cls": "stages.sampling.vllm.scheduler.make_scheduler",
            "scheduling_policy": "priority",
            "logprobs_mode": "processed_logits",
            **({"max_num_seqs": max_batch_rows} if max_batch_rows else {}),
            **({"gpu_memory_utilization": gpu_memory_utilization} if gpu_memory_utilization else {}),
        }
        bound = {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"} if threads else {}
        log = EngineLog()
        try:
            with environment(bound), log.taking_output():
                llm = LLM(**arguments)
        except Exception as error:
            raise describe_failure(error, log) from error
        except BaseException:
            log.close()
            raise
        return cls(llm, model, _architecture(model_dir), log, merged)

    def sample(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        on_tokens: Callable[[int, int], None] | None = None,
        *,
        remember: bool = False,
    ) -> tuple[list[list[Sample]], Usage]:
        """See `sampling.Sampler.sample`. vLLM's cache remembers of itself; a sequence that it had to put aside for lack
        of memory is computed again without being counted."""
        for request in requests:
            check_request(request, self.context_length)
        model = self.model
        call = Call(
            self.llm, self.numbers, model.tokenizer, model.ends, self.context_length, requests, params, on_tokens
        )
        try:
            return call.run()
        except BaseException as error:
            self._end(error)
            raise

    def _end(self, error: BaseException) -> None:
        """Ends the engine after a failure in the middle of a call.

        Raises:
          UserError: where vLLM is what failed, in one line.
        """
        from vllm.exceptions import VLLMError  # pyright: ignore[reportMissingImports]

        told = describe_failure(error, self.log) if isinstance(error, VLLMError) else None
        if told:
            self.log = EngineLog()  # the old one stays, to be read
        self.close()
        if told:
            raise told from error

    def reload(self, model_dir: Path) -> bool:
        """See `sampling.protocol.ReloadableSampler.reload`."""
        model_dir = self.merged.whole(model_dir)
        if _architecture(model_dir) != self.architecture:
            return False
        try:
            if self.asleep:
                self.llm.wake_up(tags=["weights"])
            self.llm.collective_rpc("take_weights", args=(str(model_dir),))
            if self.asleep:
                self.llm.wake_up(tags=["kv_cache"])
            if not self.llm.reset_prefix_cache():
                raise RuntimeError("vLLM keeps the old model's cache")  # nothing runs, so it never has a reason to
        except Exception as error:
            self._end(error)
            raise
        self.asleep = False
        self.model = _LoadedModel.read(model_dir)
        return True

    def free_memory(self) -> None:
        """See `sampling.protocol.ReloadableSampler.free_memory`. vLLM on a CPU cannot: its cache stays."""
        if getattr(self.llm.model_config, "enable_sleep_mode", False):
            self.llm.sleep(level=2)
            self.asleep = True

    def close(self) -> None:
        """Ends vLLM and its processes, once."""
        if self.closed:
            return
        self.closed = True
        with self.log.taking_output():  # it warns of ending them as it was told to
            self.llm.llm_engine.engine_core.shutdown(timeout=1)  # vLLM itself would wait 5 s for its worker in vain
        self.log.close()


def _check_device(device: str, on_cpu: bool) -> None:
    """Raises UserError for a device that this vLLM does not run on."""
    if on_cpu and device not in ("auto", "cpu"):
        raise UserError(f"--device {device}: the vLLM that is installed runs on CPUs only; install 'spo-cli[vllm]'")
    if not on_cpu and device == "cpu":
        raise UserError("--device cpu: the vLLM that is installed runs on GPUs only; pass --engine transformers")
    if not on_cpu and device not in ("auto", "cuda"):
        raise UserError(
            f"--device {device}: vLLM takes the GPUs that CUDA_VISIBLE_DEVICES names; set it, and no --device"
        )


def _cpu_arguments(share: float | None) -> dict[str, Any]:
    """Blocks of few tokens, and a cache that leaves room for others: vLLM would take nine tenths of the memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    cache = {} if share else {"kv_cache_memory_bytes": int(min(_CPU_CACHE, memory / 4))}
    return {"block_size": _CPU_BLOCK, **cache}


def _architecture(model_dir: Path) -> dict[str, Any]:
    """What a model must have in common with another to take its weights in place."""
    config = json.loads((model_dir / "config.json").read_text())
    return {name: value for name, value in config.items() if name not in _UNREAD}
