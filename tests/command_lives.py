"""Whole `spo` commands that live and are killed, many in a minute: a server that has imported everything forks them.

One line of JSON in per command, one out. Each command is a process of its own that runs what `python -m spo_cli` does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class Life:
    """How a command ended.

    Attributes:
      code: its exit code, or minus the signal that ended it.
      seconds: the processor time that it took; what else runs on the machine hardly counts.
    """

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
        chunks: int | None = None,
        variables: Mapping[str, str] = {},
    ) -> Life:
        """Run one command, under further environment variables.

        Args:
          seconds: it is killed once it has taken so much processor time (SIGPROF, whose default action is that of
            SIGKILL).
          chunks: it is killed (SIGKILL) right after it has committed so many chunks.
        """
        assert self._server.stdin
        assert self._server.stdout
        asked = {"arguments": [str(argument) for argument in arguments], "variables": {**variables}}
        self._server.stdin.write(json.dumps(asked | {"seconds": seconds, "chunks": chunks}) + "\n")
        self._server.stdin.flush()
        return Life(**json.loads(self._server.stdout.readline()))

    def finish(self, *arguments: str | Path, variables: Mapping[str, str] = {}) -> Life:
        """One command that must end well."""
        life = self.run(*arguments, variables=variables)
        assert life.code == 0, life.stderr
        return life


def live(asked: dict[str, Any], log: Path) -> Life:
    """Fork one command and wait for its end."""
    child = os.fork()
    if child == 0:
        be(asked, log)
    _, status, used = os.wait4(child, 0)
    told = [(log.with_suffix(suffix)).read_text() for suffix in (".out", ".err")]
    return Life(os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, *told)


def die_after(chunks: int) -> None:
    """SIGKILL to this process right after it has committed so many chunks."""
    from stages.shards.writing import PartWriter

    commit, left = PartWriter.commit, count(chunks - 1, -1)

    def deadly(*given: Any, **named: Any) -> None:
        commit(*given, **named)
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    PartWriter.commit = deadly  # pyright: ignore[reportAttributeAccessIssue]


def be(asked: dict[str, Any], log: Path) -> None:
    """Become the command; never return."""
    from spo_cli import app

    for number, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(log.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(asked["variables"])
    sys.argv = ["spo", *asked["arguments"]]
    code = 1
    try:
        if asked["chunks"] is not None:
            die_after(asked["chunks"])
        if asked["seconds"] is not None:
            signal.setitimer(signal.ITIMER_PROF, asked["seconds"])
        app.main(asked["arguments"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())  # pyright: ignore[reportArgumentType]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


_PRELOADED = (
    *(
        "pyarrow.parquet",
        "pyarrow.compute",
        "transformers",
        "stages.optimization.torch",
        "stages.sampling.embedded.engine",
    ),
    *(
        "stages.responses.generation",
        "stages.shards.writing",
        "spo_cli.console",
        "spo_cli.options",
        "rich.progress",
        "rich.table",
    ),
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
