"""The documentation agrees with the code: links, command lines, flags, tables, file names; the README is short."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from spo_cli.app import VERBS, load_command
from stages.pipeline import planning
from stages.shards.schemas import BY_STAGE
from tests.browser import Browser, find_browser

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PAGES = sorted(DOCS.rglob("*.md"))
BLOCK = re.compile(r"^[ ]*```(\w*)\n(.*?)^[ ]*```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
DIRECTIVE = re.compile(r"^<!-- generate: (.+) -->$", re.MULTILINE)


def name_of(path: Path) -> str:
    """Return the path within the repository, as the id of a test."""
    return str(path.relative_to(ROOT))


def load_hooks() -> ModuleType:
    """Import the hooks of MkDocs, which lie outside any package."""
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = load_hooks()


def blocks(text: str, language: str) -> list[str]:
    """Return the contents of the fenced code blocks in a language."""
    return [content for found, content in BLOCK.findall(text) if found == language]


def command_lines(text: str) -> Iterator[list[str]]:
    """Yield the arguments of every `spo` command in the shell blocks of a page."""
    for block in blocks(text, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "spo" in words[:6] and words.index("spo") + 1 < len(words):
                yield words[words.index("spo") + 1 :]


def parse(words: list[str]) -> None:
    """Parse a command line and check its Config, as `spo` does before a stage runs."""
    name, *arguments = words
    if name.startswith("-") or words[-1] in ("--help", "--help-all"):
        assert {name, words[-1]} <= {*VERBS, "--help", "--help-all", "--version"}
        return
    command = load_command(name, arguments)
    checked: list[object] = []
    command.execute = checked.append  # type: ignore[attr-defined]
    with command.make_context(name, arguments) as context:
        command.invoke(context)
    assert len(checked) == 1


def headings(path: Path) -> set[str]:
    """Return the anchors of a page, as mkdocs and GitHub derive them from its headings."""
    text = BLOCK.sub("", HOOKS.expand(path.read_text(encoding="utf-8")))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pytest.mark.parametrize("path", [*PAGES, README, CONTRIBUTING], ids=name_of)
def test_relative_links_have_a_target(path: Path):
    text = BLOCK.sub("", path.read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        is_generated = target.is_relative_to(DOCS) and str(target.relative_to(DOCS)) in HOOKS.IMAGES
        assert target.exists() or is_generated, link
        assert not anchor or anchor in headings(target), link
        if path.is_relative_to(DOCS):
            assert target.is_relative_to(DOCS), f"{link} leads out of docs/, where the built site has no page"


@pytest.mark.parametrize("path", [*PAGES, README, CONTRIBUTING], ids=name_of)
def test_every_command_line_parses(path: Path):
    for words in command_lines(HOOKS.expand(path.read_text(encoding="utf-8"))):
        try:
            parse(words)
        except Exception as error:
            pytest.fail(f"spo {shlex.join(words)}: {error}")


def test_the_parser_of_command_lines_rejects_an_unknown_flag():
    (words,) = command_lines(
        "```bash\nspo segment runs/x/trajectories \\\n    --no-such-flag 3 --out runs/x/c  # why\n```\n"
    )
    assert words == ["segment", "runs/x/trajectories", "--no-such-flag", "3", "--out", "runs/x/c"]
    with pytest.raises(Exception, match="No such option"):
        parse(words)


@pytest.mark.parametrize("path", [*PAGES, README], ids=name_of)
def test_all_flags_in_the_text_exist(path: Path):
    known = {"--help-all", "--no-python", "--array", "--nproc-per-node"}  # of sbatch and torchrun
    for name in VERBS:
        for form in ([], ["--compare"], ["--regrade"], ["--table"]):
            for parameter in load_command(name, form if name == "eval" else []).params:
                known |= {*parameter.opts, *parameter.secondary_opts}
    text = BLOCK.sub("", DIRECTIVE.sub("", path.read_text(encoding="utf-8")))
    named = re.findall(r"(?<![\w-])(--[a-z][a-z-]*[a-z])", " ".join(re.findall(r"`([^`]+)`", text)))
    generic = {"--version", "--install-completion", "--show-completion", "--no"}  # --no-OPTION
    assert set(named) <= known | generic


def test_every_command_has_a_page_with_all_its_options():
    for name in VERBS:
        text = HOOKS.expand((DOCS / "commands" / f"{name}.md").read_text(encoding="utf-8"))
        forms = [[], ["--compare"], ["--regrade"], ["--table"]] if name == "eval" else [[]]
        for form in forms:
            for parameter in load_command(name, form).params:
                shown = [option for option in parameter.opts if option.startswith("--")] or [parameter.name.upper()]  # type: ignore[union-attr]
                assert all(option in text for option in shown), f"{name}: {shown}"


def test_the_page_on_artefacts_lists_every_column_of_every_table():
    text = HOOKS.expand((DOCS / "artefacts.md").read_text(encoding="utf-8"))
    for schema in BY_STAGE.values():
        table = HOOKS.columns(schema.stage)
        assert table in text
        assert [row.split("`")[1] for row in table.splitlines() if row.startswith("| `")] == list(schema.names)


def test_the_figures_of_the_comparison_come_from_its_results():
    page = HOOKS.expand((DOCS / "comparison.md").read_text(encoding="utf-8"))
    results = (ROOT / "examples/compare/results/tables.md").read_text(encoding="utf-8")
    rows = [line for line in results.splitlines() if line.startswith("| ")]
    assert rows
    assert all(row in page for row in rows)
    for path in (README, DOCS / "from-grpo.md"):
        for figure in re.findall(r"\.\d{3} ± \.\d{3}", path.read_text(encoding="utf-8")):
            assert figure in results, f"{path.name}: {figure}"


def test_all_columns_in_the_examples_exist():
    names = {name for schema in BY_STAGE.values() for name in schema.names}
    for path in [*PAGES, README]:
        for block in blocks(path.read_text(encoding="utf-8"), "python"):
            for selection in re.findall(r"table\[\[(.+?)\]\]", block):
                assert set(re.findall(r'"(\w+)"', selection)) <= names, path.name


@pytest.mark.parametrize("path", [*PAGES, README], ids=name_of)
def test_all_recipes_in_the_text_are_valid(path: Path, tmp_path: Path):
    for block in blocks(HOOKS.expand(path.read_text(encoding="utf-8")), "toml"):
        tables = tomllib.loads(block)
        if "run" in tables:
            recipe = tmp_path / "recipe.toml"
            recipe.write_text(block, encoding="utf-8")
            plan = planning.make_plan(planning.Config(recipe=recipe))
            assert plan.iterations


@pytest.mark.parametrize("path", [*PAGES, README, CONTRIBUTING], ids=name_of)
def test_all_files_in_the_text_exist(path: Path):
    named = re.findall(r"`((?:stages|spo_cli|tests|examples|docs)/[\w./-]*)`", path.read_text(encoding="utf-8"))
    missing = [name for name in named if "NAME" not in name and not (ROOT / name).exists()]
    assert not missing


def test_the_guides_to_additions_name_code_that_exists():
    guides = CONTRIBUTING.read_text().partition("## How to add")[2].partition("## Axis legend")[0]
    names = {name for name in re.findall(r"`([A-Za-z_.]+)(?:\([^`]*)?`", guides) if "NAME" not in name}
    code = "\n".join(path.read_text() for path in (ROOT / "stages").rglob("*.py"))
    assert {"PARTITIONS", "find_estimator", "_LOSSES", "make_task", "SamplerPool"} <= names
    assert not [name for name in names if not re.search(rf"\b{name.rpartition('.')[2]}\b", code)]


def test_the_readme_is_short():
    assert len(README.read_bytes()) <= 8192


def test_the_readme_links_to_every_guide():
    linked = set(LINK.findall(README.read_text(encoding="utf-8")))
    pages = {f"docs/{path.relative_to(DOCS)}" for path in PAGES if path.parent == DOCS}
    assert pages - linked == {"docs/index.md", "docs/contributing.md"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the built pages; a warning of the build is an error."""
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    pytest.importorskip("material", reason="needs the extra docs")
    directory = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(directory)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return directory


