"""Models made from scratch, and their byte tokenizer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import UserError
from stages.models import loading
from stages.models.presets import CONTEXT_LENGTH, PRESETS, make_byte_tokenizer, make_model

TOKENIZER = make_byte_tokenizer()


@given(st.text())
def test_the_byte_tokenizer_reads_any_text(text: str):
    ids = TOKENIZER(text)["input_ids"]
    assert ids == list(text.encode())
    assert TOKENIZER.decode(ids) == text


def test_a_preset_depends_only_on_its_seed():
    torch.manual_seed(5)
    untouched = torch.random.get_rng_state()
    first, again, other = (make_model("tiny", seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert torch.equal(torch.random.get_rng_state(), untouched)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_a_qwen2_with_room_for_a_worked_solution(preset: str):
    model, tokenizer = make_model(preset, 0)
    assert model.config.model_type == "qwen2"
    assert loading.context_length(model.config) == CONTEXT_LENGTH >= 1024
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(UserError, match="expected one of tiny, small"):
        make_model("huge", 0)
