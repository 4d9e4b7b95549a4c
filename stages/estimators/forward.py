r"""Score the reference answer after each state by the policy itself: a prior of V that needs no rollouts.

    p(s) = Π_t π(a_t | s, lead, a_<t)        V = (N · V̂ + κ · p) / (N + κ)

The answer template says which text stands between the state and the answer, and after it. `#{answer}` appends the lead
`#` and the answer; the product runs over the tokens of the answer and the one behind it, which says that it is whole:
the next token of the template, or else the end of text. p is the probability at the sampling temperature that the
policy states this answer at once; V̂ is the mean of N rollouts, which may be 0, and κ is --prior-weight
(`stages.maths.shrinkage`). RREDCoT (arXiv 2606.06475) values states by the policy's own probabilities, too.

All states of a part are scored together, in rows that hold their common prefixes once (`optimization.packing`), and
logits are computed where the answers are. Sums in another order may change the last bits of p, so these depend on the
division into parts, as with a critic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from stages.configs.estimate import ANSWER, Config
from stages.core.errors import UserError
from stages.core.progress import Progress
from stages.estimators.rollouts import RolloutState
from stages.models import devices, loading
from stages.optimization.batches import Example, padded
from stages.optimization.packing import packed
from stages.optimization.step import score_all
from stages.optimization.torch import TorchEngine, open_engine
from stages.shards.parts import Artefact
from stages.tasks import TASKS

Prior = Callable[[Sequence[RolloutState]], NDArray[np.float64]]
"""States of one part → p of each, [S]."""

EXAMPLES_PER_PASS = 32
"""States whose tokens one pass may hold without shared prefixes."""
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


def score_states(
    engine: TorchEngine,
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    states: Sequence[RolloutState],
    temperature: float,
    progress: Progress,
) -> NDArray[np.float64]:
    """Return p of each state, float64 [S].

    Args:
      temperature: of the distribution; 0 counts as 1, as for recorded log-probabilities.

    Raises:
      UserError: a state and its answer exceed the context of the model.
    """
    examples = []
    for state in states:
        tokens, first = answer_tokens(tokenizer, template, state.reference)
        whole = np.concatenate([state.prefix, np.array(tokens, np.int32)])
        if whole.size > engine.context_length:
            raise UserError(
                f"a response to question {state.question_id} takes {whole.size} tokens with the answer, but the "
                f"context has {engine.context_length}: shorten --answer-template, or sample shorter responses"
            )
        kept = np.arange(state.prefix.size + first, whole.size)
        examples.append(Example(whole, kept, np.zeros(kept.size)))
    found, layout = np.empty(len(states)), packed
    try:
        engine.check_trees(max((example.tokens.size for example in examples), default=1))
    except UserError:
        layout = padded
        progress.note("the model reads no packed rows: every state is read by itself")
    progress.start("score", len(examples), "states")
    for index, logprobs in score_all(engine, examples, EXAMPLES_PER_PASS, temperature or 1.0, layout):
        found[index] = np.exp(logprobs.astype(np.float64).sum())
        progress.advance(1)
    return found


def open_prior(
    options: Config, directory: Path, template: str, states: Sequence[RolloutState], progress: Progress
) -> Prior:
    """Score all states of a part, and return their prior. The model is in memory only meanwhile.

    Raises:
      UserError: as `score_states`.
    """
    if busy := devices.use_threads(options.threads):
        progress.note(busy)
    tokenizer = loading.load_tokenizer(directory)
    engine = open_engine(directory, device=options.device, dtype=options.dtype)
    scores = score_states(engine, tokenizer, template, states, options.temperature or 0.0, progress)
    engine.close()
    by_state = {_name(state): score for state, score in zip(states, scores.tolist(), strict=True)}
    return lambda chosen: np.array([by_state[_name(state)] for state in chosen], np.float64)


def _name(state: RolloutState) -> tuple[str, bytes]:
    return state.question_id, state.prefix.tobytes()
