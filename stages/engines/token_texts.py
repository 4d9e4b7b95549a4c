"""The text that each token of a response contributes, for reading and for cutting at text patterns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

_PIECE = "\ufffd"  # what a part of a character decodes to
_MOST_PIECES = 4  # a character is at most four bytes


def token_texts(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int] | np.ndarray) -> list[str]:
    """One text per token, special tokens spelled out; together they are the text of the response.

    A character that several tokens make belongs to the last of them, and the others have no text. Tokens are decoded
    behind their predecessor, because some tokenizers drop the space in front of a text's first token.
    """
    texts: list[str] = []
    before: tuple[int, ...] = ()
    held: tuple[int, ...] = ()
    for token in token_ids:
        held = (*held, int(token))
        text = _text_behind(tokenizer, before, held)
        if text.endswith(_PIECE) and len(held) < _MOST_PIECES:
            texts.append("")
        else:
            texts.append(text)
            before, held = held, ()
    if held:  # the response ends within a character
        texts[-1] = _text_behind(tokenizer, before, held)
    return texts


@lru_cache(maxsize=65536)
def _text_behind(tokenizer: PreTrainedTokenizerBase, before: tuple[int, ...], tokens: tuple[int, ...]) -> str:
    alone = str(tokenizer.decode([*before], clean_up_tokenization_spaces=False)) if before else ""
    both = str(tokenizer.decode([*before, *tokens], clean_up_tokenization_spaces=False))
    return both[len(alone) :]
