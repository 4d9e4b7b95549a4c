"""Test `spo rollout`: its rows and log-probabilities, and equal bytes for every division into chunks and shards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stages.core.errors import FingerprintMismatch, UserError
from stages.shards.schemas import TRAJECTORIES
from stages.tasks import open_task
from stages.tasks.verdicts import Place, Reason, Verdict
from tests.chains import ARITHMETIC, footer, make_constant, rows, sample, with_context
from tests.shards.samples import Notes, files

TASK = open_task("arithmetic", None, ARITHMETIC["task_arg"])


def forward_logprobs(model: Path, row: dict, temperature: float) -> np.ndarray:
    """Return full-vocabulary log-probabilities [T, V] at every position of a response, computed by transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    ids = torch.tensor([row["prompt_token_ids"] + row["token_ids"]])
    with torch.inference_mode():
        logits = policy(ids).logits[0, len(row["prompt_token_ids"]) - 1 : -1]
    return torch.log_softmax(logits / temperature, dim=-1).numpy()


def test_a_row_holds_its_question_tokens_and_grade(chain: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chain / "policy")
    found = rows(chain / "trajectories")
    assert list(found[0]) == list(TRAJECTORIES.names)
    assert len(found) == 12 * 4
    for number, row in enumerate(found):
        question = TASK.questions("train")[number // 4]
        assert row["question_id"] == question.id
        assert row["trajectory_id"] == f"{question.id}/{number % 4}"
        assert (row["parent_id"], row["depth"]) == (None, 0)
        assert (row["prompt"], row["reference"]) == (question.prompt, question.reference)
        assert row["prompt_token_ids"] == list(question.prompt.encode())
        assert len(row["token_ids"]) == len(row["logprobs"]) <= 24
        assert tokenizer.decode(row["token_ids"], skip_special_tokens=True) == row["text"]
        assert (row["token_ids"][-1] == tokenizer.eos_token_id) == (row["finish_reason"] == "stop")
        verdict = TASK.verify(row["text"], question.reference)
        assert row["answer"] == verdict.answer
        assert row["reward"] == (verdict.reward if row["finish_reason"] == "stop" else 0)
    assert {row["reward"] for row in found} == {0.0, 1.0}, "the policy must be neither always right nor always wrong"


@pytest.mark.parametrize("options", [{"temperature": 0.7}, {"temperature": 1.3, "top_p": 0.5}, {"top_k": 3}, {}])
def test_logprobs_match_a_forward_pass_over_the_whole_vocabulary(policy: Path, tmp_path: Path, options):
    sample(tmp_path / "out", policy, **options)
    temperature = options.get("temperature", 1.0)
    for row in rows(tmp_path / "out"):
        expected = forward_logprobs(policy, row, temperature)
        chosen = expected[np.arange(len(row["token_ids"])), row["token_ids"]]
        np.testing.assert_allclose(row["logprobs"], chosen, atol=1e-4)
        ranks = (expected > chosen[:, None] + 1e-6).sum(axis=1)
        mass_above = np.where(expected > chosen[:, None] + 1e-6, np.exp(expected), 0).sum(axis=1)
        assert ranks.max() < (options.get("top_k") or 1000)
        assert mass_above.max() < options.get("top_p", 1.0)


def test_greedy_always_takes_the_most_probable_token(policy: Path, tmp_path: Path):
    sample(tmp_path / "out", policy, temperature=0, num_generations=2)
    found = rows(tmp_path / "out")
    for first, second in zip(found[::2], found[1::2], strict=True):
        assert first["token_ids"] == second["token_ids"]
        expected = forward_logprobs(policy, first, 1.0)
        assert first["token_ids"] == expected.argmax(axis=1).tolist()
        np.testing.assert_allclose(first["logprobs"], expected.max(axis=1), atol=1e-4)


def test_a_correct_answer_in_an_unfinished_response_earns_no_reward(policy: Path, tmp_path: Path):
    # a correct response has nine tokens with its end token, so max_tokens=8 truncates it
    sample(tmp_path / "out", policy, num_questions=16, max_tokens=8, temperature=0.5)
    truncated = [row for row in rows(tmp_path / "out") if row["finish_reason"] == "length"]
    assert any(row["answer"] == row["reference"] for row in truncated)
    assert all(row["reward"] == 0 and len(row["token_ids"]) == 8 for row in truncated)


def test_an_unfinished_response_earns_the_unfinished_reward(policy: Path, tmp_path: Path):
    for name, options in {"chain": {}, "tree": {"tree": "2-2", "num_generations": None, "segment_tokens": 4}}.items():
        summary = sample(tmp_path / name, policy, max_tokens=8, unfinished_reward=-0.5, **options)
        leaves = [row for row in rows(tmp_path / name) if row["finish_reason"] != "segment"]
        assert {row["reward"] for row in leaves if row["finish_reason"] == "length"} == {-0.5}
        assert summary.reward is not None
        lineage = footer(tmp_path / name / "part-00000-of-00001.parquet")
        assert lineage["config"]["unfinished_reward"] == -0.5


@pytest.mark.parametrize("options", [{}, {"tree": "2-2", "num_generations": None, "segment_tokens": 4}])
def test_a_response_that_cannot_be_graded_has_no_reward_and_is_counted(
    policy: Path, tmp_path: Path, options, monkeypatch
):
    sample(tmp_path / "graded", policy, temperature=0.8, **options)
    monkeypatch.setattr(type(TASK), "verify", lambda *_: Verdict(None, None, Reason.UNGRADABLE, Place.NOWHERE))
    summary = sample(tmp_path / "lost", policy, temperature=0.8, **options)
    ended = [row for row in rows(tmp_path / "graded") if row["finish_reason"] == "stop"]
    assert summary.notes[0] == f"{len(ended)} responses could not be graded: left out of every mean, not trained on"
    for row, graded in zip(rows(tmp_path / "lost"), rows(tmp_path / "graded"), strict=True):
        assert row["reward"] == (0.0 if row["finish_reason"] == "length" else None)
        assert row["token_ids"] == graded["token_ids"]
    assert footer(tmp_path / "lost" / "part-00000-of-00001.parquet")["counts"]["ungradable"] == len(ended)


def test_a_stop_string_ends_a_response(policy: Path, tmp_path: Path):
    sample(tmp_path / "out", policy, stop=("=",))
    ended = [row for row in rows(tmp_path / "out") if "=" in row["text"]]
    assert ended
    assert all(row["text"].index("=") == len(row["text"]) - 1 and row["finish_reason"] == "stop" for row in ended)


def test_questions_that_all_fill_the_context_are_an_error_before_any_output(policy: Path, tmp_path: Path):
    short = with_context(policy, tmp_path / "short", 5)
    with pytest.raises(UserError, match=r"arithmetic-train-0 is 5 tokens long and the model's context holds 5"):
        sample(tmp_path / "out", short)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [{}, {"tree": "2-2", "num_generations": None, "segment_tokens": 4}])
