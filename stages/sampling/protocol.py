"""What a stage asks of a sampling engine, and how it gets one. Nothing here knows about tasks or files.

An engine takes prefixes as token ids and draws continuations. Token t of a sample with key κ is chosen by the uniform
number `uniforms(κ, t)`, so a sample depends on the model, its prefix, its key and the sampling parameters alone: not
on what else is in the batch, nor on order, shards or crashes.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from stages.core.errors import UserError
from stages.core.progress import Progress, Silent
from stages.models.pruning import check_weights
from stages.sampling.installed import EngineName, choose_engine

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen, the same for every request of a call.

    Attributes:
      temperature: divides the logits. 0 is greedy; its log-probabilities are those of temperature 1.
      top_p: smallest set of most probable tokens whose probability reaches top_p; 1 keeps all.
      top_k: the k most probable tokens; 0 keeps all.
      stop: a sample ends after the token that completes one of these strings (the end-of-text tokens always end it).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature must be a finite number of at least 0; got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be greater than 0 and at most 1; got {self.top_p}")
        if self.top_k < 0:
            raise UserError(f"top_k must be at least 0 (0 keeps all tokens); got {self.top_k}")
        if "" in self.stop:
            raise UserError("stop strings must not be empty")


@dataclass(frozen=True)
class Request:
    """Continuations wanted from one state.

    Attributes:
      prefix: int32 [P], P ≥ 1: prompt and response so far, as token ids.
      keys: one 64-bit key per sample; their number is the number of samples.
      max_new_tokens: most tokens per sample; the model's context bounds it too.
      text_start: where the response begins in the prefix, so that a stop string may begin in the part of the response
        that is already there; None: behind the prefix. Without stop strings it means nothing.
    """

    prefix: np.ndarray
    keys: tuple[int, ...]
    max_new_tokens: int
    text_start: int | None = None


@dataclass(frozen=True)
class Sample:
    """One continuation.

    Attributes:
      token_ids: int32 [T], T ≥ 1, the end-of-text token included.
      logprobs: float32 [T], natural logs under the temperature-scaled distribution over the full vocabulary, also
        where top-p or top-k narrowed the choice.
      finish_reason: "stop" (end of text or a stop string) or "length" (max_new_tokens or the context).
    """

    token_ids: np.ndarray
    logprobs: np.ndarray
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class Usage:
    """Tokens that one call cost.

    Attributes:
      sampled: tokens drawn.
      prefilled: prefix tokens run through the model (padding not counted), without those that the call before left.
      distinct_prefix_tokens: nodes of the trie of all prefixes: the least that can be prefilled from nothing.
    """

    sampled: int
    prefilled: int
    distinct_prefix_tokens: int


class Sampler(Protocol):
    """A model that is ready to sample."""

    @property
    def context_length(self) -> int:
        """Most tokens of prefix and continuation together."""
        ...

    @property
    def caveat(self) -> str | None:
        """Why samples may depend on their batch where the engine promises that they do not; None: they do not."""
        ...

    def sample(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        on_tokens: Callable[[int, int], None] | None = None,
        *,
        remember: bool = False,
    ) -> tuple[list[list[Sample]], Usage]:
        """Draws every sample of every request.

        Args:
          requests: in any order; common prefixes are found and prefilled once.
          params: how tokens are chosen.
          on_tokens: called now and then with (samples finished, tokens drawn) since the last call.
          remember: for samples that go on from samples. The keys and values of every prefix and sample stay until the
            next call has ended (or the sampler is closed); a prefix of that call which goes on from where one of
            these samples ended costs only what is new in it. What finds no room in memory is prefilled again and
            counted. It changes speed, never results.

        Returns:
          one list per request with one sample per key, in order; and what it cost.

        Raises:
          UserError: a prefix that is empty or leaves no room in the context.
        """
        ...


def batch_dependent(sampler: Sampler, samples: int) -> dict[str, int]:
    """Return the count that marks samples whose bits may depend on their batch; empty where they do not."""
    return {"batch_dependent": samples} if sampler.caveat else {}


def check_request(request: Request, context_length: int) -> None:
    """Raises UserError for a request that no engine can answer."""
    if len(request.prefix) == 0:
        raise UserError("a prefix to sample from is empty; expected at least one token")
    if request.max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1; got {request.max_new_tokens}")
    if len(request.prefix) >= context_length:
        raise UserError(
            f"a prefix of {len(request.prefix)} tokens leaves no room in the model's context of "
            f"{context_length} tokens; leave it out, or take a model with a longer context"
        )


@runtime_checkable
class LastingSampler(Sampler, Protocol):
    """A sampler that takes long to start, and so outlives its model."""

    def reload(self, model_dir: Path) -> bool:
        """Takes another model's weights in place, awake again; False where the models differ in more than that."""
        ...

    def rest(self) -> None:
        """Gives its memory back, as far as it can, until `reload`."""
        ...

    def close(self) -> None:
        """Ends it and its processes."""
        ...


