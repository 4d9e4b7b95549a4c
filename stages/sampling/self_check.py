"""Check that samples carry the model's own log-probabilities: at opening on random tokens, then on real responses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
from transformers import PreTrainedModel

from stages.core.errors import UserError
from stages.models import agreement
from stages.models.split import Split
from stages.sampling.protocol import Request, Sample, SamplingParams

_TRIAL_TOKENS = 8
_RESPONSES = 3  # responses that are scored at a time
_LONGER = 2  # responses are checked again when the longest is this many times as long as the longest checked one


class SelfCheck:
    """Compares the samples of one sampler with its model's own forward pass."""

    def __init__(
        self,
        model: PreTrainedModel,
        split: Split,
        as_loaded: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Remember the model.

        Args:
          as_loaded: context in which the model's modules are those that transformers loaded.
        """
        self._model, self._split, self._as_loaded = model, split, as_loaded
        self._longest = 0

    def compare(
        self,
        requests: Sequence[Request],
        samples: Sequence[Sequence[Sample]],
        params: SamplingParams,
        *,
        must_agree: bool = False,
    ) -> str | None:
        """Return how the samples' log-probabilities differ from the forward pass, or None if they agree.

        Raises:
          UserError: they differ, and `must_agree`.
        """
        found, expected = [], []
        with self._as_loaded():
            for request, of_request in zip(requests, samples, strict=True):
                for sample in of_request:
                    tokens = np.concatenate([request.prefix, sample.token_ids])
                    first = len(request.prefix)
                    expected.append(agreement.plain_logprobs(self._split, tokens, first, params.temperature))
                    found.append(sample.logprobs)
        difference, allowed = agreement.disagreement(found, expected), agreement.tolerance(self._model.dtype)
        if difference <= allowed:
            return None
        problem = f"log-probabilities that differ by {difference:.3g} nats per token from those of plain transformers"
        if must_agree:
            raise UserError(
                f"sampling from the {self._model.config.model_type} model gives {problem} (allowed: {allowed:g}); "
                "transformers computes this model in two ways that disagree, or the sampling engine has a fault"
            )
        return problem

    def first_responses(
        self, requests: Sequence[Request], samples: Sequence[Sequence[Sample]], params: SamplingParams
    ) -> None:
        """Compare a few responses: of the first call, and of a call with much longer ones.

        Raises:
          UserError: they disagree with the model's forward pass.
        """
        pairs = [(request, sample) for request, group in zip(requests, samples, strict=True) for sample in group]
        affordable = agreement.affordable_tokens(self._model)
        pairs = [pair for pair in pairs if _length(pair) <= affordable] or pairs[:0]
        pairs.sort(key=_length)
        if not pairs or _length(pairs[-1]) < _LONGER * self._longest:
            return
        self._longest = _length(pairs[-1])
        chosen = {0, len(pairs) // 2, len(pairs) - 1}
        some = [pairs[i] for i in sorted(chosen, reverse=True)][:_RESPONSES]
        self.compare([one for one, _ in some], [[sample] for _, sample in some], params, must_agree=True)


def trial_requests(model: PreTrainedModel, vocabulary: int, context_length: int) -> list[Request]:
    """Return requests for a few tokens after random prefixes of different lengths."""
    room = max(1, min(_TRIAL_TOKENS, context_length // 2))
    affordable = max(2, agreement.affordable_tokens(model) - room)
    lengths = agreement.check_lengths(model.config, max(2, context_length - room), affordable)
    prefixes = agreement.check_tokens(model.config, vocabulary, [min(n, context_length - room) for n in lengths])
    return [Request(prefix, (number,), room) for number, prefix in enumerate(prefixes)]


def _length(pair: tuple[Request, Sample]) -> int:
    return len(pair[0].prefix) + len(pair[1].token_ids)
