"""Where a sample ends: the tokens that end a text, and the stop strings, by one rule for every engine."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.sampling.protocol import Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def end_tokens(settings: object, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> NDArray[np.bool_]:
    """bool [V]: the tokens that end a text, by a model's generation settings (None: it has none) and its tokenizer."""
    ends = np.zeros(vocabulary, bool)
    ids = getattr(settings, "eos_token_id", None)
    for token in [*(ids if isinstance(ids, list | tuple) else [ids]), tokenizer.eos_token_id]:
        if token is not None and token < vocabulary:
            ends[token] = True
    return ends


def reach(stop: Sequence[str]) -> int:
    """How many tokens at the end of a text cover any match of a stop string."""
    # A token is at least a byte, but for a few at the start of a text; more tokens than bytes cover any match.
    return max(len(text.encode()) for text in stop) + 4


def completes_stop_string(
    tokenizer: PreTrainedTokenizerBase, request: Request, drawn: NDArray[np.int32], stop: Sequence[str]
) -> bool:
    """Whether the text so far ends in a stop string, or in a token that completes one.

    Args:
      drawn: int32 [T], the tokens behind the request's prefix; the last `reach(stop)` of them are enough.
    """
    most = reach(stop)
    tail = drawn[max(0, len(drawn) - most) :]
    if request.text_start is not None:
        prefix = request.prefix
        tail = np.concatenate([prefix[max(request.text_start, len(prefix) - (most - len(tail))) :], tail])
    decoded = tokenizer.decode(tail.tolist())
    return any(text in decoded for text in stop)


def find_stop_string(
    tokenizer: PreTrainedTokenizerBase, request: Request, drawn: NDArray[np.int32], stop: Sequence[str]
) -> int | None:
    """How many tokens there are up to the first that completes a stop string; None: none does.

    For whole samples: what `completes_stop_string` says of one after the other, by bisection.
    """
    if not stop:
        return None
    prefix = request.prefix
    # One token less than a match may have: of a match at the first token, that one is part.
    start = len(prefix) if request.text_start is None else max(request.text_start, len(prefix) + 1 - reach(stop))

    def holds(count: int) -> bool:
        decoded = tokenizer.decode([*prefix[start:].tolist(), *drawn[:count].tolist()])
        return any(text in decoded for text in stop)

    counts = range(1, len(drawn) + 1)
    return counts[bisect_left(counts, True, key=holds)] if holds(len(drawn)) else None
