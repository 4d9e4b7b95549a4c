"""The graders of data sets by name: how a reference is read from the answer column, and which responses are right."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stages.tasks import maths_grader, number_grader
from stages.tasks.boxes import after_thinking, find_boxes, last_box
from stages.tasks.numbers import ascii_digits, read_leading_number
from stages.tasks.statements import ANSWER_MARK
from stages.tasks.verdicts import Place, Verdict, judge, no_answer

_CALCULATOR = re.compile(r"<<[^<>]*>>")
"""Calculator annotations in GSM8K's solutions, such as `<<2+3=5>>`."""


@dataclass(frozen=True)
class Grader:
    """How responses to the questions of a data set are graded.

    Attributes:
      verify_all: (responses, references) → one verdict each.
      split_answer: content of the answer column → (reference, the worked solution that contains it or None).
      expects: description of a valid reference, for error messages.
      is_reference: whether a text is a valid reference.
    """

    verify_all: Callable[[Sequence[str], Sequence[str]], list[Verdict]]
    split_answer: Callable[[str], tuple[str, str | None]]
    expects: str = "a non-empty text"
    is_reference: Callable[[str], bool] = bool


def verify_exact(responses: Sequence[str], references: Sequence[str]) -> list[Verdict]:
    """Compare the last box of each response, or else all text after the thinking, with its reference as strings."""
    return [_verify_exact(*pair) for pair in zip(responses, references, strict=True)]


def _verify_exact(response: str, reference: str) -> Verdict:
    box = last_box(response)
    place = Place.WHOLE_TEXT if box is None else Place.BOX
    answer = (after_thinking(response) if box is None else box).strip()
    return judge(answer, answer == reference, place, answer) if answer else no_answer()


def _split_at_mark(text: str) -> tuple[str, str | None]:
    """Split `2 + 3 = <<2+3=5>>5 ducks.\\n#### 5` into `5` and the text without its annotations."""
    worked, mark, tail = text.rpartition(ANSWER_MARK)
    reference = tail.strip()
    return reference, f"{_CALCULATOR.sub('', worked).strip()}\n{ANSWER_MARK} {reference}" if mark else None


def _split_at_box(text: str) -> tuple[str, str | None]:
    """Return the content of the last box and the whole text; for a text without a box, the text and None."""
    boxes, is_open = find_boxes(text)
    return (boxes[-1].content, text.strip()) if boxes and not is_open else (text.strip(), None)


GRADERS = {
    "maths": Grader(maths_grader.verify_all, _split_at_box),
    "number": Grader(
        number_grader.verify_all,
        _split_at_mark,
        expects=f"a number, alone or after {ANSWER_MARK}",
        is_reference=lambda text: read_leading_number(ascii_digits(text)) is not None,
    ),
    "exact": Grader(verify_exact, _split_at_box),
}
"""Name of a grader (`--task-arg grader`) → the grader."""
