"""Error messages name the most similar choice, also for names that other tools use."""

from __future__ import annotations

import pytest

from stages.core.errors import did_you_mean

FLAGS = ("--model", "--threads", "--max-tokens", "--task-arg", "--learning-rate", "--epochs")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--modle", "--model"),
        ("--max_tokens", "--max-tokens"),
        ("--lr", "--learning-rate"),
        ("--max_completion_length", "--max-tokens"),
        ("--reward-funcs", "--task-arg"),
        ("--num-train-epochs", "--epochs"),
    ],
)
def test_a_mistyped_or_foreign_flag_is_answered_with_ours(given: str, meant: str):
    assert did_you_mean(given, FLAGS) == f" Did you mean {meant!r}?"


def test_a_foreign_name_is_not_suggested_where_there_is_no_such_option():
    assert did_you_mean("--use-vllm", FLAGS) == ""
    assert did_you_mean("zzz", FLAGS) == ""
