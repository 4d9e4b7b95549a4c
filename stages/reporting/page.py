"""Join the files of `page/` into one HTML file that needs no server, no network and no other file.

Each script is a JavaScript module that imports names from the other files by `import { a, b } from "./other.js";`. The
join puts all of them into one module, each after the files that it imports, without these lines and without the word
`export`; names must therefore be distinct across files. The content security policy allows this script and this style
by their hashes and nothing else: no request, no other script, no markup that a model wrote.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from functools import cache
from pathlib import Path

_FILES = Path(__file__).parent / "page"
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([\w-]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=async |function |const |class |let )", re.MULTILINE)
_TOP_NAME = re.compile(r"^(?:async )?(?:function\*?|const|class|let) ([A-Za-z_$][\w$]*)", re.MULTILINE)


def render(title: str, data: str) -> str:
    """Return the HTML of a report.

    Args:
      title: text of the title; escaped here.
      data: what `stages.reporting.columns.pack` returned.
    """
    script, style = join_scripts("main.js"), (_FILES / "report.css").read_text(encoding="utf-8")
    values = {
        "policy": html.escape(
            f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
            "base-uri 'none'; form-action 'none'"
        ),
        "title": html.escape(title),
        "style": style,
        "script": script,
        "data": data,
    }
    template = (_FILES / "report.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


@cache
def join_scripts(entry: str) -> str:
    """Return one module: the entry file after everything that it imports.

    Raises:
      ValueError: two files declare the same name, or files import each other in a circle.
    """
    order: list[str] = []
    _visit(entry, order, ())
    texts = {name: _EXPORT.sub("", _IMPORT.sub("", _read(name))) for name in order}
    owner: dict[str, str] = {}
    for name, text in texts.items():
        for declared in _TOP_NAME.findall(text):
            if owner.setdefault(declared, name) != name:
                raise ValueError(f"{declared} is declared in {owner[declared]} and in {name}; names must be distinct")
    return "\n" + "\n".join(texts.values()) + "\n"


def _visit(name: str, order: list[str], trail: tuple[str, ...]) -> None:
    if name in trail:
        raise ValueError(f"scripts import each other in a circle: {' → '.join((*trail, name))}")
    if name not in order:
        for imported in _IMPORT.findall(_read(name)):
            _visit(imported, order, (*trail, name))
        order.append(name)


def _read(name: str) -> str:
    return (_FILES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
