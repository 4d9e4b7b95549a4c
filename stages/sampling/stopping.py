"""Find the end of a sample: end-of-text tokens and stop strings, by the same rule for every engine."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.core.errors import UserError
from stages.sampling.protocol import Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def end_tokens(settings: object, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> NDArray[np.bool_]:
    """Return the tokens that end a text, as bool [V].

    Args:
      settings: the model's generation settings; None if it has none.
      tokenizer: its end-of-text token counts, in addition to those of the settings.
      vocabulary: V, number of logits.

    Raises:
      UserError: an end-of-text token is not a whole number.
    """
    ends = np.zeros(vocabulary, bool)
    ids = getattr(settings, "eos_token_id", None)
    for token in [*(ids if isinstance(ids, list | tuple) else [ids]), tokenizer.eos_token_id]:
        if token is not None and type(token) is not int:
            raise UserError(f"the model's settings have the end-of-text token {token!r:.60}; expected a whole number")
        if token is not None and 0 <= token < vocabulary:
            ends[token] = True
    return ends


def stop_window(stop: Sequence[str]) -> int:
    """Return how many tokens at the end of a text cover every match of a stop string."""
    # A token is at least one byte, except a few at the start of a text: 4 more tokens than bytes cover every match.
    return max(len(text.encode()) for text in stop) + 4


def completes_stop_string(
    tokenizer: PreTrainedTokenizerBase, request: Request, drawn: NDArray[np.int32], stop: Sequence[str]
) -> bool:
    """Return whether the text so far ends in a stop string, or in a token that completes one.

    Args:
      drawn: int32 [T], the tokens after the request's prefix; the last `stop_window(stop)` of them are enough.
    """
    most = stop_window(stop)
    tail = drawn[max(0, len(drawn) - most) :]
    if request.text_start is not None:
        prefix = request.prefix
        tail = np.concatenate([prefix[max(request.text_start, len(prefix) - (most - len(tail))) :], tail])
    decoded = tokenizer.decode(tail.tolist())
    return any(text in decoded for text in stop)


def find_stop_string(
    tokenizer: PreTrainedTokenizerBase, request: Request, drawn: NDArray[np.int32], stop: Sequence[str]
) -> int | None:
    """Return the number of tokens up to the first one that completes a stop string; None if no token does.

    Equals `completes_stop_string` on ever longer parts of a whole sample, by bisection.
    """
    if not stop:
        return None
    prefix = request.prefix
    # One token less than a match may have: a match must include at least the first drawn token.
    start = len(prefix) if request.text_start is None else max(request.text_start, len(prefix) + 1 - stop_window(stop))

    def holds(count: int) -> bool:
        decoded = tokenizer.decode([*prefix[start:].tolist(), *drawn[:count].tolist()])
        return any(text in decoded for text in stop)

    counts = range(1, len(drawn) + 1)
    return counts[bisect_left(counts, True, key=holds)] if holds(len(drawn)) else None
