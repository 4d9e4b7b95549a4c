r"""Score the reference answer after each state by the policy itself: a prior of V that needs no rollouts.

    p(s) = Π_t π(a_t | s, lead, a_<t)        V = (N · V̂ + κ · p) / (N + κ)

The answer template says which text stands between the state and the answer, and after it. `#{answer}` appends the lead
`#` and the answer; the product runs over the tokens of the answer and the one behind it, which says that it is whole:
the next token of the template, or else the end of text. p is the probability at the sampling temperature that the
policy states this answer at once; V̂ is the mean of N rollouts, which may be 0, and κ is --prior-weight
(`stages.maths.shrinkage`). RREDCoT (arXiv 2606.06475) values states by the policy's own probabilities, too.

`stages.estimators.answer_scores` scores the states; it imports torch, which a part that is up to date does not need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from stages.configs.estimate import ANSWER, Config
from stages.core.errors import UserError
from stages.estimators.rollouts import RolloutState
from stages.shards.parts import Artefact
from stages.tasks import TASKS

Prior = Callable[[Sequence[RolloutState]], NDArray[np.float64]]
"""States of one part → p of each, [S]."""

_BOXED = r" The final answer is \boxed{" + ANSWER + "}."
_DATASETS = TASKS["gsm8k"]


def find_template(options: Config, task: str, prompt: str) -> str:
    r"""Return --answer-template, or the one that follows the convention of the prompt.

    A prompt that asks for `\boxed{}` gets ` The final answer is \boxed{{answer}}.`, behind `</think>` where it leaves a
    thought open. Other prompts of `arithmetic` get `#{answer}`, those of tasks with data a line `#### {answer}`.

    Args:
      task: name of the task.
      prompt: text of a prompt.

    Raises:
      UserError: the task has no convention for answers.
    """
    if options.answer_template is not None:
        return options.answer_template.replace("\\n", "\n")
    if r"\boxed" in prompt:
        return ("\n</think>\n\n" if prompt.rstrip().endswith("<think>") else "") + _BOXED
    if task == "arithmetic":
        return f"#{ANSWER}"
    if TASKS.get(task) == _DATASETS:
        return f"\n#### {ANSWER}"
    raise UserError(
        f"--estimator forward does not know how responses of task {task} state their answer: pass --answer-template, "
        f"such as 'The answer is {ANSWER}.'"
    )


def check_rewards(trajectories: Artefact) -> None:
    """Check that V is a probability.

    Raises:
      UserError: a reward is not in [0, 1].
    """
    table = trajectories.read_all(["trajectory_id", "reward"])
    rewards = table["reward"].to_numpy()
    outside = (rewards < 0) | (rewards > 1)
    if outside.any():
        row = int(outside.argmax())
        raise UserError(
            f"--estimator forward needs rewards from 0 to 1; trajectory {table['trajectory_id'][row]} has reward "
            f"{rewards[row]:g}: pass --estimator monte-carlo"
        )


def answer_tokens(tokenizer: PreTrainedTokenizerBase, template: str, answer: str) -> tuple[list[int], int]:
    """Return the tokens of lead and answer with the one behind it, and the number of tokens before the answer.

    A token that belongs to both sides of a border counts as one of the answer.
    """
    lead, _, rest = template.partition(ANSWER)
    texts = (lead, lead + answer, lead + answer + rest)
    before, upto, whole = (tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts)
    if not rest and isinstance(tokenizer.eos_token_id, int):
        whole = [*whole, tokenizer.eos_token_id]
    first, last = (_common(whole, part) for part in (before, upto))
    return list(whole[: last + 1]), min(first, len(whole) - 1)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the number of tokens that two texts begin with in common."""
    same = [a == b for a, b in zip(one, other, strict=False)]
    return same.index(False) if False in same else len(same)
