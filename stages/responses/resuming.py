"""A sampler that keeps the finished samples of a chunk on disk, and does not sample those of a killed run again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from stages.sampling.protocol import OnSample, OnTokens, Request, Sample, Sampler, SamplingParams, Usage, ignore_tokens
from stages.shards.kept_samples import KeptSample, KeptSamples


class ResumingSampler:
    """A `Sampler` that asks another one for what is not kept yet; a sample has the same bits either way."""

    def __init__(self, sampler: Sampler, kept: KeptSamples) -> None:
        self._sampler, self._kept = sampler, kept

    @property
    def is_plain(self) -> bool:
        """See `Sampler.is_plain`."""
        return self._sampler.is_plain

    @property
    def context_length(self) -> int:
        """See `Sampler.context_length`."""
        return self._sampler.context_length

    @property
    def caveat(self) -> str | None:
        """See `Sampler.caveat`."""
        return self._sampler.caveat

    def sample(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        on_tokens: OnTokens | None = None,
        *,
        on_sample: OnSample | None = None,
        remember: bool = False,
    ) -> tuple[list[list[Sample]], Usage]:
        """See `Sampler.sample`; tokens of earlier runs count as sampled."""
        found = self._kept.found
        places = [[j for j, key in enumerate(request.keys) if key not in found] for request in requests]
        missing = [
            replace(request, keys=tuple(request.keys[j] for j in own))
            for request, own in zip(requests, places, strict=True)
        ]
        samples = [[_sample(found[key]) if key in found else None for key in request.keys] for request in requests]
        known = [sample for group in samples for sample in group if sample]
        earlier = sum(len(sample.token_ids) for sample in known)
        if known:
            (on_tokens or ignore_tokens)(len(known), earlier)

        def keep(request: int, key: int, sample: Sample) -> None:
            kept = KeptSample(sample.token_ids, sample.logprobs, sample.finish_reason, sample.entropies)
            self._kept.add(missing[request].keys[key], kept)
            if on_sample:
                on_sample(request, places[request][key], sample)

        if not any(places):
            return cast("list[list[Sample]]", samples), Usage(earlier, 0, 0)
        try:
            drawn, usage = self._sampler.sample(missing, params, on_tokens, on_sample=keep, remember=remember)
        except BaseException:  # a signal, too, must not lose the finished samples
            self._kept.write()
            raise
        for group, own, new in zip(samples, places, drawn, strict=True):
            for j, sample in zip(own, new, strict=True):
                group[j] = sample
        complete = cast("list[list[Sample]]", samples)
        return complete, replace(usage, sampled=usage.sampled + earlier)


def _sample(kept: KeptSample) -> Sample:
    reason: Any = kept.finish_reason
    return Sample(kept.token_ids, kept.logprobs, reason, kept.entropies)
