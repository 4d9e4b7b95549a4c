"""Shards from the flags and from SLURM, and signals within one process."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core.errors import Interrupted, UserError
from stages.shards import sharding
from stages.shards.sharding import Shard, count_tasks, interruptible, parse_shard, resolve_shards, split


@dataclass(frozen=True)
class ShardOptions:
    """The sharding flags of a command."""

    shard: str | None = None
    out: Path = Path("nothing-is-here")
    num_shards: int | None = None
    shards_per_task: int = 1


def array(**values: int) -> dict[str, str]:
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@given(total=st.integers(0, 500), count=st.integers(1, 40))
def test_shards_cover_everything_once_in_order_and_evenly(total: int, count: int):
    ranges = [split(total, Shard(index, count)) for index in range(count)]
    assert [item for part in ranges for item in part] == list(range(total))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


def test_a_shard_is_written_as_index_over_count_from_zero():
    assert parse_shard("3/8") == Shard(3, 8)
    assert str(Shard(3, 8)) == "3/8"


@pytest.mark.parametrize("text", ["8/8", "3", "a/b", "-1/8", "0/0", "1/8/2", ""])
def test_invalid_shards_are_refused(text: str):
    with pytest.raises(UserError, match="shard"):
        parse_shard(text)


def test_a_slurm_array_from_zero_is_a_shard():
    assert resolve_shards(ShardOptions(), array(ID=2, COUNT=5, MIN=0, MAX=4, STEP=1)) == (Shard(2, 5),)


def test_outside_an_array_one_process_does_everything():
    assert resolve_shards(ShardOptions(), {}) == (Shard(0, 1),)
    assert resolve_shards(ShardOptions(num_shards=3, shards_per_task=2), {}) == (Shard(0, 3), Shard(1, 3), Shard(2, 3))


def test_work_on_disk_is_continued_in_the_parts_that_it_has(tmp_path: Path):
    for name in (
        "part-00002-of-00003.parquet",
        ".part-00000-of-00005/chunk-00000.parquet",
        ".part-00000-of-00007/lock",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    three = (Shard(0, 3), Shard(1, 3), Shard(2, 3))
    assert resolve_shards(ShardOptions(out=tmp_path), {}) == three
    assert resolve_shards(ShardOptions("all", out=tmp_path), array(ID=1, COUNT=2, MIN=0, MAX=1, STEP=1)) == three
    assert resolve_shards(ShardOptions(out=tmp_path, num_shards=2), {}) == (Shard(0, 2), Shard(1, 2))
    (tmp_path / "part-00002-of-00003.parquet").unlink()
    assert len(resolve_shards(ShardOptions(out=tmp_path), {})) == 5, "its committed chunks"


@pytest.mark.parametrize(
    "values",
    [
        {"ID": 5, "COUNT": 5, "MIN": 1, "MAX": 5, "STEP": 1},
        {"ID": 2, "COUNT": 5, "MIN": 0, "MAX": 8, "STEP": 2},
        {"ID": 20, "COUNT": 4, "MIN": 1, "MAX": 20, "STEP": 4},  # what 1-9:4,20 says of itself
        {"ID": 3, "COUNT": 2, "MIN": 3, "MAX": 4, "STEP": 1},
    ],
)
def test_other_arrays_are_refused_with_advice_unless_num_shards_is_given(values: dict[str, int]):
    with pytest.raises(UserError, match=r"0-\(N-1\).*--num-shards N"):
        resolve_shards(ShardOptions(), array(**values))
    assert resolve_shards(ShardOptions(num_shards=30), array(**values)) == (Shard(values["ID"], 30),)


def test_an_array_without_its_size_is_refused():
    with pytest.raises(UserError, match="pass --num-shards N"):
        resolve_shards(ShardOptions(), array(ID=3))


@given(count=st.integers(1, 60), each=st.integers(1, 9))
def test_tasks_of_several_shards_cover_all_of_them_once_in_order(count: int, each: int):
    tasks = [
        resolve_shards(ShardOptions(num_shards=count, shards_per_task=each), array(ID=task))
        for task in range(count_tasks(count, each))
    ]
    assert [shard for shards in tasks for shard in shards] == [Shard(index, count) for index in range(count)]
    assert {len(shards) for shards in tasks[:-1]} <= {each}
    assert [item for shards in tasks for item in split(100, *shards)] == list(range(100))


def test_a_task_without_a_shard_is_refused():
    assert resolve_shards(ShardOptions(num_shards=5, shards_per_task=2), array(ID=2)) == (Shard(4, 5),)
    with pytest.raises(UserError, match=r"=3 is too large: --num-shards 5 with --shards-per-task 2.*--array=0-2"):
        resolve_shards(ShardOptions(num_shards=5, shards_per_task=2), array(ID=3))
    with pytest.raises(UserError, match="must be a whole number; found '%a'"):
        resolve_shards(ShardOptions(num_shards=5), {"SLURM_ARRAY_TASK_ID": "%a"})


def test_the_flag_takes_precedence_over_the_array(monkeypatch: pytest.MonkeyPatch):
    for name, value in array(ID=2, COUNT=5, MIN=0, MAX=4, STEP=1).items():
        monkeypatch.setenv(name, value)
    assert resolve_shards(ShardOptions("0/3")) == (Shard(0, 3),)
    assert resolve_shards(ShardOptions()) == (Shard(2, 5),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ShardOptions("0/3", num_shards=3), "omit --num-shards 3, or --shard"),
        (ShardOptions(shards_per_task=2), "needs the number of shards: pass --num-shards"),
        (ShardOptions("0/3", shards_per_task=2), "needs the number of shards"),
    ],
)
def test_flags_that_exclude_each_other_are_refused(options: ShardOptions, message: str):
    with pytest.raises(UserError, match=message):
        resolve_shards(options, {})


@pytest.fixture
def fresh_signals(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sharding, "_interrupted_at", -float("inf"))
    before = {number: signal.getsignal(number) for number in sharding.SIGNALS}
    for number in sharding.SIGNALS:
        signal.signal(number, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("fresh_signals")
def test_the_previous_signal_handlers_are_restored():
    with interruptible():
        assert signal.getsignal(signal.SIGTERM) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler


@pytest.mark.usefixtures("fresh_signals")
@pytest.mark.parametrize("number", sharding.SIGNALS)
def test_a_signal_interrupts_and_its_repetitions_do_not(number: signal.Signals):
    def work():
        with interruptible():
            try:
                signal.raise_signal(number)
            finally:
                signal.raise_signal(signal.SIGINT)  # while cleaning up

    with pytest.raises(Interrupted, match=rf"{number.name}.*same command resumes") as caught:
        work()
    assert caught.value.exit_code == 4
    signal.raise_signal(number)  # while reporting


@pytest.mark.usefixtures("fresh_signals")
def test_a_later_signal_interrupts_again(monkeypatch: pytest.MonkeyPatch):
    def work():
        with interruptible():
            with suppress(Interrupted):
                signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(sharding, "_REPETITION_SECONDS", 0.0)
    with pytest.raises(Interrupted):
        work()
    with pytest.raises(KeyboardInterrupt):  # the handler of before has come back
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.usefixtures("fresh_signals")
def test_an_ignored_signal_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptible():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.usefixtures("fresh_signals")
def test_outside_the_main_thread_signals_are_unchanged():
    seen = []

    def work():
        with interruptible():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]
