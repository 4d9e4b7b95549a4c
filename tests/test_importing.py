"""Test `spo import`: dumps of other tools become trajectories that the later stages read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from stages import train
from stages.core.errors import UserError
from stages.importing import Config, run
from stages.models import saving
from stages.models.presets import make_model
from tests.chains import cut, rows, value

END = 256
CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)
VERL = [
    {"input": "1+1?", "output": "2", "gts": "2", "score": 1.0, "step": 3},
    {"input": "1+1?", "output": "3.", "gts": "2", "score": 0.0, "step": 3},
    {"input": "2+2?", "output": "4", "gts": "4", "score": None, "step": 3},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an untrained model over bytes, with a chat template."""
    directory = tmp_path_factory.mktemp("import") / "model"
    network, tokenizer = make_model("tiny", 0)
    tokenizer.chat_template = CHAT
    saving.save_directory(directory, network, tokenizer)
    return directory


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def imported(file: Path, model: Path, **options: Any) -> list[dict[str, Any]]:
    run(Config(responses=file, model=str(model), out=file.with_name("trajectories"), threads=1, **options))
    return rows(file.with_name("trajectories"))


def text_of(ids: list[int]) -> str:
    return bytes(ids).decode()


def test_a_dump_of_verl_has_tokens_rewards_and_the_models_log_probabilities(model: Path, tmp_path: Path) -> None:
    found = imported(write(tmp_path / "dump.jsonl", VERL), model, temperature=0.8)
    assert [row["reward"] for row in found] == [1.0, 0.0, None]
    assert [row["reference"] for row in found] == ["2", "2", "4"]
    assert [row["finish_reason"] for row in found] == ["stop"] * 3
    assert found[0]["question_id"] == found[1]["question_id"] != found[2]["question_id"]
    assert [row["trajectory_id"].rpartition("/")[2] for row in found] == ["0", "1", "0"]
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    for row, record in zip(found, VERL, strict=True):
        prompt, tokens = row["prompt_token_ids"], row["token_ids"]
        assert (text_of(prompt), text_of(tokens[:-1]), tokens[-1]) == (record["input"], record["output"], END)
        with torch.inference_mode():
            logits = plain(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1] / 0.8
        expected = logits.log_softmax(-1)[torch.arange(len(tokens)), tokens]
        np.testing.assert_allclose(row["logprobs"], expected.numpy(), atol=1e-5)


def test_the_later_stages_train_on_it(model: Path, tmp_path: Path) -> None:
    imported(write(tmp_path / "dump.jsonl", VERL), model)
    cut(tmp_path / "cutpoints", tmp_path / "trajectories", partition="trajectory")
    value(tmp_path / "advantages", tmp_path / "cutpoints", estimator="grpo", rollouts=None)
    train.run(
        train.Config(advantages=(tmp_path / "advantages",), out=tmp_path / "trained", mask="all", beta=0.0, threads=1)
    )
    (line,) = (tmp_path / "trained/metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["mismatch/logp_difference_max"] < 1e-4


def test_completions_of_trl_are_chats_or_texts(model: Path, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "1+1?"}]
    table = pa.Table.from_pylist(
        [
            {
                "step": 1,
                "prompt": chat,
                "completion": [{"role": "assistant", "content": "2"}],
                "right": 1.0,
                "short": 0.5,
            },
            {
                "step": 1,
                "prompt": chat,
                "completion": [{"role": "assistant", "content": "3"}],
                "right": 0.0,
                "short": 0.5,
            },
        ]
    )
    pq.write_table(table, tmp_path / "completions.parquet")
    found = imported(tmp_path / "completions.parquet", model, column=("reward=right",))
    assert [text_of(row["token_ids"][:-1]) for row in found] == ["2", "3"]
    assert {text_of(row["prompt_token_ids"]) for row in found} == {"<user>1+1?<a>"}
    assert [row["reward"] for row in found] == [1.0, 0.0]


