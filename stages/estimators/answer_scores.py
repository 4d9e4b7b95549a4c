"""Score the reference answer after each state, for the estimator `forward`.

All states of a part are scored together, in rows that hold their common prefixes once (`optimization.packing`), and
logits are computed where the answers are. Sums in another order may change the last bits of p, so these depend on the
division into parts, as with a critic.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from stages.configs.estimate import Config
from stages.core.errors import UserError
from stages.core.progress import Progress
from stages.estimators.forward import Prior, answer_tokens
from stages.estimators.rollouts import RolloutState
from stages.models import devices, loading
from stages.optimization.batches import Example, padded
from stages.optimization.packing import packed
from stages.optimization.step import score_all
from stages.optimization.torch import TorchEngine, open_engine

EXAMPLES_PER_PASS = 32
"""States whose tokens one pass may hold without shared prefixes."""


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
