"""Test `spo train` on real artefacts and a tiny model: what it writes, resumes, continues and refuses."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from stages.core.config import option
from stages.core.errors import FingerprintMismatch, Interrupted, UserError
from stages.core.progress import Silent
from stages.models import checkpoints, loading, saving
from stages.models.presets import make_model
from stages.optimization.step import learning_rate_factor
from stages.shards.lineage import describe, model_source, read_lineage, write_lineage
from stages.shards.parts import artefact_source, open_artefact
from stages.shards.schemas import ADVANTAGES, TRAJECTORIES
from stages.shards.sharding import interruptible
from stages.shards.writing import open_part
from stages.train import Config, run
from stages.training.steps import plan_batches

TEMPERATURE = 0.8
COUNT = 11


@dataclass(frozen=True, kw_only=True)
class Sampling:
    temperature: float = option("Temperature.", default=TEMPERATURE)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "base", seed=0)


@pytest.fixture(scope="module")
def chain(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with trajectories/ and advantages/, one part each."""
    return write_chain(tmp_path_factory.mktemp("chain"), model)


def save_model(directory: Path, seed: int, change: Callable[[Any], None] | None = None) -> Path:
    network, tokenizer = make_model("tiny", seed)
    if change:
        with torch.no_grad():
            change(network)
    made = describe("sft", None, Sampling())
    saving.save_directory(directory, network, tokenizer, lambda unfinished: write_lineage(unfinished, made))
    return directory


def make_rows(model: Path, *, keep: float = 0.4) -> tuple[pa.Table, pa.Table]:
    """Return trajectories with the model's log-probabilities, and their advantages, two segments for each response."""
    network = loading.load_model(model, torch.device("cpu"), torch.float32)
    generator = np.random.default_rng(0)
    trajectories, advantages = [], []
    for index in range(COUNT):
        prompt = generator.integers(32, 127, size=4 + index % 3).tolist()
        response = generator.integers(32, 127, size=2 + 2 * index).tolist()
        ids = torch.tensor([prompt + response])
        with torch.no_grad():
            logits = network(input_ids=ids).logits[0, len(prompt) - 1 : -1] / TEMPERATURE
        logprobs = logits.log_softmax(-1).gather(-1, torch.tensor(response)[:, None]).squeeze(-1).tolist()
        identifier, half = f"q{index}/0", len(response) // 2
        row = dict.fromkeys(TRAJECTORIES.names)
        row |= {"trajectory_id": identifier, "question_id": f"q{index}", "depth": 0, "finish_reason": "stop"}
        row |= {"prompt_token_ids": prompt, "token_ids": response, "logprobs": logprobs}
        trajectories.append(row | {"reference": "7", "reward": float(index % 2)})
        kept = np.flatnonzero(generator.random(len(response)) < keep)
        for segment, (start, end) in enumerate([(0, half), (half, len(response))]):
            row = dict.fromkeys(ADVANTAGES.names)
            row |= {"trajectory_id": identifier, "segment_index": segment, "start": start, "end": end}
            row |= {"cutpoints": [int(offset) for offset in kept if start <= offset < end], "value_start": 0.5}
            row |= {"value_end": 0.5, "advantage": float(generator.normal()), "num_rollouts": 0, "rewards": []}
            advantages.append(row)
    return (
        pa.Table.from_pylist(trajectories, schema=TRAJECTORIES.arrow),
        pa.Table.from_pylist(advantages, schema=ADVANTAGES.arrow),
    )


def write_chain(folder: Path, model: Path, *, parts: int = 1, keep: float = 0.4) -> Path:
    trajectories, advantages = make_rows(model, keep=keep)
    sampler = model_source(model, checkpoints.digest(model), folder / "trajectories")
    lineage = describe("rollout", TRAJECTORIES, Sampling(), model=sampler)
    write_parts(folder / "trajectories", lineage, TRAJECTORIES, trajectories, parts)
    made_from = artefact_source(open_artefact(folder / "trajectories", TRAJECTORIES), folder / "advantages")
    lineage = describe("estimate", ADVANTAGES, Sampling(), inputs=(made_from,))
    write_parts(folder / "advantages", lineage, ADVANTAGES, advantages, parts)
    return folder


