"""Read the text of each token behind an artefact: find the tokenizer of the sampling model, or do without it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from tokenizers import Tokenizer

from stages.core.errors import UserError, first_line
from stages.core.paths import AnyPath, is_path_reference, locate
from stages.core.store import StorePath
from stages.models.token_texts import Decode, decoder, token_texts
from stages.models.transfer import fetch
from stages.shards.parts import Artefact


def find_decoder(responses: Artefact) -> tuple[Decode | None, str]:
    """Return the decoder of the model in the lineage, or None and a note if the model is not available locally."""
    lineage = responses.lineage
    if lineage is None or lineage.model is None:
        return None, ""
    directory = _model_directory(lineage.model.path, responses.directory)
    if directory is None:
        return None, f"The model {lineage.model.path} is not available here."
    if (directory / "tokenizer.json").is_file():  # faster than the tokenizer classes of transformers
        try:
            fast = Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # tokenizers raises Exception itself, no class of its own
            raise UserError(f"the tokenizer in {directory} cannot be loaded: {first_line(error)}") from error
        return lambda ids: fast.decode(list(ids), skip_special_tokens=False), ""
    from stages.models.loading import load_tokenizer  # importing transformers takes seconds

    return decoder(load_tokenizer(directory)), ""


def readable_tokens(ids: Sequence[int], text: str | None, decode: Decode | None) -> tuple[list[str], str]:
    """Return one text per token, and a note if token ids are shown instead.

    Without `decode`, a text with as many bytes as tokens (or one fewer, for the end-of-text token) is read as one byte
    per token; any other text is shown as token ids.
    """
    if decode is not None:
        return token_texts(decode, ids), ""
    data = (text or "").encode()
    if data and len(data) in (len(ids), len(ids) - 1):
        rest = ["<end>"] * (len(ids) - len(data))
        return token_texts(_decode_bytes, data) + rest, ""
    return [f"{one} " for one in ids], "The tokenizer is not available: tokens are shown as ids."


def _decode_bytes(data: Sequence[int]) -> str:
    return bytes(data).decode(errors="replace")


def _model_directory(path: str, base: AnyPath) -> Path | None:
    """Return the directory of a local model, of one in a store, or of one in the local hub cache; no hub request."""
    directory = locate(path, base)
    if directory.is_dir():
        if isinstance(directory, StorePath):
            return fetch(directory, unwanted=("*.safetensors", "*.bin"))
        return directory
    if is_path_reference(path) or path.startswith("."):
        return None
    try:
        cached = try_to_load_from_cache(path, "config.json")
    except HFValidationError:  # no name on the hub
        return None
    return Path(cached).parent if isinstance(cached, str) else None
