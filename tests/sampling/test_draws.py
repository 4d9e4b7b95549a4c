"""Test the draw of tokens: exact interval bounds, no token of probability zero, top-k, top-p and greedy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stages.sampling.draws import draw_tokens, entropies
from stages.sampling.protocol import SamplingParams

LAST = float(np.nextafter(1.0, 0.0))
"""The largest number that a uniform draw can return."""


def draw(probabilities: list[float], uniforms: list[float], **params: float) -> list[int]:
    """Return the token drawn with each uniform number."""
    logits = torch.tensor(probabilities).log().expand(len(uniforms), -1)
    numbers = torch.tensor(uniforms, dtype=torch.float64)[:, None]
    return draw_tokens(logits, numbers, SamplingParams(**params))[0][:, 0].tolist()  # pyright: ignore[reportArgumentType]


def test_a_token_is_drawn_when_the_number_falls_in_its_interval() -> None:
    assert draw([0.25, 0.5, 0.25], [0.0, 0.24, 0.26, 0.74, 0.76, LAST]) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("u", [0.0, 0.3, 0.5, LAST])
def test_tokens_of_probability_zero_are_never_drawn(u: float) -> None:
    assert draw([0.0, 0.0, 0.5, 0.0, 0.5, 0.0, 0.0], [u])[0] in (2, 4)


@pytest.mark.parametrize("top", [{"top_k": 2}, {"top_p": 0.75}])
def test_the_largest_number_draws_a_token_that_top_k_or_top_p_keeps(top: dict) -> None:
    # top_p=0.75 keeps three tokens, because the two most probable ones sum to 0.7
    kept = {1, 3} if "top_k" in top else {1, 3, 4}
    tokens = draw([0.05, 0.4, 0.05, 0.3, 0.2, 0.0], [0.0, 0.3, 0.6, 0.9, LAST], **top)
    assert set(tokens) == kept


def test_top_p_may_keep_more_tokens_than_it_sorts_first() -> None:
    logits = torch.zeros(1, 5000)
    logits[0, :2500] = 1e-3
    uniforms = torch.tensor([[LAST]], dtype=torch.float64)
    token, logprob = draw_tokens(logits, uniforms, SamplingParams(top_p=0.5))
    assert token.item() == 2499
    assert logprob.item() == pytest.approx(torch.log_softmax(logits, -1)[0, 2499].item())


def test_greedy_takes_the_first_of_equally_probable_tokens() -> None:
    assert draw([0.1, 0.4, 0.4, 0.1], [LAST], temperature=0.0) == [1]


def test_the_entropy_is_that_of_the_tempered_distribution() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0]]).log()
    found = entropies(logits, SamplingParams())
    np.testing.assert_allclose(found, [1.5 * np.log(2), 0], atol=1e-6)
    squared = np.array([4, 1, 1]) / 6  # temperature 1/2 squares the weights 2 : 1 : 1
    np.testing.assert_allclose(
        entropies(logits, SamplingParams(temperature=0.5))[0], -(squared * np.log(squared)).sum(), atol=1e-6
    )
    assert torch.equal(entropies(logits, SamplingParams(temperature=0)), found)
