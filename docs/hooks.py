"""Hooks of the documentation's build (mkdocs.yml): generated parts of pages, formulas as MathML, search in files.

A page asks for a generated part by a comment on a line of its own:

    <!-- generate: options rollout -->       the options of a command, as `spo rollout --help-all` groups them
    <!-- generate: examples rollout -->      the command lines at the end of its help
    <!-- generate: columns rollout -->       the columns of the table that a stage writes
    <!-- generate: commands -->              the commands, with links to their pages
    <!-- generate: table run -->             the keys of a table of a recipe; with a second table, those that it lacks
    <!-- generate: templates -->             the prompt templates that have a name
    <!-- generate: file PATH -->             a file of the repository, as a block of code
    <!-- generate: section PATH MARK -->     the lines of a Markdown file from the one that starts with **MARK** on
    <!-- generate: page PATH -->             a Markdown file of the repository, as a page

Everything comes from the code that the commands run, so a page cannot state a flag or a column that does not exist.
Images of the repository that lie outside docs/ are copied to where pages show them (`IMAGES`).
"""

from __future__ import annotations

import dataclasses
import html
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IMAGES = {f"images/comparison-{table}.svg": f"examples/compare/results/{table}.svg" for table in "ABCDEF"}
"""Page images → the files that they are copied from."""

_DIRECTIVE = re.compile(r"^<!-- generate: (.+) -->$", re.MULTILINE)
_FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)
_LANGUAGES = {".sh": "bash", ".toml": "toml", ".py": "python"}


def expand(markdown: str) -> str:
    """Return the text of a page with every generated part in its place.

    Raises:
      KeyError: an unknown kind of part, command or stage.
    """
    return _DIRECTIVE.sub(lambda match: _generate(*shlex.split(match[1])), markdown)


def _generate(kind: str, *arguments: str) -> str:
    return GENERATORS[kind](*arguments)


def options(command: str, *form: str) -> str:
    """Return one table for each heading of a command's help, with every option."""
    from spo_cli.app import load_command
    from spo_cli.help import entries

    config: type = load_command(command, form).config  # type: ignore[attr-defined]
    groups: dict[str, list[tuple[str, str]]] = {}
    for entry in entries(config):
        groups.setdefault(entry.group, []).append((_literal(entry.head), _cell(entry.text)))
    return "\n\n".join(f"### {group}\n\n{_table(('Option', 'Meaning'), rows)}" for group, rows in groups.items())


def examples(*title: str) -> str:
    """Return the command lines that the help of a command ends with."""
    from spo_cli.examples import EXAMPLES

    return _code("\n".join(EXAMPLES[" ".join(title)]), "bash")


def columns(stage: str) -> str:
    """Return the table of a stage's columns: name, type, whether it may be null, meaning."""
    from stages.shards.schemas import BY_STAGE

    rows = [
        (f"`{column.name}`", f"`{column.type}`", "may be null" if column.nullable else "never null", _cell(column.doc))
        for column in BY_STAGE[stage].columns
    ]
    return _table(("Column", "Type", "Null", "Meaning"), rows)


def commands() -> str:
    """Return the list of commands with links to their pages."""
    from spo_cli.app import VERBS

    rows = [(f"[spo {name}]({name}.md)", verb.group, _cell(verb.help)) for name, verb in VERBS.items()]
    return _table(("Command", "Group", "What it does"), rows)


def table(name: str, without: str = "") -> str:
    """Return the keys of a table of a recipe, with what each means.

    Args:
      without: another table, whose keys are left out.
    """
    from spo_cli.help import default_in_words
    from stages.configs.run import SEPARATE_TABLES, TABLES
    from stages.core.config import is_required

    tables = TABLES | SEPARATE_TABLES
    known = {field.name for field in dataclasses.fields(tables[without])} if without else set()
    rows = []
    for field in dataclasses.fields(tables[name]):
        if field.name not in known:
            default = "required" if is_required(field) else f"default: {default_in_words(field)}"
            rows.append((_literal(field.name), _cell(f"{field.metadata['help']} ({default})")))
    return _table(("Key", "Meaning"), rows)


def templates() -> str:
    """Return the named prompt templates with their text."""
    from stages.tasks.templates import TEMPLATES

    rows = [(_literal(name), _literal(text.replace("\n", "\\n"))) for name, text in TEMPLATES.items()]
    return _table(("Template", "Text"), rows)


def file(path: str) -> str:
    """Return a file of the repository as a block of code."""
    return _code((ROOT / path).read_text(encoding="utf-8").rstrip(), _LANGUAGES.get(Path(path).suffix, "text"))


def section(path: str, mark: str) -> str:
    """Return the lines of a Markdown file from the one that starts with **MARK** to the next such line.

    Raises:
      ValueError: the file has no such line.
    """
    text = (ROOT / path).read_text(encoding="utf-8")
    match = re.search(rf"^\*\*{re.escape(mark)}\*\*.*?(?=^\*\*|\Z)", text, re.MULTILINE | re.DOTALL)
    if match is None:
        raise ValueError(f"{path} has no line that starts with **{mark}**")
    return match[0].strip()


def page(path: str) -> str:
    """Return a Markdown file of the repository whose links to docs/ work from a page in docs/."""
    return (ROOT / path).read_text(encoding="utf-8").replace("](docs/", "](")


GENERATORS: dict[str, Callable[..., str]] = {
    "options": options,
    "examples": examples,
    "columns": columns,
    "commands": commands,
    "table": table,
    "templates": templates,
    "file": file,
    "section": section,
    "page": page,
}


def formulas(content: str) -> str:
    r"""Return a page's HTML with its formulas, `\(…\)` and `\[…\]`, as MathML, which browsers draw by themselves."""
    from latex2mathml.converter import convert

    def replace(match: re.Match[str]) -> str:
        latex = html.unescape(match[2]).strip()[2:-2]
        return convert(latex, display="block" if match[1] == "div" else "inline")

    return _FORMULA.sub(replace, content)


def _cell(text: str) -> str:
    """Return a text of the code for a cell of a table; what stands between backticks becomes code."""
    pieces = re.split(r"`([^`]*)`", text)
    escaped = [re.sub(r"[^\w\s.,;:()/'-]", lambda match: f"&#{ord(match[0])};", piece) for piece in pieces]
    return "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(escaped))


def _literal(text: str) -> str:
    """Return a text in the type of code, for a cell of a table; choices, `{a|b}`, need their bars escaped there."""
    return f"<code>{html.escape(text).replace('|', '&#124;')}</code>"


def _code(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f'<div class="generated" markdown>\n\n{table}\n\n</div>'


# What mkdocs calls.


def on_files(files: Any, *, config: Any) -> Any:
    """Add the images of the repository that lie outside docs/."""
    from mkdocs.structure.files import File

    for place, source in IMAGES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the generated parts into a page."""
    return expand(markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Draw a page's formulas."""
    return formulas(content)


def on_post_build(*, config: Any) -> None:
    """Write the search index as a script, too: a page that is opened as a file may load scripts, but no JSON."""
    index = Path(config.site_dir) / "search/search_index.json"
    index.with_suffix(".js").write_text(f"var __index = {index.read_text(encoding='utf-8')}", encoding="utf-8")
