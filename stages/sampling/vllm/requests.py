"""Turn the samples of one call into vLLM's requests, so that each token of their prefixes is computed once.

The prefixes form a tree (`prefix_tree.build_nodes`). A prefix that several samples or longer prefixes extend is
computed by a request of its own, a *stem*, whose logits give the first token of each of its samples (`worker`). Each
sample then continues as a request whose prompt is the prefix and that token; stems of longer prefixes continue from the
same prefix. All of them reuse the stem's entries in vLLM's cache: whole blocks and the last, partial one (`scheduler`).
A stem waits only for the stem above it. Requests have the depth-first order of their prefixes as priority.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.core.errors import UserError
from stages.sampling.prefix_tree import build_nodes, build_paths
from stages.sampling.protocol import OnSample, OnTokens, Request, Sample, SamplingParams, Usage
from stages.sampling.stopping import find_stop_string
from stages.sampling.vllm.launch import CHOICE, FIRST, KEYS, SOURCE, STEM

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LEAST = 2
"""Minimum number of shared tokens for a stem without samples.

Measured on sixteen responses of 25 tokens to a question, cut at every fourth cutpoint: at 8, the call computes 1.2
times its distinct prefix tokens; at 2, it computes 1.02 times, with one more stem for every five states.
"""


@dataclass(frozen=True)
class PendingSample:
    """A sample that is being drawn.

    Attributes:
      node: index of its prefix among the nodes.
      place: index of the request, and of the sample in the request.
      token_ids, logprobs: int32 and float32 [T], the tokens drawn so far.
      again: whether vLLM has ended it once before its end.
    """

    request: Request
    node: int
    place: tuple[int, int]
    token_ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    logprobs: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    again: bool = False

    @property
    def key(self) -> int:
        """Key of the sample's random numbers."""
        return self.request.keys[self.place[1]]


