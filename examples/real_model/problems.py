"""Write problems with short replies: three steps of arithmetic, each of which is one sentence of the question.

    python examples/real_model/problems.py build/problems

`train.csv`, `validation.csv` and `test.csv` have the columns question and answer; the answer is a worked solution with
its result after `####`, as in GSM8K. No question is in two splits.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from random import Random

SPLITS = {"train": 4000, "validation": 500, "test": 500}
STEPS = 3


def problem(random: Random) -> tuple[str, str]:
    """Return a question and its worked solution; all values are between 0 and 99."""
    value = random.randint(2, 49)
    question, lines = f"Start with {value}.", []
    for _ in range(STEPS):
        choices = [(f"Add {b}.", "+", b, value + b) for b in range(2, 50) if value + b < 100] + [
            (f"Subtract {b}.", "-", b, value - b) for b in range(2, 50) if value - b >= 0
        ]
        sentence, sign, operand, result = random.choice(choices)
        question += f" {sentence}"
        lines.append(f"{value} {sign} {operand} = {result}")
        value = result
    return f"{question} What is the result?", "\n".join([*lines, f"#### {value}"])


def main(out: Path) -> None:
    random = Random(0)
    problems = dict(problem(random) for _ in range(2 * sum(SPLITS.values())))  # a question that comes twice counts once
    rows = list(problems.items())
    out.mkdir(parents=True, exist_ok=True)
    for split, count in SPLITS.items():
        with (out / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("question", "answer"), *rows[:count]])
        del rows[:count]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
