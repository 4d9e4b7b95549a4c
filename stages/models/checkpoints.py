"""Model directories in the Hugging Face layout: found, checked, digested and loaded (written: `stages.models.saving`).

Code that a model brings along is never run.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from stages.core import storage
from stages.core.errors import UserError, first_line
from stages.core.paths import StorePath, as_path
from stages.models import adapters, pruning, transfer
from stages.models.silence import quietly

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
VALUE_HEAD_FILE = "value_head.safetensors"
"""Where a critic's directory holds its head, beside the backbone (`stages.optimization.critic`)."""
_SETTINGS = (
    VALUE_HEAD_FILE,
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "*.index.json",
)


def resolve(model: str, *, whole: bool = False) -> Path:
    """The directory of a model on this machine: a local one as it is, a copy of one in a store or on the hub.

    That of an adapter (`stages.models.adapters`) is one, too: everything here takes it for base and adapter together.
    So is one whose weights were pruned: it is known for what it was; `load_model` says that they are gone.

    Args:
      whole: of one in a store, the optimiser's state is wanted, too.

    Raises:
      UserError: there is none, or the directory lacks its configuration, weights or tokenizer; an adapter's base is
        not to be found, or has changed.
    """
    directory = as_path(model).expanduser()
    if isinstance(directory, StorePath):
        directory = transfer.fetch(directory, unwanted=() if whole else ("optimizer*",))
    if directory.is_file():
        raise UserError(f"model {model} is a file; expected a Hugging Face model directory")
    if not directory.is_dir():
        directory = _download(model)
    if adapters.is_adapter(directory):
        base_of(directory)
        return directory
    missing = [
        what
        for what, patterns in {
            "configuration (config.json)": ("config.json",),
            "weights (model*.safetensors)": WEIGHTS,
            "tokenizer (tokenizer.json)": _TOKENIZER,
        }.items()
        if not _matching(directory, patterns)
    ]
    if missing:
        raise UserError(
            f"model directory {model} has no {', no '.join(missing)}; expected a Hugging Face model directory"
        )
    return directory


def base_of(directory: Path) -> Path:
    """The directory whose weights a model's are: of an adapter that of its base, of a whole model its own.

    Raises:
      UserError: the base is not to be found, is an adapter itself, or is not what the adapter was trained on.
    """
    if not adapters.is_adapter(directory):
        return directory
    if not _matching(directory, adapters.WEIGHTS):
        raise UserError(f"the adapter in {directory} has no weights ({adapters.WEIGHTS[0]})")
    expected, problems = adapters.base_digest(directory), list[str]()
    for name, revision in adapters.bases(directory):
        try:
            base = resolve(name) if revision is None else _download(name, revision)
        except UserError as error:
            problems.append(str(error))
            continue
        if adapters.is_adapter(base):
            problems.append(f"{name} is an adapter; expected a whole model")
        elif expected not in (None, digest(base)):
            problems.append(f"{name} has changed since the adapter was trained on it")
        else:
            return base
    told = directory / adapters.CONFIG_FILE
    raise UserError(f"the base of the adapter in {directory}: {'; '.join(problems)}. {told} says where it is")


def digest(directory: Path) -> str:
    """Hex digest of everything that decides what the model says: weights, configuration and tokenizer files.

    File names enter, the directory's own name, `spo.json`, metrics and optimiser state do not. That of an adapter
    covers its base, wherever it lies.
    """
    patterns = (*WEIGHTS, *_TOKENIZER, *_SETTINGS)
    if not adapters.is_adapter(directory):
        return _digest_of_files(directory, patterns)
    files = _digest_of_files(directory, (*adapters.WEIGHTS, *patterns))
    return storage.digest(f"{files}{adapters.settings_that_matter(directory)}{digest(base_of(directory))}".encode())


def _digest_of_files(directory: Path, patterns: tuple[str, ...]) -> str:
    files = _matching(directory, patterns)
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing releases the interpreter lock
        digests = list(pool.map(lambda file: pruning.digest_of(file, "weights"), files))
    named = (f"{file.name}\0{one}\0" for file, one in zip(files, digests, strict=True))
    return storage.digest("".join(named).encode())


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory; that of its base where an adapter brings none.

    Raises:
      UserError: it cannot be read, or has no end-of-text token.
    """
    from transformers import AutoTokenizer

    if not _matching(directory, _TOKENIZER):
        directory = base_of(directory)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise UserError(f"the tokenizer in {directory} cannot be loaded: {first_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer in {directory} has no end-of-text token (eos_token); responses could never end")
    return cast("PreTrainedTokenizerBase", tokenizer)


def load_config(directory: Path) -> PretrainedConfig:
    """The configuration of a model directory.

    Raises:
      UserError: it cannot be read, or is of a model that needs its own code.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(base_of(directory)), trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise UserError(f"the configuration in {directory} cannot be read: {first_line(error)}") from error