def test_an_overlong_prompt_is_left_out_and_counted(policy: Path, tmp_path: Path, options):
    data = [{"question": f"{i}B+5C" + "+5C" * 100 * (i == 1), "answer": "8"} for i in range(3)]
    (tmp_path / "train.json").write_text(json.dumps(data))
    given = {"task": "custom", "task_arg": (), "data": str(tmp_path), "num_questions": None, "chunk_questions": 1}
    given["max_model_len"] = 64
    summary = sample(tmp_path / "out", policy, **given, **options)
    assert {row["question_id"] for row in rows(tmp_path / "out")} == {"custom-train-0", "custom-train-2"}
    assert summary.notes[0] == "1 questions were left out: their prompts leave no room for a response in the context"
    assert footer(tmp_path / "out" / "part-00000-of-00001.parquet")["counts"]["prompts_overlong"] == 1
    assert sample(tmp_path / "out", policy, **given, **options, overlong_prompts="error").up_to_date
    with pytest.raises(UserError, match=r"custom-train-1 is 305 tokens long .*; --overlong-prompts skip leaves"):
        sample(tmp_path / "error", policy, **given, **options, overlong_prompts="error")


def test_a_response_ends_at_the_context_length(tmp_path: Path):
    endless = make_constant(tmp_path / "model", {"a": 0.5, "b": 0.5}, 1e-30)
    notes = Notes()
    sample(tmp_path / "out", with_context(endless, tmp_path / "short", 8), notes)
    assert "the context of 8 tokens ends responses to 4 questions before 24 tokens" in notes.lines
    assert {(len(row["token_ids"]), row["finish_reason"]) for row in rows(tmp_path / "out")} == {(3, "length")}


