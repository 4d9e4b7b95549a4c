"""The Ray of this machine may start slowly; if it cannot start, that is one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from stages.cluster import guard, session
from stages.cluster.session import Session
from stages.configs.execution import Cluster
from stages.core.errors import UserError


def test_a_node_that_registers_late_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    answers = iter([RuntimeError("no node"), RuntimeError("no node"), "node"])

    def get_node(address: str) -> str:
        answer = next(answers)
        if isinstance(answer, RuntimeError):
            raise answer
        return f"{answer} at {address}"

    with_driver(monkeypatch, alive=True)
    assert guard.wait_for_node(get_node)("here") == "node at here"


def test_it_is_not_waited_for_once_the_driver_has_ended(monkeypatch: pytest.MonkeyPatch):
    def get_node() -> None:
        raise RuntimeError("no node")

    with_driver(monkeypatch, alive=False)
    with pytest.raises(RuntimeError, match=r"^no node$"):
        guard.wait_for_node(get_node)()


def test_the_raylet_finds_the_ports_of_agents_that_start_late(tmp_path: Path):
    """It waits 15 s for them; on a busy machine, a Python process may take longer to start."""
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    folder = Path(tempfile.mkdtemp(prefix="spo-ray-"))  # short: Ray's sockets below it have at most 107 characters
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
        started = session._start_guard(Cluster(), folder)
    assert started.stdin
    assert started.stdout
    try:
        assert session._await_address(started).startswith("127.0.0.1:")
    finally:
        started.stdin.close()
        started.wait()
        started.stdout.close()
    assert not folder.exists()


SLOW = """import time
words = open("/proc/self/cmdline").read()
if "dashboard/agent.py" in words or "runtime_env/agent/main.py" in words:
    time.sleep(30)
"""


def test_a_node_whose_raylet_has_ended_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    def get_node() -> None:
        raise RuntimeError("no node")

    with_driver(monkeypatch, alive=True)
    runs = iter([True, True, False])
    with pytest.raises(RuntimeError, match=r"^no node$"):
        guard.wait_for_node(get_node, lambda: next(runs))()
    assert next(runs, None) is None


def with_driver(monkeypatch: pytest.MonkeyPatch, *, alive: bool) -> None:
    """Give the guard a standard input that is open, or closed as that of a driver that has ended."""
    reading, writing = os.pipe()
    if not alive:
        os.close(writing)
    select = guard.select
    monkeypatch.setattr(guard, "select", lambda files, *others: select([reading], *others))


def test_a_ray_that_cannot_start_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def start(cluster: Cluster, folder: Path) -> subprocess.Popen[bytes]:
        folder.rmdir()
        answer = json.dumps({"error": "OSError: no space\nleft"})
        return subprocess.Popen(
            [sys.executable, "-c", f"print({answer!r})"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    monkeypatch.setattr(session, "_start_guard", start)
    with pytest.raises(UserError, match=r"^Ray did not start on this machine: OSError: no space left$"):
        Session(Cluster(), None).begin()
