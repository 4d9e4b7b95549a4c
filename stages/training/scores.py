"""Compute the log-probabilities that are fixed during a training call: those of old policies and of the reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.core.progress import Progress
from stages.optimization.batches import Example, Layout
from stages.optimization.ranks import ALONE, Ranks
from stages.optimization.step import Scorer, score_all

Scores = dict[str, NDArray[np.floating]]
"""From the number of a model in `FixedLogprobs.assignments`, as text, to the log-probabilities of the kept tokens of
the examples that it scores, end to end."""


@dataclasses.dataclass(frozen=True)
class FixedLogprobs:
    """Which fixed log-probabilities a call needs: of which examples, from which models.

    Attributes:
      samplers: the model that sampled each example; None if its recorded log-probabilities are used.
      policy: the policy at the start of the call.
      reference: the reference of the KL term, possibly the policy; None without a KL term.
      in_first_step: indices of examples that are used in the first step only. The policy has not moved at that step, so
        its current log-probabilities are the ones at the start of the call, and scoring them in advance is not needed.
    """

    samplers: Sequence[Path | None]
    policy: Path
    reference: Path | None
    in_first_step: frozenset[int]

    @cached_property
    def assignments(self) -> dict[Path, list[int]]:
        """The examples that each model scores. The policy is last, so that it can stay open for training."""
        by_model: dict[Path, list[int]] = {}
        for index, sampler in enumerate(self.samplers):
            for model in dict.fromkeys((sampler, self.reference)):
                if model and (model != self.policy or index not in self.in_first_step):
                    by_model.setdefault(model, []).append(index)
        return dict(sorted(by_model.items(), key=lambda item: item[0] == self.policy))

    def compute(
        self,
        examples: Sequence[Example],
        open_model: Callable[[Path], Scorer],
        size: int,
        temperature: float,
        layout: Layout,
        progress: Progress,
        ranks: Ranks = ALONE,
    ) -> Scores:
        """Score the examples with each model in turn; one model is in memory at a time.

        Each rank scores a part of the examples, and all ranks get all scores.

        Args:
          open_model: opens the model of a directory.
          size: number of examples whose memory a forward pass may take.
          temperature: temperature of the distribution of the log-probabilities.
        """
        scores: Scores = {}
        for number, (model, indices) in enumerate(self.assignments.items()):
            chosen = [examples[index] for index in indices]
            progress.start(f"score ({self._role(model)})", len(chosen), "trajectories")
            found: dict[int, NDArray[np.floating]] = {}
            for index, logprobs in score_all(open_model(model), chosen, size, temperature, layout, ranks):
                found[index] = logprobs
                progress.advance(1, chosen[index].tokens.size)
            for others in ranks.gather(found):
                new = others.keys() - found.keys()
                progress.advance(len(new), sum(chosen[index].tokens.size for index in new))
                found |= others
            empty = np.empty(0, np.float32)  # of an example without kept tokens, which no pass contains
            scores[str(number)] = np.concatenate([found.get(index, empty) for index in range(len(chosen))])
        return scores

    def attach(self, examples: Sequence[Example], scores: Mapping[str, NDArray[np.floating]]) -> list[Example]:
        """Return the examples with the scores of `compute` as old and reference log-probabilities."""
        by_model: dict[Path | None, dict[int, NDArray[np.floating]]] = {}
        for number, (model, indices) in enumerate(self.assignments.items()):
            ends = np.cumsum([examples[index].kept.size for index in indices])
            by_model[model] = dict(zip(indices, np.split(scores[str(number)], ends[:-1]), strict=True))
        reference = by_model.get(self.reference, {})
        return [
            dataclasses.replace(
                example,
                old=by_model.get(sampler, {}).get(index) if sampler else example.old,
                reference=reference.get(index),
            )
            for index, (example, sampler) in enumerate(zip(examples, self.samplers, strict=True))
        ]

    def _role(self, model: Path) -> str:
        """Return the role of a model, for the progress display."""
        if model == self.policy:
            return "policy"
        return "reference" if model == self.reference else f"sampler {model.name}"
