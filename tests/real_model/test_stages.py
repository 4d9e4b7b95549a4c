"""Test every stage on a pretrained model of 135 million parameters, against plain transformers in float32."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages import evaluate, sft, train
from stages.sampling.pool import SamplerPool
from tests.chains import cut, rows, sample, value
from tests.real_model.conftest import MAX_TOKENS, TASK
from tests.sampling.vllm.conftest import plain_vllm

pytestmark = pytest.mark.xdist_group("real_model")
TOLERANCE = 1e-4  # nats per token, float32


def load(directory: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def logprobs(model: Any, row: dict[str, Any], temperature: float = 1.0) -> np.ndarray:
    """Return the log-probabilities [T] of a row's tokens from one forward pass over prompt and response."""
    prompt, tokens = row["prompt_token_ids"], row["token_ids"]
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1)[torch.arange(len(tokens)), tokens].numpy()


def largest_difference(model: Any, found: Iterable[dict[str, Any]], temperature: float) -> float:
    return max(float(np.abs(logprobs(model, row, temperature) - row["logprobs"]).max()) for row in found)


@pytest.fixture(scope="module")
def plain(model: Path) -> Any:
    return load(model)


@pytest.fixture(scope="module")
def grpo(chain: Path) -> Path:
    """Return the advantages of GRPO for the trajectories of the chain."""
    cut(chain / "whole", chain / "trajectories", partition="trajectory")
    value(chain / "grpo", chain / "whole", estimator="grpo", rollouts=None)
    return chain / "grpo"


def test_greedy_answers_are_those_of_generate(model: Path, plain: Any, pool: SamplerPool, tmp_path: Path) -> None:
    options = TASK | {"task": ("custom",), "data": (TASK["data"],), "split": "train", "max_tokens": (8,), "threads": 1}
    evaluate.run(evaluate.Config(model=str(model), out=tmp_path / "eval", **options), pool=pool)
    tokenizer = AutoTokenizer.from_pretrained(model)
    found = rows(tmp_path / "eval")
    assert len(found) == 4
    for row in found:
        prompt = tokenizer.encode(row["prompt"], add_special_tokens=False)
        assert row["prompt"].endswith("<|im_end|>\n<|im_start|>assistant\n")
        assert row["prompt_token_ids"] == prompt
        ids = plain.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=8)
        assert row["token_ids"] == ids[0, len(prompt) :].tolist()


def test_responses_carry_the_models_own_log_probabilities(chain: Path, plain: Any) -> None:
    found = rows(chain / "trajectories")
    assert len(found) == 16
    assert {row["reward"] for row in found} == {0.0, 1.0}
    assert len({tuple(row["token_ids"]) for row in found}) > 8
    assert largest_difference(plain, found, 0.7) < TOLERANCE


def test_advantages_of_a_chain_add_up_to_the_gain_of_the_response(chain: Path, pool: SamplerPool) -> None:
    value(chain / "advantages", chain / "cutpoints", rollouts="2", pool=pool)
    found = rows(chain / "advantages")
    rewards = {row["trajectory_id"]: row["reward"] for row in rows(chain / "trajectories")}
    for name in {row["trajectory_id"] for row in found}:
        own = [row for row in found if row["trajectory_id"] == name]
        assert sum(row["advantage"] for row in own) == pytest.approx(rewards[name] - own[0]["value_start"])
    inner = [row for row in found if row["num_rollouts"]]
    assert len(inner) > 30
    assert any(0 < row["value_start"] < 1 for row in inner)


def test_nodes_of_a_tree_carry_the_models_own_log_probabilities(
    model: Path, plain: Any, pool: SamplerPool, tmp_path: Path
) -> None:
    shape: dict[str, Any] = {"tree": "2-2", "segment_tokens": 8, "num_generations": None, "num_questions": 2}
    sample(tmp_path / "trajectories", model, **TASK, **shape, max_tokens=MAX_TOKENS, pool=pool)
    cut(tmp_path / "cutpoints", tmp_path / "trajectories")
    value(tmp_path / "advantages", tmp_path / "cutpoints", estimator="tree", rollouts=None, keep_zero=True)
    nodes = {row["trajectory_id"]: row for row in rows(tmp_path / "trajectories")}
    assert {row["depth"] for row in nodes.values()} == {0, 1}
    for node in nodes.values():
        parent = nodes.get(node["parent_id"])
        if parent:
            node["prompt_token_ids"] = parent["prompt_token_ids"] + parent["token_ids"]
    assert largest_difference(plain, nodes.values(), 1.0) < TOLERANCE
    for row in rows(tmp_path / "advantages"):
        assert row["advantage"] == pytest.approx(row["value_end"] - row["value_start"])


