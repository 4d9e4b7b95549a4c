"""Load models, configurations and tokenizers from model directories (`stages.models.checkpoints` finds them).

Code from a model's repository is never run (`trust_remote_code=False`). `transformers` is imported as a module: it
imports torch only when one of its classes is looked up, so stages that need no model start fast.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import transformers

from stages.core.errors import UserError
from stages.models import adapters, checkpoints, pruning
from stages.models.guard import check_computes, check_sizes, check_tensors, guarded
from stages.models.silence import silenced_descriptors

if TYPE_CHECKING:  # torch takes seconds to import, peft is optional
    import torch
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

NO_LIMIT = 2**30
"""Context length, in tokens, of a model that has no limit."""
_CONTEXT_FIELDS = ("max_position_embeddings", "max_seq_len", "context_length", "seq_length")


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model directory; of an adapter without tokenizer files, the tokenizer of its base.

    Raises:
      UserError: it cannot be read, or has no end-of-text token.
    """
    if not checkpoints.has_tokenizer(directory):
        directory = checkpoints.base_of(directory)
    with guarded("tokenizer", directory), silenced_descriptors():
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)
        tokenizer.encode("a")
        end = tokenizer.eos_token_id
    if end is None:
        raise UserError(f"the tokenizer in {directory} has no end-of-text token (eos_token); responses could never end")
    return cast("PreTrainedTokenizerBase", tokenizer)


def load_config(directory: Path) -> PretrainedConfig:
    """Load the configuration of a model directory; of an adapter, the configuration of its base.

    Raises:
      UserError: it cannot be read, or is of a model that needs its own code.
    """
    base = checkpoints.base_of(directory)
    with guarded("configuration", base):
        config = transformers.AutoConfig.from_pretrained(str(base), trust_remote_code=False)
        check_sizes(config, base)
    return config


def load_model(directory: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Load a causal language model in evaluation mode; an adapter is merged into its base.

    The sum W + α/r · B A is computed in float32 and rounded to `dtype` once.

    Raises:
      UserError: missing or corrupt weights, not a causal language model, or one that needs its own code.
    """
    if (directory / checkpoints.VALUE_HEAD_FILE).is_file():
        # With tied embeddings transformers would load the backbone as a language model that writes nonsense.
        raise UserError(f"{directory} is a critic; expected a language model")
    if adapters.is_adapter(directory):
        adapted = load_adapted(directory, device, dtype, trainable=False)
        _untie_adapted(adapted.get_base_model())
        merged = cast("Any", adapted).merge_and_unload()
        return merged.requires_grad_(True).eval()
    return _load(transformers.AutoModelForCausalLM, directory, device, dtype)


def _untie_adapted(model: Any) -> None:
    """Untie the embedding and the output head if an adapter changes only one of them."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    adapted = any(hasattr(module, "base_layer") for module in (embedding, head))
    own, other = (getattr(module, "base_layer", module) for module in (head, embedding))
    if adapted and own.weight is other.weight:
        own.weight = type(own.weight)(own.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = model.config.get_text_config(decoder=True).tie_word_embeddings = False


def load_backbone(directory: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """Load a model up to its last hidden states, without an output head; otherwise like `load_model`."""
    if adapters.is_adapter(directory):
        return cast("PreTrainedModel", load_model(directory, device, dtype).base_model)
    return _load(transformers.AutoModel, directory, device, dtype)


def load_adapted(directory: Path, device: torch.device, dtype: torch.dtype, *, trainable: bool) -> PeftModel:
    """Load the base of an adapter with the adapter on it, in peft's wrapper and in evaluation mode.

    Raises:
      UserError: peft is not installed; the base cannot be loaded; the adapter is corrupt or does not fit the base.
    """
    adapters.require_peft()
    from peft import PeftModel

    pruning.check_weights(directory)
    base = checkpoints.base_of(directory)
    model = load_model(base, device, dtype)
    with guarded(f"adapter of {base}", directory):
        warnings.filterwarnings("error", message="Found missing adapter keys")  # they would stay random
        wrapped = PeftModel.from_pretrained(
            model, str(directory), adapter_name=adapters.PEFT_NAME, is_trainable=trainable
        )
        check_computes(wrapped.eval(), directory)
    config = adapters.peft_config(model)
    config.base_model_name_or_path, config.revision = checkpoints.public_name(base)
    return cast("PeftModel", wrapped.eval())


def _load(kind: Any, directory: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    pruning.check_weights(directory)
    load_config(directory)
    with guarded("model", directory):
        loaded = kind.from_pretrained(str(directory), dtype=dtype, trust_remote_code=False, output_loading_info=True)
        model, report = cast("tuple[PreTrainedModel, dict[str, set[str]]]", loaded)
        unexpected = report["unexpected_keys"]
        if kind is transformers.AutoModel:
            unexpected = _of_backbone(model, unexpected)
        check_tensors(report["missing_keys"], unexpected, directory)
        model.to(device).eval()  # pyright: ignore[reportArgumentType]
        check_computes(model, directory)
    return model


def _of_backbone(model: PreTrainedModel, names: set[str]) -> set[str]:
    """Return the tensors that belong to the layers of a backbone, and not to an output head."""
    prefix = f"{model.base_model_prefix}."
    own = {name.partition(".")[0] for name in model.state_dict()}
    return {name for name in names if name.removeprefix(prefix).partition(".")[0] in own}


def context_length(config: PretrainedConfig) -> int:
    """Return the longest sequence, prompt and response together, that a model supports, in tokens.

    A model without a limit (recurrent layers, or biases in place of positions) has `NO_LIMIT`. A model whose rotary
    frequencies change for all positions once a sequence is longer than `original_max_position_embeddings` (LongRoPE) is
    limited to that length: beyond it, the tokens that were drawn before would get other probabilities.
    """
    text = config.get_text_config(decoder=True)
    lengths = [getattr(text, name, None) for name in _CONTEXT_FIELDS]
    limit = next((length for length in lengths if isinstance(length, int)), NO_LIMIT)
    return min(limit, rotary_switch(config) or limit)


def rotary_switch(config: PretrainedConfig) -> int | None:
    """Return the length, in tokens, beyond which LongRoPE uses other frequencies; None for other models."""
    text = config.get_text_config(decoder=True)
    parameters = getattr(text, "rope_parameters", None) or {}
    by_layer = [one for one in parameters.values() if isinstance(one, dict)] or [parameters]
    lengths = [one.get("original_max_position_embeddings") for one in by_layer if one.get("rope_type") == "longrope"]
    return min((length for length in lengths if length), default=None)


def describe_limit(directory: Path, max_model_len: int | None) -> str | None:
    """Return a line that says why sequences are shorter than a model's positions allow; None if they are not."""
    if not (directory / "config.json").is_file():
        return None
    switch = rotary_switch(load_config(directory))
    if switch is None or switch >= (max_model_len or NO_LIMIT):
        return None
    return (
        f"the model's rotary frequencies change for all positions beyond {switch:,} tokens (LongRoPE), so prompt and "
        f"response together are limited to {switch:,} tokens"
    )


def vocabulary_size(config: PretrainedConfig) -> int:
    """Return the number of token ids that a model knows; they start at 0."""
    return config.get_text_config(decoder=True).vocab_size
