"""Find the text that each token of a response contributes, for display and for cutting at text patterns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

Decode = Callable[[Sequence[int]], str]
"""Token ids → text, with special tokens written out and no clean-up of spaces."""

_INCOMPLETE = "\ufffd"  # an incomplete UTF-8 sequence decodes to the replacement character
_MAX_TOKENS_PER_CHARACTER = 4  # a character has at most four bytes


def decoder(tokenizer: PreTrainedTokenizerBase) -> Decode:
    """Return the decoding function of a tokenizer."""
    return lambda token_ids: str(tokenizer.decode([*token_ids], clean_up_tokenization_spaces=False))


def token_texts(decode: Decode, token_ids: Sequence[int] | np.ndarray) -> list[str]:
    """Return one text per token; joined, they are the text of the response.

    A character that several tokens form together is the text of the last one; the others have an empty text. Tokens are
    decoded after their predecessor, because some tokenizers drop the space before the first token of a text.
    """
    texts: list[str] = []
    before: tuple[int, ...] = ()
    pending: tuple[int, ...] = ()
    for token in token_ids:
        pending = (*pending, int(token))
        text = _text_after(decode, before, pending)
        if text.endswith(_INCOMPLETE) and len(pending) < _MAX_TOKENS_PER_CHARACTER:
            texts.append("")
        else:
            texts.append(text)
            before, pending = pending, ()
    if pending:  # the response ends in the middle of a character
        texts[-1] = _text_after(decode, before, pending)
    return texts


@lru_cache(maxsize=65536)
def _text_after(decode: Decode, before: tuple[int, ...], tokens: tuple[int, ...]) -> str:
    alone = decode(before) if before else ""
    return decode((*before, *tokens))[len(alone) :]
