"""`--help` of every command: each flag whole, in one group, in plain words; the examples are commands that parse."""

import dataclasses
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spo_cli.app import VERBS, load_command, main
from spo_cli.examples import EXAMPLES
from spo_cli.help import GROUPS, default_in_words, entries
from stages.core.config import group_of, is_required, spellings

REPOSITORY = Path(__file__).resolve().parents[2]
FORMS = [f"eval {flag}" for flag in ("--compare", "--regrade", "--table")]
COMMANDS = [*VERBS, *FORMS]
BANNED = re.compile(
    r"\b(told|tells|owns|nobody|everybody|mend|left out,|in truth|but for|that of|of which|asked of|optimiser|"
    r"normalis\w+)\b",
    re.IGNORECASE,
)


def config_of(command: str) -> type:
    name, _, form = command.partition(" ")
    module = importlib.import_module(VERBS[name].config)
    return module.FORMS[form] if form else module.Config


OPTIONS = [(command, field) for command in COMMANDS for field in dataclasses.fields(config_of(command))]
"""Every option of every command."""
each_option = pytest.mark.parametrize(
    ("command", "field"), OPTIONS, ids=[f"{command} {field.name}" for command, field in OPTIONS]
)


@pytest.fixture
def screen(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a command prints on a terminal of so many columns."""

    def show(*words: str, columns: int = 80) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as leave:
            main(words)
        assert leave.value.code == 0
        return capsys.readouterr().out

    return show


def heads(text: str) -> list[str]:
    """The flags and arguments at the beginning of lines, in the order of the screen."""
    body = text.partition("\nExamples:\n")[0]
    lines = [re.split(r",? ", line) for line in re.findall(r"^  (\S.*?)(?:  |$)", body, re.MULTILINE)]
    return [word for first, *more in lines for word in (first, *(one for one in more if one.startswith("-")))]


def groups(text: str) -> dict[str, str]:
    """Heading → the lines below it."""
    parts = re.split(r"^([A-Z][A-Za-z ]+):\n", text.partition("\nExamples:\n")[0], flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_stands_whole_and_once_in_the_help_of_all(command: str, columns: int, screen: Any):
    text = screen(*command.split(), "--help-all", columns=columns)
    shown = heads(text)
    for field in dataclasses.fields(config_of(command)):
        names = [field.name.upper()] if field.metadata["argument"] else spellings(field)
        for name in names:
            assert [word.removesuffix("...") for word in shown].count(name) == 1, name
    assert "…" not in text
    lines = text.partition("\nExamples:\n")[0].splitlines()
    assert max(map(len, lines)) <= min(columns, 100)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_groups_come_in_order_the_required_options_first(command: str, screen: Any):
    config, text = config_of(command), screen(*command.split(), "--help-all")
    found = groups(text)
    assert list(found) == sorted(found, key=GROUPS.index)
    required = [field for field in dataclasses.fields(config) if is_required(field)]
    for field in required:
        assert any(name in heads(found["Required"]) for name in [*spellings(field), field.name.upper() + "..."]) or (
            field.name.upper() in heads(found["Required"])
        )
    assert ("Required" in found) == bool(required)


@each_option
def test_every_option_has_a_group_of_its_own(command: str, field: Any):
    group = group_of(config_of(command), field)
    assert group in GROUPS
    assert group != "Options" or is_required(field)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_common_options_fit_on_about_one_screen(command: str, screen: Any):
    text, everything = screen(*command.split(), "--help"), screen(*command.split(), "--help-all")
    assert len(text.splitlines()) <= 62
    hidden = len(set(heads(everything)) - set(heads(text)))
    assert bool(hidden) == text.endswith(f" more options: spo {command} --help-all\n")
    assert set(heads(text)) <= set(heads(everything))


@each_option
def test_every_text_is_short_plain_and_whole_sentences(command: str, field: Any):
    text = field.metadata["help"]
    assert len(text) <= 300
    assert text[0].isupper() or text.split()[0].rstrip(",;:") in (*spellings(field), "ppo", "torch")
    assert text.endswith(".")
    assert not BANNED.search(text), BANNED.search(text)
    assert "default" not in text.lower(), "the help appends the default"


@each_option
def test_every_default_is_in_words(command: str, field: Any):
    if is_required(field):
        return
    words = default_in_words(field)
    assert words
    assert not re.search(r"None|True|False|MISSING|[()\"]|(?<!\w)'|PosixPath|e-0", words)
    assert not BANNED.search(words)


def test_the_values_of_a_flag_are_named_by_their_kind():
    shown = {row.head for row in entries(config_of("train"))}
    assert {"--epochs N", "--beta X", "--loss {ppo|distill}", "-m, --model MODEL", "ADVANTAGES..."} <= shown
    assert {"--packing, --no-packing", "--merge", "--trajectories PATH..."} <= shown


def test_a_repeatable_option_says_so():
    (stop,) = (row for row in entries(config_of("rollout")) if row.head.startswith("--stop"))
    assert stop.head == "--stop TEXT..."
    assert stop.text.endswith("(repeatable; default:\N{NO-BREAK SPACE}none)")


def test_a_command_declared_again_stays_in_the_group_of_its_ancestor():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Again(config_of("rollout")):
        top_p: float = dataclasses.field(default=0.5, metadata={"group": None})

    (field,) = (one for one in dataclasses.fields(Again) if one.name == "top_p")
    assert group_of(Again, field) == "Sampling"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_is_a_command_line_of_this_command(command: str):
    assert len(EXAMPLES[command]) >= 2
    for example in EXAMPLES[command]:
        assert max(map(len, example.splitlines())) <= 78
        words = shlex.split(example.replace("\\\n", " "))
        words = words[words.index("spo_cli" if "spo_cli" in words else "spo") + 1 :]
        assert words[0] == command.split()[0]
        built, found = load_command(words[0], words[1:]), []
        built.execute = found.append  # pyright: ignore[reportAttributeAccessIssue]
        built.main(words[1:], standalone_mode=False)
        assert len(found) == 1


def test_the_list_of_commands_ends_with_examples_too(screen: Any):
    text = screen("--help")
    assert all(f"  {name} " in text for name in VERBS)
    assert "Examples:\n  spo sft " in text


@pytest.mark.parametrize(
    "environment", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}, {"FORCE_COLOR": "1", "NO_COLOR": "1"}], ids=str
)
def test_a_pipe_a_dumb_terminal_and_no_color_get_plain_text(environment: dict[str, str]):
    text = in_shell("estimate", "--help-all", **environment)
    assert not re.search(r"\x1b\[(?!1m|0m)", text)  # bold is no color
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert "  --estimator NAME" in plain
    assert max(map(len, plain.splitlines())) <= 80


def test_colors_change_no_character():
    colored, plain = (in_shell("train", "--help-all", **extra) for extra in ({"FORCE_COLOR": "1"}, {}))
    assert "\x1b[36m" in colored
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == plain


def in_shell(*words: str, **environment: str) -> str:
    """The output of `spo` as a process of its own, through a pipe."""
    inherited = {key: value for key, value in os.environ.items() if "COLOR" not in key} | {"COLUMNS": "80"}
    command = [sys.executable, "-m", "spo_cli", *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=REPOSITORY, env=inherited | environment
    ).stdout
