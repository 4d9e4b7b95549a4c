"""The masked head returns the values and gradients of the full [batch, length, vocabulary] computation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stages.optimization.head import selected_log_probs


def full_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias) / temperature
    return logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)


def problem(m: int, *, bias: bool = True, seed: int = 0) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(m, 5, dtype=torch.float64, generator=generator)
    weight = torch.randn(11, 5, dtype=torch.float64, generator=generator)
    offset = torch.randn(11, dtype=torch.float64, generator=generator) if bias else None
    return hidden, weight, offset, torch.randint(11, (m,), generator=generator)


@pytest.mark.parametrize("chunk", [1, 3, 7, 8, 100, None])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_equal_those_of_full_logits(chunk: int | None, temperature: float, bias: bool) -> None:
    hidden, weight, offset, targets = problem(7, bias=bias)
    leaves = [tensor.requires_grad_() for tensor in (hidden, weight, offset) if tensor is not None]
    upstream = torch.linspace(-1.0, 2.0, 7, dtype=torch.float64)

    expected = full_logits(hidden, weight, offset, targets, temperature)
    wanted = torch.autograd.grad((expected * upstream).sum(), leaves)
    scored = selected_log_probs(hidden, weight, offset, targets, temperature=temperature, chunk=chunk)
    found = torch.autograd.grad((scored.logprobs * upstream).sum(), leaves)

    torch.testing.assert_close(scored.logprobs, expected, rtol=0, atol=1e-12)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_gradient_agrees_with_finite_differences() -> None:
    hidden, weight, offset, targets = problem(3)
    leaves = [tensor.requires_grad_() for tensor in (hidden, weight, offset) if tensor is not None]

    def logprobs(hidden: Tensor, weight: Tensor, offset: Tensor) -> Tensor:
        return selected_log_probs(hidden, weight, offset, targets, chunk=2).logprobs

    assert torch.autograd.gradcheck(logprobs, leaves)


def test_tied_embeddings_get_both_gradients() -> None:
    """If W is both embedding and head, d/dW is the sum over both uses."""
    _, weight, _, targets = problem(4)
    ids = torch.tensor([1, 2, 2, 9])
    one, other = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    full_logits(one[ids], one, None, targets, 1.0).sum().backward()
    selected_log_probs(other[ids], other, None, targets, chunk=2).logprobs.sum().backward()
    assert one.grad is not None
    assert other.grad is not None
    torch.testing.assert_close(other.grad, one.grad, rtol=0, atol=1e-12)


def test_entropy_and_its_gradient_are_those_of_the_scaled_distribution() -> None:
    hidden, weight, offset, targets = problem(6)
    scored = selected_log_probs(hidden.requires_grad_(), weight, offset, targets, temperature=0.7, chunk=4)
    logits = torch.nn.functional.linear(hidden, weight, offset) / 0.7
    torch.testing.assert_close(
        scored.entropy, torch.distributions.Categorical(logits=logits).entropy(), rtol=0, atol=1e-12
    )
    expected = torch.distributions.Categorical(logits=logits).entropy() + 0.3 * logits.log_softmax(-1)[:, 0]
    at_zero = selected_log_probs(hidden, weight, offset, torch.zeros_like(targets), temperature=0.7, chunk=4)
    found = at_zero.entropy + 0.3 * at_zero.logprobs
    grads = (torch.autograd.grad(loss.square().sum(), hidden, retain_graph=True)[0] for loss in (found, expected))
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


def test_large_logits_stay_finite() -> None:
    """exp(1000) overflows; the normalizer must not."""
    hidden, weight = torch.tensor([[1000.0]], requires_grad=True), torch.tensor([[1.0], [-1.0]])
    scored = selected_log_probs(hidden, weight, None, torch.tensor([0]))
    scored.logprobs.sum().backward()
    assert scored.logprobs.item() == 0.0
    assert scored.entropy.item() == 0.0
    assert hidden.grad is not None
    assert hidden.grad.item() == 0.0


def test_bfloat16_hidden_states_get_a_float32_softmax_and_full_precision_weight_gradients() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(64, 16, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(50, 16, generator=generator).bfloat16().float().requires_grad_()
    targets = torch.randint(50, (64,), generator=generator)
    scored = selected_log_probs(hidden, weight, None, targets, chunk=16)
    scored.logprobs.sum().backward()

    exact_hidden = hidden.detach().double().requires_grad_()
    exact_weight = weight.detach().double().requires_grad_()
    expected = full_logits(exact_hidden, exact_weight, None, targets, 1.0)
    expected.sum().backward()

    assert scored.logprobs.dtype == torch.float32
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.bfloat16
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    assert exact_weight.grad is not None
    torch.testing.assert_close(scored.logprobs.double(), expected, rtol=0.02, atol=0.03)
    torch.testing.assert_close(weight.grad.double(), exact_weight.grad, rtol=0.05, atol=0.1)


def test_without_positions_the_result_is_empty_and_the_gradient_zero() -> None:
    hidden, weight, offset, targets = problem(0)
    scored = selected_log_probs(hidden.requires_grad_(), weight.requires_grad_(), offset, targets)
    scored.logprobs.sum().backward()
    assert scored.logprobs.shape == (0,)
    assert weight.grad is not None
    assert not weight.grad.any()


@pytest.mark.parametrize("chunk", [None, 2])
def test_no_tensor_is_larger_than_one_chunk_of_logits(chunk: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """All logits come from `F.linear`; no call may have more rows than the chunk."""
    rows: list[int] = []
    linear = torch.nn.functional.linear

    def recorded(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rows.append(hidden.shape[0])
        return linear(hidden, weight, bias)

    monkeypatch.setattr("stages.optimization.head.F.linear", recorded)
    monkeypatch.setattr("stages.optimization.head.LOGITS_PER_CHUNK", 16 * 11)
    hidden, weight, offset, targets = problem(40)
    selected_log_probs(hidden.requires_grad_(), weight, offset, targets, chunk=chunk).logprobs.sum().backward()
    assert max(rows) == (chunk or 16)


def test_mismatched_shapes_and_invalid_temperatures_are_rejected() -> None:
    hidden, weight, offset, targets = problem(3)
    with pytest.raises(ValueError, match="expected hidden"):
        selected_log_probs(hidden, weight, offset, targets[:2])
    with pytest.raises(ValueError, match="must be positive"):
        selected_log_probs(hidden, weight, offset, targets, temperature=0.0)