class Call:
    """One call of `Sampler.sample` on a running vLLM; used once."""

    def __init__(
        self,
        llm: Any,
        names: Iterator[int],
        tokenizer: PreTrainedTokenizerBase,
        ends: Sequence[int],
        context_length: int,
        requests: Sequence[Request],
        params: SamplingParams,
        on_tokens: OnTokens | None,
        on_sample: OnSample | None,
    ) -> None:
        """Build the tree of prefixes.

        Args:
          llm: vLLM's `LLM`.
          names: yields numbers that are no name of an earlier request of this vLLM.
          ends: tokens that end a sample.
          requests: checked by `check_request`.
        """
        self.llm, self.names, self.tokenizer, self.ends = llm, names, tokenizer, frozenset(ends)
        self.context_length, self.requests, self.params = context_length, requests, params
        self.on_tokens, self.on_sample = on_tokens, on_sample
        self.samples: list[list[Any]] = [[None] * len(request.keys) for request in requests]
        self.sampled = self.prefilled = 0
        all_paths, self.distinct = build_paths(
            {i: request.prefix for i, request in enumerate(requests) if request.keys}
        )
        self.nodes = build_nodes(all_paths, _LEAST)
        self.children: list[list[int]] = [[] for _ in self.nodes]
        for number, node in enumerate(self.nodes):
            if node.parent >= 0:
                self.children[node.parent].append(number)
        self.running: dict[str, PendingSample | int] = {}
        self.stems: dict[int, str] = {}

    def run(self) -> tuple[list[list[Sample]], Usage]:
        """Draw every sample."""
        for number, node in enumerate(self.nodes):
            if node.parent < 0:
                self._begin(number)
        engine = self.llm.llm_engine
        while engine.has_unfinished_requests():
            stems: dict[str, int] = {}
            for output in engine.step():
                if output.finished:
                    what = self.running.pop(output.request_id)
                    self._check(output.outputs[0])
                    computed = len(output.prompt_token_ids) - (output.num_cached_tokens or 0)
                    if isinstance(what, PendingSample):
                        own = (
                            bool(len(what.token_ids)) and not what.again
                        )  # the prompt includes the first token, which the stem drew
                        self.prefilled += computed - own
                        self._take(what, output.outputs[0])
                    else:
                        self.prefilled += computed
                        stems[output.request_id] = what
            self._branch(stems)
        return self.samples, Usage(self.sampled, self.prefilled, self.distinct)

    def _begin(self, number: int) -> None:
        """Start the samples and children of a node: by a stem if there are several, else directly."""
        node = self.nodes[number]
        draws = self._draws(number)
        if len(draws) + len(self.children[number]) == 1:
            for draw in draws:
                self._submit(draw)
        else:
            name = self.stems[number] = str(next(self.names))
            extra = {KEYS: [draw.key for draw in draws], STEM: name}
            self._add(name, node.token_ids.tolist(), number, node.parent, 0, extra, {"max_tokens": 1})
            self.running[name] = number

    def _draws(self, number: int) -> list[PendingSample]:
        """Return the samples that start at a node."""
        requests = self.nodes[number].requests
        return [
            PendingSample(self.requests[i], number, (i, j)) for i in requests for j in range(len(self.requests[i].keys))
        ]

    def _branch(self, stems: dict[str, int]) -> None:
        """Continue from finished stems: start their samples with the first tokens, and their children."""
        if not stems:
            return
        drawing = [name for name, number in stems.items() if self.nodes[number].requests]
        answers = self.llm.collective_rpc("first_tokens", args=(drawing,)) if drawing else [[]]
        first_tokens = dict(zip(drawing, max(answers, key=len), strict=True))
        for name, number in stems.items():
            for draw, token, logprob in zip(self._draws(number), *first_tokens.get(name, ((), ())), strict=True):
                drawn = replace(draw, token_ids=np.array([token], np.int32), logprobs=np.array([logprob], np.float32))
                self._settle(drawn, 1, "stop" if token in self.ends else None)
            for child in self.children[number]:
                self._begin(child)

    def _take(self, draw: PendingSample, output: Any) -> None:
        """Add the tokens that vLLM has drawn to a sample.

        Where vLLM finds a stop string is not final: it misses one that begins in its prompt, and where a token ends
        within a character, it finds one late, or finds one in the prefix. `_settle` searches again.
        """
        drawn = replace(
            draw,
            token_ids=np.concatenate([draw.token_ids, np.array(output.token_ids, np.int32)]),
            logprobs=np.concatenate([draw.logprobs, np.array(output.logprobs.logprobs, np.float32)]),
            again=True,
        )
        reason = None if isinstance(output.stop_reason, str) else output.finish_reason
        self._settle(drawn, len(output.token_ids), reason)

    def _settle(self, draw: PendingSample, tokens: int, reason: str | None) -> None:
        """Finish a sample at its first stop string, else for the given reason; submit it again if it has not ended."""
        if not np.isfinite(draw.logprobs).all():
            raise UserError("the model's logits are not finite; its weights are damaged, or overflow in this dtype")
        end = find_stop_string(self.tokenizer, draw.request, draw.token_ids, self.params.stop)
        if end is None and reason is None and len(draw.token_ids) == self._limit(draw):
            reason = "length"
        finished = end is not None or reason is not None
        if finished:
            request, sample = draw.place
            how: Any = "stop" if end is not None else reason
            self.samples[request][sample] = Sample(draw.token_ids[:end], draw.logprobs[:end], how)
            if self.on_sample:
                self.on_sample(request, sample, self.samples[request][sample])
        else:
            self._submit(draw)
        self.sampled += tokens
        if self.on_tokens:
            self.on_tokens(int(finished), tokens)

    def _submit(self, draw: PendingSample) -> None:
        """Submit a sample to vLLM, to begin or to continue it."""
        name = str(next(self.names))
        prompt = [*self.nodes[draw.node].token_ids.tolist(), *draw.token_ids.tolist()]
        options = {
            "max_tokens": self._limit(draw) - len(draw.token_ids),
            "stop": list(self.params.stop),
            "stop_token_ids": list(self.ends),
            "detokenize": bool(self.params.stop),
        }
        source = draw.node if draw.node in self.stems else self.nodes[draw.node].parent
        self._add(name, prompt, draw.node, source, len(draw.token_ids), {KEYS: [draw.key]}, options)
        self.running[name] = draw

    def _add(
        self,
        name: str,
        prompt: list[int],
        node: int,
        source: int,
        first: int,
        extra: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        """Add a request to vLLM.

        Args:
          node: index of its prefix: the priority.
          source: index of the node whose stem it continues from.
          first: position in the sample of the first token to draw.
          extra: further `extra_args`. options: further sampling parameters.
        """
        from vllm.inputs.engine import tokens_input  # pyright: ignore[reportMissingImports]
        from vllm.sampling_params import RequestOutputKind  # pyright: ignore[reportMissingImports]
        from vllm.sampling_params import SamplingParams as VllmParams  # pyright: ignore[reportMissingImports]

        choice = (self.params.temperature, self.params.top_p, self.params.top_k)
        extra = {FIRST: first, CHOICE: choice, **extra}
        if source in self.stems:
            extra[SOURCE] = self.stems[source]
        params = VllmParams(
            temperature=0.0,  # tokens are chosen in `worker`
            logprobs=0,
            flat_logprobs=True,
            skip_special_tokens=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=extra,
            **{"detokenize": False, **options},
        )
        self.llm.llm_engine.add_request(name, tokens_input(prompt), params, priority=node)

    def _limit(self, draw: PendingSample) -> int:
        """Return the maximum number of tokens of a sample."""
        return min(draw.request.max_new_tokens, self.context_length - len(draw.request.prefix))

    def _check(self, output: Any) -> None:
        """Raise UserError for a request that vLLM ended for another reason than its end or its limit."""
        if output.finish_reason not in ("stop", "length"):
            raise UserError(f"vLLM aborted a request (finish_reason={output.finish_reason})")
