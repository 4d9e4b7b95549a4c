"""The plain sampling engine: any causal language model of transformers, on the model's own cache, correct but slow.

It samples what the embedded engine cannot: windows, latent attention, sinks, recurrent layers, linear biases. The loop
is transformers' own `generate`, which keeps the caches of every family; tokens are drawn and ended by the rules of all
engines (`draws`, `stopping`). The sequences of a batch have prefixes of one length, so there is no padding, and neither
recurrent states nor positions need a mask. A prefix is prefilled for each of its samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from stages.core.errors import UserError
from stages.maths.randomness import uniforms
from stages.models import loading
from stages.models.silence import silenced_transformers
from stages.models.split import MODEL_FAILURES, Split
from stages.sampling.draws import draw_tokens, entropies
from stages.sampling.prefix_tree import build_paths
from stages.sampling.protocol import (
    OnSample,
    OnTokens,
    Request,
    Sample,
    SamplingParams,
    Usage,
    check_request,
    ignore_tokens,
)
from stages.sampling.self_check import SelfCheck, trial_requests
from stages.sampling.stopping import completes_stop_string, end_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ROWS = {"cpu": 32, "cuda": 128}  # samples in flight


class PlainSampler:
    """A sampler of any causal language model that transformers can run."""

    is_plain = True

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        reason: str,
        *,
        max_batch_rows: int | None = None,
        max_model_len: int | None = None,
    ) -> None:
        """Prepare a model for sampling, and compare its samples with its forward pass.

        Args:
          model: in evaluation mode, on its device. Its generation settings are dropped.
          tokenizer: for stop strings and the end-of-text token.
          reason: what the model has that the embedded engine cannot do.
          max_batch_rows, max_model_len: as in `embedded.engine.TransformersSampler`.

        Raises:
          UserError: the samples disagree with the model's forward pass, with its cache and without.
        """
        context_length = loading.context_length(model.config)
        self.context_length = min(context_length, max_model_len or context_length)
        self.model, self.tokenizer, self.reason = model, tokenizer, reason
        self.rows = max_batch_rows or _ROWS["cuda" if model.device.type == "cuda" else "cpu"]
        split = Split(model)
        self.vocabulary = split.vocabulary
        self.is_end = end_tokens(model.generation_config, tokenizer, self.vocabulary)
        model.generation_config = GenerationConfig()  # no penalty or other change of the logits
        self._check = SelfCheck(model, split)
        self.uses_cache = True
        try:
            problem = self._trial()
        except UserError:
            raise
        except MODEL_FAILURES:  # a family whose cache does not work
            problem = "a cache that fails"
        if problem:
            self.uses_cache = False
            self._trial(must_agree=True)

    def _trial(self, *, must_agree: bool = False) -> str | None:
        """Sample a few requests; return how they disagree with the forward pass, or None."""
        requests = trial_requests(self.model, self.vocabulary, self.context_length)
        samples, _ = self.sample(requests, SamplingParams(), check=False)
        return self._check.compare(requests, samples, SamplingParams(), must_agree=must_agree)

    @property
    def caveat(self) -> str:
        """See `sampling.protocol.Sampler.caveat`."""
        how = "on its own cache" if self.uses_cache else "without a cache"
        return (
            f"the {self.model.config.model_type} model has {self.reason}: plain transformers samples it {how}, "
            "correct but slow; the same command may round differently with another --num-shards, --max-batch-rows or "
            "after a resume"
        )

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
        """See `sampling.protocol.Sampler.sample`; nothing is remembered.

        Args:
          check: compare some samples with the model's forward pass.
        """
        del remember
        for request in requests:
            check_request(request, self.context_length)
        places = [(i, key) for i, request in enumerate(requests) for key in range(len(request.keys))]
        places.sort(key=lambda place: (len(requests[place[0]].prefix), requests[place[0]].max_new_tokens, place))
        found: list[list[Any]] = [[None] * len(request.keys) for request in requests]
        sampled = prefilled = 0
        for length, group in groupby(places, key=lambda place: len(requests[place[0]].prefix)):
            same = list(group)
            for first in range(0, len(same), self.rows):
                batch = same[first : first + self.rows]
                drawn = _Rows(self, [(requests[i], key) for i, key in batch], params, on_tokens).run()
                for (i, key), sample in zip(batch, drawn, strict=True):
                    found[i][key] = sample
                    if on_sample:
                        on_sample(i, key, sample)
                sampled += sum(len(sample.token_ids) for sample in drawn)
                prefilled += length * len(batch)
        samples = cast("list[list[Sample]]", found)
        if check:
            self._check.first_responses(requests, samples, params)
        used = {i: request.prefix for i, request in enumerate(requests) if request.keys}
        return samples, Usage(sampled, prefilled, build_paths(used)[1])


class _Rows:
    """Samples whose prefixes have one length: a logits processor that draws, and a stopping criterion."""

    def __init__(
        self,
        sampler: PlainSampler,
        samples: Sequence[tuple[Request, int]],
        params: SamplingParams,
        on_tokens: OnTokens | None,
    ) -> None:
        self.sampler, self.params = sampler, params
        self.on_tokens = on_tokens or ignore_tokens
        self.requests = [request for request, _ in samples]
        self.keys = np.array([request.keys[key] for request, key in samples], np.uint64)
        self.start = len(self.requests[0].prefix)
        self.limits = np.array([min(r.max_new_tokens, sampler.context_length - self.start) for r in self.requests])
        self.tokens = np.zeros((len(samples), int(self.limits.max())), np.int32)
        self.logprobs = np.zeros(self.tokens.shape, np.float32)
        self.entropies = np.zeros(self.tokens.shape, np.float32) if params.entropies else None
        self.counts, self.stopped = np.zeros(len(samples), np.int64), np.zeros(len(samples), bool)

    def run(self) -> list[Sample]:
        """Draw every sample."""
        model = cast("Any", self.sampler.model)
        ids = torch.from_numpy(np.stack([request.prefix for request in self.requests]).astype(np.int64))
        settings = GenerationConfig(
            max_new_tokens=self.tokens.shape[1],
            do_sample=False,
            use_cache=self.sampler.uses_cache,
            pad_token_id=0,
            eos_token_id=None,
        )
        self.on_tokens(0, 0, self.start * len(self.requests))
        with silenced_transformers():
            model.generate(
                ids.to(model.device),
                attention_mask=torch.ones_like(ids).to(model.device),
                generation_config=settings,
                logits_processor=LogitsProcessorList([cast("Any", self._draw)]),
                stopping_criteria=StoppingCriteriaList([cast("Any", self._ended)]),
            )
        return [self._sample(row, count) for row, count in enumerate(self.counts.tolist())]

    def _draw(self, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Draw the next token of every row, and return scores [B, V] whose maximum is that token."""
        step = ids.shape[1] - self.start
        numbers = torch.from_numpy(uniforms(self.keys, np.full(len(self.keys), step)))[:, None].to(logits.device)
        tokens, logprobs = draw_tokens(logits, numbers, self.params)
        running = np.flatnonzero(self._running())
        drawn, scores = tokens[:, 0].cpu().numpy(), logprobs[:, 0].cpu().numpy()
        if not np.isfinite(scores[running]).all():
            raise UserError("the model's logits are not finite; its weights are damaged, or overflow in this dtype")
        self.tokens[running, step], self.logprobs[running, step] = drawn[running], scores[running]
        if self.entropies is not None:
            self.entropies[running, step] = entropies(logits, self.params).cpu().numpy()[running]
        self.counts[running] += 1
        self.stopped[running] = self.sampler.is_end[drawn[running]]
        for row in running if self.params.stop else ():
            so_far = self.tokens[row, : self.counts[row]]
            self.stopped[row] |= completes_stop_string(
                self.sampler.tokenizer, self.requests[row], so_far, self.params.stop
            )
        self.on_tokens(int((~self._running()[running]).sum()), len(running))
        return torch.zeros_like(logits).scatter_(1, tokens, 1.0)

    def _ended(self, ids: torch.Tensor, _: object, **__: object) -> torch.Tensor:
        """Return which rows are complete: bool [B]."""
        return torch.from_numpy(~self._running()).to(ids.device)

    def _running(self) -> np.ndarray:
        return ~self.stopped & (self.counts < self.limits)

    def _sample(self, row: int, count: int) -> Sample:
        reason = "stop" if self.stopped[row] else "length"
        doubt = None if self.entropies is None else self.entropies[row, :count].copy()
        return Sample(self.tokens[row, :count].copy(), self.logprobs[row, :count].copy(), reason, doubt)
