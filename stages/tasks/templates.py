"""Owns the prompt templates: those that have a name, and how a user's own is read.

A template is a text in which `{question}` stands for the question. Nothing else in it means anything, so `\\boxed{}`
needs no escapes.
"""

from __future__ import annotations

from pathlib import Path

from stages.core.errors import UserError

SLOT = "{question}"
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


def read_template(given: str) -> str:
    """The text of a template: of a built-in one by name, the content of a file, or the text that was given itself.

    In a text given as it is, `\\n` stands for a new line; of a file, the last line break is left out.

    Raises:
      UserError: it is none of these, or a file that cannot be read or has no place for the question.
    """
    if given in TEMPLATES:
        return TEMPLATES[given]
    if SLOT in given:
        return given.replace("\\n", "\n")
    path = Path(given).expanduser()
    if not path.is_file():
        raise UserError(
            f"--prompt-template takes a name ({', '.join(TEMPLATES)}), a text with {SLOT}, or a file that holds one; "
            f"got {given!r}"
        )
    try:
        text = path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompt-template {given} cannot be read: {error}") from error
    if SLOT not in text:
        raise UserError(f"--prompt-template {given} has no {SLOT}, where the question goes")
    return text
