"""The vLLM engine behind the sampling protocol: paged attention, prefix caching, many GPUs.

This file starts vLLM, loads other weights in place, frees its memory and ends it; `requests` draws the samples. Tokens
are chosen in `worker`: as in the embedded engine they depend on the prefix, the key, the position and the logits, but
the last bits of the logits vary with the rest of vLLM's batch. The same command therefore gives the same rows except
where rounding decides between two tokens; with VLLM_BATCH_INVARIANT=1, on GPUs that support it, without exception.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.core.errors import UserError
from stages.core.json_files import read_json
from stages.models import devices, loading
from stages.models.lora import whole_directory
from stages.sampling.protocol import OnSample, OnTokens, Request, Sample, SamplingParams, Usage, check_request
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

_CPU_BLOCK = 32  # tokens; the minimum on a CPU: with small blocks fewer tokens of a prefix are outside whole blocks
_CPU_CACHE = 4 * 2**30  # bytes; a quarter of the memory if that is less
_WORKER = "stages.sampling.vllm.worker"
_EXTENSIONS = {
    "logits_processors": [f"{_WORKER}:KeyedChoice"],
    "worker_extension_cls": f"{_WORKER}.Worker",
    "scheduler_cls": "stages.sampling.vllm.scheduler.make_scheduler",
    "scheduling_policy": "priority",
    "logprobs_mode": "processed_logits",
}
"""Arguments that make vLLM choose tokens by key, and share prefixes token by token."""
_IGNORED = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
"""Entries of config.json that may differ between two models when the weights of one are loaded into the other."""


@dataclass(frozen=True)
class _LoadedModel:
    """The tokenizer of the loaded model, and the tokens that end a text."""

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
    """Directories that hold a model's whole weights; they exist as long as the engine."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self._scratch = dtype, TemporaryDirectory(prefix="spo-merged-")

    def whole(self, model_dir: Path) -> Path:
        """Return a directory with the whole weights of a model; an adapter is merged into its base."""
        return whole_directory(model_dir, Path(self._scratch.name), self.dtype)


class VllmSampler:
    """A running vLLM engine with a model; made by `open`.

    Attributes:
      caveat: None: vLLM gives no guarantee of samples that do not depend on their batch.
      closed: whether vLLM has ended.
    """

    caveat, is_plain = None, False

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
        """Start vLLM, which takes about a minute.

        Args:
          device: auto, or the device of this build of vLLM.
          dtype: as in `devices.pick_dtype`.
          max_batch_rows: maximum number of sequences in flight; None: set by vLLM.
          max_model_len: upper limit of the context length, in tokens; None: the model's own.
          threads: threads of a worker on a CPU, which are then bound to no core; None: vLLM sets and binds them.
          tensor_parallel_size: number of GPUs that share each layer.
          gpu_memory_utilization: fraction of each GPU's memory (on a CPU, of the machine's) that vLLM uses; None:
            vLLM's default on a GPU, up to 4 GiB for the cache on a CPU.
          enforce_eager: whether to skip compilation and graph capture.
          engine_arg: further arguments of vLLM as `key=value`.
          can_free_memory: start vLLM so that `free_memory` can free a GPU's memory.

        Raises:
          UserError: vLLM cannot start; the message is its cause, in one line.
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
            **({"max_model_len": limit} if (limit := min(whole, max_model_len or whole)) < loading.NO_LIMIT else {}),
            "tensor_parallel_size": tensor_parallel_size,
            "enforce_eager": enforce_eager,
            **_EXTENSIONS,
            **({"max_num_seqs": max_batch_rows} if max_batch_rows else {}),
            **({"gpu_memory_utilization": gpu_memory_utilization} if gpu_memory_utilization else {}),
        }
        bound = {"OMP_NUM_THREADS": str(threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"} if threads else {}
        log = EngineLog()
        try:
            with environment(bound), log.redirect_output():
                llm = LLM(**arguments)
        except Exception as error:  # vLLM and what it loads raise many classes
            raise describe_failure(error, log) from error
        except BaseException:  # an interrupt
            log.close()
            raise
        return cls(llm, model, _architecture(model_dir), log, merged)

    def sample(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        on_tokens: OnTokens | None = None,
        *,
        on_sample: OnSample | None = None,
        remember: bool = False,
    ) -> tuple[list[list[Sample]], Usage]:
        """See `sampling.protocol.Sampler.sample`.

        vLLM's cache keeps prefixes in any case, so `remember` has no effect. A sequence that vLLM preempts for lack of
        memory is computed again, and those tokens are not counted.

        Raises:
          UserError: entropies are requested, which vLLM does not report.
        """
        if params.entropies:
            raise UserError("vLLM reports no entropies: pass --branch-at surprisal, or --engine transformers")
        for request in requests:
            check_request(request, self.context_length)
        model = self.model
        call = Call(
            self.llm,
            self.numbers,
            model.tokenizer,
            model.ends,
            self.context_length,
            requests,
            params,
            on_tokens,
            on_sample,
        )
        try:
            return call.run()
        except BaseException as error:  # an interrupt, too, leaves requests in vLLM
            self._end(error)
            raise

    def _end(self, error: BaseException) -> None:
        """End the engine after a failure in the middle of a call: unfinished requests would run on in the next one.

        Raises:
          UserError: vLLM itself failed; the message is its cause, in one line.
        """
        from vllm.exceptions import VLLMError  # pyright: ignore[reportMissingImports]

        failure = describe_failure(error, self.log) if isinstance(error, VLLMError) else None
        if failure:
            self.log = EngineLog()  # the old file stays: the message names it
        self.close()
        if failure:
            raise failure from error

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
                raise RuntimeError("vLLM did not clear the cache of the old model")  # it always can when nothing runs
        except BaseException as error:  # after a failure or an interrupt the weights may be half loaded
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
        """End vLLM and its processes. A second call does nothing."""
        if self.closed:
            return
        self.closed = True
        with self.log.redirect_output():  # vLLM warns of this shutdown
            self.llm.llm_engine.engine_core.shutdown(timeout=1)  # vLLM's default waits 5 s for its worker in vain
        self.log.close()


def _check_device(device: str, on_cpu: bool) -> None:
    """Raise UserError for a device that the installed vLLM does not run on."""
    if on_cpu and device not in ("auto", "cpu"):
        raise UserError(f"--device {device}: the installed vLLM runs on CPUs only; install 'spo-cli[vllm]'")
    if not on_cpu and device == "cpu":
        raise UserError("--device cpu: the installed vLLM runs on GPUs only; pass --engine transformers")
    if not on_cpu and device not in ("auto", "cuda"):
        raise UserError(
            f"--device {device}: vLLM uses the GPUs in CUDA_VISIBLE_DEVICES; set that variable and omit --device"
        )


def _cpu_arguments(share: float | None) -> dict[str, Any]:
    """Return arguments for small blocks and a limited cache: vLLM's default uses most of the machine's memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    cache = {} if share else {"kv_cache_memory_bytes": int(min(_CPU_CACHE, memory / 4))}
    return {"block_size": _CPU_BLOCK, **cache}


def _architecture(model_dir: Path) -> dict[str, Any]:
    """Return the entries of config.json that two models must share for one to load the other's weights in place."""
    config = read_json(model_dir / "config.json")
    return {name: value for name, value in config.items() if name not in _IGNORED}
