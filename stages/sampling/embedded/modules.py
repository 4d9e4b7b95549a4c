"""Install the engine's attention and linear layers in a model, remove them, and suspend them for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AttentionInterface, PreTrainedModel

from stages.models.silence import silenced_transformers
from stages.sampling.embedded import invariance

_ATTENTION = "spo"
AttentionInterface.register(_ATTENTION, invariance.attention)


class EngineModules:
    """What the engine changes in a model: its kind of attention, and the `forward` of its linear layers."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Remember the model as transformers loaded it."""
        self._model = model
        self._attention = _attention_kinds(model)
        self._forwards = {module: module.__dict__.get("forward") for module in model.modules()}

    def install(self) -> None:
        """Make the layers call `invariance.attention`; `invariance.apply_plan` replaces the linear layers."""
        with silenced_transformers():  # it warns about models that compute their attention themselves
            self._model.set_attn_implementation(_ATTENTION)

    def remove(self) -> None:
        """Restore the model."""
        for module, forward in self._forwards.items():
            _set_forward(module, forward)
        with silenced_transformers():
            self._model.set_attn_implementation(self._attention)

    @contextmanager
    def as_loaded(self) -> Iterator[None]:
        """Restore the model inside the block."""
        forwards = {module: module.__dict__.get("forward") for module in self._forwards}
        self.remove()
        try:
            yield
        finally:
            for module, forward in forwards.items():
                _set_forward(module, forward)
            self.install()


def _attention_kinds(model: PreTrainedModel) -> dict[str, str]:
    """Return the attention implementation of a model ("") and of each part of its configuration."""
    parts = {name: getattr(model.config, name, None) for name in model.config.sub_configs}
    kinds = {name: part._attn_implementation for name, part in parts.items() if part is not None}
    return {name: kind for name, kind in ({"": model.config._attn_implementation} | kinds).items() if kind}


def _set_forward(module: Any, forward: Any) -> None:
    """Set the `forward` of one module; None: that of its class."""
    if forward is not None:
        module.__dict__["forward"] = forward
    else:
        module.__dict__.pop("forward", None)
