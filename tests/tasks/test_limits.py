"""Calls with limits: a call that hangs, dies or eats memory costs itself alone, and no process outlives its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stages.core.errors import SpoError
from stages.tasks.limits import Limited

ROOT = Path(__file__).resolve().parents[2]
BEHAVE = "tests.tasks.limited_functions:behave"


FOREVER = 3600.0


@contextmanager
def limited(clock_seconds: float) -> Iterator[Limited]:
    found = Limited(BEHAVE, processor_seconds=0.3, clock_seconds=clock_seconds, memory=2**30, workers=2)
    yield found
    found.close()


@pytest.fixture
def behave() -> Iterator[Limited]:
    """Without a limit on the clock, which a busy machine would break."""
    with limited(FOREVER) as found:
        yield found


def alive(pid: int) -> bool:
    """Return whether a process exists, a zombie included."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def runs(pid: int) -> bool:
    """Return whether a process exists and is no zombie: a container may lack an init that buries orphans."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return alive(pid) and not Path("/proc/self/stat").exists()
    return state not in "ZX"


def gone(pids: list[int], seconds: float = 300.0) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(runs, pids))


@pytest.mark.parametrize(
    ("badly", "clock_seconds"),
    [
        (("spin", 0), FOREVER),
        (("sleep", FOREVER), 4.0),
        (("eat", 2**31), FOREVER),
        (("die", 0), FOREVER),
        (("raise", 0), FOREVER),
    ],
)
def test_a_call_that_misbehaves_costs_itself_and_nothing_else(badly: tuple[str, float], clock_seconds: float):
    calls: list[tuple[str, float]] = [("answer", i) for i in range(40)]
    calls[7] = calls[8] = calls[31] = badly
    with limited(clock_seconds) as behave:
        assert behave(calls) == [None if call == badly else call[1] for call in calls]


def test_the_clock_of_a_call_starts_with_that_call():
    """Each of sixteen calls sleeps 0.5 s, far below its limit of 3.5 s; all of them on two workers take longer."""
    began = time.monotonic()
    with limited(3.5) as behave:
        assert behave([("sleep", 0.5)] * 16) == [0.5] * 16
    assert time.monotonic() - began > 3.5


def test_what_a_call_prints_is_no_result(behave: Limited):
    assert behave([("print", 9), ("answer", 3)]) == [9, 3]


def test_a_worker_makes_way_for_a_fresh_one_now_and_then():
    behave = Limited(BEHAVE, workers=1)
    assert len(set(behave([("self", 0)] * 2_500))) == 2
    behave.close()


def test_no_calls_start_nothing(behave: Limited):
    assert behave([]) == []
    assert behave._process is None


def test_threads_share_it(behave: Limited):
    results: dict[int, list[int]] = {}
    threads = [threading.Thread(target=lambda n=n: results.update({n: behave([("answer", n)] * 20)})) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [n] * 20 for n in range(6)}


def test_a_forked_child_has_a_nursery_of_its_own(behave: Limited):
    mine = behave([("parent", 0)])[0]
    pipe, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        nursery = behave([("parent", 0)])[0]
        behave.close()
        os.write(theirs, str(nursery).encode())
        os._exit(0)
    os.waitpid(child, 0)
    nursery = int(os.read(pipe, 20))
    os.close(pipe)
    os.close(theirs)
    assert nursery != mine
    assert gone([nursery])
    assert behave([("parent", 0)]) == [mine]


def test_after_closing_nobody_is_left_and_it_starts_again(behave: Limited):
    before = [*behave([("parent", 0)]), *behave([("self", 0)])]
    behave.close()
    assert not any(map(alive, before))
    assert behave([("answer", 5)]) == [5]


def test_a_nursery_killed_from_outside_is_told_and_replaced(behave: Limited):
    nursery, worker = behave([("parent", 0)])[0], behave([("self", 0)])[0]
    os.kill(nursery, signal.SIGKILL)
    with pytest.raises(SpoError, match="ended with code -9; run again"):
        behave([("answer", 5)])
    assert behave([("answer", 5)]) == [5]
    assert gone([worker])


def test_a_function_that_cannot_be_loaded_is_told(capfd: pytest.CaptureFixture[str]):
    with pytest.raises(SpoError, match="ended with code 1"):
        Limited("tests.tasks.nowhere:behave")([("answer", 5)])
    assert "No module named 'tests.tasks.nowhere'" in capfd.readouterr().err


OWNER = f"""
import sys, signal
from stages.tasks.limits import Limited
if {{handler}}:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
behave = Limited({BEHAVE!r}, processor_seconds=60, clock_seconds=60, workers=2)
print(*behave([("parent", 0)]), *behave([("self", 0)]), flush=True)
{{then}}
"""


def owner(then: str, handler: bool = False) -> tuple[subprocess.Popen[str], list[int]]:
    """A process that uses limits, and the nursery and the worker that it says it has."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER.format(then=then, handler=handler)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    assert process.stdout is not None
    return process, [int(pid) for pid in process.stdout.readline().split()]


def test_processes_end_with_the_owner_however_that_ends():
    for then, handler, number in (
        ("", False, None),
        ("raise SystemExit(4)", False, None),
        ("behave([('sleep', 50)])", False, signal.SIGKILL),
        ("behave([('sleep', 50)])", False, signal.SIGTERM),
        ("behave([('sleep', 50)])", True, signal.SIGTERM),
        ("behave([('sleep', 50)])", False, signal.SIGINT),
        ("behave([('spin', 50), ('spin', 50)])", False, signal.SIGINT),
    ):
        process, others = owner(then, handler)
        assert len(others) == 2
        if number:
            time.sleep(0.3)
            process.send_signal(number)
        process.communicate()
        assert gone(others), (then, number)


def test_a_signal_to_the_whole_group_leaves_the_owner_its_workers_to_finish_with():
    """As a scheduler warns before it ends a job: the owner decides when it is done."""
    then = "import time; time.sleep(1); print(behave([('answer', 5)]))"
    process, others = owner("signal.signal(signal.SIGTERM, signal.SIG_IGN); print('', flush=True); " + then)
    assert process.stdout is not None
    process.stdout.readline()
    os.killpg(process.pid, signal.SIGTERM)
    assert process.communicate()[0].strip() == "[5]"
    assert gone(others)
