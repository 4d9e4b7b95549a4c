"""Find, check and digest model directories in the Hugging Face layout.

`stages.models.loading` loads what they hold, `stages.models.saving` writes them. Importing this module is cheap: no
torch, no transformers.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub

from stages.core import storage
from stages.core.errors import UserError, first_line
from stages.core.json_files import read_json
from stages.core.paths import as_path
from stages.core.store import StorePath
from stages.models import adapters, pruning, transfer

WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
VALUE_HEAD_FILE = "value_head.state"
"""The value head of a critic, next to the backbone's weights (`stages.optimization.critic`).

Like the optimizer's state, it is in the safetensors format under another suffix, because other programs (vLLM) load
every `*.safetensors` file of a directory as weights.
"""
OPTIMIZER_FILE = "optimizer.state"
"""AdamW's state by parameter name (`stages.optimization.optimizer`)."""
METRICS_FILE = "metrics.jsonl"
"""The metrics of each training step, one JSON object per line (`stages.training.resumable`)."""
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_JSON = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "*.index.json"),
    "adapter_config.json",
)
"""Files that hold a JSON object, if a directory has them."""
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
    """Return the local directory of a model: the directory itself, or a copy of one in an object store or on the hub.

    The directory may hold an adapter (`stages.models.adapters`); the functions of this package read it as base and
    adapter together. It may also have pruned weights: its digest is still known, only `loading.load_model` fails.

    Args:
      model: a path, an address in an object store, or a name on the Hugging Face hub.
      whole: also copy the optimizer's state from an object store.

    Raises:
      UserError: there is no such model; the directory lacks its configuration, weights or tokenizer; the base of an
        adapter is missing or has changed.
    """
    directory = as_path(model).expanduser()
    if isinstance(directory, StorePath):
        directory = transfer.fetch(directory, unwanted=() if whole else ("optimizer*",))
    if directory.suffix == ".gguf":
        raise UserError(
            f"model {model} is a GGUF file; expected a Hugging Face model directory. Convert it with transformers and "
            "the package gguf: AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=NAME), then save_pretrained, the "
            "same for AutoTokenizer; docs/models.md has the whole script"
        )
    if directory.is_file():
        raise UserError(f"model {model} is a file; expected a Hugging Face model directory")
    if not directory.is_dir():
        directory = _download(model)
    for file in _matching(directory, _JSON):  # transformers would silently replace some corrupt ones by defaults
        read_json(file)
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
    """Return the directory with the full weights: of an adapter, its base; of any other model, the directory itself.

    Raises:
      UserError: the base is missing, is an adapter itself, or has changed since the adapter was trained.
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
            problems.append(f"{name} is an adapter; expected full weights")
        elif expected not in (None, digest(base)):
            problems.append(f"{name} has changed since the adapter was trained on it")
        else:
            return base
    raise UserError(
        f"the base of the adapter in {directory} is not usable: {'; '.join(problems)}. "
        f"Set base_model_name_or_path in {directory / adapters.CONFIG_FILE}"
    )


def digest(directory: Path) -> str:
    """Return a hex digest of everything that decides what a model computes: weights, configuration, tokenizer files.

    File names enter the digest; the name of the directory, `spo.json`, metrics and the optimizer's state do not. The
    digest of an adapter covers its base, whatever the base's location.
    """
    patterns = (*WEIGHTS, *_TOKENIZER, *_SETTINGS)
    if not adapters.is_adapter(directory):
        return _digest_files(directory, patterns)
    files = _digest_files(directory, (*adapters.WEIGHTS, *patterns))
    return storage.digest(f"{files}{adapters.settings_that_matter(directory)}{digest(base_of(directory))}".encode())


def _digest_files(directory: Path, patterns: tuple[str, ...]) -> str:
    files = _matching(directory, patterns)
    with ThreadPoolExecutor(max_workers=4) as pool:  # threads suffice: hashing releases the interpreter lock
        digests = list(pool.map(lambda file: pruning.digest_of(file, "weights"), files))
    named = (f"{file.name}\0{one}\0" for file, one in zip(files, digests, strict=True))
    return storage.digest("".join(named).encode())


def has_tokenizer(directory: Path) -> bool:
    """Return whether a directory holds tokenizer files; an adapter may rely on those of its base."""
    return bool(_matching(directory, _TOKENIZER))


def public_name(directory: Path) -> tuple[str, str | None]:
    """Return the name and hub revision under which other programs find a model.

    A copy of a model in an object store has the address there, a snapshot in the hub's cache its name on the hub, any
    other directory its absolute path and no revision.
    """
    origin = transfer.origin(directory.resolve())
    repository = origin.parent.parent.name
    if origin.parent.name == "snapshots" and repository.startswith("models--"):  # the layout of the hub's cache
        return repository.removeprefix("models--").replace("--", "/"), origin.name
    return str(origin), None


def _download(model: str, revision: str | None = None) -> Path:
    if model.startswith((".", "/", "~")) or model.count("/") > 1:  # a path, never a name on the hub
        raise UserError(f"there is no model directory {model}")
    settings = ["*.json", "*.model", "*.txt", "*.jinja", "README.md"]
    safetensors, pickles = (
        ["model*.safetensors", "adapter_model.safetensors"],
        ["pytorch_model*.bin", "adapter_model.bin"],
    )
    fetch = huggingface_hub.snapshot_download
    try:
        directory = Path(fetch(model, revision=revision, allow_patterns=[*settings, *safetensors]))
        if not _matching(directory, (*WEIGHTS, *adapters.WEIGHTS)):
            # Repositories often hold both formats, so the pickled weights are fetched only if there are no others.
            directory = Path(fetch(model, revision=revision, allow_patterns=[*settings, *pickles]))
        return directory
    except (huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.HFValidationError, OSError) as error:
        raise UserError(
            f"model {model!r} is neither a local directory nor available on the Hugging Face hub: {first_line(error)}"
        ) from error


def _matching(directory: Path, patterns: tuple[str, ...]) -> list[Path]:
    """Return the files whose names match, including pruned ones, sorted."""
    found = {path for pattern in patterns for path in directory.glob(pattern) if path.is_file()}
    pruned = [name for name in pruning.lost(directory, "weights") if any(fnmatch(name, one) for one in patterns)]
    return sorted(found | {directory / name for name in pruned})
