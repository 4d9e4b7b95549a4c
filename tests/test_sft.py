"""Test `spo sft`: what it learns, what it refuses, and that a killed run resumes to the same bytes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from stages.core.errors import FingerprintMismatch, Interrupted, UserError
from stages.core.progress import Silent
from stages.models import checkpoints, loading
from stages.models.presets import make_byte_tokenizer, make_model
from stages.sft import Config, run
from stages.shards.lineage import Lineage, read_lineage
from stages.shards.sharding import interruptible
from stages.tasks import open_task
from stages.training.demonstrations import encode_examples, plan_batches
from tests.shards.samples import Notes

CPU = torch.device("cpu")
TOKENIZER = make_byte_tokenizer()


def settings(out: Path, **given: Any) -> Config:
    """Return a config that trains in seconds: questions of one operation, 4 steps of 8 examples."""
    settings: dict[str, Any] = {"preset": "tiny", "task": "arithmetic", "task_arg": ("operations=1",), "threads": 1}
    settings |= {"steps": 4, "per_device_batch_size": 8} | given
    return Config(out=out, **settings)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return dict(loading.load_model(directory, CPU, torch.float32).state_dict())


def same(a: Path, b: Path) -> bool:
    left, right = weights(a), weights(b)
    return all(torch.equal(left[name], right[name]) for name in left)


def log_prob(model: Any, prompt: str, response: str) -> float:
    """Return the mean log-probability of the tokens of a response and the end token, computed from the logits."""
    ids = torch.tensor([[*prompt.encode(), *response.encode(), 256]])
    with torch.no_grad():
        table = model(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None]).flatten()
    return float(table[len(prompt) - 1 :].mean())


class Stop(Silent):
    """Sends a signal to this process after a number of steps."""

    def __init__(self, after: int, number: int) -> None:
        self.left, self.number = after, number

    def advance(self, done: int = 0, tokens: int = 0, prefilled: int = 0, **figures: float) -> None:
        self.left -= bool(figures)
        if self.left == 0:
            os.kill(os.getpid(), self.number)


def test_it_learns_the_response_and_its_end(tmp_path: Path):
    """Trained on one question, the response and the end token become nearly certain."""
    data = tmp_path / "train.jsonl"
    data.write_text('{"question": "1 + 1?", "answer": "It is 2.\\n#### 2"}\n')
    args: dict[str, Any] = {"task": "gsm8k", "task_arg": (), "prompt_template": "plain", "data": str(data)}
    summary = run(settings(tmp_path / "model", steps=30, learning_rate=1e-2, per_device_batch_size=1, **args))
    model = loading.load_model(tmp_path / "model", CPU, torch.float32)
    assert log_prob(model, "1 + 1?", " It is 2.\n#### 2") > -0.05
    assert summary.figures["loss"] < 0.1
    assert log_prob(make_model("tiny", 0)[0].eval(), "1 + 1?", " It is 2.\n#### 2") < -4


def test_the_loss_of_held_out_solutions_is_measured_and_not_trained_on(tmp_path: Path):
    held = {"num_examples": 8, "eval_examples": 3, "eval_steps": 2, "steps": 4}
    summary = run(settings(tmp_path / "held", **held))
    assert same(tmp_path / "held", run_to(tmp_path / "plain", num_examples=8, steps=4))
    lines = [json.loads(line) for line in (tmp_path / "held/metrics.jsonl").read_text().splitlines()]
    assert ["eval_loss" in line for line in lines] == [False, True, False, True]
    model = loading.load_model(tmp_path / "held", CPU, torch.float32)
    questions = open_task("arithmetic", None, ["operations=1"]).questions("train")[8:11]
    scores = [
        (log_prob(model, question.prompt, str(question.solution)), len(str(question.solution)) + 1)
        for question in questions
    ]
    expected = -sum(mean * tokens for mean, tokens in scores) / sum(tokens for _, tokens in scores)
    assert lines[-1]["eval_loss"] == pytest.approx(expected, rel=1e-4)
    assert summary.figures["eval_loss"] == lines[-1]["eval_loss"]
    assert all(line["tokens_per_second"] > 0 for line in lines)
    assert "eval_loss" not in (tmp_path / "plain/metrics.jsonl").read_text()


def test_all_solutions_cannot_be_held_out(tmp_path: Path):
    data = tmp_path / "train.jsonl"
    data.write_text('{"question": "1 + 1?", "answer": "It is 2.\\n#### 2"}\n')
    args: dict[str, Any] = {"task": "gsm8k", "task_arg": (), "prompt_template": "plain", "data": str(data)}
    with pytest.raises(UserError, match="holds out all 1 worked solutions: expected at most 0"):
        run(settings(tmp_path / "model", eval_examples=1, steps=None, **args))
    with pytest.raises(UserError, match="--eval-steps requires --eval-examples"):
        settings(tmp_path / "model", eval_steps=1)


def run_to(out: Path, **given: Any) -> Path:
    run(settings(out, **given))
    return out


def test_the_first_loss_is_minus_the_mean_log_probability_of_the_response_tokens(tmp_path: Path):
    run(settings(tmp_path / "model", steps=1))
    first = json.loads((tmp_path / "model" / "metrics.jsonl").read_text().splitlines()[0])
    model = make_model("tiny", 0)[0].eval()
    questions = open_task("arithmetic", None, ["operations=1"]).questions("train")[:8]
    expected = [-log_prob(model, question.prompt, question.solution or "") for question in questions]
    assert first["loss"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert first["num_tokens"] == 8 * 9


def test_the_output_is_a_model_directory_with_a_lineage(tmp_path: Path):
    summary = run(settings(tmp_path / "model"))
    directory = checkpoints.resolve(str(tmp_path / "model"))
    assert loading.load_tokenizer(directory)("#1")["input_ids"] == [35, 49]
    lineage = read_lineage(directory)
    assert lineage is not None
    assert (lineage.stage, lineage.config["learning_rate"], lineage.seed) == ("sft", 3e-3, 0)
    assert lineage.inputs[0].fingerprint == open_task("arithmetic", None, ["operations=1"]).digest
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert summary.rows == 32
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_logs", "model"]  # nothing unfinished


def test_the_number_of_passes_per_step_changes_rounding_only(tmp_path: Path):
    run(settings(tmp_path / "whole"))
    split = settings(tmp_path / "split", per_device_batch_size=4, gradient_accumulation_steps=2)
    run(split)
    left, right = weights(tmp_path / "whole"), weights(tmp_path / "split")
    assert all(torch.allclose(left[name], right[name], atol=2e-4) for name in left)
    assert lineage_of(tmp_path / "whole").fingerprint == lineage_of(tmp_path / "split").fingerprint


def lineage_of(directory: Path) -> Lineage:
    lineage = read_lineage(directory)
    assert lineage is not None
    return lineage


def test_the_same_work_is_skipped_and_another_configuration_is_refused(tmp_path: Path):
    config, notes = settings(tmp_path / "model"), Notes()
    first = run(config)
    before = (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns
    again = run(config, notes)
    assert again.up_to_date
    assert (again.rows, again.figures) == (first.rows, first.figures)
    assert notes.lines == [f"{tmp_path / 'model'} is up to date"]
    with pytest.raises(FingerprintMismatch, match="seed: found 0, requested 1; steps: found 4, requested 5"):
        run(settings(tmp_path / "model", steps=5, seed=1))
    assert (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns == before
    assert not run(settings(tmp_path / "model", seed=1, overwrite=True)).up_to_date
    assert lineage_of(tmp_path / "model").seed == 1


def test_training_starts_from_the_weights_of_a_given_model(tmp_path: Path):
    run(settings(tmp_path / "first"))
    second = settings(tmp_path / "second", preset=None, model=str(tmp_path / "first"), learning_rate=1e-9)
    run(second)
    left, right = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert all(torch.allclose(left[name], right[name], atol=1e-6) for name in left)
    source = lineage_of(tmp_path / "second").model
    assert source is not None
    assert (source.path, source.fingerprint) == ("../first", checkpoints.digest(tmp_path / "first"))


def test_an_output_path_with_other_files_is_refused(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").touch()
    with pytest.raises(UserError, match="not a model directory made by spo"):
        run(settings(tmp_path / "model", overwrite=True))
    assert (tmp_path / "model" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"preset": None}, "expected either --model, to start from a model, or --preset"),
        ({"model": "somewhere"}, "expected either --model, to start from a model, or --preset"),
        ({"steps": 0}, "--steps must be at least 1; got 0"),
    ],
)
def test_invalid_options_are_refused(tmp_path: Path, given: dict[str, Any], problem: str):
    with pytest.raises(UserError, match=problem):
        settings(tmp_path / "model", **given)


def test_unusable_examples_are_refused_before_anything_is_written(tmp_path: Path):
    data = tmp_path / "train.jsonl"
    long: dict[str, Any] = {"task": "gsm8k", "task_arg": (), "data": str(data)}
    data.write_text(json.dumps({"question": "?", "answer": "x" * 3000 + "#### 1"}))
    with pytest.raises(UserError, match="every example is longer than the model's context of 2048 tokens"):
        run(settings(tmp_path / "model", **long))
    data.write_text(json.dumps({"question": "?", "answer": "1"}))
    with pytest.raises(UserError, match="no worked solutions"):
        run(settings(tmp_path / "model", **long))
    data.write_text("")
    with pytest.raises(UserError, match="task has no questions"):
        run(settings(tmp_path / "model", **long))
    with pytest.raises(UserError, match="endless stream: pass --num-examples or --steps"):
        run(settings(tmp_path / "model", steps=None))
    with pytest.raises(UserError, match="has 10,000 questions; expected --num-examples of at most that, got 10001"):
        run(settings(tmp_path / "model", split="test", num_examples=10_001))
    assert [path.name for path in tmp_path.iterdir()] == ["train.jsonl"]


def test_examples_that_do_not_fit_are_left_out_and_counted(tmp_path: Path):
    answers = ["#### 1", "x" * 3000 + "#### 1", "1"]
    rows = [json.dumps({"question": "?", "answer": answer}) + "\n" for answer in answers]
    (tmp_path / "train.jsonl").write_text("".join(rows))
    summary = run(settings(tmp_path / "model", task="gsm8k", task_arg=(), data=str(tmp_path), steps=None, epochs=2.0))
    assert (summary.rows, summary.figures["steps"]) == (1, 2)
    assert summary.notes == (
        "left out 1 questions without a worked solution",
        "left out 1 examples longer than the context of 2048 tokens",
    )


def untimed(directory: Path) -> list[dict[str, float]]:
    """Return the metrics of a model without those that time its steps."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{n: value for n, value in one.items() if n not in ("step_time", "tokens_per_second")} for one in lines]


