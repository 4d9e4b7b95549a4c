"""The estimator `forward`: probabilities of the reference answer by hand and by forward passes, and their shrinkage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from stages.configs.audit import Config as AuditConfig
from stages.configs.estimate import Config
from stages.core.config import unread_options
from stages.core.errors import UserError
from stages.estimators.forward import answer_tokens, find_template
from stages.maths.shrinkage import shrink
from stages.models.presets import BYTES, make_byte_tokenizer
from stages.reporting import audit
from tests.chains import cut, footer, make_constant, rows, sample, value

CONFIG = Config(out=Path("out"), cutpoints=Path("cutpoints"), estimator="forward")


@pytest.fixture(scope="module")
def made(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with trajectories of the policy and their cutpoints."""
    here = tmp_path_factory.mktemp("forward")
    sample(here / "trajectories", policy, temperature=0.8)
    cut(here / "cutpoints", here / "trajectories", interval=2)
    return here


def test_the_prior_counts_as_rollouts_by_hand():
    found = shrink([0.75, 0.5, np.nan], [4, 2, 0], [0.25, 0.9, 0.3], 2.0)
    np.testing.assert_allclose(found, [(3 + 0.5) / 6, (1 + 1.8) / 4, 0.3])
    assert shrink(0.7, 10**12, 0.1, 1.0) == pytest.approx(0.7)


def test_the_answer_is_scored_with_the_token_behind_it():
    tokenizer = make_byte_tokenizer()
    assert answer_tokens(tokenizer, "#{answer}", "42") == ([*b"#42", BYTES], 1)
    assert answer_tokens(tokenizer, "is {answer}. So", "42") == (list(b"is 42."), 3)
    assert answer_tokens(tokenizer, "{answer}", "7") == ([*b"7", BYTES], 0)


def test_the_template_follows_the_convention_of_the_prompt():
    boxed = r" The final answer is \boxed{{answer}}."
    assert find_template(CONFIG, "math", r"… within \boxed{}.") == boxed
    assert find_template(CONFIG, "custom", "… within \\boxed{}.\n<think>\n") == "\n</think>\n\n" + boxed
    assert find_template(CONFIG, "gsm8k", "Question: 1 + 1?\nAnswer:") == "\n#### {answer}"
    assert find_template(CONFIG, "arithmetic", "3B+5C") == "#{answer}"
    with pytest.raises(UserError, match="does not know how responses of task game24 state their answer: pass"):
        find_template(CONFIG, "game24", "1 2 3 4")


def test_a_model_that_ignores_its_prefix_gives_every_state_the_same_probability(tmp_path: Path):
    """π is the same everywhere, so p = π(5) · π(end) for the answer 5, whatever the state."""
    chances = {"#": 0.3, **{str(digit): 0.05 for digit in range(10)}}
    model = make_constant(tmp_path / "model", chances, 0.2)
    sample(tmp_path / "trajectories", model, num_questions=3)
    cut(tmp_path / "cutpoints", tmp_path / "trajectories", interval=1)
    value(tmp_path / "advantages", tmp_path / "cutpoints", estimator="forward", rollouts=None)
    found = [row["value_start"] for row in rows(tmp_path / "advantages") if row["start"] > 0]
    assert len(found) > 3
    np.testing.assert_allclose(found, 0.05 * 0.2, rtol=1e-4)


def test_the_prior_alone_is_that_of_a_forward_pass_per_state(policy: Path, made: Path, tmp_path: Path):
    summary = value(tmp_path / "advantages", made / "cutpoints", estimator="forward", rollouts="0")
    assert summary.tokens_sampled == 0
    trajectories = {row["trajectory_id"]: row for row in rows(made / "trajectories")}
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    checked = 0
    for row in rows(tmp_path / "advantages"):
        assert row["num_rollouts"] == 0
        trajectory = trajectories[row["trajectory_id"]]
        prefix = [*trajectory["prompt_token_ids"], *trajectory["token_ids"][: row["start"]]]
        answer = [*f"#{trajectory['reference']}".encode(), BYTES]
        with torch.no_grad():
            logits = model(torch.tensor([[*prefix, *answer]])).logits[0] / 0.8
        logprobs = torch.log_softmax(logits, dim=-1)
        places = range(len(prefix) + 1, len(prefix) + len(answer))  # not the lead
        expected = sum(float(logprobs[place - 1, answer[place - len(prefix)]]) for place in places)
        if row["start"] > 0 or row["advantage"]:
            assert row["value_start"] == pytest.approx(np.exp(expected), rel=1e-4)
            checked += 1
    assert checked > 10


