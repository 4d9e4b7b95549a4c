"""Split a causal language model into its backbone (tokens → hidden states) and its head (hidden states → logits).

The head is the model's own function: everything that its forward pass computes after the backbone, such as a scale or a
soft cap of the logits. It is called with hidden states in place of the backbone's. Where that function is shown to be
the product with the output embeddings alone, that product is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from stages.core.errors import UserError, first_line

MODEL_FAILURES = (
    RuntimeError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    NotImplementedError,
    AssertionError,
)
"""Exceptions that model code raises for an unsupported call."""
_PROBES = 64  # hidden states to try the head on
_LARGE = 200.0  # largest logits of the probes: a soft cap bends logits of this size, whatever their usual size


class Split:
    """The two parts of a model.

    Attributes:
      backbone: the module that computes the last hidden states [B, T, H]; it takes the arguments of the model.
      linear: the output embeddings, if the head is their product (with the bias) alone; else None.
      width: H.
      vocabulary: V, number of logits.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Find the parts of a model on its device; takes a few passes over one token.

        Raises:
          UserError: the model is an encoder-decoder, or has no backbone apart from its head.
        """
        if getattr(model.config, "is_encoder_decoder", False):
            raise UserError(f"the {model.config.model_type} model has an encoder; expected a decoder-only model")
        self._model = model
        try:
            self._find_parts(model)
        except UserError:
            raise
        except MODEL_FAILURES as error:
            raise UserError(
                f"transformers cannot run the {model.config.model_type} model on one token: {first_line(error)}"
            ) from error

    def _find_parts(self, model: PreTrainedModel) -> None:
        self.backbone = _find_backbone(model)
        with torch.no_grad():
            hidden = self.backbone(input_ids=_one_token(model), use_cache=False).last_hidden_state[0]
            self.width: int = hidden.shape[-1]
            self.vocabulary: int = self.own_logits(hidden).shape[-1]
            self.linear = self._plain_linear()

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [M, V] of hidden states [M, H]; differentiable in the hidden states and the weights."""
        return self.own_logits(hidden) if self.linear is None else self.linear(hidden)

    def own_logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [M, V] of hidden states [M, H] by the model's forward pass without its backbone."""
        ids = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
        with _given(self.backbone, hidden[None]):
            return cast("Any", self._model)(input_ids=ids, use_cache=False).logits[0]

    def _plain_linear(self) -> nn.Linear | None:
        """Return the output embeddings if they compute the same logits as the forward pass, large logits included."""
        linear = self._model.get_output_embeddings()
        if type(linear) is not nn.Linear or linear.weight.shape != (self.vocabulary, self.width):
            return None
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(_PROBES, self.width, generator=generator).to(self._model.device, self._model.dtype)
        size = linear(hidden).abs().amax(1, keepdim=True).clamp(min=1e-6)
        hidden = hidden / size * torch.logspace(-2, 0, _PROBES)[:, None].to(size) * _LARGE
        expected, found = self.own_logits(hidden).float(), linear(hidden).float()
        rounding = 8 * torch.finfo(self._model.dtype).eps * expected.abs().amax(1, keepdim=True).clamp(min=1e-6)
        differs = (found - expected).abs() > rounding  # False for NaN: damaged weights are found when sampling
        return None if bool(differs.any()) else linear


def _find_backbone(model: PreTrainedModel) -> nn.Module:
    """Return the outermost module that holds the input embeddings, no head, and is called in a forward pass."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    candidates: list[nn.Module] = []
    module: nn.Module = model
    while True:
        holders = [child for child in module.children() if any(one is embeddings for one in child.modules())]
        if not holders or holders[0] is embeddings:
            break
        module = holders[0]
        if head is None or not any(one is head for one in module.modules()):
            candidates.append(module)
    called: set[nn.Module] = set()
    hooks = [one.register_forward_hook(lambda self, *_: called.add(self)) for one in candidates]
    try:
        with torch.no_grad():
            cast("Any", model)(input_ids=_one_token(model), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    found = next((one for one in candidates if one in called), None)
    if found is None:
        raise UserError(f"the {model.config.model_type} model has no backbone apart from its output head")
    return found


def _one_token(model: PreTrainedModel) -> Tensor:
    return torch.zeros(1, 1, dtype=torch.int64, device=model.device)


class _Output(BaseModelOutputWithPast):
    """Hidden states as a backbone returns them; everything else that a backbone may return is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


@contextmanager
def _given(backbone: nn.Module, hidden: Tensor) -> Iterator[None]:
    """Make a backbone return these hidden states [B, T, H] inside the block."""
    own = backbone.__dict__.get("forward")
    backbone.__dict__["forward"] = lambda *_, **__: _Output(last_hidden_state=cast("Any", hidden))
    try:
        yield
    finally:
        if own is None:
            del backbone.__dict__["forward"]
        else:
            backbone.__dict__["forward"] = own