def killed_after(config: Config, steps: int) -> None:
    child = os.fork()
    if child == 0:
        try:
            run(config, Stop(steps, signal.SIGKILL))
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_a_run_that_is_killed_several_times_ends_with_the_same_bytes(tmp_path: Path):
    given: dict[str, Any] = {"steps": 7, "num_examples": 24, "save_steps": 2}  # 3 steps an epoch
    (tmp_path / "torn").mkdir()
    run(settings(tmp_path / "whole", **given))
    config = settings(tmp_path / "torn" / "model", **given)
    for steps in (3, 1, 3):  # the newest checkpoint is then after step 2, 2 and 4
        killed_after(config, steps)
    assert [path.name for path in (tmp_path / "torn" / ".model.partial").glob("step-*")] == ["step-00000004"]
    notes = Notes()
    run(config, notes)
    assert any("after step 4" in line for line in notes.lines)
    for name in ("model.safetensors", "spo.json", "README.md", "config.json", "tokenizer.json"):
        assert (tmp_path / "torn" / "model" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert untimed(tmp_path / "torn" / "model") == untimed(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "torn").iterdir()) == ["_logs", "model"]


def test_a_signal_leaves_a_resumable_run_that_other_settings_do_not_resume(tmp_path: Path):
    config = settings(tmp_path / "model", save_steps=1)
    with pytest.raises(Interrupted, match="SIGTERM"), interruptible():
        run(config, Stop(3, signal.SIGTERM))
    assert not (tmp_path / "model").exists()
    with pytest.raises(FingerprintMismatch, match="seed: found 0, requested 1"):
        run(settings(tmp_path / "model", seed=1))
    run(config)
    run(settings(tmp_path / "whole"))
    assert same(tmp_path / "model", tmp_path / "whole")


