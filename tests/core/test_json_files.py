"""Test the reader of JSON: whatever a file holds, an error is one line that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.core.errors import UserError
from stages.core.json_files import decoded, read_json, read_json_lines

TORN = [b"", b"{", b"\xff\xfe", b'{"a": ' + 5000 * b"[" + 5000 * b"]" + b"}", b'{"a": ' + 5000 * b"9" + b"}"]


@pytest.mark.parametrize("content", [*TORN, b"null", b"[]", b'"text"', b"3"])
def test_any_value_but_an_object_is_a_one_line_error(content: bytes, tmp_path: Path):
    (tmp_path / "spo.json").write_bytes(content)
    with pytest.raises(UserError, match=r"spo\.json") as caught:
        read_json(tmp_path / "spo.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", TORN[1:])
def test_a_damaged_line_is_named_by_its_number(content: bytes, tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"loss": 1}\n' + content)
    with pytest.raises(UserError, match="line 2"):
        read_json_lines(tmp_path / "metrics.jsonl")


def test_entries_of_another_form_are_one_line():
    with pytest.raises(UserError, match="here cannot be read: KeyError"):
        decoded(lambda: {}["absent"], "here")


def test_a_missing_file_and_a_directory_are_one_line(tmp_path: Path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="cannot be read"):
            read_json(path)