def test_a_task_without_questions_is_an_error_before_any_output(policy: Path, tmp_path: Path):
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(UserError, match="no questions"):
        sample(tmp_path / "out", policy, task="gsm8k", task_arg=(), data=str(tmp_path), num_questions=None)
    with pytest.raises(UserError, match="10,000 questions"):
        sample(tmp_path / "out", policy, split="test", num_questions=10_001)
    assert not (tmp_path / "out").exists()


def test_five_shards_hold_the_rows_of_one(policy: Path, tmp_path: Path):
    sample(tmp_path / "one", policy, num_questions=7)
    for shard in (3, 0, 4, 1, 2):
        sample(tmp_path / "five", policy, num_questions=7, shard=f"{shard}/5")
    assert len(list((tmp_path / "five").glob("*.parquet"))) == 5
    assert rows(tmp_path / "five") == rows(tmp_path / "one")


def test_a_shard_without_questions_is_an_empty_part(policy: Path, tmp_path: Path):
    for shard in range(3):
        summary = sample(tmp_path / "three", policy, num_questions=2, shard=f"{shard}/3")
        assert summary.rows == (0 if shard == 0 else 3)
    sample(tmp_path / "one", policy, num_questions=2)
    assert rows(tmp_path / "three") == rows(tmp_path / "one")
    assert sample(tmp_path / "three", policy, num_questions=2, shard="0/3").up_to_date


def test_a_slurm_array_task_is_a_shard_unless_shard_is_given(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, number in {"ID": 1, "COUNT": 4, "MIN": 0, "MAX": 3, "STEP": 1}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(number))
    sample(tmp_path / "array", policy)
    sample(tmp_path / "explicit", policy, shard="0/2")
    assert [path.name for path in (tmp_path / "array").glob("*.parquet")] == ["part-00001-of-00004.parquet"]
    assert [path.name for path in (tmp_path / "explicit").glob("*.parquet")] == ["part-00000-of-00002.parquet"]
    assert {row["question_id"] for row in rows(tmp_path / "array")} == {"arithmetic-train-1"}


def test_batches_and_chunks_do_not_change_a_byte(policy: Path, tmp_path: Path):
    sample(tmp_path / "plain", policy)
    sample(tmp_path / "narrow", policy, max_batch_rows=2)
    sample(tmp_path / "chunked", policy, chunk_questions=1)
    sample(tmp_path / "both", policy, chunk_questions=3, max_batch_rows=5)
    for other in ("narrow", "chunked", "both"):
        assert files(tmp_path / other) == files(tmp_path / "plain")


def test_a_response_depends_only_on_seed_question_and_number(policy: Path, tmp_path: Path):
    sample(tmp_path / "all", policy)
    sample(tmp_path / "later", policy, skip_questions=2, num_questions=2, num_generations=5)
    sample(tmp_path / "seeded", policy, seed=1)
    by_id = {row["trajectory_id"]: row for row in rows(tmp_path / "later")}
    everything = rows(tmp_path / "all")
    for row in everything[2 * 3 :]:
        assert by_id[row["trajectory_id"]] == row
    assert [row["token_ids"] for row in rows(tmp_path / "seeded")] != [row["token_ids"] for row in everything]
    assert len({tuple(row["token_ids"]) for row in everything}) > 4, "responses to one question must differ"