def test_with_rollouts_the_values_are_those_of_monte_carlo_shrunk_to_the_prior(made: Path, tmp_path: Path):
    options: dict[str, Any] = {"estimator": "forward", "seed": 3}
    value(tmp_path / "prior", made / "cutpoints", rollouts="0", **options)
    value(tmp_path / "drawn", made / "cutpoints", rollouts="5", estimator="monte-carlo", seed=3)
    value(tmp_path / "both", made / "cutpoints", rollouts="5", prior_weight=3.0, **options)
    found = [rows(tmp_path / name) for name in ("prior", "drawn", "both")]
    assert len(found[0]) == len(found[1]) == len(found[2])
    for prior, drawn, both in zip(*found, strict=True):
        assert both["rewards"] == drawn["rewards"], "the same rollouts"
        if drawn["num_rollouts"]:
            expected = (5 * drawn["value_start"] + 3 * prior["value_start"]) / 8
            assert both["value_start"] == pytest.approx(expected, rel=1e-5)
    assert footer(next((tmp_path / "both").glob("*.parquet")))["config"]["prior_weight"] == 3.0


def test_chunks_and_parts_change_no_more_than_rounding(policy: Path, made: Path, tmp_path: Path):
    value(tmp_path / "whole", made / "cutpoints", estimator="forward", rollouts="2")
    value(tmp_path / "chunks", made / "cutpoints", estimator="forward", rollouts="2", chunk_trajectories=1)
    for one, other in zip(rows(tmp_path / "whole"), rows(tmp_path / "chunks"), strict=True):
        assert one["value_start"] == pytest.approx(other["value_start"], rel=1e-6)


def test_an_audit_takes_values_without_rollouts(made: Path):
    value(made / "advantages", made / "cutpoints", estimator="forward", rollouts="0")
    found = audit.run(AuditConfig(advantages=made / "advantages", trajectories=4, rollouts=40, threads=1))
    assert found.figures["recorded"]["rollouts"] == 0
    assert found.figures["calibration"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rollouts": "4..9"}, "takes a fixed number of rollouts"),
        ({"rollouts": "0", "prior_weight": 2.0}, "pass --rollouts N too"),
        ({"answer_template": "the answer"}, "must hold {answer} once"),
        ({"rollouts": "2", "prior_weight": 0.0}, "--prior-weight must be"),
        ({"keep_rollouts": True}, "--keep-rollouts is an option of --estimator monte-carlo"),
        ({"estimator": "monte-carlo", "rollouts": "0"}, "--rollouts must be"),
        ({"estimator": "monte-carlo", "prior_weight": 2.0}, "--prior-weight is an option of --estimator forward"),
        ({"estimator": "grpo", "answer_template": "{answer}"}, "--answer-template is an option of --estimator forward"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        Config(**{"out": Path("out"), "cutpoints": Path("cutpoints"), "estimator": "forward", **options})


def test_without_rollouts_the_options_of_sampling_are_not_read():
    assert {"max_batch_rows", "top_p", "max_tokens"} <= unread_options(CONFIG).keys()
    assert not {"model", "temperature", "device", "dtype", "task"} & unread_options(CONFIG).keys()
    drawn = Config(out=Path("out"), cutpoints=Path("cutpoints"), estimator="forward", rollouts="4")
    assert "max_batch_rows" not in unread_options(drawn)


def test_rewards_that_are_no_probabilities_are_refused(policy: Path, tmp_path: Path):
    sample(tmp_path / "trajectories", policy, unfinished_reward=-1.0, max_tokens=4)
    cut(tmp_path / "cutpoints", tmp_path / "trajectories")
    with pytest.raises(UserError, match=r"--estimator forward needs rewards from 0 to 1; trajectory .* has reward -1"):
        value(tmp_path / "advantages", tmp_path / "cutpoints", estimator="forward", rollouts="0")
