"""Enumerate the faults of all stages: `python -m tests.faults [STAGE …]`; prints counts, and ends with 1 on a problem.

Each stage is killed at each of its changes to the disk, and gets a full disk at each change that needs room; a whole
run, whose stages are enumerated themselves, at every 40th.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.command_server import Commands
from tests.environment import fix_environment
from tests.faults.points import Enumeration
from tests.faults.shim import build, missing_compiler
from tests.faults.stages import STAGES, make_inputs

SAMPLED = {"run": 40}
"""Stage → n, where every n-th call is enumerated."""


def main() -> None:
    """Enumerate the stages that are named on the command line, or all of them."""
    if reason := missing_compiler():
        sys.exit(f"the enumeration of faults {reason}")
    fix_environment()
    problems = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs, library = make_inputs(folder / "inputs"), build(folder)
        with Commands(library) as commands:
            for stage in sys.argv[1:] or STAGES:
                enumeration = Enumeration(commands, inputs, stage)
                step = SAMPLED.get(stage, 1)
                kill = enumeration.kill() if step == 1 else enumeration.kill_sometimes(step)
                for outcome in (kill, enumeration.fill(step)):
                    print(
                        f"{stage}: {outcome.kind} at {outcome.points} points, {outcome.states} states resumed, "
                        f"{len(outcome.problems)} problems",
                        *outcome.problems,
                        sep="\n  ",
                        flush=True,
                    )
                    problems += len(outcome.problems)
    sys.exit(problems > 0)


if __name__ == "__main__":
    main()
