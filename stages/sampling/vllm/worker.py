"""What runs inside vLLM's workers: the choice of tokens, new weights in place, and an end when nobody is left.

**Choice.** A logits processor draws each token with `choosing.choose`, by the rule, key and position of the embedded
engine, and leaves vLLM nothing to choose: every logit becomes −∞ but the drawn token's, which becomes its
log-probability under the temperature-scaled distribution over the full vocabulary. vLLM then takes the largest logit
and, told to report processed logits, reports that log-probability. So requests ask vLLM for greedy sampling, need no
seeds (which it cannot keep on a CPU), and top-p or top-k narrow the choice without touching the log-probabilities.

**Stems.** A prefix from which several samples start is computed by one request, a stem: its logits give the first token
of each of them. vLLM's output has room for one; the worker keeps them all until they are asked for.
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

_ELEMENTS = 2**24  # logits that are looked at together: vLLM leaves little memory free for others
_first_tokens: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
"""Name of a stem → the first token of each of its samples, and their log-probabilities."""


@dataclass(frozen=True)
class _BatchRow:
    """What a row of vLLM's batch draws.

    Attributes:
      keys: of one sample, or of those that a stem draws for (maybe none).
      first: position in the sample where vLLM began; `drawn`: tokens that it has drawn since (its own list).
      stem: the name, where it is one.
    """

    keys: tuple[int, ...]
    first: int
    drawn: list[int]
    stem: str | None


class KeyedChoice(LogitsProcessor):
    """Chooses the tokens of a call's requests, which all bring a key."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.device, self.pinned = device, is_pin_memory
        self.keyed: dict[int, _BatchRow] = {}
        self.params = SamplingParams()
        if OWNER in os.environ and Path("/proc").is_dir():
            _end_with(int(os.environ[OWNER]))

    def is_argmax_invariant(self) -> bool:
        """False: then vLLM applies it to greedy requests too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follows the requests as vLLM moves them from row to row."""
        process_dict_updates(self.keyed, batch_update, self._enter)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Draws a token for every row of the logits, [B, V] float32, which is changed in place."""
        if not self.keyed:  # vLLM trying out its memory, or requests that are not ours
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
        for part, numbers_of_part in zip(logits.split(rows_at_once), uniform.split(rows_at_once), strict=True):
            tokens, logprobs = draw_tokens(part, numbers_of_part, self.params)
            part.fill_(-torch.inf).scatter_(1, tokens, logprobs)
        return logits

    def _draw_first_tokens(self, logits: torch.Tensor, stems: dict[int, _BatchRow]) -> None:
        """Draws for every sample of these rows, and keeps it. Of a prompt computed in pieces, what the last piece gave
        stays."""
        numbers = np.zeros((len(stems), max(len(what.keys) for what in stems.values())))
        for row, what in zip(numbers, stems.values(), strict=True):
            row[: len(what.keys)] = uniforms(np.array(what.keys, np.uint64), [0] * len(what.keys))
        uniform, rows = self._to_device(numbers), self._to_device(np.fromiter(stems, np.int64))
        rows_at_once = max(1, _ELEMENTS // logits.shape[1])
        chosen = [
            draw_tokens(logits[part], numbers_of_part, self.params)
            for part, numbers_of_part in zip(rows.split(rows_at_once), uniform.split(rows_at_once), strict=True)
        ]
        tokens, logprobs = (torch.cat(pieces) for pieces in zip(*chosen, strict=True))
        for place, what in enumerate(stems.values()):
            count = len(what.keys)
            _first_tokens[str(what.stem)] = tokens[place, :count], logprobs[place, :count]

    def _enter(self, params: Any, prompt: list[int] | None, drawn: list[int]) -> _BatchRow | None:
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
        """Of each of these stems, the first token of each of its samples, and their log-probabilities; once. Nothing
        where this worker draws no tokens."""
        drawn = [_first_tokens.pop(stem) for stem in stems if stem in _first_tokens]
        return [(tokens.tolist(), logprobs.tolist()) for tokens, logprobs in drawn]

    def take_weights(self, model_dir: str) -> None:
        """Loads another model's weights in place.

        vLLM 0.32 on a CPU forgets an output head that is tied to the embedding: its packed copy stays the old one.
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
    """Ends vLLM when the process that started it is gone: its engine does not notice when that one is killed.

    The engine is who started this worker. If that one is gone by now, `os.getppid()` is a stranger, who must live.
    """
    engine = multiprocessing.parent_process()

    def watch() -> None:
        while _lives(owner):
            time.sleep(1)
        if engine and engine.pid:
            with suppress(ProcessLookupError):
                os.kill(engine.pid, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _lives(process: int) -> bool:
    """Whether a process is there, and not only its exit code."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"