def test_a_dated_chat_template_writes_the_same_date_on_every_day(model: Path, tmp_path: Path) -> None:
    dated = shutil.copytree(model, tmp_path / "dated")
    (dated / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}: {{ messages[0]['content'] }}")
    chat = [{"role": "user", "content": "1+1?"}]
    file = write(tmp_path / "chats.jsonl", [{"prompt": chat, "completion": "2", "reward": 1.0}])
    (row,) = imported(file, dated)
    assert text_of(row["prompt_token_ids"]) == "26 Jul 2024: 1+1?"


def test_logged_samples_of_lm_eval_are_read_once_per_filter(model: Path, tmp_path: Path) -> None:
    def logged(name: str, score: float) -> dict[str, Any]:
        return {
            "doc_id": 7,
            "doc": {"question": "1+1?"},
            "target": "2",
            "arguments": {"gen_args_0": {"arg_0": "Q: 1+1? A:", "arg_1": {"until": []}}},
            "resps": [["2"]],
            "filtered_resps": ["2"],
            "filter": name,
            "exact_match": score,
        }

    file = write(tmp_path / "samples.jsonl", [logged("strict-match", 0.0), logged("flexible-extract", 1.0)])
    (row,) = imported(file, model)
    assert text_of(row["prompt_token_ids"]) == "Q: 1+1? A:"
    assert (row["question_id"], row["reference"], row["reward"]) == ("7", "2", 0.0)


def test_token_ids_of_the_file_are_kept(model: Path, tmp_path: Path) -> None:
    record = {"prompt_token_ids": [49, 43], "token_ids": [50, 50], "reward": 1.0}
    lengths = [record, record | {"token_ids": [50]}]
    found = imported(write(tmp_path / "ids.jsonl", lengths), model, max_tokens=2)
    assert [row["token_ids"] for row in found] == [[50, 50], [50]]
    assert [row["finish_reason"] for row in found] == ["length", "stop"]
    assert found[0]["text"] is None


def test_a_truncated_text_gets_no_end_token(model: Path, tmp_path: Path) -> None:
    record = {"prompt": "1+1?", "completion": "22", "score": 0, "finish_reason": "length"}
    (row,) = imported(write(tmp_path / "a.jsonl", [record]), model)
    assert (text_of(row["token_ids"]), row["finish_reason"]) == ("22", "length")


def test_missing_columns_are_named_at_once(model: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"question": "1+1?", "said": "2", "points": 1}])
    with pytest.raises(UserError) as raised:
        imported(file, model)
    assert "no column for completion (completion, output, response, resps, text); reward (reward, score" in str(
        raised.value
    )
    assert "found question, said, points. Name yours: --column completion=… --column reward=…" in str(raised.value)
    found = imported(file, model, column=("completion=said", "reward=points"))
    assert found[0]["reward"] == 1.0


def test_a_note_says_what_an_estimator_will_lack(model: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"prompt": "1+1?", "completion": "2", "reward": 1}])
    summary = run(Config(responses=file, model=str(model), out=tmp_path / "t", threads=1))
    assert any("there is no reference" in note for note in summary.notes)
    again = run(Config(responses=file, model=str(model), out=tmp_path / "t", threads=1))
    assert again.up_to_date


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": 3, "completion": "2", "reward": 1}, "row 0 must have a text or messages as prompt; got 3"),
        ({"prompt": "a", "completion": "2", "reward": "good"}, "row 0 must have a number as reward; got 'good'"),
        ({"prompt": "a", "resps": [["2", "3"]], "reward": 1}, "row 0 has 2 responses in one row"),
        ({"prompt": "a" * 2047, "completion": "2", "reward": 1}, "response 0 of .* has 2049 tokens with its prompt"),
        ({"prompt_token_ids": [1], "token_ids": [9000], "reward": 1}, "the largest id is 9000"),
        ({"prompt_token_ids": [], "token_ids": [9], "reward": 1}, "row 0 must have at least one token"),
    ],
)
def test_unusable_rows_are_named(record: dict[str, Any], message: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        imported(write(tmp_path / "a.jsonl", [record]), model)


def test_a_wrong_role_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--column must be ROLE=COLUMN .* got 'rewards=x'"):
        Config(responses=tmp_path, model="m", out=tmp_path, column=("rewards=x",))
