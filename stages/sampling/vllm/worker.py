"""The code that runs inside vLLM's workers: the choice of tokens, new weights in place, and an end with the parent.

**Choice.** A logits processor draws each token with `draws.draw_tokens`, by the rule, key and position of the embedded
engine. It sets the drawn token's logit to its log-probability under the temperature-scaled distribution over the full
vocabulary, and all other logits to −∞. vLLM then takes the largest logit and reports it, because it is configured to
report processed logits. Requests therefore use greedy sampling and need no seeds (which vLLM does not support on a
CPU), and top-p or top-k restrict the choice without changing the log-probabilities.

**Stems.** A prefix from which several samples start is computed by one request, a stem: its logits give the first token
of each sample. vLLM's output has room for one token; the worker keeps all of them until `first_tokens` fetches them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor  # pyright: ignore[reportMissingImports]
from vllm.v1.sample.logits_processor.builtin import process_dict_updates  # pyright: ignore[reportMissingImports]

from stages.maths.randomness import uniforms
from stages.sampling.draws import draw_tokens
from stages.sampling.protocol import SamplingParams
from stages.sampling.vllm.launch import CHOICE, FIRST, KEYS, OWNER, STEM

_ELEMENTS = 2**24  # maximum number of logits per draw: vLLM leaves little memory free
_first_tokens: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
"""Name of a stem → the first token of each of its samples, and their log-probabilities."""


@dataclass(frozen=True)
class _BatchRow:
    """The draws of a row of vLLM's batch.

    Attributes:
      keys: key of one sample, or keys of the samples of a stem (possibly none).
      first: position in the sample of the first token that this request draws.
      drawn: tokens that the request has drawn (vLLM's own list, which grows).
      stem: name of the stem; None for a sample.
    """

    keys: tuple[int, ...]
    first: int
    drawn: list[int]
    stem: str | None


class KeyedChoice(LogitsProcessor):
    """Chooses the tokens of requests with keys (`launch.KEYS`)."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.device, self.pinned = device, is_pin_memory
        self.keyed: dict[int, _BatchRow] = {}
        self.params = SamplingParams()
        if OWNER in os.environ and Path("/proc").is_dir():
            _end_with(int(os.environ[OWNER]))

    def is_argmax_invariant(self) -> bool:
        """Return False, so that vLLM applies the processor to greedy requests too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the requests as vLLM moves them from row to row."""
        process_dict_updates(self.keyed, batch_update, self._enter)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Draw a token for every row of the logits, [B, V] float32, which are changed in place."""
        if not self.keyed:  # vLLM profiles its memory, or runs requests without keys
            return logits
        stems = {row: what for row, what in self.keyed.items() if what.stem and what.keys}
        if stems:
            self._draw_first_tokens(logits, stems)
        numbers = np.zeros(len(logits))
        drawing = {row: what for row, what in self.keyed.items() if what.keys}
        numbers[list(drawing)] = uniforms(
            np.array([what.keys[0] for what in drawing.values()], np.uint64),
            [what.first + len(what.drawn) for what in drawing.values()],
        )
        uniform = self._to_device(numbers)[:, None]
        rows_at_once = max(1, _ELEMENTS // logits.shape[1])
        for part, part_numbers in zip(logits.split(rows_at_once), uniform.split(rows_at_once), strict=True):
            tokens, logprobs = draw_tokens(part, part_numbers, self.params)
            part.fill_(-torch.inf).scatter_(1, tokens, logprobs)
        return logits

    def _draw_first_tokens(self, logits: torch.Tensor, stems: dict[int, _BatchRow]) -> None:
        """Draw and keep the first token of every sample of these stems.

        vLLM may compute a prompt in several chunks and call this for each; the draws of the last chunk remain.
        """
        numbers = np.zeros((len(stems), max(len(what.keys) for what in stems.values())))
        for row, what in zip(numbers, stems.values(), strict=True):
            row[: len(what.keys)] = uniforms(np.array(what.keys, np.uint64), [0] * len(what.keys))
        uniform, rows = self._to_device(numbers), self._to_device(np.fromiter(stems, np.int64))
        rows_at_once = max(1, _ELEMENTS // logits.shape[1])
        chosen = [
            draw_tokens(logits[part], part_numbers, self.params)
            for part, part_numbers in zip(rows.split(rows_at_once), uniform.split(rows_at_once), strict=True)
        ]
        tokens, logprobs = (torch.cat(column) for column in zip(*chosen, strict=True))
        for place, what in enumerate(stems.values()):
            count = len(what.keys)
            _first_tokens[str(what.stem)] = tokens[place, :count], logprobs[place, :count]

    def _enter(self, params: Any, prompt: list[int] | None, drawn: list[int]) -> _BatchRow | None:
        """Return the draws of a new request; None for a request without keys."""
        extra = params.extra_args or {}
        if KEYS not in extra:
            return None
        self.params = SamplingParams(*extra[CHOICE])
        return _BatchRow(tuple(extra[KEYS]), extra[FIRST], drawn, extra.get(STEM))

    def _to_device(self, numbers: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(numbers)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.pinned else tensor.to(self.device)


class Worker:
    """Added to vLLM's worker (`worker_extension_cls`)."""

    reload_weights: Any
    model_runner: Any

    def first_tokens(self, stems: list[str]) -> list[tuple[list[int], list[float]]]:
        """Return the first tokens of each stem's samples and their log-probabilities, and forget them.

        The result is empty in a worker that draws no tokens.
        """
        drawn = [_first_tokens.pop(stem) for stem in stems if stem in _first_tokens]
        return [(tokens.tolist(), logprobs.tolist()) for tokens, logprobs in drawn]

    def take_weights(self, model_dir: str) -> None:
        """Load another model's weights in place.

        Workaround for vLLM 0.32 on a CPU: it does not update the packed copy of an output head that is tied to the
        embedding.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import (  # pyright: ignore[reportMissingImports]
            ParallelLMHead,
            VocabParallelEmbedding,
        )

        self.reload_weights(weights_path=model_dir)
        model = self.model_runner.get_model()
        tables = [layer for layer in model.modules() if isinstance(layer, VocabParallelEmbedding)]
        heads = [layer for layer in tables if isinstance(layer, ParallelLMHead)]
        if model.config.tie_word_embeddings and len(heads) == 1 and len(tables) == 2:
            (embedding,) = (layer for layer in tables if layer is not heads[0])
            heads[0].tie_weights(embedding)
            heads[0].quant_method.process_weights_after_loading(heads[0])


def _end_with(owner: int) -> None:
    """End vLLM when the process that started it is gone: vLLM's engine does not notice that it was killed.

    The engine is the parent of this worker. `os.getppid()` would name an unrelated process if the engine is gone
    already, so the parent is taken from `multiprocessing`.
    """
    engine = multiprocessing.parent_process()

    def watch() -> None:
        while _is_running(owner):
            time.sleep(1)
        if engine and engine.pid:
            with suppress(ProcessLookupError):
                os.kill(engine.pid, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _is_running(process: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"
