"""The process of `spo`: its streams are open and its signals are handled before anything else is imported.

Importing the command line takes a moment, in which a scheduler may already send a signal.
"""

import atexit
import os
import signal
import sys
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def main() -> None:
    """Run `spo` with the arguments of this process."""
    _open_streams()
    # Registered first, it runs last: the interpreter then restores the default action of each handled signal, and one
    # that arrives during its own end would replace the exit code of the command.
    atexit.register(_ignore_signals)
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup`, or Ctrl-C of a background job
            signal.signal(number, _stop)

    from spo_cli.app import main as run_command

    run_command()


def _open_streams() -> None:
    """Open the standard streams that the parent closed: otherwise, files of the work would get their numbers."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdin = sys.stdin or os.fdopen(0)
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def _stop(number: int, frame: FrameType | None) -> None:
    """End the process before the command begins, or after it ended, with the exit code of an interruption."""
    line = f"spo: stopped by {signal.Signals(number).name}; no work was in progress\n"
    try:
        os.write(2, line.encode())
    finally:
        os._exit(4)


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
