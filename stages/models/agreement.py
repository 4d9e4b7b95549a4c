"""Compare log-probabilities with those of the model's own forward pass, one whole sequence at a time.

The engines sample and score differently from the model's forward pass (shared prefixes, caches, padding). Each engine
compares its results with that pass when it opens and on real responses, and stops if they disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedConfig, PreTrainedModel

from stages.models.split import Split

_LOGITS = 2**24  # maximum number of logits in memory
_CHECK_WORK = {"cpu": 2e11, "cuda": 2e14}  # floating-point operations to spend on a check: a few seconds
_SHORTEST, _LONGEST = 24, 8192  # bounds on the longest sequence of a check, in tokens


_CHECKED: dict[str, bool] = {}
"""Architectures whose check passed in this process → what the check found besides (`recall`)."""


def recall(architecture: str) -> bool | None:
    """Return what `remember` noted of an architecture; None if its check has not passed in this process.

    What the engines do with a model follows from its configuration and not from its weights, so a run that loads a
    model after each iteration checks the first one. The first responses of every model are compared in any case.
    """
    return _CHECKED.get(architecture)


def remember(architecture: str, found: bool) -> None:
    """Note that the check of an architecture has passed, and what it found besides."""
    _CHECKED[architecture] = found


def forget_checks() -> None:
    """Check every architecture again."""
    _CHECKED.clear()


def describe_architecture(model: PreTrainedModel, *settings: object) -> str:
    """Return a text that is equal for models that compute the same function of their weights in the same way.

    Args:
      settings: of the engine, such as its context length.
    """
    config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    shapes = [(name, tuple(one.shape), str(one.dtype)) for name, one in model.named_parameters()]
    place = (next(model.parameters()).device.type, torch.get_num_threads())
    return repr((type(model), sorted(config.items(), key=lambda item: item[0]), shapes, place, settings))


@torch.no_grad()
def plain_logprobs(split: Split, tokens: NDArray[np.integer], first: int, temperature: float) -> NDArray[np.floating]:
    """Return the log-probabilities of `tokens[first:]` from one pass over the whole sequence, float32 [T − first].

    Args:
      tokens: [T], prefix and continuation.
      temperature: divides the logits; 0 counts as 1.
    """
    device = next(split.backbone.parameters()).device
    ids = torch.from_numpy(np.asarray(tokens, np.int64)).to(device)
    hidden = split.backbone(input_ids=ids[None], use_cache=False).last_hidden_state[0, first - 1 : -1]
    found = []
    for states, targets in zip(
        *(x.split(max(1, _LOGITS // split.vocabulary)) for x in (hidden, ids[first:])), strict=True
    ):
        logits = split.own_logits(states).float() / (temperature or 1)
        found.append(logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0])
    return torch.cat(found).cpu().numpy()


def disagreement(found: Sequence[NDArray[np.floating]], expected: Sequence[NDArray[np.floating]]) -> float:
    """Return the largest mean difference of a sequence's log-probabilities, in nats beyond rounding.

    Rounding grows with a log-probability, so a ten-thousandth of it does not count. Values that are not finite on both
    sides do not count either: sampler and trainer report them.
    """
    means = [0.0]
    for one, other in zip(found, expected, strict=True):
        differences = np.abs(one - other) - 1e-4 * np.abs(other)
        known = np.isfinite(one) | np.isfinite(other)
        if known.any():
            means.append(float(np.nan_to_num(differences[known], nan=np.inf, posinf=np.inf).clip(min=0).mean()))
    return max(means)


def tolerance(dtype: torch.dtype) -> float:
    """Return the disagreement that rounding explains, in nats: 16-bit engines round every layer differently."""
    return 1e-3 if dtype == torch.float32 else 0.1


def affordable_tokens(model: torch.nn.Module) -> int:
    """Return how many tokens a check may send through a model: a few seconds' worth, at least 24."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    device = next(model.parameters()).device
    work = _CHECK_WORK["cuda" if device.type == "cuda" else "cpu"]
    return int(min(max(work / (2 * parameters), _SHORTEST), _LONGEST))


def check_lengths(config: PreTrainedConfig, context_length: int, affordable: int) -> list[int]:
    """Return different lengths of sequences to compare; the longest exceeds every window that the check can afford."""
    text = config.get_text_config(decoder=True)
    values = [value for name, value in _flat(text.to_dict()) if _is_switch(name) and isinstance(value, int)]
    switch = max((value for value in values if 0 < value < context_length), default=0)
    longest = max(2, min(max(2 * _SHORTEST, switch + _SHORTEST), affordable, context_length))
    return sorted({longest, max(2, longest // 2 + 1), max(2, longest // 5)}, reverse=True)


def check_tokens(config: PreTrainedConfig, vocabulary: int, lengths: Sequence[int]) -> list[NDArray[np.int32]]:
    """Return one sequence of random token ids per length, without the special tokens that the configuration names."""
    special = {
        token
        for name, value in _flat(config.to_dict())
        if name.endswith(("token_id", "token_index", "token_ids"))
        for token in (value if isinstance(value, list) else [value])
    }
    plain = np.array([token for token in range(min(vocabulary, 50_000)) if token not in special], np.int32)
    plain = plain if plain.size else np.zeros(1, np.int32)
    generator = np.random.default_rng(0)
    return [plain[generator.integers(0, plain.size, length)] for length in lengths]


def _is_switch(name: str) -> bool:
    """Return whether a field of a configuration is a distance beyond which a model may compute differently."""
    return "window" in name or name in {"attention_chunk_size", "original_max_position_embeddings"}


def _flat(fields: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return the fields of a configuration, and of its nested configurations."""
    found: list[tuple[str, Any]] = []
    for name, value in fields.items():
        found += _flat(cast("dict[str, Any]", value)) if isinstance(value, dict) else [(str(name), value)]
    return found
