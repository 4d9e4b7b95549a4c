"""Run cases by number: a case depends on the seed, the domain and its number alone, so that it can be repeated."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType

from tests.fuzz.domains import DOMAINS, EXPECTED, Bench, Finding

SECONDS = 20.0
"""Processor time after which a case counts as one that hangs."""


class Hang(BaseException):
    """A case takes too long; no `except Exception` of the code under test swallows it."""


@dataclass(frozen=True)
class Failure:
    """A case that ended as no input may.

    Attributes:
      domain, number: which case.
      problem: the traceback, or what is wrong with what was accepted.
    """

    domain: str
    number: int
    problem: str

    def __str__(self) -> str:
        return f"{self.domain} {self.number}: {self.problem}"


@dataclass
class Result:
    """How the cases of a domain ended: some must be accepted and some refused, or they test nothing."""

    domain: str
    accepted: int = 0
    refused: int = 0
    failures: list[Failure] = field(default_factory=list)

    def add(self, outcome: bool | Failure) -> None:
        """Count one case: accepted (True), refused (False), or failed."""
        if isinstance(outcome, Failure):
            self.failures.append(outcome)
        else:
            self.accepted += outcome
            self.refused += not outcome


def run_case(bench: Bench, domain: str, number: int, seed: int) -> bool | Failure:
    """Run one case; return whether the input was accepted, or what is wrong with how it ended."""
    case, _ = DOMAINS[domain]
    try:
        with _limit(SECONDS):
            case(Random(f"{seed}/{domain}/{number}"), bench)
    except EXPECTED:
        return False
    except Finding as finding:
        return Failure(domain, number, str(finding))
    except Hang:
        return Failure(domain, number, f"it takes more than {SECONDS:g} s of processor time")
    except (Exception, SystemExit):
        return Failure(domain, number, traceback.format_exc(limit=-6))
    return True


def run_cases(folder: Path, domain: str, seed: int, share: float = 1.0) -> Result:
    """Run a share of the cases of a domain."""
    bench, result = Bench(folder), Result(domain)
    for number in range(max(1, round(DOMAINS[domain][1] * share))):
        result.add(run_case(bench, domain, number, seed))
    return result


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
