"""Prompts: templates, chat templates, special tokens exactly once, and rows that record the final prompt."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from stages import sft
from stages.configs.shared import QuestionOptions
from stages.core.errors import FingerprintMismatch, UserError
from stages.models.presets import BYTES, make_byte_tokenizer
from stages.responses.prompts import (
    count_overlong,
    encode,
    ending_notes,
    leave_out_overlong,
    make_prompts,
    with_template,
    write_prompts,
)
from stages.tasks import Question, Task, open_task
from stages.training.demonstrations import load_examples
from tests.chains import footer, rows, sample

CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
NO_SYSTEM_ROLE = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}{% endif %}<user>"
QUESTION = Question("q-0", "1 + 1?", "2", " It is 2.")
TASK: Task = open_task("gsm8k")


def make_tokenizer(chat: str | None = None) -> PreTrainedTokenizerBase:
    """Return the byte tokenizer; with a chat template it starts every text with a begin-of-text token (as Llama)."""
    tokenizer = make_byte_tokenizer()
    if chat:
        tokenizer.chat_template = chat
        tokenizer.add_special_tokens({"bos_token": "<s>"})
        begin = ("<s>", tokenizer.convert_tokens_to_ids("<s>"))
        backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[begin])
    return tokenizer


def flags(**given: Any) -> QuestionOptions:
    return with_template(QuestionOptions(**given))


def written(tokenizer: PreTrainedTokenizerBase, question: Question = QUESTION, **given: Any) -> Question:
    return write_prompts(tokenizer, [question], TASK, flags(**given))[0]


def test_the_default_template_is_the_task_s_own():
    assert written(make_tokenizer()).prompt == "[MATH_TASK] Problem:\n1 + 1?\n\nSolution:"
    chat = written(make_tokenizer(CHAT), chat_template=True).prompt
    assert chat == (
        "<s><user>1 + 1?\nPlease reason step by step, and put your final answer within \\boxed{}.\n<assistant>\n"
    )


def test_a_template_and_a_system_prompt_go_into_the_chat():
    text = written(make_tokenizer(CHAT), chat_template=True, prompt_template="plain", system_prompt="Be brief.").prompt
    assert text == "<s><system>Be brief.\n<user>1 + 1?\n<assistant>\n"


def test_braces_in_questions_and_templates_are_literal():
    question = dataclasses.replace(QUESTION, prompt="What is {question}^{2}?")
    assert written(make_tokenizer(), question, prompt_template="\\boxed{} {question}").prompt == (
        "\\boxed{} What is {question}^{2}?"
    )


def test_a_chat_has_the_token_ids_of_apply_chat_template_with_one_begin_of_text():
    tokenizer = make_tokenizer(CHAT)
    (question,), (ids,) = make_prompts(tokenizer, [QUESTION], TASK, flags(chat_template=True))
    message = TASK.chat_message.replace("{question}", QUESTION.prompt)
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], add_generation_prompt=True, return_dict=False
    )
    assert ids.tolist() == expected
    assert ids.tolist().count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids) == question.prompt


def test_a_template_that_starts_with_the_begin_of_text_gets_no_second_one():
    tokenizer = make_tokenizer(CHAT)
    for template, begins in [("<s>{question}", 1), ("{question}", 1), ("{question}<s>", 2)]:
        _, (ids,) = make_prompts(tokenizer, [QUESTION], TASK, flags(prompt_template=template))
        assert ids.tolist().count(tokenizer.bos_token_id) == begins


def test_a_solution_starts_with_a_space_only_if_the_prompt_does_not_end_in_white_space():
    assert written(make_tokenizer()).solution == " It is 2."
    assert written(make_tokenizer(), prompt_template="Q: {question}\\n").solution == "It is 2."
    assert written(make_tokenizer(CHAT), chat_template=True).solution == "It is 2."


def test_a_conversation_keeps_its_earlier_messages():
    question = dataclasses.replace(QUESTION, history=(("system", "Add."), ("user", "2 + 2?"), ("assistant", "4")))
    text = written(make_tokenizer(CHAT), question, chat_template=True, prompt_template="plain").prompt
    assert text == "<s><system>Add.\n<user>2 + 2?\n<assistant>4\n<user>1 + 1?\n<assistant>\n"
    with pytest.raises(UserError, match="q-0 is a conversation of several messages: pass --chat-template"):
        written(make_tokenizer(CHAT), question)
    with pytest.raises(UserError, match="q-0 has a system message of its own: omit --system-prompt"):
        written(make_tokenizer(CHAT), question, chat_template=True, system_prompt="Subtract.")


def test_chat_templates_that_are_missing_or_reject_the_messages_are_errors():
    with pytest.raises(UserError, match="has no chat template: omit --chat-template"):
        written(make_tokenizer(), chat_template=True)
    with pytest.raises(UserError, match="rejects question q-0: no system role here"):
        written(make_tokenizer(NO_SYSTEM_ROLE), chat_template=True, system_prompt="Be brief.")
    with pytest.raises(UserError, match="--system-prompt requires the tokenizer's chat template"):
        flags(system_prompt="Be brief.")


def test_a_prompt_that_fills_the_context_is_an_error_or_left_out():
    short = dataclasses.replace(QUESTION, prompt="1", id="q-1")
    made = [make_prompts(make_tokenizer(), [QUESTION, short], TASK, flags(prompt_template="plain"))]
    with pytest.raises(
        UserError, match=r"a prompt leaves no room .* q-0 is 6 tokens .* holds 6\. .*--overlong-prompts skip"
    ):
        leave_out_overlong(made, 6, "error")
    (kept,) = leave_out_overlong(made, 6, "skip")
    assert ([question.id for question in kept.questions], len(kept.token_ids)) == (["q-1"], 1)
    assert (count_overlong(made[0], kept), count_overlong(kept, kept)) == ({"prompts_overlong": 1}, {})
    assert leave_out_overlong(made, 7, "error") == made
    with pytest.raises(
        UserError,
        match=r"all 2 prompts leave no room .*holds 1\. Use a longer context \(--max-model-len, or another model\)$",
    ):
        leave_out_overlong(made, 1, "skip")


def test_an_empty_prompt_is_an_error():
    empty = dataclasses.replace(QUESTION, prompt="")
    with pytest.raises(UserError, match="q-0 has an empty prompt"):
        make_prompts(make_tokenizer(), [empty], TASK, flags(prompt_template="plain"))
    assert encode(make_tokenizer(), [], chat=False) == []


def test_demonstrations_start_with_the_prompt_of_a_rollout():
    tokenizer = make_tokenizer(CHAT)
    task = open_task("arithmetic", None, ["operations=1"])
    for given in ({"chat_template": True}, {"prompt_template": "Q: {question}\\n"}, {}):
        chosen = flags(**given)
        examples, _ = load_examples(task, chosen, 5, tokenizer, 1000, len(tokenizer))
        questions, prompts = make_prompts(tokenizer, task.questions("train")[:5], task, chosen)
        for example, question, prompt in zip(examples, questions, prompts, strict=True):
            assert example.tokens[: prompt.size].tolist() == prompt.tolist()
            assert tokenizer.decode(example.tokens[prompt.size :]) == f"{question.solution}{tokenizer.eos_token}"
            assert example.kept[0] == prompt.size


def test_a_demonstration_with_a_token_that_the_model_does_not_know_names_its_question():
    task = open_task("arithmetic", None, ["operations=1"])
    with pytest.raises(
        UserError, match=r"worked solution of question \S+-0 has token \d+, but the model knows 40 tokens"
    ):
        load_examples(task, flags(), 5, make_tokenizer(), 1000, 40)


@pytest.fixture(scope="module")
def chat_policy(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the tiny policy with a chat template in its tokenizer."""
    directory = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(policy, directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = CHAT.replace("{{ bos_token }}", "")
    tokenizer.save_pretrained(directory)
    return directory


def test_trajectories_record_the_final_prompt_as_text_and_ids(chat_policy: Path, tmp_path: Path):
    sample(tmp_path / "out", chat_policy, chat_template=True, system_prompt="Add.", max_tokens=4)
    tokenizer = AutoTokenizer.from_pretrained(chat_policy)
    for row in rows(tmp_path / "out"):
        assert row["prompt"].startswith("<system>Add.\n<user>")
        assert row["prompt"].endswith("\n<assistant>\n")
        assert tokenizer.decode(row["prompt_token_ids"]) == row["prompt"]
        assert max(row["prompt_token_ids"]) < BYTES


def test_the_text_of_a_template_enters_the_fingerprint(policy: Path, tmp_path: Path):
    file = tmp_path / "template.txt"
    file.write_text("{question}\n")
    sample(tmp_path / "out", policy, prompt_template=str(file), max_tokens=4)
    (part,) = (tmp_path / "out").glob("*.parquet")
    assert footer(part)["config"]["prompt_template"] == "{question}"
    assert sample(tmp_path / "out", policy, prompt_template="plain", max_tokens=4).up_to_date
    file.write_text("{question} = ?\n")
    with pytest.raises(FingerprintMismatch, match="prompt_template"):
        sample(tmp_path / "out", policy, prompt_template=str(file), max_tokens=4)
    with pytest.raises(FingerprintMismatch, match="chat_template"):
        sample(tmp_path / "out", policy, prompt_template="plain", max_tokens=4, chat_template=True)


def test_sft_with_a_chat_template_that_the_tokenizer_lacks_is_an_error(tmp_path: Path):
    config = sft.Config(out=tmp_path / "model", preset="tiny", task="arithmetic", steps=1, chat_template=True)
    with pytest.raises(UserError, match="has no chat template"):
        sft.run(config)
    assert not (tmp_path / "model").exists()


DATED = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


def test_a_dated_chat_template_writes_the_date_of_the_option():
    tokenizer = make_tokenizer(DATED)
    assert written(tokenizer, chat_template=True).prompt.startswith("26 Jul 2024<user>")
    assert written(tokenizer, chat_template=True, chat_date="2025-01-02").prompt.startswith("02 Jan 2025<user>")
    with pytest.raises(UserError, match="--chat-date must be a date such as 2024-07-26; got 'today'"):
        flags(chat_template=True, chat_date="today")


def test_a_tokenizer_that_ends_prompts_is_mentioned():
    tokenizer = make_tokenizer()
    assert ending_notes(tokenizer, [make_prompts(tokenizer, [QUESTION], TASK, flags())]) == ()
    end = str(tokenizer.eos_token)
    backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    special = (end, tokenizer.convert_tokens_to_ids(end))
    backend.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[special])
    (note,) = ending_notes(tokenizer, [make_prompts(tokenizer, [QUESTION], TASK, flags())])
    assert note.startswith(f"every prompt ends with the end token {end}")


def test_a_worked_solution_states_its_answer_as_the_prompt_asks():
    worked = dataclasses.replace(QUESTION, solution=" 1 + 1 = 2\n#### 2")
    assert written(make_tokenizer(), worked).solution == " 1 + 1 = 2\n#### 2"
    asked = written(make_tokenizer(CHAT), worked, chat_template=True)
    assert r"\boxed{}" in asked.prompt
    assert asked.solution == "1 + 1 = 2\nThe final answer is \\boxed{2}."
    assert TASK.verify(str(asked.solution), "2").reward == 1.0
