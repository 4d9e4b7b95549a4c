"""The text of each token: joined, the text of the response, for any treatment of bytes and spaces."""

from __future__ import annotations

from functools import cache

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from stages.models.presets import make_byte_tokenizer
from stages.models.token_texts import Decode, decoder, token_texts


@cache
def one_byte_each() -> Decode:
    return decoder(make_byte_tokenizer())


def word_pieces() -> Decode:
    """Like SentencePiece: ▁ marks a space, and decoding drops the space of the first token."""
    from tokenizers import Tokenizer, decoders, models

    words = ["<unk>", "</s>", "▁two", "▁words", "s", "\n", "▁"]
    model = models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[], unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Metaspace()
    return decoder(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>"))


def test_each_byte_of_plain_text_is_its_character_and_special_tokens_are_spelled_out():
    assert token_texts(one_byte_each(), [*b"a \n1", 256]) == ["a", " ", "\n", "1", "<|endoftext|>"]
    assert token_texts(one_byte_each(), []) == []


def test_a_character_of_several_tokens_belongs_to_the_last_of_them():
    assert token_texts(one_byte_each(), np.frombuffer("aé€😀b".encode(), np.uint8)) == [
        "a",
        *["", "é"],
        *["", "", "€"],
        *["", "", "", "😀"],
        "b",
    ]


def test_a_response_that_ends_inside_a_character_keeps_all_its_text():
    assert token_texts(one_byte_each(), "a€".encode()[:-1]) == ["a", "", "\ufffd"]


def test_invalid_bytes_have_the_text_that_they_decode_to():
    assert token_texts(one_byte_each(), b"\xffab") == ["", "\ufffda", "b"]
    assert "".join(token_texts(one_byte_each(), b"\xff\xff\xff\xff\xffa")) == "\ufffd" * 5 + "a"


def test_the_space_before_a_word_is_kept_after_other_tokens():
    assert token_texts(word_pieces(), [2, 3, 5, 3, 4]) == ["two", " words", "\n", " words", "s"]


@given(st.text(st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"]), max_size=20))
@settings(deadline=None)
def test_the_texts_add_up_to_the_response(text: str):
    texts = token_texts(one_byte_each(), text.encode())
    assert len(texts) == len(text.encode())
    assert "".join(texts) == text


def test_the_replacement_character_itself_is_ordinary_text():
    assert "".join(token_texts(one_byte_each(), "a\ufffdb\ufffd".encode())) == "a\ufffdb\ufffd"
