"""The text that each token of a response contributes, for reading and for cutting at text patterns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase


def token_texts(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int] | np.ndarray) -> list[str]:
    """One text per token, special tokens spelled out.

    A token is decoded behind its predecessor, because some tokenizers drop the space in front of a text's first token.
    A token that is a piece of a character reads as U+FFFD, so the texts of such tokens do not add up to the whole.
    """
    ids = [int(token) for token in token_ids]
    return [_text_behind(tokenizer, before, token) for before, token in zip([None, *ids], ids, strict=False)]


@lru_cache(maxsize=65536)
def _text_behind(tokenizer: PreTrainedTokenizerBase, before: int | None, token: int) -> str:
    if before is None:
        return str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    alone = str(tokenizer.decode([before], clean_up_tokenization_spaces=False))
    both = str(tokenizer.decode([before, token], clean_up_tokenization_spaces=False))
    return both[len(alone) :]
