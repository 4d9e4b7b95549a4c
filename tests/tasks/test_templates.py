"""A prompt template is a name, a text or a file, in which only the placeholder is special."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.core.errors import UserError
from stages.tasks import TASKS, open_task
from stages.tasks.templates import SLOT, TEMPLATES, read_template


def test_a_template_is_a_name_a_text_or_a_file(tmp_path: Path):
    assert read_template("boxed") == TEMPLATES["boxed"]
    assert read_template("Q: {question}\\nA:") == "Q: {question}\nA:"
    file = tmp_path / "mine.txt"
    file.write_text("Is $\\nu$ in {question}?\n\n")
    assert read_template(str(file)) == "Is $\\nu$ in {question}?\n"
    assert read_template(TEMPLATES["r1-distill"]) == TEMPLATES["r1-distill"]


def test_any_other_value_is_an_error(tmp_path: Path):
    with pytest.raises(UserError, match=r"takes a text with \{question\}, a file .*, or one of plain, .*'boxed'\?$"):
        read_template("bxoed")
    (tmp_path / "empty.txt").write_text("Answer this!")
    with pytest.raises(UserError, match=r"empty\.txt has no \{question\}"):
        read_template(str(tmp_path / "empty.txt"))
    (tmp_path / "odd.txt").write_bytes(b"\xff{question}")
    with pytest.raises(UserError, match="cannot be read"):
        read_template(str(tmp_path / "odd.txt"))


def test_every_template_and_every_task_has_one_placeholder_for_the_question():
    assert {text.count(SLOT) for text in TEMPLATES.values()} == {1}
    for name in TASKS:
        task = open_task(name)
        assert task.template in TEMPLATES.values()
        assert task.chat_message in TEMPLATES.values()
