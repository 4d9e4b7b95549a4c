"""The Ray of this machine is started again if it was too slow, and ends with one line if it cannot start."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from stages.cluster import session
from stages.cluster.session import Session
from stages.configs.execution import Cluster
from stages.core.errors import UserError

SLOW = {"error": "Exception: The current node timed out during startup.\nThis could happen"}
BROKEN = {"error": "OSError: no space left"}


def answer_with(monkeypatch: pytest.MonkeyPatch, answers: list[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Replace the process that starts Ray by one that only answers; return the answers that are left."""
    left = iter(answers)

    def start(cluster: Cluster, folder: Any) -> subprocess.Popen[bytes]:
        folder.rmdir()
        words = [sys.executable, "-c", f"print({json.dumps(next(left))!r})"]
        return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    monkeypatch.setattr(session, "_start_guard", start)
    monkeypatch.setattr(session, "_join", lambda address, folder: joined.append(address))
    joined.clear()
    return left


joined: list[str] = []


def test_a_ray_that_was_too_slow_is_started_again(monkeypatch: pytest.MonkeyPatch):
    left = answer_with(monkeypatch, [SLOW, SLOW, {"address": "127.0.0.1:1234"}])
    one = Session(Cluster(), None)
    one.begin()
    one._end_guard()
    assert joined == ["127.0.0.1:1234"]
    assert list(left) == []


@pytest.mark.parametrize(("answers", "left"), [([BROKEN, BROKEN], 1), ([SLOW] * 6, 1)], ids=["broken", "slow"])
def test_a_ray_that_cannot_start_is_one_line(monkeypatch: pytest.MonkeyPatch, answers: list[dict[str, str]], left: int):
    rest = answer_with(monkeypatch, answers)
    with pytest.raises(UserError, match=r"^Ray did not start on this machine: \w+: .*[^\n]$"):
        Session(Cluster(), None).begin()
    assert len(list(rest)) == left
    assert joined == []
