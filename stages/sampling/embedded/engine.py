"""The embedded sampling engine: Hugging Face decoders on any device, with shared prefixes and continuous batching.

A call is one loop. Prefixes are prefilled window by window, each distinct token once, into a store (`prefix_tree`,
`prefill`). Samples wait in a queue; when the batch has room, the samples of the next states enter it: one row per
state, with a copy of the prefix, and the first tokens are drawn from the hidden state of the prefix's last token.
Samples share a row as long as they draw the same tokens (`batch`). A row's draws depend only on its own tokens
(`invariance`, `draws`), so a call may keep keys and values for the next one (`prefix_memory`), in a quarter of the
batch's memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from stages.core.errors import UserError
from stages.models import agreement, loading
from stages.models.split import MODEL_FAILURES, Split
from stages.sampling.embedded.batch import ARRANGE_EVERY, Batch, SampleQueue
from stages.sampling.embedded.families import find_experts, find_obstacle
from stages.sampling.embedded.forward import LlamaForward, make_forward
from stages.sampling.embedded.invariance import ROWS
from stages.sampling.embedded.kv_cache import bytes_per_token
from stages.sampling.embedded.modules import EngineModules
from stages.sampling.embedded.prefill import PrefixStore, Ready
from stages.sampling.embedded.prefix_memory import PrefixMemory
from stages.sampling.embedded.probe import cpu_threads
from stages.sampling.prefix_tree import build_paths
from stages.sampling.protocol import (
    OnSample,
    OnTokens,
    Request,
    Sample,
    SamplingParams,
    Usage,
    check_request,
    ignore_sample,
    ignore_tokens,
)
from stages.sampling.self_check import SelfCheck, trial_requests
from stages.sampling.stopping import completes_stop_string, end_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_REFILL_SHARE = 8  # the batch is refilled when an eighth of it is free
_REPORT_SECONDS = 1.0  # longest time between two reports of progress, steps and passes permitting
_SAMPLES_PER_ROW = 4  # maximum number of samples in flight per row to fill: samples share rows


class CannotSample(UserError):
    """The engine cannot reproduce this model's forward pass; the message names the feature that prevents it."""


