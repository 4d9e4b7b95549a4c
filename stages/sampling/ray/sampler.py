"""A sampler that distributes a call over the engines of many workers; results equal those of one engine.

A sample depends on its prefix, its key and the model alone, so it does not matter which worker draws it, nor in which
batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stages.cluster.crew import Crew, Unit
from stages.cluster.session import Session
from stages.cluster.worker import Resources
from stages.core.errors import UserError
from stages.sampling.prefix_tree import build_paths
from stages.sampling.protocol import OnSample, OnTokens, Request, Sample, SamplingParams, Usage, check_request
from stages.sampling.ray.engine import Opened, free_engine, open_engine, sample_requests
from stages.sampling.ray.units import RequestUnit, divide_requests

LEAST_SAMPLES = 256
"""Smallest number of samples in a unit: the rows of an engine, which share the fixed cost of its steps. With smaller
units, two workers may take longer than one (`tests/bench/bench_scaling.py`)."""


MOST_LANES = 16
"""Maximum number of concurrent calls; each is a thread of this process, which also grades the samples."""


@dataclass
class _Tokens:
    """Tokens that each worker has drawn so far, and when counting began."""

    drawn: list[int]
    since: float

    def rates(self) -> list[float]:
        """Return the tokens per second of each worker."""
        seconds = max(time.monotonic() - self.since, 1e-9)
        return [drawn / seconds for drawn in self.drawn]


class RaySampler:
    """Engines in the workers of a session; a `SharedSampler`. Several threads may call `sample`."""

    def __init__(self, session: Session, model_dir: Path, options: dict[str, Any]) -> None:
        """Start the workers and open the model in each.

        Args:
          options: arguments of `SamplerPool.open` except the model.

        Raises:
          UserError: the cluster has fewer GPUs than the workers ask for; else as `SamplerPool.open`.
        """
        cluster, gpus = session.cluster, session.gpus
        each = cluster.gpus_per_sampler
        if each is None:
            each = 0 if options.get("device") == "cpu" or not gpus else options.get("tensor_parallel_size", 1)
        if each > 1:
            options = options | {"tensor_parallel_size": each}
        count = cluster.samplers or (gpus // each if each else 1)
        if count * each > gpus or not count:
            needed = f"{count or 1} samplers with {each} GPUs each"
            raise UserError(f"{needed} need more than the {gpus} GPUs that Ray has: ask for fewer")
        self.closed, self.gpus = False, count * each
        self.options = _worker_options(options)
        self.crew = Crew(session, "sampler", count, [Resources(cluster.cpus, each, cluster.memory_bytes)] * count)
        self._tokens = _Tokens([0] * count, time.monotonic())
        try:
            self._opened = self._open(model_dir)
        except BaseException:  # after an interrupt, too, no worker stays
            self.close()
            raise

    @property
    def context_length(self) -> int:
        """See `Sampler.context_length`."""
        return self._opened[0].context_length

    @property
    def caveat(self) -> str | None:
        """See `Sampler.caveat`: of any worker."""
        return next((one.caveat for one in self._opened if one.caveat), None)

    @property
    def is_plain(self) -> bool:
        """See `Sampler.is_plain`: of all workers, which open the same model."""
        return self._opened[0].is_plain

    @property
    def lanes(self) -> int:
        """See `SharedSampler.lanes`. One worker takes one call at a time, as in the process of the command."""
        return min(len(self.crew), MOST_LANES)

    def sample(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        on_tokens: OnTokens | None = None,
        *,
        on_sample: OnSample | None = None,
        remember: bool = False,
    ) -> tuple[list[list[Sample]], Usage]:
        """See `Sampler.sample`."""
        for request in requests:
            check_request(request, self.context_length)
        divided = divide_requests(requests, len(self.crew), LEAST_SAMPLES)
        units = [self._unit(one, params, on_tokens, remember) for one in divided]
        if on_sample:
            for divided_unit, unit in zip(divided, units, strict=True):
                unit.result.add_done_callback(partial(_pass_on, divided_unit, on_sample))
        results = self.crew.run(units)
        samples: list[list[Any]] = [[None] * len(request.keys) for request in requests]
        for unit, (drawn, _) in zip(divided, results, strict=True):
            for (index, start), group in zip(unit.places, drawn, strict=True):
                samples[index][start : start + len(group)] = group
        _, distinct = build_paths({i: request.prefix for i, request in enumerate(requests) if request.keys})
        sampled, prefilled = (sum(getattr(usage, name) for _, usage in results) for name in ("sampled", "prefilled"))
        return samples, Usage(sampled, prefilled, distinct)

    def _unit(
        self,
        divided: RequestUnit,
        params: SamplingParams,
        on_tokens: OnTokens | None,
        remember: bool,
    ) -> Unit:
        def count(report: tuple[int, int, int]) -> None:
            self._tokens.drawn[unit.taken_by] += report[1]
            if on_tokens:
                on_tokens(*report)
                self._show_rates()

        def undo(reports: list[tuple[int, int, int]]) -> None:
            if on_tokens:
                on_tokens(-sum(finished for finished, *_ in reports), 0)

        longest = max(len(request.prefix) for request in divided.requests)
        label = f"a unit of {divided.samples} samples from {len(divided.requests)} prefixes of up to {longest} tokens"
        arguments = (divided.requests, params, remember)
        unit = Unit(sample_requests, arguments, label, count, undo, names=divided.roots)  # `count` reads who took it
        return unit

    def _show_rates(self) -> None:
        """Show the tokens per second of the slowest and the fastest worker beside the sum, which the bar computes."""
        rates = self._tokens.rates()
        if len(rates) > 1:
            figures = {"slowest sampler": min(rates), "fastest sampler": max(rates)}
            self.crew.session.progress.advance(**{name: round(rate) for name, rate in figures.items()})

    def _open(self, model_dir: Path) -> list[Opened]:
        share = self.crew.session.cluster.share_gpus
        opened = self.crew.set_up(open_engine, str(model_dir.resolve()), self.options, share)
        self.report()  # counting begins with the work
        return opened

    def reload(self, model_dir: Path) -> bool:
        """See `ReloadableSampler.reload`; workers whose engine cannot load weights in place open another one."""
        self._opened = self._open(model_dir)
        return True

    def free_memory(self) -> None:
        """See `ReloadableSampler.free_memory`; does nothing where samplers and trainers have their own GPUs."""
        if self.crew.session.cluster.share_gpus:
            self.crew.everywhere(free_engine, label="freeing memory")

    def report(self) -> str:
        """Return one line about the work since the last report: how busy each worker was, and its tokens per second."""
        seconds = max(time.monotonic() - self._tokens.since, 1e-9)
        rates, statistics = self._tokens.rates(), self.crew.statistics
        busy = _spread([one.busy / seconds for one in statistics], "{:.0%}")
        each = f" ({_spread(rates, '{:,.0f}')})" if len(rates) > 1 else ""
        restarts = sum(one.restarts for one in statistics)
        line = f"{len(rates)} samplers busy {busy} of {seconds:.0f} s, {sum(rates):,.0f} tokens/s{each}"
        for one in statistics:
            one.busy, one.units, one.restarts = 0.0, 0, 0
        self._tokens = _Tokens([0] * len(rates), time.monotonic())
        return line + (f", {restarts} started again" if restarts else "")

    def close(self) -> None:
        """End the workers. A second call does nothing."""
        if not self.closed:
            self.closed = True
            self.crew.close()


def _pass_on(unit: RequestUnit, on_sample: OnSample, result: Future[Any]) -> None:
    """Report the samples of a finished unit."""
    if result.cancelled() or result.exception():
        return
    drawn, _ = result.result()
    for (index, start), group in zip(unit.places, drawn, strict=True):
        for number, sample in enumerate(group):
            on_sample(index, start + number, sample)


def _spread(values: Sequence[float], form: str) -> str:
    """Return the values of up to eight workers in order of their numbers; of more, the largest and the smallest."""
    shown = values if len(values) <= 8 else [max(values), min(values)]
    return (" " if shown is values else " … ").join(form.format(value) for value in shown)


def _worker_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options for the engine of a worker: vLLM must start its own processes instead of asking Ray for
    them."""
    if options.get("engine") != "vllm" or any("distributed_executor_backend" in one for one in options["engine_arg"]):
        return options
    return options | {"engine_arg": (*options["engine_arg"], "distributed_executor_backend=mp")}
