"""Compile and arm `shim.c`, the library that makes the disk fail, the process die, the clock jump or a folder lag."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SOURCE = Path(__file__).with_name("shim.c")
Kind = Literal["none", "kill", "tear", "full", "clock", "watch"]
_KINDS: dict[Kind, int] = {"none": 0, "kill": 1, "tear": 2, "full": 3, "clock": 4, "watch": 5}


@dataclass(frozen=True)
class Lag:
    """A file that a process sees late, or still sees in a listing after its removal (`ghost`).

    Attributes:
      folder, name: where the file is.
      lookups, listings: number of calls by name, and of listings of the folder, until the view is up to date.
    """

    folder: str
    name: str
    lookups: int
    listings: int
    ghost: bool = False


@dataclass(frozen=True)
class Fault:
    """What happens to a process at one of the calls that change something below a folder.

    Attributes:
      root: the folder.
      kind: see `fault_arm` in shim.c; none only counts.
      at: number of the call, from 1.
      log: file that receives a line for each of these calls.
      lag: a file of which the view lags.
      snapshots: with watch, a folder for copies of `root`, named 00001, 00002 …: its state at each call.
    """

    root: str
    kind: Kind = "none"
    at: int = 0
    log: str = os.devnull
    lag: Lag | None = None
    snapshots: str = ""


def missing_compiler() -> str | None:
    """Return why the library cannot be made on this machine; None if it can."""
    if os.uname().sysname != "Linux":
        return "needs Linux, where a library can be preloaded"
    return None if shutil.which("gcc") else "needs gcc, to compile tests/faults/shim.c"


def build(folder: Path) -> Path:
    """Compile the library into a folder, and return its path."""
    library = folder / "shim.so"
    command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"]
    subprocess.run(command, check=True)
    return library


def arm(fault: Fault) -> None:
    """Make the fault happen in this process, which was started with the library in LD_PRELOAD."""
    library = ctypes.CDLL(os.environ["LD_PRELOAD"])
    log = os.open(fault.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    if lag := fault.lag:
        counts = ctypes.c_long(lag.lookups), ctypes.c_long(lag.listings)
        library.fault_lag(lag.folder.encode(), lag.name.encode(), *counts, lag.ghost)
    library.fault_arm(fault.root.encode(), _KINDS[fault.kind], ctypes.c_long(fault.at), log)


def wait(child: int, fault: Fault | None) -> tuple[int, int, resource.struct_rusage]:
    """Wait for the end of a child as `os.wait4` does; copy the folder whenever a watched child stops at a call."""
    number = 0
    while True:
        found = os.wait4(child, os.WUNTRACED)
        if not (fault and os.WIFSTOPPED(found[1])):
            return found
        number += 1
        shutil.copytree(fault.root, Path(fault.snapshots) / f"{number:05d}")
        os.kill(child, signal.SIGCONT)
