"""The interface of a sampling engine: requests, samples and `Sampler`. Nothing here knows about tasks or files.

An engine takes prefixes as token ids and draws continuations. Token t of a sample with key κ is chosen by the uniform
number `uniforms(κ, t)`, so a sample depends only on the model, its prefix, its key and the sampling parameters: not on
the rest of the batch, nor on order, shards or crashes. `stages.sampling.pool` opens a sampler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from stages.core.errors import UserError


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen; the same for every request of a call.

    Attributes:
      temperature: divides the logits. 0 is greedy decoding, with the log-probabilities at temperature 1.
      top_p: keeps the smallest set of most probable tokens whose probability reaches top_p; 1 keeps all.
      top_k: keeps the k most probable tokens; 0 keeps all.
      stop: a sample ends after the token that completes one of these strings. End-of-text tokens always end it.
      entropies: whether samples have entropies. vLLM does not report them.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    entropies: bool = False

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
    """A number of continuations of one prefix.

    Attributes:
      prefix: int32 [P], P ≥ 1: prompt and response so far, as token ids.
      keys: one 64-bit key per sample; their number is the number of samples.
      max_new_tokens: maximum number of tokens per sample; the model's context limits it too.
      text_start: index in the prefix where the response begins: a stop string may begin in the response so far. None:
        the response begins after the prefix. Used only with stop strings.
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
      finish_reason: "stop" (end of text or a stop string) or "length" (max_new_tokens or the context length).
      entropies: float32 [T], in nats, of the distribution that each log-probability is of; None unless requested.
    """

    token_ids: np.ndarray
    logprobs: np.ndarray
    finish_reason: Literal["stop", "length"]
    entropies: np.ndarray | None = None


@dataclass(frozen=True)
class Usage:
    """Token counts of one call.

    Attributes:
      sampled: tokens drawn.
      prefilled: prefix tokens that ran through the model, without padding and without tokens that the previous call
        left in memory.
      distinct_prefix_tokens: number of nodes in the trie of all prefixes: the minimum that must be prefilled when
        nothing is in memory.
    """

    sampled: int
    prefilled: int
    distinct_prefix_tokens: int


class OnTokens(Protocol):
    """Receives the progress of a call."""

    def __call__(self, done: int, tokens: int, prefilled: int = 0) -> None:
        """Take the samples finished, tokens drawn and tokens prefilled since the last call."""
        ...


OnSample = Callable[[int, int, Sample], None]
"""Called with (number of the request, number of the key in it, sample)."""


def ignore_tokens(done: int, tokens: int, prefilled: int = 0) -> None:
    """Ignore the progress of a call."""


def ignore_sample(request: int, key: int, sample: Sample) -> None:
    """Ignore a finished sample."""


class Sampler(Protocol):
    """A model that is loaded for sampling."""

    @property
    def is_plain(self) -> bool:
        """Whether plain transformers samples, because the embedded engine cannot."""
        ...

    @property
    def context_length(self) -> int:
        """Maximum number of tokens of prefix and continuation together."""
        ...

    @property
    def caveat(self) -> str | None:
        """Why samples may depend on their batch although the engine guarantees otherwise; None: the guarantee holds."""
        ...

    def sample(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        on_tokens: OnTokens | None = None,
        *,
        on_sample: OnSample | None = None,
        remember: bool = False,
    ) -> tuple[list[list[Sample]], Usage]:
        """Draw every sample of every request.

        Args:
          requests: in any order; a prefix that several requests share is prefilled once.
          params: how tokens are chosen.
          on_tokens: called from time to time with what was done since its last call.
          on_sample: called with each sample when it is finished; several threads may call it.
          remember: keep the keys and values of every prefix and sample until the next call has ended (or the sampler is
            closed), for calls whose prefixes extend the samples of this one: only their new tokens are prefilled.
            Sequences for which there is no memory are prefilled again and counted. It changes speed, never results.

        Returns:
          One list per request with one sample per key, in order; and the token counts.

        Raises:
          UserError: a prefix is empty or leaves no room in the context.
        """
        ...


def engine_counts(sampler: Sampler, samples: int) -> dict[str, int]:
    """Return the counts that mark samples whose bits may depend on their batch, and those of the plain engine."""
    marks = {"batch_dependent": bool(sampler.caveat), "plain_engine": sampler.is_plain}
    return {name: samples for name, holds in marks.items() if holds}


def check_request(request: Request, context_length: int) -> None:
    """Check that a request can be sampled.

    Raises:
      UserError: the prefix is empty or fills the context, or max_new_tokens is below 1.
    """
    if len(request.prefix) == 0:
        raise UserError("a prefix to sample from is empty; expected at least one token")
    if request.max_new_tokens < 1:
        raise UserError(f"max_new_tokens must be at least 1; got {request.max_new_tokens}")
    if len(request.prefix) >= context_length:
        raise UserError(
            f"a prefix of {len(request.prefix)} tokens leaves no room in the model's context of "
            f"{context_length} tokens; remove it, or use a model with a longer context"
        )


@runtime_checkable
class ReloadableSampler(Sampler, Protocol):
    """A sampler that takes long to start, so that it is worth keeping when its model changes."""

    @property
    def closed(self) -> bool:
        """Whether it has ended, by `close` or after a failure; then it cannot be used again."""
        ...

    def reload(self, model_dir: Path) -> bool:
        """Load the weights of another model in place; return False if the models differ in more than their weights."""
        ...

    def free_memory(self) -> None:
        """Free as much memory as possible; `reload` takes it again."""
        ...

    def close(self) -> None:
        """End it and its processes. A second call does nothing."""
        ...


@runtime_checkable
class SharedSampler(ReloadableSampler, Protocol):
    """A sampler that distributes its calls over the engines of several workers."""

    @property
    def lanes(self) -> int:
        """Number of calls of `sample`, by as many threads, that keep all workers busy."""
        ...

    @property
    def gpus(self) -> int:
        """Number of GPUs of all workers together."""
        ...

    def report(self) -> str:
        """Return one line about the work since the last report: how busy each worker was."""
        ...
