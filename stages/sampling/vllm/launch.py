"""Start vLLM: its arguments, its environment, a log of its processes' output, and one-line error messages."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stages.core.errors import UserError

_FIXED = {
    "model": "--model",
    "dtype": "--dtype",
    "max_num_seqs": "--max-batch-rows",
    "max_model_len": "--max-model-len",
    "tensor_parallel_size": "--tensor-parallel-size",
    "gpu_memory_utilization": "--gpu-memory-utilization",
    "enforce_eager": "--enforce-eager",
    "logits_processors": None,
    "scheduler_cls": None,
    "scheduling_policy": None,
    "logprobs_mode": None,
    "worker_extension_cls": None,
    "skip_tokenizer_init": None,
    "enable_sleep_mode": None,
}
"""Arguments of vLLM that --engine-arg refuses, with the flag to use instead; None: spo sets the argument itself."""
_ENVIRONMENT = {
    # The second model runner needs another kind of logits processor, and runs on GPUs only.
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
}
OWNER = "SPO_VLLM_OWNER"
"""Environment variable with the id of the process that started vLLM; vLLM's processes end when it is gone."""
KEYS, FIRST, CHOICE, STEM, SOURCE = "spo_keys", "spo_first", "spo_choice", "spo_stem", "spo_source"
"""Names in `extra_args` of vLLM's sampling parameters.

KEYS: the sample's key, or the keys of all samples whose first token a stem draws. FIRST: position in the sample of the
first token to draw. CHOICE: (temperature, top_p, top_k). STEM: name of this stem. SOURCE: name of the stem whose prefix
this request's prompt extends.
"""
_RAISED = re.compile(r"(?:^|\s)((?:\w+\.)*\w*(?:Error|Exception|Exit)): (.+)")


def engine_arguments(given: Sequence[str]) -> dict[str, Any]:
    """Return vLLM's arguments from `key=value` words; a value is JSON, or else a text.

    Raises:
      UserError: a word has another form, vLLM has no such argument, or spo has a flag for it.
    """
    from vllm import EngineArgs  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

    known = {field.name for field in dataclasses.fields(EngineArgs)}
    found: dict[str, Any] = {}
    for word in given:
        key, equals, text = word.partition("=")
        key = key.strip().removeprefix("--").replace("-", "_")
        if not equals or not key:
            raise UserError(f"--engine-arg must be key=value, such as block_size=32; got {word!r}")
        if key in _FIXED:
            instead = f"pass {_FIXED[key]}" if _FIXED[key] else "spo sets it"
            raise UserError(f"--engine-arg {key}: {instead}")
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            raise UserError(f"vLLM has no argument {key}" + (f"; did you mean {near[0]}?" if near else ""))
        try:
            found[key] = json.loads(text)
        except (ValueError, RecursionError):
            found[key] = text
    return found


def prepare_environment() -> None:
    """Set the environment variables that vLLM reads, unless the user has set them."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ[OWNER] = str(os.getpid())


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables inside the block, and restore them afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class EngineLog:
    """A file for the output of the engine's processes; it is deleted by `close`, and kept after a failure."""

    def __init__(self) -> None:
        handle, name = tempfile.mkstemp(prefix="spo-vllm-", suffix=".log")
        self.path = Path(name)
        self._handle = handle

    @contextmanager
    def redirect_output(self) -> Iterator[None]:
        """Redirect the output of the block, and of processes that it starts, to the file."""
        sys.stdout.flush()
        sys.stderr.flush()
        copies = os.dup(1), os.dup(2)
        os.dup2(self._handle, 1)
        os.dup2(self._handle, 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in zip((1, 2), copies, strict=True):
                os.dup2(copy, number)
                os.close(copy)

    def cause(self) -> str | None:
        """Return the first error in the file, which caused the others; None if there is none."""
        text = self.path.read_text(errors="replace")
        match = next((m for m in map(_RAISED.search, text.splitlines()) if m), None)
        return f"{match[2].strip()} ({match[1]})" if match else None

    def close(self) -> None:
        """Delete the file."""
        with suppress(OSError):
            os.close(self._handle)
        self.path.unlink(missing_ok=True)


def describe_failure(error: BaseException, log: EngineLog) -> UserError:
    """Return vLLM's failure as one line: the first error in its log, else its own message."""
    text = str(error)
    cause = log.cause()
    if cause is None or "root cause" not in text.lower():
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        # pydantic: "1 validation error for …", the field, "Value error, what is wrong [type=…, input_value=…]"
        message = " ".join(lines[1:] if len(lines) > 1 and "validation error" in lines[0] else lines[:1])
        cause = re.sub(r"\s*\[type=.*", "", message).removeprefix("Value error, ") or type(error).__name__
    if "out of memory" in cause.lower():
        cause += "; lower --gpu-memory-utilization, --max-model-len or --max-batch-rows, or use more GPUs"
    elif "CPU attention configuration: head_dim" in cause:
        cause += "; on a CPU it needs heads of 32 dimensions or more: pass --engine transformers for this model"
    return UserError(f"vLLM: {cause.rstrip('.')}. Its log: {log.path}")