def test_grpo_compares_the_responses_of_a_group(chain: Path, grpo: Path) -> None:
    found = {row["trajectory_id"]: row["advantage"] for row in rows(grpo)}
    by_question: dict[str, list[dict[str, Any]]] = {}
    for row in rows(chain / "trajectories"):
        by_question.setdefault(row["question_id"], []).append(row)
    for group in by_question.values():
        rewards = np.array([row["reward"] for row in group], np.float64)
        if rewards.std():
            expected = (rewards - rewards.mean()) / rewards.std()
            np.testing.assert_allclose([found[row["trajectory_id"]] for row in group], expected, rtol=1e-4)


def gain(before: Any, after: Any, chain: Path, grpo: Path) -> float:
    """Return by how much training raised the log-probability of rewarded responses against that of the others."""
    advantages = {row["trajectory_id"]: row["advantage"] for row in rows(grpo)}
    informative = [row for row in rows(chain / "trajectories") if advantages[row["trajectory_id"]]]
    taught = [row for row in informative if row["question_id"] == informative[0]["question_id"]]
    return sum(
        advantages[row["trajectory_id"]] * float((logprobs(after, row) - logprobs(before, row)).sum()) for row in taught
    )


def learn(grpo: Path, out: Path, **options: Any) -> Path:
    given: dict[str, Any] = {"mask": "all", "beta": 0.0, "per_device_batch_size": 4, "gradient_accumulation_steps": 4}
    given |= {"whiten": "none", "drop_uniform_groups": True}  # uniform groups cost time and teach nothing
    train.run(train.Config(advantages=(grpo,), out=out, threads=1, **given | options))
    return out


@pytest.fixture(scope="module")
def trained(grpo: Path) -> Path:
    """Return the model after one step on all its weights."""
    return learn(grpo, grpo.with_name("trained"), learning_rate=1e-6)


def test_a_step_on_all_weights_raises_rewarded_responses(trained: Path, chain: Path, grpo: Path, plain: Any) -> None:
    assert gain(plain, load(trained), chain, grpo) > 0
    assert "license: apache-2.0" in (trained / "README.md").read_text()


def test_a_step_on_an_adapter_raises_rewarded_responses(
    model: Path, chain: Path, grpo: Path, plain: Any, tmp_path: Path
) -> None:
    from peft import PeftModel

    out = learn(grpo, tmp_path / "adapter", learning_rate=1e-4, lora_r=4)
    assert gain(plain, PeftModel.from_pretrained(load(model), str(out)).eval(), chain, grpo) > 0


def test_a_step_on_solutions_makes_them_more_probable(model: Path, plain: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"per_device_batch_size": 4, "steps": 1, "learning_rate": 1e-5, "warmup_ratio": 0.0}
    sft.run(sft.Config(model=str(model), out=tmp_path / "sft", threads=1, **TASK, **options))
    trained, tokenizer = load(tmp_path / "sft"), AutoTokenizer.from_pretrained(model)
    row = {"prompt_token_ids": tokenizer.encode("What is 2 + 3?"), "token_ids": tokenizer.encode(" 2 + 3 is 5.")}
    assert logprobs(trained, row).sum() > logprobs(plain, row).sum()


def test_plain_vllm_samples_the_trained_model(trained: Path, chain: Path) -> None:
    row, *_ = rows(chain / "trajectories")
    with plain_vllm(trained, max_model_len=256) as llm:
        from vllm import SamplingParams  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]

        params = SamplingParams(temperature=0, max_tokens=4, logprobs=1)
        (output,) = llm.generate([{"prompt_token_ids": row["prompt_token_ids"]}], params, use_tqdm=False)
    tokens, scores = zip(*(next(iter(one.items())) for one in output.outputs[0].logprobs), strict=True)
    expected = logprobs(load(trained), row | {"token_ids": list(tokens)})
    np.testing.assert_allclose([score.logprob for score in scores], expected, atol=1e-3)