class TransformersSampler:
    """A sampler of a decoder-only model with full attention (Qwen2, Llama, Mistral without a window …)."""

    is_plain = False

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_batch_rows: int | None = None,
        max_model_len: int | None = None,
    ) -> None:
        """Prepare a model for sampling: its attention and linear layers are replaced by the engine's.

        Args:
          model: in evaluation mode, on its device. It cannot be used for other forward passes afterwards.
          tokenizer: for stop strings and the end-of-text token.
          max_batch_rows: maximum number of samples in flight; None: as many as fill 256 rows on a CPU and 512 on a GPU,
            or fewer if memory is short.
          max_model_len: upper limit of the context length, in tokens; None: the model's own.

        Raises:
          CannotSample: the engine cannot compute this model, which is unchanged.
          UserError: max_batch_rows is below 1.
        """
        if max_batch_rows is not None and max_batch_rows < 1:
            raise UserError(f"max_batch_rows must be at least 1; got {max_batch_rows}")
        context_length = loading.context_length(model.config)
        self.context_length = min(context_length, max_model_len or context_length)
        if obstacle := find_obstacle(model, self.context_length):
            raise CannotSample(obstacle)
        self.memory: PrefixMemory | None = None
        self.model, self.tokenizer, self.max_batch_rows = model, tokenizer, max_batch_rows
        self.split = Split(model)
        self.vocabulary = self.split.vocabulary
        self.is_end = end_tokens(model.generation_config, tokenizer, self.vocabulary)
        self._modules = EngineModules(model)
        self._check = SelfCheck(model, self.split, self._modules.as_loaded)
        try:
            self._modules.install()
            self.forward = make_forward(model, self.context_length)
            self.plan = self.forward.plan
            problem = self._trial()
        except UserError:
            raise
        except MODEL_FAILURES:  # raised by the model's own code, which the engine calls in an unusual way
            problem = "layers that the embedded engine cannot run"
        if problem:
            self._modules.remove()
            raise CannotSample(problem)

    def _trial(self) -> str | None:
        """Sample a few requests, and find out whether samples depend on their batch.

        Returns:
          How the samples disagree with the model's forward pass; None if they agree.
        """
        self._routes = find_experts(self.model)
        architecture = agreement.describe_architecture(self.model, "embedded", self.context_length)
        bitwise, problem = agreement.recall(architecture), None
        if bitwise is None:
            requests = trial_requests(self.model, self.vocabulary, self.context_length)
            samples, _ = self.sample(requests, SamplingParams(), check=False)
            problem = self._check.compare(requests, samples, SamplingParams())
            probed = isinstance(self.forward, LlamaForward) and self.split.linear is not None
            bitwise = self.plan.bitwise and (probed or (not self._routes and self._is_batch_independent()))
        self.plan = replace(self.plan, bitwise=bitwise)
        if problem is None:
            agreement.remember(architecture, bitwise)
        return problem

    @torch.inference_mode()
    def sample(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        on_tokens: OnTokens | None = None,
        *,
        on_sample: OnSample | None = None,
        remember: bool = False,
        check: bool = True,
    ) -> tuple[list[list[Sample]], Usage]:
        """See `sampling.protocol.Sampler.sample`.

        Args:
          check: compare some samples with the model's forward pass.
        """
        for request in requests:
            check_request(request, self.context_length)
        remembered, self.memory = self.memory, None
        if not any(request.keys for request in requests):
            return [[] for _ in requests], Usage(0, 0, 0)
        with cpu_threads(self.plan.threads) if self.plan.threads else nullcontext():
            reports = _Reports(on_tokens or ignore_tokens)
            call = _Call(self, requests, params, remembered, remember, reports, on_sample or ignore_sample)
            found = call.run()
        self.memory = call.memory
        if check:
            self._check.first_responses(requests, found[0], params)
        return found

    @property
    def caveat(self) -> str | None:
        """See `sampling.protocol.Sampler.caveat`; independence of the batch is guaranteed on a CPU in float32."""
        if self.plan.bitwise or self.model.device.type != "cpu" or self.model.dtype != torch.float32:
            return None
        cause = "the mixture of experts of this model" if self._routes else "this CPU"
        return (
            f"{cause} cannot be computed bitwise independently of the batch: the same command may round differently "
            "with another --num-shards, --max-batch-rows or after a resume"
        )

    def _is_batch_independent(self) -> bool:
        """Return whether a sample has the same bits alone and beside another.

        Probing covers products and attention; this checks the other operations of a model's own modules.
        """
        most = min(24, self.context_length - 2)
        prefixes = [np.arange(length, dtype=np.int32) % self.vocabulary for length in (most, most // 2 + 1)]
        requests = [Request(prefix, (i,), 2) for i, prefix in enumerate(prefixes)]
        (together,), *_ = self.sample(requests, SamplingParams(), check=False)[0]
        ((alone,),) = self.sample(requests[:1], SamplingParams(), check=False)[0]
        same_tokens = np.array_equal(together.token_ids, alone.token_ids)
        return same_tokens and np.array_equal(together.logprobs, alone.logprobs)


class _Reports:
    """The progress of a call, reported every few steps, and at least every second.

    Attributes:
      finished: samples finished since the last report.
    """

    def __init__(self, on_tokens: OnTokens) -> None:
        self._on_tokens, self.finished = on_tokens, 0
        self._sampled = self._prefilled = 0
        self._at = time.monotonic()

    def send(self, sampled: int, prefilled: int, *, now: bool = False) -> None:
        """Report the tokens sampled and prefilled so far, if a report is due or `now`."""
        if now or time.monotonic() - self._at >= _REPORT_SECONDS:
            self._on_tokens(self.finished, sampled - self._sampled, prefilled - self._prefilled)
            self.finished, self._sampled, self._prefilled = 0, sampled, prefilled
            self._at = time.monotonic()


class _Call:
    """One call of `sample`: requests, store, queue, batch and the samples so far."""

    def __init__(
        self,
        sampler: TransformersSampler,
        requests: Sequence[Request],
        params: SamplingParams,
        remembered: PrefixMemory | None,
        remember: bool,
        reports: _Reports,
        on_sample: OnSample,
    ) -> None:
        self.sampler, self.requests, self.params = sampler, requests, params
        self.reports, self.on_sample = reports, on_sample
        counts = [len(request.keys) for request in requests]
        self.first_sample = np.cumsum([0, *counts])
        self.request_of = np.repeat(np.arange(len(requests)), counts)
        self.keys = np.array([key for request in requests for key in request.keys], np.uint64)
        self.limits = np.array([min(r.max_new_tokens, sampler.context_length - len(r.prefix)) for r in requests])
        self.samples: list[Sample | None] = [None] * len(self.keys)
        self.sampled = 0

        used = [i for i, count in enumerate(counts) if count]  # requests with samples
        all_paths, self.distinct = build_paths({i: requests[i].prefix for i in used})
        longest = max(len(path.token_ids) for path in all_paths)
        span = max(len(requests[i].prefix) + int(self.limits[i]) for i in used)
        rows, in_flight, capacity, kept = _sizes(sampler, longest, span, len(self.keys))
        model, forward = sampler.model, sampler.forward
        self.store = PrefixStore(
            model, forward, all_paths, min(capacity, len(all_paths)), remembered, self._report_prefill
        )
        self.batch = Batch(model, forward, sampler.split, rows, in_flight, span, int(self.limits[used].max()), params)
        self.memory = PrefixMemory(model, min(kept, len(self.keys)), span, sampler.split.width) if remember else None
        self.queue: SampleQueue | None = None

    def run(self) -> tuple[list[list[Sample]], Usage]:
        """Draw every sample."""
        batch, step = self.batch, 0
        while True:
            self._fill()
            if not len(batch):
                break
            if step % ARRANGE_EVERY == 0:
                batch.arrange()
            self.sampled += len(batch)
            tokens = batch.draw()
            stopped = self._stopped(tokens)
            ended = np.flatnonzero(stopped | (batch.drawn[batch.row] >= batch.limit))
            if len(ended) < len(batch) or self.memory:
                batch.advance()
            self._finish(ended, stopped)  # after the pass, so that a remembered sample includes its last token
            step += 1
            self.reports.finished += len(ended)
            self.reports.send(self.sampled, self.store.prefilled, now=step % ARRANGE_EVERY == 0)
        self.reports.send(self.sampled, self.store.prefilled, now=True)
        samples = cast("list[Sample]", self.samples)
        return (
            [samples[first:last] for first, last in pairwise(self.first_sample)],
            Usage(self.sampled, self.store.prefilled, self.distinct),
        )

    def _report_prefill(self) -> None:
        self.reports.send(self.sampled, self.store.prefilled)

    def _fill(self) -> None:
        """Fill the batch from the queue, and the queue from the store.

        Once per step, because the number of rows that samples need is known only after they have drawn a token; and not
        for a few samples, because each filling copies prefixes.
        """
        if not self.queue:
            ready = self.store.next()
            if ready is None:
                return
            self.queue = self._queue(ready)
        if self.batch.room >= max(1, min(len(self.queue), self.batch.rows_to_fill // _REFILL_SHARE)):
            self.batch.admit(self.queue, self.store.rows)

    def _queue(self, ready: Ready) -> SampleQueue:
        """Return the samples of the states, short prefixes first.

        Rows in flight then have similar lengths, and the samples with the most tokens to draw do not come last.
        """
        samples, states = [], []
        for number in np.argsort([state.length for state in ready.states], kind="stable"):
            for request in ready.states[number].requests:
                first, last = self.first_sample[request : request + 2]
                samples += range(first, last)
                states += [number] * (last - first)
        sample, state = np.array(samples), np.array(states)
        start = np.array([state.length for state in ready.states])[state]
        limit = self.limits[self.request_of[sample]]
        return SampleQueue(sample, self.keys[sample], start, limit, state, ready.rows[state], ready.hidden)

    def _stopped(self, tokens: np.ndarray) -> np.ndarray:
        """Return which samples in flight ended with their last token, by end of text or a stop string: bool [N]."""
        stopped = self.sampler.is_end[tokens]
        if self.params.stop:
            stopped[~stopped] = self._completes_stop_string(np.flatnonzero(~stopped))
        return stopped

    def _finish(self, ended: np.ndarray, stopped: np.ndarray) -> None:
        """Store the ended samples, remove them from the batch, and remember those that a later prefix may extend."""
        if not len(ended):
            return
        rows, drawn = self.batch.row[ended], self.batch.release(ended)
        for one, (number, token_ids, (logprobs, *entropies)) in zip(ended, drawn, strict=True):
            if not np.isfinite(logprobs).all():
                raise UserError("the model's logits are not finite; its weights are damaged, or overflow in this dtype")
            sample = Sample(token_ids, logprobs, "stop" if stopped[one] else "length", *entropies)
            self.samples[number], request = sample, int(self.request_of[number])
            self.on_sample(request, int(number - self.first_sample[request]), sample)
        if self.memory:
            continuable = {row: drawn[i] for i, row in enumerate(rows) if not stopped[ended[i]]}
            prefixes = (self.requests[self.request_of[number]].prefix for number, _, _ in continuable.values())
            sequences = [
                np.concatenate([p, ids]) for p, (_, ids, _) in zip(prefixes, continuable.values(), strict=True)
            ]
            kept = np.array(list(continuable), np.int64)
            self.memory.keep(self.batch.cache, kept, sequences, self.batch.hidden[torch.from_numpy(kept)])

    def _completes_stop_string(self, candidates: np.ndarray) -> list[bool]:
        """Return for each candidate whether its text ends in a stop string, or in a token that completes one."""
        batch, stop = self.batch, self.params.stop
        drawn = batch.tokens[: batch.rows].cpu().numpy()
        found = []
        for row, number in zip(batch.row[candidates], batch.sample[candidates], strict=True):
            request = self.requests[int(self.request_of[number])]
            found.append(completes_stop_string(self.sampler.tokenizer, request, drawn[row, : batch.drawn[row]], stop))
        return found


def _sizes(sampler: TransformersSampler, longest: int, span: int, samples: int) -> tuple[int, int, int, int]:
    """Return the sizes that fit into memory.

    Args:
      longest: tokens of the longest path.
      span: maximum number of tokens of prefix and sample.
      samples: number of samples in the call.

    Returns:
      Rows of the batch and samples in flight, of `span` tokens each; paths of the store, of `longest` tokens each;
      sequences to remember, of `span` tokens each.
    """
    if sampler.model.device.type == "cuda":
        rows, memory = 512, torch.cuda.mem_get_info(sampler.model.device)[0] / 2
    else:
        rows, memory = 256, min(4 * 2**30, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 4)
    per_token = bytes_per_token(sampler.model.get_decoder().config, sampler.model.dtype)
    in_flight = max(ROWS, int(memory / (per_token * span)) // ROWS * ROWS)
    rows = min(sampler.max_batch_rows or rows, in_flight, samples)
    in_flight = min(sampler.max_batch_rows or _SAMPLES_PER_ROW * rows, in_flight, samples)
    return (
        rows,
        in_flight,
        max(1, int(memory / 2 / (per_token * longest))),
        max(1, int(memory / 4 / (per_token * span))),
    )
