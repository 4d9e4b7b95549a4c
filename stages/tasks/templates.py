"""Prompt templates: the built-in ones by name, and how a user's own template is read.

A template is a text in which `{question}` stands for the question. Nothing else in it is special, so `\\boxed{}` needs
no escaping.
"""

from __future__ import annotations

from pathlib import Path

from stages.core.errors import UserError, one_of
from stages.tasks.boxes import find_boxes
from stages.tasks.statements import ANSWER_MARK

SLOT = "{question}"
"""The placeholder of the question."""
_BOXED = "Please reason step by step, and put your final answer within \\boxed{}."

TEMPLATES = {
    "plain": SLOT,
    "question-answer": f"Question: {SLOT}\nAnswer:",
    "math-task": f"[MATH_TASK] Problem:\n{SLOT}\n\nSolution:",  # Rho-1B and DeepSeekMath as published
    "boxed": f"{SLOT}\n{_BOXED}",  # as a user's message: DeepSeek-R1's distillations, DeepSeekMath-RL
    "qwen-boxed": (  # Qwen2.5-Math and base models of that family, written out
        f"<|im_start|>system\n{_BOXED}<|im_end|>\n<|im_start|>user\n{SLOT}<|im_end|>\n<|im_start|>assistant\n"
    ),
    "r1-distill": f"<｜begin▁of▁sentence｜><｜User｜>{SLOT}\n{_BOXED}<｜Assistant｜><think>\n",
}
"""Name of a built-in template → its text."""


def in_convention(solution: str, template: str) -> str:
    r"""Return a worked solution that states its answer as the template asks for it: `#### 5` → `\boxed{5}` for a box.

    A solution with a box, or for a template that names no box, is returned unchanged.
    """
    worked, mark, answer = solution.rpartition(ANSWER_MARK)
    if r"\boxed" not in template or not mark or find_boxes(solution)[0]:
        return solution
    return f"{worked.rstrip()}\nThe final answer is \\boxed{{{answer.strip()}}}."


def read_template(value: str) -> str:
    """Return the text of a template.

    Args:
      value: the name of a built-in template, a text with `{question}`, or a file with such a text. In a text, `\\n`
        stands for a line break, because a shell argument seldom contains one; of a file, one final line break is
        dropped.

    Raises:
      UserError: the value is none of these, or its file cannot be read or has no `{question}`.
    """
    if value in TEMPLATES:
        return TEMPLATES[value]
    if SLOT in value:
        return value.replace("\\n", "\n")
    path = Path(value).expanduser()
    if not path.is_file():
        raise UserError(
            f"--prompt-template takes a text with {SLOT}, a file with such a text, or {one_of(TEMPLATES, value)}"
        )
    try:
        text = path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompt-template {value} cannot be read: {error}") from error
    if SLOT not in text:
        raise UserError(f"--prompt-template {value} has no {SLOT}; put it where the question belongs")
    return text