@dataclass
class _Open:
    """The sampler that is kept: how it was asked for, and of which model it is (None: at rest)."""

    asked: tuple[object, ...]
    model: object
    sampler: Sampler


_open: _Open | None = None
_lasting = False


def open_sampler(
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
    """The sampler for a model directory; the last one is kept, so that a whole iteration loads a model once.

    Args:
      engine: which engine; `auto` as `choose_engine` says.
      model_dir: a local Hugging Face directory (see `checkpoints.resolve`).
      device, dtype: as `checkpoints.pick_device` and `checkpoints.pick_dtype` take them.
      max_batch_rows: most samples in flight; None lets the engine choose. It changes speed, never results.
      threads: CPU threads; None leaves them to the engine.
      max_model_len: the context ends here, if the model's own does not end before.
      progress: receives the sampler's caveat.
      vllm: further options of `stages.sampling.vllm.engine.VllmSampler.open`.
    """
    global _open
    engine = choose_engine(engine, device)
    check_weights(model_dir)
    files = tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(model_dir.iterdir()))
    model = (model_dir.resolve(), files)
    shared = {"device": device, "dtype": dtype, "max_batch_rows": max_batch_rows, "max_model_len": max_model_len}
    asked = (engine, *shared.values())
    if engine == "vllm":
        asked = (*asked, threads, *sorted(vllm.items()))
    elif threads is not None:
        import torch

        torch.set_num_threads(threads)
    if _open and _open.asked == asked and _open.model == model:
        return _open.sampler
    if _open and _open.asked == asked and isinstance(_open.sampler, LastingSampler) and _open.sampler.reload(model_dir):
        _open.model = model
        return _open.sampler
    close_sampler()  # frees the previous model before the next one is loaded
    if engine == "vllm":
        from stages.sampling.vllm.engine import VllmSampler

        sampler: Sampler = VllmSampler.open(model_dir, **shared, threads=threads, sleeps=_lasting, **vllm)
        atexit.register(close_sampler)
    else:
        from stages.sampling.embedded.engine import TransformersSampler

        sampler = TransformersSampler.open(model_dir, **shared)
    if sampler.caveat:
        progress.note(sampler.caveat)
    _open = _Open(asked, model, sampler)
    return sampler


def rest_sampler() -> None:
    """Frees the sampler's memory for training. One that takes long to start lives on within `lasting_sampler`."""
    if _lasting and _open and isinstance(_open.sampler, LastingSampler):
        _open.sampler.rest()
        _open.model = None
    else:
        close_sampler()


def close_sampler() -> None:
    """Ends the sampler that `open_sampler` keeps."""
    global _open
    last, _open = _open, None
    if last and isinstance(last.sampler, LastingSampler):
        last.sampler.close()


@contextmanager
def lasting_sampler() -> Iterator[None]:
    """Within: samplers that take long to start outlive training, and take its result in place. All end with it."""
    global _lasting
    _lasting = True
    try:
        yield
    finally:
        _lasting = False
        close_sampler()
