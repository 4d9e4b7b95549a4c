"""Mutate inputs of every kind: `python -m tests.fuzz [--seed N] [--share X] [DOMAIN …]`; ends with 1 on a failure."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.environment import fix_environment

fix_environment()

from tests.fuzz.domains import DOMAINS, Bench  # noqa: E402 -- after the environment is fixed
from tests.fuzz.fuzzer import Result, run_case, run_cases  # noqa: E402


def main() -> None:
    """Run the cases that the command line selects, and print a line for each domain and each failure."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("domains", nargs="*", choices=[*DOMAINS, []], help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="share of the 10,000 cases")
    parser.add_argument("--case", type=int, help="run this case of one domain alone")
    given = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        for domain in given.domains or DOMAINS:
            began = time.process_time()
            folder = Path(name) / domain.replace(" ", "-")
            folder.mkdir()
            if given.case is not None:
                result = Result(domain)
                result.add(run_case(Bench(folder), domain, given.case, given.seed))
            else:
                result = run_cases(folder, domain, given.seed, given.share)
            failed += len(result.failures)
            print(
                f"{domain}: {result.accepted} accepted, {result.refused} refused, {len(result.failures)} failed, "
                f"{time.process_time() - began:.0f} s of processor time",
                *result.failures[:10],
                sep="\n  ",
                flush=True,
            )
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
