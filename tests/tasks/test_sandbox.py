"""Calls in a sandbox: a call that hangs, crashes or exhausts memory fails alone, and no process outlives its parent."""

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
from stages.tasks.sandbox import SandboxedFunction

ROOT = Path(__file__).resolve().parents[2]
BEHAVE = "tests.tasks.sandboxed_functions:behave"
FOREVER = 3600.0


@contextmanager
def sandboxed(clock_seconds: float) -> Iterator[SandboxedFunction]:
    found = SandboxedFunction(BEHAVE, processor_seconds=0.3, clock_seconds=clock_seconds, memory=2**30, workers=2)
    yield found
    found.close()


@pytest.fixture
def behave() -> Iterator[SandboxedFunction]:
    """Return the function without a limit on elapsed time, which a call on a busy machine could exceed."""
    with sandboxed(FOREVER) as found:
        yield found


def alive(pid: int) -> bool:
    """Return whether a process exists, a zombie included."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def runs(pid: int) -> bool:
    """Return whether a process exists and is not a zombie: a container may lack an init process that reaps orphans."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return alive(pid) and not Path("/proc/self/stat").exists()
    return state not in "ZX"


def have_ended(pids: list[int], seconds: float = 300.0) -> bool:
    """Return whether processes end within a time."""
    deadline = time.monotonic() + seconds
    while any(map(runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(runs, pids))


@pytest.mark.parametrize(
    ("failing", "clock_seconds"),
    [
        (("spin", 0), FOREVER),
        (("sleep", FOREVER), 2.0),
        (("eat", 2**31), FOREVER),
        (("die", 0), FOREVER),
        (("raise", 0), FOREVER),
    ],
)
def test_a_call_that_exceeds_a_limit_or_crashes_fails_alone(failing: tuple[str, float], clock_seconds: float):
    calls: list[tuple[str, float]] = [("answer", i) for i in range(40)]
    calls[7] = calls[8] = calls[31] = failing
    with sandboxed(clock_seconds) as behave:
        assert behave(calls) == [None if call == failing else call[1] for call in calls]


def test_the_clock_of_a_call_starts_with_the_call():
    """Each of sixteen calls sleeps 0.5 s, far below the limit of 3.5 s; together they take longer on two workers."""
    began = time.monotonic()
    with sandboxed(3.5) as behave:
        assert behave([("sleep", 0.5)] * 16) == [0.5] * 16
    assert time.monotonic() - began > 3.5


def test_a_call_that_exceeds_the_clock_is_made_once_more_alone(tmp_path: Path):
    """The call sleeps the first time only, as a process without a processor would."""
    with sandboxed(4.0) as behave:
        marker = str(tmp_path / "slept")
        assert behave([("answer", 1), ("sleep_once", marker), ("answer", 2)]) == [1, marker, 2]


def test_the_output_of_a_call_does_not_mix_with_results(behave: SandboxedFunction):
    assert behave([("print", 9), ("answer", 3)]) == [9, 3]


def test_a_worker_is_replaced_after_two_thousand_calls():
    behave = SandboxedFunction(BEHAVE, workers=1)
    assert len(set(behave([("self", 0)] * 2_500))) == 2
    behave.close()


def test_an_empty_list_of_calls_starts_no_process(behave: SandboxedFunction):
    assert behave([]) == []
    assert behave._process is None


def test_threads_can_share_a_function(behave: SandboxedFunction):
    results: dict[int, list[int]] = {}
    threads = [threading.Thread(target=lambda n=n: results.update({n: behave([("answer", n)] * 20)})) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [n] * 20 for n in range(6)}


def test_a_forked_child_starts_its_own_pool(behave: SandboxedFunction):
    mine = behave([("parent", 0)])[0]
    pipe, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        pool = behave([("parent", 0)])[0]
        behave.close()
        os.write(theirs, str(pool).encode())
        os._exit(0)
    os.waitpid(child, 0)
    pool = int(os.read(pipe, 20))
    os.close(pipe)
    os.close(theirs)
    assert pool != mine
    assert have_ended([pool])
    assert behave([("parent", 0)]) == [mine]


def test_closing_ends_all_processes_and_a_later_call_starts_new_ones(behave: SandboxedFunction):
    before = [*behave([("parent", 0)]), *behave([("self", 0)])]
    behave.close()
    assert not any(map(alive, before))
    assert behave([("answer", 5)]) == [5]


def test_a_pool_killed_from_outside_is_an_error_and_is_replaced(behave: SandboxedFunction):
    pool, worker = behave([("parent", 0)])[0], behave([("self", 0)])[0]
    os.kill(pool, signal.SIGKILL)
    with pytest.raises(SpoError, match="ended with code -9; rerun the command"):
        behave([("answer", 5)])
    assert behave([("answer", 5)]) == [5]
    assert have_ended([worker])


def test_a_function_that_cannot_be_loaded_is_an_error(capfd: pytest.CaptureFixture[str]):
    with pytest.raises(SpoError, match="ended with code 1"):
        SandboxedFunction("tests.tasks.nowhere:behave")([("answer", 5)])
    assert "No module named 'tests.tasks.nowhere'" in capfd.readouterr().err


PARENT = f"""
import sys, signal
from stages.tasks.sandbox import SandboxedFunction
if {{handler}}:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
behave = SandboxedFunction({BEHAVE!r}, processor_seconds=60, clock_seconds=60, workers=2)
print(*behave([("parent", 0)]), *behave([("self", 0)]), flush=True)
{{then}}
"""


def start_parent(then: str, handler: bool = False) -> tuple[subprocess.Popen[str], list[int]]:
    """Return a process that calls a sandboxed function, and the process ids of its pool and of a worker."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(then=then, handler=handler)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    assert process.stdout is not None
    return process, [int(pid) for pid in process.stdout.readline().split()]


def test_all_processes_end_with_the_parent_however_it_ends():
    for then, handler, number in (
        ("", False, None),
        ("raise SystemExit(4)", False, None),
        ("behave([('sleep', 50)])", False, signal.SIGKILL),
        ("behave([('sleep', 50)])", False, signal.SIGTERM),
        ("behave([('sleep', 50)])", True, signal.SIGTERM),
        ("behave([('sleep', 50)])", False, signal.SIGINT),
        ("behave([('spin', 50), ('spin', 50)])", False, signal.SIGINT),
    ):
        process, others = start_parent(then, handler)
        assert len(others) == 2
        if number:
            time.sleep(0.3)
            process.send_signal(number)
        process.communicate()
        assert have_ended(others), (then, number)


def test_a_signal_to_the_process_group_does_not_end_the_workers_of_a_parent_that_ignores_it():
    """A scheduler signals the group before it ends a job; the parent may still finish its work."""
    then = "import time; time.sleep(1); print(behave([('answer', 5)]))"
    process, others = start_parent("signal.signal(signal.SIGTERM, signal.SIG_IGN); print('', flush=True); " + then)
    assert process.stdout is not None
    process.stdout.readline()
    os.killpg(process.pid, signal.SIGTERM)
    assert process.communicate()[0].strip() == "[5]"
    assert have_ended(others)