def write_parts(directory: Path, lineage: Any, schema: Any, table: pa.Table, parts: int) -> None:
    for index in range(parts):
        first, last = (table.num_rows * number // parts for number in (index, index + 1))
        with open_part(directory, index, parts, lineage, schema) as part:
            part.write(table.slice(first, last - first))


def settings(chain: Path, out: Path, **changes: Any) -> Config:
    given: dict[str, Any] = {
        "advantages": (chain / "advantages",),
        "out": out,
        "learning_rate": 1e-3,
        "per_device_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "beta": 0.01,
        "device": "cpu",
        "threads": 1,
    }
    return Config(**given | changes)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def distance(one: Path, other: Path) -> float:
    theirs = weights(other)
    return max(float((value - theirs[name]).abs().max()) for name, value in weights(one).items())


def metrics(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def assert_identical(one: Path, other: Path) -> None:
    """Assert that weights, optimizer state and lineage are the same bytes."""
    for name in ("model.safetensors", "optimizer.state", "spo.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_the_output_is_a_hugging_face_directory_with_metrics_and_lineage(
    chain: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "policy"
    summary = run(settings(chain, out))
    network = loading.load_model(checkpoints.resolve(str(out)), torch.device("cpu"), torch.float32)
    assert loading.load_tokenizer(out).decode([72, 105]) == "Hi"
    assert network.config.model_type == "qwen2"
    assert distance(model, out) > 1e-4
    lines = metrics(out)
    assert [line["step"] for line in lines] == [1, 2, 3]  # 11 trajectories, 4 a step
    for name in ("loss", "reward", "kl", "entropy", "clip_ratio/region_mean", "approx_kl", "grad_norm", "step_time"):
        assert all(np.isfinite(line[name]) for line in lines), name
    assert lines[0]["ratio/mean"] == 1.0
    assert lines[1]["ratio/mean"] != 1.0
    lineage = read_lineage(out)
    assert lineage is not None
    assert lineage.stage == "train"
    assert lineage.config["temperature"] == TEMPERATURE
    assert lineage.model is not None
    assert lineage.model.fingerprint == checkpoints.digest(model)
    assert [item.stage for item in lineage.inputs] == ["estimate", "rollout"]
    assert lineage.counts["steps"] == 3
    assert summary.rows == COUNT
    rewards, graded = ([line[name] for line in lines] for name in ("reward", "responses/graded"))
    assert graded == [4, 4, 3]
    assert summary.reward == pytest.approx(np.average(rewards, weights=graded))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["_logs", "policy"]  # nothing unfinished is left


def test_a_second_call_finds_it_up_to_date(chain: Path, tmp_path: Path) -> None:
    out = tmp_path / "policy"
    first = run(settings(chain, out))
    before = (out / "model.safetensors").stat().st_mtime_ns
    again = run(settings(chain, out))
    assert again.up_to_date
    assert (again.rows, again.reward, again.figures) == (first.rows, first.reward, first.figures)
    assert (out / "model.safetensors").stat().st_mtime_ns == before


def test_another_configuration_is_refused_with_the_difference_unless_overwritten(chain: Path, tmp_path: Path) -> None:
    out = tmp_path / "policy"
    run(settings(chain, out))
    with pytest.raises(FingerprintMismatch, match=r"epsilon: found 0\.2, requested 0\.3"):
        run(settings(chain, out, epsilon=0.3))
    run(settings(chain, out, epsilon=0.3, overwrite=True))
    run(settings(chain, tmp_path / "other", epsilon=0.3))
    assert_identical(out, tmp_path / "other")


def test_files_of_another_tool_are_never_replaced(chain: Path, tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter1.tex").write_text("…", encoding="utf-8")
    with pytest.raises(UserError, match="not a model directory made by spo"):
        run(settings(chain, out, overwrite=True))
    assert (out / "chapter1.tex").exists()


def test_the_number_of_passes_per_step_changes_neither_weights_nor_fingerprint(chain: Path, tmp_path: Path) -> None:
    """Weights may differ by the rounding of float32 sums, which is small against the learning rate of 1e-3."""
    splits = [(1, 4), (2, 2), (4, 1)]
    for size, accumulation in splits:
        given = {"per_device_batch_size": size, "gradient_accumulation_steps": accumulation, "adam_epsilon": 1e-4}
        run(settings(chain, tmp_path / f"{size}", **given))
    assert distance(tmp_path / "1", tmp_path / "2") < 1e-6
    assert distance(tmp_path / "1", tmp_path / "4") < 1e-6
    given = {"per_device_batch_size": 4, "gradient_accumulation_steps": 1, "adam_epsilon": 1e-4}
    assert run(settings(chain, tmp_path / "1", **given)).up_to_date


def test_the_order_does_not_depend_on_the_number_of_parts(model: Path, chain: Path, tmp_path: Path) -> None:
    parted = write_chain(tmp_path / "parted", model, parts=3)
    run(settings(chain, tmp_path / "one"))
    run(settings(parted, tmp_path / "three"))
    assert distance(tmp_path / "one", tmp_path / "three") == 0.0


def test_every_epoch_has_each_trajectory_once_in_its_own_order() -> None:
    ids = [f"q{index}/0" for index in range(20)]
    batches = plan_batches(ids, seed=3, epochs=2, size=6)
    assert [len(batch) for batch in batches] == [6, 6, 6, 2] * 2
    first, second = ([index for batch in half for index in batch] for half in (batches[:4], batches[4:]))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    shuffled = [ids[index] for index in first]
    other = plan_batches(ids[::-1], seed=3, epochs=1, size=6)
    assert [ids[::-1][index] for batch in other for index in batch] == shuffled


class Stop(Silent):
    """Sends a signal to this process after a number of trajectories."""

    def __init__(self, after: int, number: signal.Signals) -> None:
        self.left, self.number = after, number

    def advance(self, done: int = 0, tokens: int = 0, prefilled: int = 0, **figures: float) -> None:
        if "loss" in figures:
            self.left -= done
            if self.left <= 0:
                os.kill(os.getpid(), self.number)


def attempt(config: Config, seconds: float | None = None, stop: Stop | None = None) -> bool:
    """Run in a child; return False if a signal killed it. The default action of SIGALRM ends a process like SIGKILL."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        if seconds is not None:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        code = 1
        try:
            run(config, stop or Silent())
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return False
    assert os.WEXITSTATUS(status) == 0
    return True


def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(chain: Path, tmp_path: Path) -> None:
    given = {"epochs": 2, "save_steps": 1}
    (tmp_path / "whole").mkdir()
    run(settings(chain, tmp_path / "whole" / "policy", **given))
    config = settings(chain, tmp_path / "torn" / "policy", **given)
    assert not attempt(config, stop=Stop(9, signal.SIGKILL))
    saved = list((tmp_path / "torn" / ".policy.partial").glob("step-*"))
    assert [path.name for path in saved] == ["step-00000002"]
    generator = random.Random(0)
    for _ in range(10):
        if attempt(config, seconds=generator.uniform(0.02, 0.5)):
            break
    run(config)
    assert_identical(tmp_path / "whole" / "policy", tmp_path / "torn" / "policy")
    assert [line["step"] for line in metrics(tmp_path / "torn" / "policy")] == [1, 2, 3, 4, 5, 6]
    assert sorted(entry.name for entry in (tmp_path / "torn").iterdir()) == ["_logs", "policy"]


def test_a_signal_leaves_a_resumable_run(chain: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    run(settings(chain, tmp_path / "whole" / "policy"))
    config = settings(chain, tmp_path / "policy", save_steps=1)
    with pytest.raises(Interrupted, match="SIGTERM"), interruptible():
        run(config, Stop(8, signal.SIGTERM))
    assert not (tmp_path / "policy").exists()
    with pytest.raises(FingerprintMismatch, match=r"unfinished work.*beta: found 0\.01, requested 0\.5"):
        run(settings(chain, tmp_path / "policy", beta=0.5))
    run(config)
    for name in ("model.safetensors", "optimizer.state"):
        assert (tmp_path / "policy" / name).read_bytes() == (tmp_path / "whole" / "policy" / name).read_bytes()


def test_two_calls_that_continue_one_optimizer_equal_one_call(chain: Path, tmp_path: Path) -> None:
    """With recorded log-probabilities and one step per epoch, two calls equal one call of two epochs."""
    given = {"old_logprobs": "recorded", "beta": 0.0, "gradient_accumulation_steps": 8, "adam_epsilon": 1e-4}
    whole = settings(chain, tmp_path / "whole", epochs=2, **given)
    run(whole)
    run(settings(chain, tmp_path / "first", **given))
    run(settings(chain, tmp_path / "second", model=str(tmp_path / "first"), **given))
    run(settings(chain, tmp_path / "fresh", model=str(tmp_path / "first"), optimizer_state="fresh", **given))
    assert distance(tmp_path / "whole", tmp_path / "second") < 1e-6
    assert distance(tmp_path / "whole", tmp_path / "fresh") > 1e-4
    lineage = read_lineage(tmp_path / "second")
    assert lineage is not None
    assert lineage.counts["schedule_steps"] == 2
    assert [item.stage for item in lineage.inputs] == ["estimate", "rollout", "optimizer"]


def test_a_schedule_over_all_calls_continues_after_the_last_step_of_the_previous_call(
    chain: Path, tmp_path: Path
) -> None:
    given = {"lr_scheduler_type": "linear", "total_steps": 6, "warmup_steps": 2}
    run(settings(chain, tmp_path / "first", **given))
    run(settings(chain, tmp_path / "second", model=str(tmp_path / "first"), **given))
    rates = [line["learning_rate"] for name in ("first", "second") for line in metrics(tmp_path / name)]
    assert rates == pytest.approx([0.5e-3, 1e-3, 1e-3, 0.75e-3, 0.5e-3, 0.25e-3])


def test_schedules_equal_values_computed_by_hand() -> None:
    assert [learning_rate_factor(position, 10, 4, "constant") for position in range(6)] == [
        0.25,
        0.5,
        0.75,
        1.0,
        1.0,
        1.0,
    ]
    assert [learning_rate_factor(position, 4, 0, "linear") for position in (0, 1, 3, 4, 9)] == [
        1.0,
        0.75,
        0.25,
        0.0,
        0.0,
    ]
    assert [learning_rate_factor(position, 4, 0, "cosine") for position in (0, 2, 4)] == pytest.approx([1.0, 0.5, 0.0])


def test_recorded_log_probabilities_give_the_same_steps_as_recomputed_ones(chain: Path, tmp_path: Path) -> None:
    run(settings(chain, tmp_path / "recompute"))
    run(settings(chain, tmp_path / "recorded", old_logprobs="recorded"))
    for one, other in zip(metrics(tmp_path / "recompute"), metrics(tmp_path / "recorded"), strict=True):
        for name in ("loss", "ratio/mean", "grad_norm"):
            assert other[name] == pytest.approx(one[name], abs=2e-3), name
    assert metrics(tmp_path / "recorded")[0]["ratio/mean"] == pytest.approx(1.0, abs=1e-5)


def test_without_the_mask_all_tokens_are_trained(chain: Path, tmp_path: Path) -> None:
    run(settings(chain, tmp_path / "masked"))
    run(settings(chain, tmp_path / "all", mask="all"))
    assert all(line["mask/fraction"] < 1 for line in metrics(tmp_path / "masked"))
    assert all(line["mask/fraction"] == 1 for line in metrics(tmp_path / "all"))
    assert distance(tmp_path / "masked", tmp_path / "all") > 1e-4


def test_steps_without_a_kept_token_are_skipped_and_counted(model: Path, tmp_path: Path) -> None:
    chain = write_chain(tmp_path / "chain", model, keep=0.0)
    summary = run(settings(chain, tmp_path / "policy"))
    assert distance(model, tmp_path / "policy") == 0.0
    assert summary.figures["steps/skipped"] == 3
    run(settings(chain, tmp_path / "next", model=str(tmp_path / "policy")))  # an empty optimizer state can be continued


def test_the_kl_term_pulls_towards_the_reference(chain: Path, tmp_path: Path) -> None:
    anchor = save_model(tmp_path / "anchor", seed=1)
    given = {"reference_model": str(anchor), "epochs": 3, "learning_rate": 3e-3}
    run(settings(chain, tmp_path / "free", beta=1e-9, **given))
    run(settings(chain, tmp_path / "held", beta=10.0, **given))
    free, held = metrics(tmp_path / "free"), metrics(tmp_path / "held")
    assert held[-1]["kl"] < 0.9 * free[-1]["kl"]
    lineage = read_lineage(tmp_path / "held")
    assert lineage is not None
    assert [item.stage for item in lineage.inputs] == ["estimate", "rollout", "reference"]


def test_a_reference_with_the_weights_of_the_policy_is_the_policy(chain: Path, model: Path, tmp_path: Path) -> None:
    run(settings(chain, tmp_path / "policy"))
    assert run(settings(chain, tmp_path / "policy", reference_model=str(model))).up_to_date


def test_tables_without_lineage_need_trajectories_model_and_temperature(model: Path, tmp_path: Path) -> None:
    trajectories, advantages = make_rows(model)
    pq.write_table(trajectories.replace_schema_metadata(None), tmp_path / "t.parquet")
    pq.write_table(advantages.replace_schema_metadata(None), tmp_path / "a.parquet")
    given: dict[str, Any] = {"advantages": (tmp_path / "a.parquet",)}
    with pytest.raises(UserError, match="--trajectories"):
        run(settings(tmp_path, tmp_path / "policy", **given))
    given["trajectories"] = (tmp_path / "t.parquet",)
    with pytest.raises(UserError, match="which model sampled it: pass --model"):
        run(settings(tmp_path, tmp_path / "policy", **given))
    given["model"] = str(model)
    with pytest.raises(UserError, match="pass --temperature"):
        run(settings(tmp_path, tmp_path / "policy", **given))
    summary = run(settings(tmp_path, tmp_path / "policy", temperature=TEMPERATURE, **given))
    assert summary.rows == COUNT
    assert any("no lineage" in note for note in summary.notes)


def test_a_table_of_the_wrong_stage_is_named(chain: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds trajectories, made by `spo rollout`; expected advantages"):
        run(settings(chain, tmp_path / "policy", advantages=(chain / "trajectories",)))
    assert not any(tmp_path.iterdir())


def test_a_model_without_a_tokenizer_is_refused(chain: Path, model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(UserError, match="no tokenizer"):
        run(settings(chain, tmp_path / "policy", model=str(bare)))


def test_a_trajectory_longer_than_the_context_is_named(chain: Path, model: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    shutil.copytree(model, short)
    config = json.loads((short / "config.json").read_text()) | {"max_position_embeddings": 16}
    (short / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"trajectory q5/0 has 18 tokens .* is 16"):
        run(settings(chain, tmp_path / "policy", model=str(short)))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["_logs", "short"]


def test_a_reference_with_another_vocabulary_is_refused(chain: Path, model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="another vocabulary"):
        run(settings(chain, tmp_path / "policy", reference_model=str(other)))
    run(settings(chain, tmp_path / "policy", reference_model=str(other), beta=0.0))


def test_the_error_about_a_loss_that_is_not_finite_names_the_step_and_the_remedy(chain: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"step 2 of 3: the loss is nan; take a lower --learning-rate"):
        run(settings(chain, tmp_path / "policy", learning_rate=1e30))
    assert not (tmp_path / "policy").exists()


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("trajectory_id", "q99/0", "segments of trajectory q99/0, which its trajectories do not have"),
        ("end", 99, "q0/0 in .* is not within the response"),
        ("cutpoints", [1], "q0/0 in .* has a cutpoint outside the segment"),
        ("advantage", float("inf"), "advantage must be a finite number: row 0"),
    ],
)
def test_segments_that_do_not_fit_their_trajectories_are_refused(
    model: Path, tmp_path: Path, column: str, value: Any, problem: str
) -> None:
    trajectories, advantages = make_rows(model)
    rows = advantages.to_pylist()
    rows[0][column] = value
    pq.write_table(trajectories, tmp_path / "t.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema=ADVANTAGES.arrow), tmp_path / "a.parquet")
    given = {"advantages": (tmp_path / "a.parquet",), "trajectories": (tmp_path / "t.parquet",)}
    with pytest.raises(UserError, match=problem):
        run(settings(tmp_path, tmp_path / "policy", model=str(model), temperature=1.0, **given))


def test_options_out_of_bounds_are_named() -> None:
    for name, value in {"epsilon": 1.0, "adam_beta1": 1.0, "beta": -0.1, "epochs": 0}.items():
        with pytest.raises(UserError, match="--" + name.replace("_", "-")):
            Config(advantages=(Path("a"),), out=Path("b"), **{name: value})  # pyright: ignore[reportArgumentType]
