"""Drawing a trajectory: legible without color, colored by advantage, and with control characters escaped."""

import io

import pytest
from rich.console import Console

from spo_cli.trajectory import (
    Segment,
    Trajectory,
    advantage_style,
    draw,
    printable,
    unlikely_tokens,
)

DRAWN = Trajectory(
    "q0/1",
    {"reward": "0", "answer": "6"},
    "ask q0: ",
    [*"2+3=6", "<|endoftext|>"],
    (Segment(0, 0, 4, (0,), 0.5, 0.75, 0.25, 4), Segment(1, 4, 6, (4,), 0.75, 0.0, -0.75, 4)),
)


def render(trajectory: Trajectory, *, color: bool = False) -> str:
    console = Console(file=io.StringIO(), force_terminal=color, width=100, color_system="standard" if color else None)
    console.print(draw(trajectory))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_color_brackets_and_numbers_carry_all_information():
    lines = [line.rstrip() for line in render(DRAWN).splitlines()]
    assert lines == [
        "q0/1  reward 0  answer 6",
        "prompt  ask q0: ".rstrip(),
        "seg            V      A  n  tokens",
        "  0  0.50 → 0.75  +0.25  4  ‹2›+3=",
        "  1  0.75 → 0.00  -0.75  4  ‹6›<|endoftext|>",
        "‹token› cutpoint · V value at the segment's start → end · A advantage · n rollouts at its start",
    ]


def test_on_a_terminal_gains_are_green_losses_red_and_large_ones_bold():
    lines = render(DRAWN, color=True).splitlines()
    assert "\x1b[32m+0.25" in lines[3]  # below half of 0.75: not bold
    assert "\x1b[1;31m-0.75" in lines[4]
    assert "\x1b[1;4;31m‹6›" in lines[4]


@pytest.mark.parametrize(
    ("advantage", "style"), [(None, ""), (0.0, ""), (3e-17, ""), (1.0, "bold green"), (-0.4, "red"), (-0.5, "bold red")]
)
def test_the_style_follows_sign_and_size(advantage, style):
    assert advantage_style(advantage, largest=1.0) == style


def test_a_cutpoints_table_is_drawn_without_values():
    segments = (Segment(0, 0, 4, (0, 3)), Segment(1, 4, 6, ()))
    text = render(Trajectory("q0/1", {}, "", DRAWN.tokens, segments))
    assert [line.rstrip() for line in text.splitlines()] == [
        "q0/1",
        "seg  tokens",
        "  0  ‹2›+3‹=›",
        "  1  6<|endoftext|>",
        "‹token› cutpoint",
    ]


def test_an_empty_segment_and_an_empty_response_are_drawn():
    empty = Segment(0, 0, 0, (), 0.0, 0.0, 0.0, 0)
    assert "  0  0.00 → 0.00  +0.00  0" in render(Trajectory("x", {}, "", [], (empty,)))
    assert render(Trajectory("x", {}, "", [])).startswith("x\n")


def test_a_trajectory_without_segments_marks_unlikely_tokens():
    text = render(
        Trajectory(
            "x",
            {},
            "",
            list("abc"),
            (),
            unlikely_tokens(
                [-0.01, -0.2, -0.10],
            ),
        )
    )
    assert "a‹b›c" in text  # p = 0.99, 0.82, 0.905
    assert "below 0.9" in text


def test_markup_and_control_characters_of_a_response_are_shown_and_not_interpreted():
    text = render(Trajectory("x", {"answer": "[red]7"}, "[bold]p", ["[/bold]", "\x1b[31m", "\n", "\t"]), color=True)
    assert "[red]7" in text
    assert "[bold]p" in text
    assert "[/bold]\\x1b[31m⏎⇥" in text


def test_printable_keeps_other_scripts():
    assert printable("é数\r\u200b") == "é数\\x0d\\x200b"
