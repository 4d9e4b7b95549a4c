"""Find out from a model's configuration and modules what the embedded engine cannot do, or cannot do bitwise."""

from __future__ import annotations

from transformers import PreTrainedModel

_CAPS = ("attn_logit_softcapping", "attn_logit_cap", "logits_soft_cap")


def find_obstacle(model: PreTrainedModel, context_length: int) -> str | None:
    """Return the feature of a model that is not plain softmax over its whole context; None if its configuration has
    none.

    The engine also tries each model (`TransformersSampler`), which finds features that no configuration names. A trial
    is short, though, and the features found here may show only in long sequences.
    """
    config = getattr(model.get_decoder(), "config", None)
    if config is None:
        return "no decoder of the usual layout"
    kinds = getattr(config, "layer_types", None)
    local = _values(getattr(config, "attention_types", None)) | _values(getattr(config, "attention_layers", None))
    others = {*(kinds or ()), *local} - {"full_attention", "attention", "global"}
    others = {kind for kind in others if isinstance(kind, str)}
    if others:
        return f"layers of other kinds than full attention ({', '.join(sorted(others))})"
    windows = {name: getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")}
    for name, window in windows.items():
        if not kinds and isinstance(window, int) and 0 < window < context_length:
            return f"attention over a window ({name} {window})"
    if cap := next((name for name in _CAPS if getattr(config, name, None)), None):
        return f"soft-capped attention ({cap})"
    if getattr(config, "alibi", False):
        return "biases in place of positions (alibi)"
    return None


def find_experts(model: PreTrainedModel) -> bool:
    """Return whether a model has a mixture of experts: which tokens share an expert's product depends on the batch."""
    return any(name.rpartition(".")[2] == "experts" for name, _ in model.named_modules())


def _values(nested: object) -> set[object]:
    """Return the values in nested lists."""
    if isinstance(nested, list | tuple):
        return {value for one in nested for value in _values(one)}
    return {nested} - {None}
