"""Group the examples of an artefact into pairs of a right and a wrong response to one question."""

from __future__ import annotations

import dataclasses
from collections import Counter

from stages.core.errors import UserError
from stages.core.paths import AnyPath
from stages.training.experience import Experience


def paired(experience: Experience, advantages: AnyPath) -> Experience:
    """Return the examples in groups of two: the k-th right response to a question, and its k-th wrong one.

    Args:
      experience: examples whose advantages are 1 (right) or −1 (wrong).
      advantages: their artefact, for the message.

    Raises:
      UserError: a response has several segments, no token or another advantage, or is in no pair.
    """
    seen: Counter[tuple[str, float]] = Counter()
    groups = []
    for name, question, example in zip(experience.ids, experience.questions, experience.examples, strict=True):
        sign = float(example.advantages[0]) if example.advantages.size else 0.0
        if example.segments != 1 or sign not in (1.0, -1.0):
            raise UserError(
                f"--loss dpo-positive needs the advantage 1 or -1 and a token for each response, but {advantages} "
                f"has something else for trajectory {name}: take the output of `spo estimate --estimator pairs`"
            )
        seen[question, sign] += 1
        groups.append(f"{question}/{seen[question, sign]}")
    alone = [name for name, size in Counter(groups).items() if size != 2]
    if alone:
        raise UserError(
            f"{advantages} has no pair of a right and a wrong response for question {alone[0].rpartition('/')[0]}: "
            "take the output of `spo estimate --estimator pairs`"
        )
    return dataclasses.replace(experience, groups=groups)
