"""A user-defined reward for answers with a unit: 0.5 for the number, 0.5 for the unit.

    spo rollout --task custom --data units.jsonl --task-arg question=problem --task-arg reward=rewards:number_and_unit …

`completions` are the texts of the responses; the other parameters are columns of the data. Each is a list, one value
per response. A reward of None marks a response as ungradable; it is excluded and counted.
"""

from __future__ import annotations

import re


def number_and_unit(completions: list[str], number: list[float], unit: list[str]) -> list[float | None]:
    """Return 1 for the right number and unit, 0.5 for one of them, else 0; the last number in the text counts."""
    rewards: list[float | None] = []
    for text, right_number, right_unit in zip(completions, number, unit, strict=True):
        stated = re.findall(r"(-?[0-9]+(?:\.[0-9]+)?) ?([a-z]*)", text[-200:])
        value, word = stated[-1] if stated else ("nan", "")
        rewards.append(0.5 * (float(value) == right_number) + 0.5 * (word == right_unit))
    return rewards
