"""Run and kill whole `spo` commands quickly: a server that has imported all modules forks a process for each command.

The server reads one line of JSON per command and writes one back. Each process runs what `python -m spo_cli` runs.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, Self

from spo_cli import app
from stages.shards.writing import PartWriter
from tests.faults.shim import Fault, Lag, arm, wait


@dataclass(frozen=True)
class CommandResult:
    """How a command ended.

    Attributes:
      code: exit code, or minus the number of the signal that ended it.
      seconds: processor time that it took, which other load on the machine hardly changes.
    """

    code: int
    seconds: float
    stdout: str
    stderr: str


class Commands:
    """Client of the server, for tests."""

    def __init__(self, preload: Path | None = None) -> None:
        """
        Args:
          preload: library of `tests.faults.shim`, for commands that are run with a fault.
        """
        self._variables = {"LD_PRELOAD": str(preload)} if preload else {}

    def __enter__(self) -> Self:
        command, variables = [sys.executable, "-m", "tests.command_server"], {**os.environ, **self._variables}
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()

    def run(
        self,
        *arguments: str | Path,
        seconds: float | None = None,
        chunks: int | None = None,
        variables: Mapping[str, str] = {},
        fault: Fault | None = None,
    ) -> CommandResult:
        """Run one command and wait for its end.

        Args:
          seconds: processor time after which SIGPROF kills it; like SIGKILL, it runs no handler.
          chunks: number of committed chunks after which SIGKILL kills it.
          variables: environment variables to set for it.
          fault: what happens to it at one of its changes to the disk.
        """
        assert self._server.stdin
        assert self._server.stdout
        request = {"arguments": [str(argument) for argument in arguments], "variables": {**variables}}
        request |= {"seconds": seconds, "chunks": chunks, "fault": fault and asdict(fault)}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return CommandResult(**json.loads(self._server.stdout.readline()))

    def finish(self, *arguments: str | Path, variables: Mapping[str, str] = {}) -> CommandResult:
        """Run one command that must succeed."""
        result = self.run(*arguments, variables=variables)
        assert result.code == 0, result.stderr
        return result


def run_in_fork(request: dict[str, Any], log: Path) -> CommandResult:
    """Fork a process that runs the requested command, and wait for its end."""
    if given := request["fault"]:
        request["fault"] = Fault(**given | {"lag": Lag(**given["lag"]) if given["lag"] else None})
    child = os.fork()
    if child == 0:
        become_command(request, log)
    _, status, used = wait(child, request["fault"])
    output = [(log.with_suffix(suffix)).read_text() for suffix in (".out", ".err")]
    return CommandResult(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, *output)


def die_after(chunks: int) -> None:
    """Make this process send itself SIGKILL right after it has committed `chunks` chunks."""
    commit, left = PartWriter.commit, count(chunks - 1, -1)

    def commit_and_die(*args: Any, **options: Any) -> None:
        commit(*args, **options)
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    PartWriter.commit = commit_and_die  # pyright: ignore[reportAttributeAccessIssue]


def become_command(request: dict[str, Any], log: Path) -> None:
    """Run the command in this process with its output in files, then exit; never return."""
    for number, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(log.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(request["variables"])
    sys.argv = ["spo", *request["arguments"]]
    code = 1
    try:
        if request["chunks"] is not None:
            die_after(request["chunks"])
        if request["seconds"] is not None:
            signal.setitimer(signal.ITIMER_PROF, request["seconds"])
        if request["fault"] is not None:
            arm(request["fault"])
        app.main(request["arguments"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())  # pyright: ignore[reportArgumentType]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


_PRELOADED = (
    *("pyarrow.parquet", "pyarrow.compute", "transformers", "stages.optimization.torch"),
    *("stages.sampling.embedded.engine", "stages.responses.generation", "spo_cli.console", "spo_cli.options"),
    *("rich.progress", "rich.table"),
)
"""Modules that a command imports only when it needs them; the server imports them once for all its children."""


def main() -> None:
    for name in (*_PRELOADED, *(verb.module for verb in app.VERBS.values())):
        import_module(name)
    for name in ("AutoModelForCausalLM", "AutoTokenizer", "Qwen2ForCausalLM"):  # transformers imports them on first use
        getattr(sys.modules["transformers"], name)
    gc.freeze()  # a collection in a child would copy the pages that it shares with the server
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            print(json.dumps(vars(run_in_fork(json.loads(line), Path(folder) / "log"))), flush=True)


if __name__ == "__main__":
    main()