def test_the_site_loads_nothing_from_other_servers(site: Path):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) >= len(PAGES)
    for page in pages:
        html = page.read_text(encoding="utf-8")
        loaded = re.findall(
            r'<(?:script|img|iframe)[^>]*\ssrc="([^"]+)"|<link[^>]*rel="stylesheet"[^>]*href="([^"]+)"', html
        )
        assert not [address for pair in loaded for address in pair if address.startswith(("http:", "https:", "//"))], (
            page.name
        )
        assert "<!-- generate:" not in html
        assert 'class="arithmatex"' not in html
    assert (site / "search/search_index.json").stat().st_size > 10_000


def test_pages_that_are_opened_as_files_can_be_searched(site: Path, tmp_path: Path):
    if find_browser() is None:
        pytest.skip("needs Chromium")
    with Browser(tmp_path) as browser:
        browser.call("Page.navigate", url=(site / "commands/train.html").as_uri())
        browser.wait("document.readyState === 'complete' && document.querySelector('[name=query]') !== null")
        browser.run("document.querySelector('#__search').click()")
        browser.run(
            "(() => { const field = document.querySelector('[name=query]'); field.focus(); "
            "field.value = 'leave-one-out'; field.dispatchEvent(new Event('keyup', {bubbles: true})); })()"
        )
        browser.wait("document.querySelectorAll('.md-search-result__item').length > 2")
        found = browser.run("[...document.querySelectorAll('.md-search-result__link')].map((link) => link.href)")
        assert any(link.startswith(f"{site.as_uri()}/") for link in found)
        assert not browser.console


def test_code_and_pages_avoid_words_that_readers_must_translate():
    odd = re.compile(r"\b(told|owns|nobody|mend|mends|mended|anew|in truth|but for|company|stretch)\b", re.IGNORECASE)
    code = [path for folder in ("stages", "spo_cli", "examples") for path in (ROOT / folder).rglob("*.*")]
    texts = [path for path in code if path.suffix in {".py", ".js", ".css", ".toml", ".sh"}]
    for path in (*texts, *PAGES, README, CONTRIBUTING, ROOT / "CHANGELOG.md"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert not [line for line in lines if odd.search(line)], name_of(path)
