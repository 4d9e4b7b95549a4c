"""Parsing a command line into a Config: flags with several values, and several arguments."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from spo_cli.options import ConfigCommand, repeat_flags
from stages.core.config import option, validate
from stages.core.errors import UserError
from stages.core.paths import AnyPath


@dataclass(frozen=True, kw_only=True)
class Flags:
    tasks: tuple[str, ...] = option("Tasks.", default=("arithmetic",))
    budgets: tuple[int, ...] = option("Budgets.", default=(16,), minimum=1, short="-b")
    rates: tuple[float, ...] | None = option("Rates.", default=None)
    kinds: tuple[Literal["a", "b"], ...] = option("Kinds.", default=())
    seed: int = option("Seed.", default=0)
    out: AnyPath = option("Where to.")

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    parts: tuple[Path, ...] = option("Parts.", argument=True)
    stop: tuple[str, ...] = option("Stop strings.", default=())
    kinds: tuple[Literal["a", "b"], ...] = option("Kinds.", default=())

    def __post_init__(self) -> None:
        validate(self)


def parsed(config: type, *words: str) -> Any:
    """Return the Config parsed from a command line."""
    found = []
    ConfigCommand("verb", "Does.", config, found.append).main(args=list(words), standalone_mode=False)
    return found[0]


def test_a_repeatable_flag_takes_its_values_together_or_one_by_one():
    at_once = parsed(Flags, "--budgets", "2", "4", "--out", "o", "--tasks", "x", "y", "--rates", "1", "0.5")
    words = "--budgets 2 --budgets 4 --out o --tasks x --tasks y --rates 1 --rates=0.5"
    one_by_one = parsed(Flags, *words.split())
    assert at_once == one_by_one == Flags(budgets=(2, 4), tasks=("x", "y"), rates=(1.0, 0.5), out=Path("o"))
    assert parsed(Flags, "-b", "2", "4", "--out", "o").budgets == (2, 4)


def test_omitted_options_keep_their_defaults():
    assert parsed(Flags, "--out", "o") == Flags(out=Path("o"))


def test_a_flag_with_one_value_rejects_a_second():
    with pytest.raises(Exception, match="unexpected extra argument"):
        parsed(Flags, "--seed", "1", "2", "--out", "o")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--budgets", "4", "0"), r"--budgets must be at least 1; got 0"),
        (("--kinds", "a", "c"), r"--kinds must be one of a, b; got 'c'"),
    ],
)
def test_each_of_several_values_is_checked(words: tuple[str, ...], message: str):
    with pytest.raises(UserError, match=message):
        parsed(Flags, "--out", "o", *words)


def test_an_argument_may_be_several_paths_and_flags_then_take_one_value_each():
    assert parsed(Inputs, "a", "--stop", "x", "b", "c") == Inputs(parts=(Path("a"), Path("b"), Path("c")), stop=("x",))
    with pytest.raises(Exception, match="parts"):
        parsed(Inputs)


def test_next_to_arguments_a_flag_with_fixed_choices_takes_the_choices_that_follow():
    expected = Inputs(parts=(Path("x"), Path("y")), kinds=("a", "b"))
    assert parsed(Inputs, "--kinds", "a", "b", "x", "y") == parsed(Inputs, "x", "y", "--kinds", "a", "b") == expected
    assert parsed(Inputs, "x", "--kinds", "a", "y", "--kinds", "b") == expected
    with pytest.raises(UserError, match=r"--kinds must be one of a, b; got 'c'"):
        parsed(Inputs, "x", "--kinds", "c")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("-f", "1", "2", "-g", "3"), ["-f", "1", "-f", "2", "-g", "3"]),
        (("-f", "1", "--", "2"), ["-f", "1", "--", "2"]),
        (("-f",), ["-f"]),
        (("-f=1", "2"), ["-f=1", "2"]),
    ],
)
def test_repeat_flags_repeats_the_flag_and_nothing_else(given: Sequence[str], expected: list[str]):
    assert repeat_flags(given, {"-f": None}) == expected