def test_a_response_follows_the_prompt_tokens_of_a_rollout():
    example, empty = encode_examples(TOKENIZER, [("1B+2C", "B+2=3;#3"), ("é", "")])
    assert example.tokens.tolist() == [*b"1B+2CB+2=3;#3", 256]
    assert example.kept.tolist() == list(range(5, 14))
    assert (empty.tokens.tolist(), empty.kept.tolist()) == ([*"é".encode(), 256], [2])


def test_a_token_that_spans_prompt_and_response_is_split():
    """`b#` is one token of this vocabulary, but a rollout has the prompt `ab`, so training must have it too."""
    vocabulary = {"a": 0, "b": 1, "#": 2, "1": 3, "b#": 4, "#1": 5, "<end>": 6}
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=[("b", "#"), ("#", "1")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>")
    assert tokenizer("ab#1")["input_ids"] == [0, 4, 3]
    (example,) = encode_examples(tokenizer, [("ab", "#1")])
    assert example.tokens.tolist() == [0, 1, 5, 6]
    assert example.kept.tolist() == [2, 3]


def test_an_epoch_has_every_example_once_in_batches_of_similar_length():
    texts = [("p", "x" * (1 + i * 37 % 50)) for i in range(200)]
    examples = encode_examples(TOKENIZER, texts)
    batches = plan_batches(examples, 8, seed=0, epoch=0)
    assert sorted(np.concatenate(batches)) == list(range(200))
    spread = [np.ptp([examples[i].tokens.size for i in batch]) for batch in batches]
    assert max(spread) <= 2  # of 50 different lengths
    orders = [np.concatenate(plan_batches(examples, 8, seed, epoch)) for seed, epoch in [(0, 0), (0, 1), (1, 0)]]
    assert np.array_equal(orders[0], np.concatenate(batches))
    assert not np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])


@pytest.mark.parametrize("torn", [b"", b'{"stage": "sf', b"\xff\xfe"])
def test_work_with_a_torn_lineage_and_no_step_starts_over(torn: bytes, tmp_path: Path):
    """A full disk or a power loss can leave it; refused, the output could never be made."""
    partial = tmp_path / ".model.partial"
    partial.mkdir()
    (partial / "spo.json").write_bytes(torn)
    (partial / "metrics.jsonl").write_bytes(b'{"loss"')
    run(settings(tmp_path / "model", steps=1))
    run(settings(tmp_path / "reference", steps=1))
    assert same(tmp_path / "model", tmp_path / "reference")


def test_a_torn_lineage_beside_a_checkpoint_is_restored_from_it(tmp_path: Path):
    with pytest.raises(Interrupted), interruptible():
        run(settings(tmp_path / "model", save_steps=1), Stop(2, signal.SIGTERM))
    (tmp_path / ".model.partial" / "spo.json").write_bytes(b"")
    notes = Notes()
    run(settings(tmp_path / "model", save_steps=1), notes)
    assert any("resuming" in line for line in notes.lines)
