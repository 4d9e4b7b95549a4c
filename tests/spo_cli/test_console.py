"""Progress and summaries as printed to a log file and to a terminal."""

import io
import math
import re

import pytest
from rich.console import Console

from spo_cli import console
from spo_cli.console import Reporter, duration, number
from stages.core.progress import Summary


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock; call the returned function with the seconds to advance it by."""
    now = [100.0]
    monkeypatch.setattr(console, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def plain(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=120, highlight=False, color_system=None)


def written(output: Console) -> str:
    assert isinstance(output.file, io.StringIO)
    return output.file.getvalue()


def test_a_log_contains_start_progress_and_end_with_rates_and_figures(clock):
    log = plain()
    with Reporter(log) as progress:
        progress.start("sampling", 400, "rows")
        clock(10)
        progress.advance(100, tokens=2000, reward=0.25)
        clock(30)
        progress.advance(300, tokens=6000, reward=0.5)
    assert written(log).splitlines() == [
        "sampling: 400 rows to do",
        # 100 rows in 10 s, so the 300 that are left take 30 s more
        "sampling: 25 % · 100/400 rows · 10 rows/s · 200 tokens/s · 30 s left · reward 0.25",
        "sampling: 100 % · 400/400 rows · 10 rows/s · 200 tokens/s · reward 0.5",
        "sampling: 400 rows in 40 s · 10 rows/s · 200 tokens/s · reward 0.5",
    ]


def test_a_log_contains_at_most_one_line_every_few_seconds(clock):
    log = plain()
    with Reporter(log) as progress:
        progress.start("sampling", 1000, "rows")
        for _ in range(110):
            clock(0.1)  # 11 s in total
            progress.advance(10)
    assert len(re.findall("%", written(log))) == 2


def test_the_rate_is_recent_so_that_the_time_left_is_accurate(clock):
    log = plain()
    with Reporter(log) as progress:
        progress.start("sampling", 1000, "rows")
        for done in [1] * 20 + [10] * 20:  # slow for 100 s, then ten times faster for 100 s
            clock(5)
            progress.advance(done)
        assert progress.step is not None
        assert "2 rows/s" in progress.step.now()
    assert "220 of 1,000 rows in 3 min 20 s · 1.1 rows/s" in written(log)


def test_a_step_that_fails_reports_its_progress(clock):
    log = plain()
    progress = Reporter(log)
    progress.start("training", 10, "steps")
    clock(2)
    progress.advance(4)
    with pytest.raises(ZeroDivisionError), progress:
        raise ZeroDivisionError
    assert written(log).splitlines()[-1] == "training: 4 of 10 steps in 2.0 s · 2 steps/s"


def test_a_new_step_closes_the_previous_one_and_a_step_may_be_empty(clock):
    log = plain()
    with Reporter(log) as progress:
        progress.start("sampling", 0, "rows")
        progress.start("cutting", 2, "rows")
        progress.advance(2)
    assert "sampling: 0 rows in 0.0 s" in written(log)
    assert "cutting: 2 rows in 0.0 s" in written(log)


def test_a_terminal_shows_notes_above_a_bar_that_disappears_at_the_end(clock):
    screen = plain(terminal=True)
    with Reporter(screen) as progress:
        progress.start("sampling", 4, "rows")
        clock(1)
        progress.advance(2, tokens=50, reward=1.0)
        assert progress.bar is not None
        progress.bar.refresh()
        progress.note("part 0 of 2 is up to date [skipped]")
    text = written(screen)
    assert "━" in text
    assert "2/4 rows · 2 rows/s · 50 tokens/s · 1.0 s left · reward 1" in text
    assert "part 0 of 2 is up to date [skipped]" in text
    assert text.rstrip().endswith("sampling: 2 of 4 rows in 1.0 s · 2 rows/s · 50 tokens/s · reward 1")


def test_the_summary_is_aligned_and_complete(capsys):
    summary = Summary(
        "rollout", "runs/a/000/trajectories", rows=4096, seconds=20.0, tokens_sampled=100_000, tokens_prefilled=12_345,
        reward=0.40625, figures={"finished": 0.99}, notes=("part 1 has no lineage",),
    )  # fmt: skip
    console.print_summary(summary)
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "spo rollout → runs/a/000/trajectories",
        "  rows                     4,096",
        "  reward                  0.4062",
        "  tokens sampled         100,000",
        "  tokens prefilled        12,345",
        "  tokens/s with loading    5,000",
        "  seconds                     20",
        "  finished                  0.99",
        "  part 1 has no lineage",
    ]


@pytest.mark.parametrize(("tokens", "text"), [(64_253, "3,213"), (25, "1.25")])
def test_a_rate_has_significant_digits(capsys, tokens, text):
    console.print_summary(Summary("rollout", "x", rows=3, seconds=20.0, tokens_sampled=tokens))
    assert f"tokens/s with loading {text}" in " ".join(capsys.readouterr().out.split())


def test_a_summary_without_tokens_or_reward_omits_them(capsys):
    console.print_summary(Summary("segment", "x", rows=3, seconds=0.04, up_to_date=True))
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "spo segment → x  up to date",
        "  rows     3",
        "  seconds  0",
    ]


def test_a_figure_and_its_standard_error_are_one_line(capsys):
    figures = {"avg@4": 0.8534, "avg@4 standard error": 0.0111, "maj@4": 0.9, "maj@4 standard error": math.nan}
    console.print_summary(Summary("eval", "x", rows=3, seconds=1.0, figures=figures))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[-3:-1] == ["avg@4 0.8534 ± 0.0111", "maj@4 0.9"]


@pytest.mark.parametrize(
    ("value", "text"), [(3, "3"), (12345, "12,345"), (0.00012345, "0.0001234"), (12345.6, "12,346"), (2000.0, "2,000")]
)
def test_numbers_are_formatted_for_reading(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.61, "7.6 s"), (26.4, "26 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations_are_formatted_for_reading(seconds, text):
    assert duration(seconds) == text


def test_no_color_is_respected(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    console.print_error("spo rollout", "no")
    assert "\x1b[31m" not in capsys.readouterr().err


def test_with_a_limit_of_tokens_progress_and_time_left_are_by_tokens(clock):
    log = plain()
    with Reporter(log) as progress:
        progress.start("rollout", 16, "responses", 16 * 1000)
        clock(6)
        progress.advance(0, 0, 500)
        clock(10)
        progress.advance(0, 1600, 100)  # none is finished: the limit of 16,000 tokens decides
        clock(10)
        progress.advance(4, 1600)  # 3,200 tokens for 4 responses, so the other 12 take 9,600 more
        clock(10)
        progress.advance(12, 1600)
    assert written(log).splitlines() == [
        "rollout: 16 responses to do",
        "rollout: 0 % · 0/16 responses · 0 of at most 16,000 tokens · 500 prefilled",
        "rollout: 10 % · 0/16 responses · 1,600 of at most 16,000 tokens · 600 prefilled · 100 tokens/s · "
        "2 min 24 s left",
        "rollout: 25 % · 4/16 responses · 3,200 of at most 16,000 tokens · 600 prefilled · 123 tokens/s · "
        "1 min 18 s left",
        "rollout: 100 % · 16/16 responses · 4,800 of at most 16,000 tokens · 600 prefilled · 160 tokens/s",
        "rollout: 16 responses in 36 s · 0.4444 responses/s · 133 tokens/s",
    ]


def test_the_time_left_counts_down_between_units_that_finish_together(clock):
    log = plain()
    with Reporter(log) as progress:
        progress.start("estimate", 400, "trajectories")
        shown = []
        for _ in range(2):
            for second in range(300):
                clock(1)
                progress.advance(100 if second == 299 else 0, 10)
                assert progress.step is not None
                shown.append(progress.step.now())
    assert "left" not in shown[298]
    assert "0.3333 trajectories/s" in shown[299]
    assert shown[299].endswith("15 min 00 s left")
    assert shown[449].endswith("12 min 30 s left")
    assert shown[599].endswith("10 min 00 s left")