def load_model(directory: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The causal language model of a directory, in evaluation mode; an adapter is merged into its base.

    Raises:
      UserError: torn or missing weights, not a causal language model, or one that needs its own code.
    """
    from transformers import AutoModelForCausalLM

    if (directory / VALUE_HEAD_FILE).is_file():  # with tied embeddings it would load, and speak nonsense
        raise UserError(f"{directory} is a critic's; expected a language model")
    if adapters.is_adapter(directory):
        from stages.models.lora import load_merged

        return load_merged(directory, device, dtype)
    return _load(AutoModelForCausalLM, directory, device, dtype)


def load_backbone(directory: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a directory up to its last hidden states, without an output head; as `load_model` otherwise."""
    from transformers import AutoModel

    if adapters.is_adapter(directory):
        return cast("PreTrainedModel", load_model(directory, device, dtype).base_model)
    return _load(AutoModel, directory, device, dtype)


def _load(kind: Any, directory: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    from safetensors import SafetensorError

    pruning.check_weights(directory)
    try:
        with quietly():
            loaded = kind.from_pretrained(
                str(directory), dtype=dtype, trust_remote_code=False, output_loading_info=True
            )
    except (OSError, ValueError, ImportError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"the model in {directory} cannot be loaded: {first_line(error)}") from error
    model, report = cast("tuple[PreTrainedModel, dict[str, set[str]]]", loaded)
    if absent := sorted(report["missing_keys"]):  # transformers would fill them with random numbers
        raise UserError(f"the weights in {directory} lack {len(absent)} tensors, the first is {absent[0]}")
    return model.to(device).eval()  # pyright: ignore[reportArgumentType]


def context_length(config: PretrainedConfig) -> int:
    """The longest sequence, prompt and response together, that the model was made for, in tokens.

    Raises:
      UserError: the configuration does not say.
    """
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(length, int):
        raise UserError(f"the {config.model_type} configuration states no max_position_embeddings")
    return length


def vocabulary_size(config: PretrainedConfig) -> int:
    """How many token ids the model knows, from 0."""
    return config.get_text_config().vocab_size


def pick_device(device: str) -> torch.device:
    """`auto` is the first CUDA device if there is one, else the CPU; anything else is taken as torch names it.

    Raises:
      UserError: no such device here.
    """
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"--device {device}: {first_line(error)}") from error
    if picked.type == "cuda" and (picked.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {device}: this machine has {torch.cuda.device_count()} CUDA devices; use cpu or auto"
        )
    return picked


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where a CUDA device computes in it, else float32.

    Raises:
      UserError: not the name of a floating-point type.
    """
    import torch

    if dtype == "auto":
        bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if bfloat16 else torch.float32
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in names:
        raise UserError(f"--dtype must be one of auto, {', '.join(names)}; got {dtype!r}")
    return names[dtype]


def _download(model: str, revision: str | None = None) -> Path:
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UserError(f"there is no model directory {model}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    wanted = ["*.json", "*.model", "*.txt", "*.jinja"]
    ours, older = ["model*.safetensors", "adapter_model.safetensors"], ["pytorch_model*.bin", "adapter_model.bin"]
    try:
        directory = Path(snapshot_download(model, revision=revision, allow_patterns=[*wanted, *ours]))
        if not _matching(directory, (*WEIGHTS, *adapters.WEIGHTS)):  # kept in torch's own format only
            directory = Path(snapshot_download(model, revision=revision, allow_patterns=[*wanted, *older]))
        return directory
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"model {model!r} is neither a directory here nor to be had from the Hugging Face hub: {first_line(error)}"
        ) from error


def _matching(directory: Path, patterns: tuple[str, ...]) -> list[Path]:
    """The files of such names, those that were pruned among them."""
    found = {path for pattern in patterns for path in directory.glob(pattern) if path.is_file()}
    gone = [name for name in pruning.lost(directory, "weights") if any(fnmatch(name, one) for one in patterns)]
    return sorted(found | {directory / name for name in gone})
