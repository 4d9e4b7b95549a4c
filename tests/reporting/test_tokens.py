"""Texts of tokens for display: of a tokenizer, or of the bytes of the text, or ids."""

from stages.reporting.tokens import readable_tokens


def test_without_a_tokenizer_bytes_are_read_from_the_text_else_ids_are_shown():
    assert readable_tokens([1, 2, 3], "ab", None) == (["a", "b", "<end>"], "")
    assert readable_tokens([1, 2], "ab", None) == (["a", "b"], "")
    texts, note = readable_tokens([17, 5, 9, 4], "ab", None)
    assert texts == ["17 ", "5 ", "9 ", "4 "]
    assert "ids" in note
