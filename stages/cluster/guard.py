"""Run the Ray of this machine as long as its driver lives: `python guard.py FOLDER OPTIONS`.

Ray leaves processes behind if its driver is killed. This process is the ancestor of all of them (on Linux, orphans
become its children too), and its standard input is a pipe from the driver, which closes however the driver ends. Then
all descendants are ended and the folder is deleted. On standard output it writes one line of JSON: the address of its
Ray, or why there is none.
"""

from __future__ import annotations

import ctypes
import inspect
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from select import select
from typing import Any, cast

import psutil
import ray
from ray._private import services
from ray._raylet import persist_port  # pyright: ignore[reportAttributeAccessIssue]

_PR_SET_CHILD_SUBREAPER = 36
_START_SECONDS = 600.0
_AGENT_PORTS = ("dashboard_agent_listen_port", "runtime_env_agent_port")
_NO_PORTS = ("metrics_agent_port", "metrics_export_port")  # no command reads these services


def main(folder: Path, options: dict[str, Any]) -> None:
    """Start Ray with arguments of `ray.init`; end all when standard input closes."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps Ray's output apart from the answer
    raylet: list[Any] = []
    services.start_raylet = with_ports(services.start_raylet, raylet)
    services.get_node = wait_for_node(services.get_node, lambda: raylet[-1].process.poll() is None)
    files = folder / "t"
    files.mkdir()
    os.environ["TMPDIR"] = str(files)  # what killed workers leave there goes with the folder
    try:
        context = cast("Any", ray.init(address="local", _temp_dir=str(folder), **options))
        answer = {"address": context.address_info["gcs_address"]}
    except Exception as error:  # Ray raises many classes; the driver reads the reason from this line
        answer = {"error": f"{type(error).__name__}: {error}"}
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # only the driver ends this process
    with suppress(BrokenPipeError):
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    sys.stdin.buffer.read()
    _end_descendants()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)  # Ray's own shutdown would wait for its servers, and write into the folder again


def wait_for_node(get_node: Callable[..., Any], may_answer: Callable[[], bool] = lambda: True) -> Callable[..., Any]:
    """Return `services.get_node` with another limit: Ray gives its own servers 30 s to start, few on a busy machine.

    Args:
      may_answer: whether the raylet runs; if it has ended, the node will not register.
    """

    def patient(*arguments: Any) -> Any:
        limit = time.monotonic() + _START_SECONDS
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:  # the node has not registered yet
                gone = select([0], [], [], 0.1)[0] or not may_answer()  # the driver or the raylet has ended
                if gone or time.monotonic() > limit:
                    raise

    return patient


def with_ports(start_raylet: Callable[..., Any], started: list[Any]) -> Callable[..., Any]:
    """Return `services.start_raylet` that chooses the ports of the node's agents and writes them where they would.

    The raylet waits 15 s for files with these ports, and ends itself if a busy machine takes longer to start agents.

    Args:
      started: gets what `start_raylet` returns.
    """
    parameters = inspect.signature(start_raylet)

    def start(*arguments: Any, **options: Any) -> Any:
        options |= dict(zip(_AGENT_PORTS, _free_ports(len(_AGENT_PORTS)), strict=True))
        given = parameters.bind(*arguments, **options).arguments
        for name, port in ({name: given[name] for name in _AGENT_PORTS} | dict.fromkeys(_NO_PORTS, -1)).items():
            persist_port(given["session_dir"], given["node_id"], name, port)
        started.append(start_raylet(*arguments, **options))
        return started[-1]

    return start


def _free_ports(count: int) -> list[int]:
    """Return ports of the loopback interface that no process uses."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _end_descendants() -> None:
    """Kill all descendants, and those that they start meanwhile, until none is left."""
    while True:
        for one in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:  # none has ended since the last look
                time.sleep(0.02)
        except ChildProcessError:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
