"""The problems of examples/real_model have right solutions, and no question is in two splits."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "real_model" / "problems.py"
SIGNS = {"Add": "+", "Subtract": "-"}


def test_every_solution_follows_its_question(tmp_path: Path):
    subprocess.run([sys.executable, SCRIPT, tmp_path], check=True)
    seen: set[str] = set()
    for split, count in (("train", 4000), ("validation", 500), ("test", 500)):
        with (tmp_path / f"{split}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        questions = {row["question"] for row in rows}
        assert len(rows) == len(questions) == count
        assert not questions & seen
        seen |= questions
        for row in rows[:200]:
            value = int(re.findall(r"Start with (\d+)\.", row["question"])[0])
            *steps, last = row["answer"].split("\n")
            operations = re.findall(r"(Add|Subtract) (\d+)\.", row["question"])
            for step, (verb, operand) in zip(steps, operations, strict=True):
                result = value + int(operand) if verb == "Add" else value - int(operand)
                assert step == f"{value} {SIGNS[verb]} {operand} = {result}"
                assert 0 <= result < 100
                value = result
            assert last == f"#### {value}"
