"""Owns the log-probabilities that stay as they are during a training call: of the old policy, and of the reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stages.engines.batches import Example
from stages.engines.optimisation import Engine, score_all
from stages.progress import Progress

Scores = dict[str, NDArray]
"""`policy`, `reference`: the kept tokens of all scored examples end to end; a model that is not asked is not there."""


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Which fixed log-probabilities a call needs, and of which examples.

    Attributes:
      old: whether the old ones are scored (else they were recorded).
      policy: the policy as it is when the call starts.
      reference: another model for the KL; None where that is the policy itself.
      beta: weight of the KL; 0 needs no reference.
      untouched: examples whose turn comes before anything has moved: at that moment the policy's own log-probabilities
        are the old ones, so they need not be scored by it now.
    """

    old: bool
    policy: Path
    reference: Path | None
    beta: float
    untouched: frozenset[int]

    def compute(
        self,
        examples: Sequence[Example],
        open_model: Callable[[Path], Engine],
        size: int,
        temperature: float,
        progress: Progress,
    ) -> Scores:
        """Scores with each model in turn, `size` examples at a time; one model is in memory at once."""
        wanted: dict[str, tuple[Path, list[int]]] = {}
        later = self._later(examples)
        if later and (self.old or (self.beta and self.reference is None)):
            wanted["policy"] = self.policy, later
        if self.beta and self.reference:
            wanted["reference"] = self.reference, list(range(len(examples)))
        scores: Scores = {}
        for name, (directory, indices) in wanted.items():
            progress.start(f"score ({name})", len(indices), "trajectories")
            chosen = [examples[index] for index in indices]
            found: dict[int, NDArray[np.floating]] = {}
            for index, logprobs in score_all(open_model(directory), chosen, size, temperature):
                found[index] = logprobs
                progress.advance(1, chosen[index].tokens.size)
            none = np.empty(0, np.float32)
            scores[name] = np.concatenate([found.get(index, none) for index in range(len(chosen))])
        return scores

    def attach(self, examples: Sequence[Example], scores: Mapping[str, NDArray]) -> list[Example]:
        """The examples with what `compute` found for them."""
        everything, later = list(range(len(examples))), self._later(examples)
        by_policy = _split(examples, later, scores.get("policy"))
        by_reference = _split(examples, everything, scores.get("reference")) if self.reference else by_policy
        return [
            dataclasses.replace(
                example,
                old=by_policy.get(index) if self.old else example.old,
                reference=by_reference.get(index) if self.beta else None,
            )
            for index, example in enumerate(examples)
        ]

    def _later(self, examples: Sequence[Example]) -> list[int]:
        return [index for index in range(len(examples)) if index not in self.untouched]


def _split(examples: Sequence[Example], indices: list[int], flat: NDArray | None) -> dict[int, NDArray]:
    if flat is None:
        return {}
    ends = np.cumsum([examples[index].kept.size for index in indices])
    return dict(zip(indices, np.split(flat, ends[:-1]), strict=True))
