"""The calls of a log: seconds of resumed and killed calls, wall time of several parts, GPU-seconds."""

from __future__ import annotations

import pytest

from stages.shards.calls import gpu_seconds, read_calls, wall_seconds


def log(*lines: str) -> str:
    """Return a log of lines `SECONDS text`, all within one minute of one day."""
    return "".join(f"2026-01-01T00:00:{line.partition(' ')[0]}+00:00 {line.partition(' ')[2]}\n" for line in lines)


RESUMED = log(
    "00 started: spo rollout (host a, process 1), fingerprint f",
    "04 warning: the context is short",
    "10 chunk 1 of 2: 8 rows, sampled 100, prefilled 30, gpus 2",
    "20 started: spo rollout (host a, process 2), fingerprint f",
    "21 part-00000-of-00001: resuming, 1 of 2 chunks",
    "26 chunk 2 of 2: 8 rows, sampled 50, prefilled 20, gpus 2",
    "27 finished: 16 rows in 7.5 s",
)


def test_a_resumed_part_keeps_the_seconds_of_its_killed_call():
    killed, last = read_calls(RESUMED)
    assert (killed.ending, killed.seconds, killed.total("sampled"), killed.warnings) == (
        "",
        10.0,
        100.0,
        ["the context is short"],
    )
    assert (last.ending, last.seconds, last.total("prefilled")) == ("finished", 7.5, 20.0)
    assert (last.chunks[0].number, last.chunks[0].count) == (2, 2)
    assert wall_seconds([killed, last]) == pytest.approx(17.5)
    assert gpu_seconds([[killed, last]]) == pytest.approx(35.0)


def test_parts_that_work_at_the_same_time_share_the_wall_time():
    first = read_calls(log("00 started: a", "10 finished: 1 rows in 10.0 s"))
    second = read_calls(log("05 started: b", "20 finished: 1 rows in 15.0 s"))
    assert sum(call.seconds for call in (*first, *second)) == 25.0
    assert wall_seconds([*first, *second]) == pytest.approx(20.0)


def test_gpu_seconds_are_unknown_where_no_call_recorded_them_and_zero_on_a_cpu():
    unknown = read_calls(log("00 started: a", "10 finished: 1 rows in 10.0 s"))
    on_cpu = read_calls(log("00 started: a", "01 to do: 3 of 5 steps, gpus 0", "10 failed: RuntimeError: no"))
    assert gpu_seconds([unknown]) is None
    assert gpu_seconds([unknown, on_cpu]) is None
    assert (on_cpu[0].steps, on_cpu[0].ending, on_cpu[0].seconds, gpu_seconds([on_cpu])) == (5, "failed", 10.0, 0.0)


def test_lines_that_are_not_of_a_log_are_skipped():
    assert read_calls("torn\n2026-13-99T00:00:00 started: x\n" + log("00 chunk 1 of 1: 2 rows")) == []
