"""`--help` of every command: complete flags, one group for each option, plain words, and examples that parse."""

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
    """Return a function that runs a command at a terminal width and returns its output."""

    def show(*words: str, columns: int = 80) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as exited:
            main(words)
        assert exited.value.code == 0
        return capsys.readouterr().out

    return show


def heads(text: str) -> list[str]:
    """Return the flags and arguments at the beginning of lines, in order of appearance."""
    body = text.partition("\nExamples:\n")[0]
    lines = [re.split(r",? ", line) for line in re.findall(r"^  (\S.*?)(?:  |$)", body, re.MULTILINE)]
    return [head for first, *more in lines for head in (first, *(word for word in more if word.startswith("-")))]


def groups(text: str) -> dict[str, str]:
    """Return the text below each heading."""
    parts = re.split(r"^([A-Z][A-Za-z ]+):\n", text.partition("\nExamples:\n")[0], flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_appears_once_and_uncut_in_the_full_help(command: str, columns: int, screen: Any):
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
def test_the_groups_are_in_order_with_required_options_first(command: str, screen: Any):
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
def test_every_option_belongs_to_a_named_group(command: str, field: Any):
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
def test_every_help_text_is_short_plain_and_in_full_sentences(command: str, field: Any):
    text = field.metadata["help"]
    assert len(text) <= 300
    assert text[0].isupper() or text.split()[0].rstrip(",;:") in (*spellings(field), "ppo", "torch")
    assert text.endswith(".")
    assert not BANNED.search(text), BANNED.search(text)
    assert "default" not in text.lower(), "the help appends the default"


@each_option
def test_every_default_is_shown_in_words(command: str, field: Any):
    if is_required(field):
        return
    words = default_in_words(field)
    assert words
    assert not re.search(r"None|True|False|MISSING|[()\"]|(?<!\w)'|PosixPath|e-0", words)
    assert not BANNED.search(words)


def test_the_placeholder_of_a_flag_names_the_kind_of_its_value():
    shown = {row.head for row in entries(config_of("train"))}
    assert {"--epochs N", "--beta X", "--kl {k1|k2|k3}", "-m, --model MODEL", "ADVANTAGES..."} <= shown
    assert {"--packing, --no-packing", "--merge", "--trajectories PATH..."} <= shown


def test_a_repeatable_option_is_marked():
    (stop,) = (row for row in entries(config_of("rollout")) if row.head.startswith("--stop"))
    assert stop.head == "--stop TEXT..."
    assert stop.text.endswith("(repeatable; default:\N{NO-BREAK SPACE}none)")


def test_an_option_redeclared_in_a_subclass_keeps_its_group():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Again(config_of("rollout")):
        top_p: float = dataclasses.field(default=0.5, metadata={"group": None})

    (field,) = (field for field in dataclasses.fields(Again) if field.name == "top_p")
    assert group_of(Again, field) == "Sampling"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_is_a_valid_command_line_of_its_command(command: str):
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


def test_the_list_of_commands_ends_with_examples(screen: Any):
    text = screen("--help")
    assert all(f"  {name} " in text for name in VERBS)
    assert "Examples:\n  spo sft " in text


@pytest.mark.parametrize(
    "environment", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}, {"FORCE_COLOR": "1", "NO_COLOR": "1"}], ids=str
)
def test_pipes_dumb_terminals_and_no_color_get_plain_text(environment: dict[str, str]):
    text = in_shell("estimate", "--help-all", **environment)
    assert not re.search(r"\x1b\[(?!1m|0m)", text)  # bold is allowed: it is not a color
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert "  --estimator NAME" in plain
    assert max(map(len, plain.splitlines())) <= 80


def test_colors_do_not_change_the_text():
    colored, plain = (in_shell("train", "--help-all", **extra) for extra in ({"FORCE_COLOR": "1"}, {}))
    assert "\x1b[36m" in colored
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored) == plain


def in_shell(*words: str, **environment: str) -> str:
    """Return the output of `spo` in a separate process, through a pipe."""
    inherited = {key: value for key, value in os.environ.items() if "COLOR" not in key} | {"COLUMNS": "80"}
    command = [sys.executable, "-m", "spo_cli", *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=REPOSITORY, env=inherited | environment
    ).stdout
