"""Draw one trajectory: its tokens, cutpoints and segments, with the value and advantage of each segment.

Color only repeats what brackets and signed numbers show, so the output reads the same in black and white. Characters
that do not print are escaped, so a response cannot move the cursor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from stages.configs.segment import Config as SegmentConfig
from stages.maths.advantages import NEGLIGIBLE
from stages.maths.partition import find_cutpoints
from stages.maths.ragged import Ragged

UNLIKELY = SegmentConfig.rho  # for trajectories, which have no ρ of their own
_VISIBLE = {"\n": "⏎", "\t": "⇥"}


@dataclass(frozen=True)
class Segment:
    """One row of a cutpoints or advantages table; columns that the table lacks are None.

    An estimator may omit segments without advantage; such a segment has neither values nor cutpoints here. In a tree,
    `segment_index` is the path of branches to the node, and offsets count along the whole path.
    """

    segment_index: int | str
    start: int
    end: int
    cutpoints: tuple[int, ...]
    value_start: float | None = None
    value_end: float | None = None
    advantage: float | None = None
    num_rollouts: int | None = None


@dataclass(frozen=True)
class Trajectory:
    """A trajectory to draw.

    Attributes:
      title: id of the trajectory.
      facts: name → value, for example reward and answer.
      prompt: text of the prompt; "" if unknown.
      tokens: one text per token of the response.
      segments: segments in order; empty if the table has none.
      unlikely: offsets of the tokens to mark, if the table has no cutpoints.
    """

    title: str
    facts: dict[str, str]
    prompt: str
    tokens: Sequence[str]
    segments: Sequence[Segment] = ()
    unlikely: frozenset[int] | None = None


def draw(trajectory: Trajectory) -> RenderableType:
    """Return the id and facts, the prompt, and the response segment by segment."""
    head = Text.assemble((trajectory.title, "bold"))
    for name, value in trajectory.facts.items():
        head.append(f"  {name} ", "dim").append(printable(value))
    parts: list[RenderableType] = [head]
    if trajectory.prompt:
        parts.append(Text.assemble(("prompt  ", "dim"), printable(trajectory.prompt)))
    if trajectory.segments:
        parts.append(_segment_table(trajectory))
    else:
        parts.append(_tokens(trajectory.tokens, 0, len(trajectory.tokens), trajectory.unlikely or (), ""))
    return Group(*parts, Text(_legend(trajectory), "dim"))


def _legend(trajectory: Trajectory) -> str:
    if trajectory.unlikely is not None:
        return f"‹token› sampled with probability below {UNLIKELY}"
    valued = [segment.advantage is not None for segment in trajectory.segments]
    legend = "‹token› cutpoint"
    if any(valued):
        legend += " · V value at the segment's start → end · A advantage · n rollouts at its start"
    return legend + " · no numbers: omitted, A is 0" * (any(valued) and not all(valued))


def _segment_table(trajectory: Trajectory) -> Table:
    valued = any(segment.advantage is not None for segment in trajectory.segments)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("seg", justify="right")
    for name in ("V", "A", "n") if valued else ():
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("tokens", overflow="fold")
    largest = max((abs(segment.advantage or 0.0) for segment in trajectory.segments), default=0.0)
    for segment in trajectory.segments:
        style = advantage_style(segment.advantage, largest)
        numbers = _numbers(segment, style) if valued else ()
        marked = segment.cutpoints if trajectory.unlikely is None else trajectory.unlikely
        text = _tokens(trajectory.tokens, segment.start, segment.end, marked, style)
        table.add_row(str(segment.segment_index), *numbers, text)
    return table


def _numbers(segment: Segment, style: str) -> tuple[Text, Text, Text]:
    if segment.advantage is None:
        return Text(), Text(), Text()
    value = f"{segment.value_start:.2f} → {segment.value_end:.2f}"
    return Text(value), Text(f"{segment.advantage:+.2f}", style), Text(str(segment.num_rollouts))


def advantage_style(advantage: float | None, largest: float) -> str:
    """Return green for a positive and red for a negative advantage, bold from half the largest of the trajectory."""
    if advantage is None or abs(advantage) <= NEGLIGIBLE:
        return ""
    weight = "bold " if abs(advantage) >= largest / 2 else ""
    return weight + ("green" if advantage > 0 else "red")


def _tokens(tokens: Sequence[str], start: int, end: int, marked: Iterable[int], style: str) -> Text:
    marked = frozenset(marked)
    text = Text(style=style)
    for offset in range(start, end):
        shown = printable(tokens[offset])
        if offset in marked:
            text.append(f"‹{shown}›", "underline")
        else:
            text.append(shown)
    return text


def printable(text: str) -> str:
    """Return text with line ends and tabs as symbols, and other characters that do not print as their codes."""
    return "".join(
        character if character.isprintable() else _VISIBLE.get(character, f"\\x{ord(character):02x}")
        for character in text
    )


def unlikely_tokens(logprobs: Sequence[float]) -> frozenset[int]:
    """Return the offsets of the tokens that are cutpoints at the default ρ of `spo segment`."""
    return frozenset(np.flatnonzero(find_cutpoints(Ragged.of([logprobs], np.float32), UNLIKELY)).tolist())
