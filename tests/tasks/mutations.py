r"""Change one digit, sign or unit of every gold answer and grade the result: `python -m tests.tasks.mutations [N]`.

Reads the data sets in the shared folder. Prints how many of N changed answers per data set (default: 2,000) are
accepted; none should be, since changes that keep the value (`0.50` for `0.5`) are left out.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import pyarrow.parquet as pq

from stages.tasks.boxes import last_box
from stages.tasks.graders import GRADERS

OTHER_UNIT = {
    "cm": "km", "inches": "feet", "feet": "inches", "hours": "minutes", "minutes": "hours", "dollars": "cents",
    "cents": "dollars", "meters": "kilometers", "miles": "feet", "east": "west", "increase": "decrease",
    "million": "billion", "seconds": "minutes", "days": "weeks", "grams": "kilograms",
}  # fmt: skip
FILES = {
    "gsm8k": (("gsm8k/train", "gsm8k/test"), "answer"),
    "math": (("math12k/train", "math500/test"), "answer"),
    "aime24": (("aime24/test",), "answer"),
    "amc23": (("amc23/test",), "answer"),
    "college_math": (("college_math/test",), "answer"),
    "minerva_math": (("minerva_math/test",), "solution"),
    "olympiadbench": (("olympiadbench/test",), "final_answer"),
}


class Mutation(NamedTuple):
    """A gold answer, and the same with one change."""

    gold: str
    changed: str


def gold_answers(data: Path, name: str) -> list[str]:
    """Return the gold answers of a data set."""
    files, column = FILES[name]
    values = [row for file in files for row in pq.read_table(data / f"{file}.parquet")[column].to_pylist()]
    if name == "gsm8k":
        return [value.rpartition("####")[2].strip() for value in values]
    if name == "minerva_math":
        return [last_box(value) or "" for value in values]
    return [str(value[0] if isinstance(value, list) else value) for value in values]


def mutate(gold: str, random: Random) -> list[Mutation]:
    """Return a gold answer with one digit, one sign or one unit changed, each in a few places."""
    changed = []
    digits = [match.start() for match in re.finditer(r"[0-9]", gold)]
    for at in random.sample(digits, min(2, len(digits))):
        changed.append(f"{gold[:at]}{(int(gold[at]) + random.randrange(1, 10)) % 10}{gold[at + 1 :]}")
        changed.append(f"{gold[:at]}{random.randrange(1, 10)}{gold[at:]}")
    signs = [match.start() for match in re.finditer(r"(?<![\\_^{])[-+]", gold)]
    for at in random.sample(signs, min(1, len(signs))):
        changed.append(f"{gold[:at]}{'+' if gold[at] == '-' else '-'}{gold[at + 1 :]}")
    if re.match(r"[0-9\\(]", gold):
        changed.append(f"-{gold}")
    changed += [re.sub(rf"\b{unit}\b", other, gold) for unit, other in OTHER_UNIT.items()]
    return [Mutation(gold, one) for one in dict.fromkeys(changed) if same_value(one) != same_value(gold)]


def same_value(text: str) -> str:
    """Return a text in which only changes that keep the value are undone: leading zeros, and the sign of zero."""
    plain = re.sub(r"(?<![0-9.])0+(?=[0-9])", "", text.replace(r",\!", ""))
    return re.sub(r"[-+](?=0(?![0-9.]))|-(?=\\begin\{.matrix\} 0)", "", plain)


def accepted(name: str, mutations: Sequence[Mutation]) -> list[Mutation]:
    """Return the changed answers that the grader of a data set accepts."""
    grader = GRADERS["number" if name == "gsm8k" else "maths"]
    responses = [rf"The answer is \boxed{{{one.changed}}}." for one in mutations]
    verdicts = grader.verify_all(responses, [one.gold for one in mutations])
    return [one for one, verdict in zip(mutations, verdicts, strict=True) if verdict.reward == 1.0]


def draw(data: Path, name: str, most: int, seed: int) -> list[Mutation]:
    """Return at most so many changes of the gold answers of a data set."""
    random = Random(seed)
    found = [one for gold in dict.fromkeys(gold_answers(data, name)) for one in mutate(gold, random)]
    return random.sample(found, min(most, len(found)))


def main(most: int = 2_000) -> None:
    """Print the counts, and every changed answer that is accepted."""
    data = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    for name in FILES:
        mutations = draw(data, name, most, seed=0)
        wrong = accepted(name, mutations)
        print(f"{name}: {len(wrong)} of {len(mutations):,} changed answers accepted")
        for one in wrong:
            print(f"  {one.gold!r} <- {one.changed!r}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