def test_questions_and_responses_do_not_share_random_numbers(tmp_path: Path):
    model = make_constant(tmp_path / "model", {chr(97 + i): 0.038 for i in range(26)}, 0.012)
    sample(tmp_path / "out", model)
    assert len({tuple(row["token_ids"][:5]) for row in rows(tmp_path / "out")}) == 12


def test_a_shuffled_selection_keeps_the_ids_of_its_questions(policy: Path, tmp_path: Path):
    lines = [f'{{"question": "What is {i}?", "answer": "{i}"}}' for i in range(6)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    options = {"task": "gsm8k", "task_arg": (), "data": str(tmp_path), "num_questions": 3, "shuffle_seed": 5}
    sample(tmp_path / "first", policy, **options)
    sample(tmp_path / "second", policy, skip_questions=3, **options)
    drawn = [row["question_id"] for name in ("first", "second") for row in rows(tmp_path / name)[::3]]
    assert sorted(drawn) == [f"gsm8k-train-{i}" for i in range(6)]
    assert drawn != sorted(drawn)
    assert {(row["question_id"], row["reference"]) for row in rows(tmp_path / "first")} == {
        (name, name.rpartition("-")[2]) for name in drawn[:3]
    }


def test_a_second_call_is_up_to_date_and_does_not_load_torch(chain: Path):
    script = f"""
import sys
from pathlib import Path
from stages import rollout
config = rollout.Config(out=Path({str(chain / "trajectories")!r}), model={str(chain / "policy")!r}, task="arithmetic",
    task_arg=("operations=1",), num_questions=12, num_generations=4, max_tokens=24, temperature=0.8)
summary = rollout.run(config)
assert summary.up_to_date and summary.rows == 48 and summary.tokens_sampled == 0, summary
assert summary.reward is not None
assert "torch" not in sys.modules
"""
    before = files(chain / "trajectories")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert files(chain / "trajectories") == before


def test_a_changed_option_is_an_error_that_names_it_unless_overwrite_is_given(policy: Path, tmp_path: Path):
    sample(tmp_path / "out", policy)
    before = files(tmp_path / "out")
    with pytest.raises(FingerprintMismatch, match=r"temperature: found 1\.0, requested 0\.6"):
        sample(tmp_path / "out", policy, temperature=0.6)
    with pytest.raises(FingerprintMismatch, match="another split"):
        sample(tmp_path / "out", policy, shard="0/2")
    assert files(tmp_path / "out") == before
    sample(tmp_path / "out", policy, temperature=0.6, overwrite=True)
    sample(tmp_path / "fresh", policy, temperature=0.6)
    assert files(tmp_path / "out") == files(tmp_path / "fresh") != before


def test_other_weights_in_the_same_directory_are_another_model(policy: Path, tmp_path: Path):
    model = with_context(policy, tmp_path / "model", 300)
    sample(tmp_path / "out", model, num_questions=1)
    (tmp_path / "model" / "config.json").write_text((policy / "config.json").read_text())
    with pytest.raises(FingerprintMismatch, match=r"model: .*model has changed since"):
        sample(tmp_path / "out", model, num_questions=1)


def test_the_footer_records_config_and_counts_and_the_summary_agrees_with_the_rows(policy: Path, tmp_path: Path):
    notes = Notes()
    summary = sample(tmp_path / "out", policy, notes, temperature=0.9, chunk_questions=2)
    found, lineage = rows(tmp_path / "out"), footer(tmp_path / "out" / "part-00000-of-00001.parquet")
    assert lineage["config"]["temperature"] == 0.9
    assert lineage["counts"]["sampled"] == sum(len(row["token_ids"]) for row in found) == summary.tokens_sampled
    rewards = np.array([row["reward"] for row in found])
    assert summary.reward == lineage["summary"]["reward"] == pytest.approx(rewards.mean())
    equal = np.ptp(rewards.reshape(4, 3), axis=1) == 0
    assert summary.figures["frac_reward_zero_std"] == pytest.approx(equal.mean())
    assert summary.figures["completions/mean_length"] == pytest.approx(np.mean([len(row["logprobs"]) for row in found]))
