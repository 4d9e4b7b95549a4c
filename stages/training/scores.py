"""Owns the log-probabilities that stay as they are during a training call: of old policies, and of the reference."""

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

Scores = dict[str, NDArray]
"""By the number of a model in `Fixed.assignments`: the kept tokens of the examples that it scores, end to end."""


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Which fixed log-probabilities a call needs, of which examples, from which models.

    Attributes:
      samplers: of each example, the model that sampled it; None where its log-probabilities were recorded.
      policy: the policy as it is when the call starts.
      reference: of the KL, the policy itself or another model; None where there is no KL.
      untouched: examples whose turn comes before anything has moved: at that moment the policy's own log-probabilities
        are those of the call's start, so they need not be scored by it now.
    """

    samplers: Sequence[Path | None]
    policy: Path
    reference: Path | None
    untouched: frozenset[int]

    @cached_property
    def assignments(self) -> dict[Path, list[int]]:
        """The examples that each model scores; the policy comes last: who trains it next may keep it open."""
        of_model: dict[Path, list[int]] = {}
        for index, sampler in enumerate(self.samplers):
            for model in dict.fromkeys((sampler, self.reference)):
                if model and (model != self.policy or index not in self.untouched):
                    of_model.setdefault(model, []).append(index)
        return dict(sorted(of_model.items(), key=lambda item: item[0] == self.policy))

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
        """Scores with each model in turn, in passes as large as `size` examples; one model is in memory at once.

        Each rank scores its share, and all get everything.
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
            none = np.empty(0, np.float32)
            scores[str(number)] = np.concatenate([found.get(index, none) for index in range(len(chosen))])
        return scores

    def attach(self, examples: Sequence[Example], scores: Mapping[str, NDArray]) -> list[Example]:
        """The examples with what `compute` found for them."""
        by_model: dict[Path | None, dict[int, NDArray]] = {}
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
        if model == self.policy:
            return "policy"
        return "reference" if model == self.reference else f"sampler {model.name}"
