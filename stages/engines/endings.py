"""Where a sample ends: the tokens that end a text, and the stop strings, by one rule for every engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.engines.sampling import Request

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


def cut_at_stop_string(
    tokenizer: PreTrainedTokenizerBase, request: Request, drawn: NDArray[np.int32], stop: Sequence[str]
) -> int | None:
    """How many tokens there are up to the one that completes a stop string begun in the prefix; None: none does."""
    if not stop or request.text_start is None or request.text_start >= len(request.prefix):
        return None
    first = drawn[: reach(stop)]
    ends = (t for t in range(1, len(first) + 1) if completes_stop_string(tokenizer, request, first[:t], stop))
    return next(ends, None)
