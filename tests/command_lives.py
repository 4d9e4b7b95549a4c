"""Whole `spo` commands that live and are killed, many in a minute: a server that has imported everything forks them.

One line of JSON in per command, one out. Each command is a process of its own that runs what `python -m spo_cli` does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class Life:
    """How a command ended: its exit code (negative: the signal that ended it), how long it lived, what it said."""

    code: int
    seconds: float
    stdout: str
    stderr: str


class Commands:
    """The server, from the side of a test."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.command_lives"]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()

    def run(
        self,
        *arguments: str | Path,
        seconds: float | None = None,
        chunks: tuple[Path, int] | None = None,
        with_signal: int = signal.SIGKILL,
        variables: Mapping[str, str] = {},
    ) -> Life:
        """One command, under further environment variables.

        It is sent the signal after `seconds`, or once so many chunks are committed in the artefact that it writes.
        """
        assert self._server.stdin
        assert self._server.stdout
        asked = {"arguments": [str(argument) for argument in arguments], "variables": {**variables}}
        asked |= {"seconds": seconds, "chunks": chunks and [str(chunks[0]), chunks[1]], "signal": int(with_signal)}
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        return Life(**json.loads(self._server.stdout.readline()))

    def finish(self, *arguments: str | Path, variables: Mapping[str, str] = {}) -> Life:
        """One command that must end well."""
        life = self.run(*arguments, variables=variables)
        assert life.code == 0, life.stderr
        return life


def live(asked: dict[str, Any], log: Path) -> Life:
    """Forks one command and waits for its end."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        be(asked["arguments"], asked["variables"], log)
    if asked["seconds"] is not None:
        time.sleep(asked["seconds"])
        os.kill(child, asked["signal"])
    if asked["chunks"] is not None:
        wait_for_chunks(child, *asked["chunks"])
        os.kill(child, asked["signal"])
    _, status = os.waitpid(child, 0)
    told = [(log.with_suffix(suffix)).read_text() for suffix in (".out", ".err")]
    return Life(os.waitstatus_to_exitcode(status), time.monotonic() - began, *told)


def wait_for_chunks(child: int, artefact: str, number: int) -> None:
    """Until so many chunks lie there, or the child has ended (it stays to be waited for)."""
    while len(list(Path(artefact).glob(".part-*/chunk-*"))) < number:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.0005)


def be(arguments: Sequence[str], variables: dict[str, str], log: Path) -> None:
    """Becomes the command; never returns."""
    from spo_cli import app

    for number, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(log.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(variables)
    sys.argv = ["spo", *arguments]
    code = 1
    try:
        app.main(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())  # pyright: ignore[reportArgumentType]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


_PRELOADED = (
    *("pyarrow.parquet", "pyarrow.compute", "transformers", "stages.engines.torch", "stages.engines.transformers"),
    *("stages.responses", "stages.shards.writing", "spo_cli.console", "spo_cli.options", "rich.progress", "rich.table"),
)


def main() -> None:
    import gc
    import tempfile
    from importlib import import_module

    from spo_cli.app import VERBS

    for name in (*_PRELOADED, *(verb.module for verb in VERBS.values())):  # so that no child has to
        import_module(name)
    for name in ("AutoModelForCausalLM", "AutoTokenizer", "Qwen2ForCausalLM"):
        getattr(sys.modules["transformers"], name)
    gc.freeze()
    with tempfile.TemporaryDirectory() as folder:
        for line in sys.stdin:
            print(json.dumps(vars(live(json.loads(line), Path(folder) / "log"))), flush=True)


if __name__ == "__main__":
    main()
