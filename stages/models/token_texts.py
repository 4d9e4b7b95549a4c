"""The text that each token of a response contributes, for reading and for cutting at text patterns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

Decode = Callable[[Sequence[int]], str]
"""Token ids → text, special tokens spelled out and nothing tidied."""

_PIECE = "\ufffd"  # what a part of a character decodes to
_MOST_PIECES = 4  # a character is at most four bytes


def decoder(tokenizer: PreTrainedTokenizerBase) -> Decode:
    """How a tokenizer reads token ids."""
    return lambda token_ids: str(tokenizer.decode([*token_ids], clean_up_tokenization_spaces=False))


def token_texts(decode: Decode, token_ids: Sequence[int] | np.ndarray) -> list[str]:
    """One text per token; together they are the text of the response.

    A character that several tokens make belongs to the last of them, and the others have no text. Tokens are decoded
    behind their predecessor, because some tokenizers drop the space in front of a text's first token.
    """
    texts: list[str] = []
    before: tuple[int, ...] = ()
    held: tuple[int, ...] = ()
    for token in token_ids:
        held = (*held, int(token))
        text = _text_behind(decode, before, held)
        if text.endswith(_PIECE) and len(held) < _MOST_PIECES:
            texts.append("")
        else:
            texts.append(text)
            before, held = held, ()
    if held:  # the response ends within a character
        texts[-1] = _text_behind(decode, before, held)
    return texts


@lru_cache(maxsize=65536)
def _text_behind(decode: Decode, before: tuple[int, ...], tokens: tuple[int, ...]) -> str:
    alone = decode(before) if before else ""
    return decode((*before, *tokens))[len(alone) :]
