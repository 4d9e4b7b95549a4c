"""Who may import whom (docs/design.md, the dependency rule), and what may be imported where."""

from __future__ import annotations

import ast
import dataclasses
import importlib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
VERBS = ("rollout", "segment", "estimate", "train", "evaluate", "sft", "grade", "importing")
LEVELS = (
    ("spo_cli",),
    ("pipeline",),
    ("reporting",),
    VERBS,
    ("estimators", "training", "evaluation"),
    ("responses",),
    ("slurm", "sampling", "optimization", "tracking"),
    ("cluster",),
    ("configs",),
    ("models", "shards", "tasks"),
    ("maths",),
    ("core",),
)
"""From the surface down: a room imports rooms of lower levels, and itself."""
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
HEAVY = {"torch", "numpy", "pyarrow", "transformers", "tokenizers", "safetensors", "vllm", "deepspeed", "pandas"}
MOST_LOCAL_IMPORTS = 40


@cache
def modules() -> dict[str, Path]:
    """Every module of the product by its dotted name."""
    found = {}
    for folder in ("stages", "spo_cli"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path: Path, *, runtime_only: bool = False) -> set[str]:
    """Every module that a file imports anywhere, dotted; `from a import b` names a.b where that is a module."""
    found: set[str] = set()
    skipped: set[ast.AST] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if runtime_only and is_type_checking(node):
            skipped |= set(ast.walk(node))
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (named & modules().keys()) or {node.module}
            if named - modules().keys():
                found.add(node.module)
    return found


def room(module: str) -> str | None:
    """The room of a module of the product; None for one from outside, or for `stages` itself."""
    first, _, rest = module.partition(".")
    if first == "spo_cli":
        return first
    return rest.partition(".")[0] if first == "stages" and rest else None


@pytest.mark.parametrize("name", sorted(LEVEL))
def test_a_room_imports_only_itself_and_rooms_of_lower_levels(name: str):
    for module, path in modules().items():
        if room(module) == name:
            used = {found for one in imports(path) if (found := room(one))} - {name}
            assert not {other for other in used if LEVEL[other] <= LEVEL[name]}, module


def test_every_room_has_a_level_and_the_top_holds_the_verbs_alone():
    assert {room(module) for module in modules()} - {None} == set(LEVEL)
    assert {path.stem for path in (ROOT / "stages").glob("*.py")} == {"__init__", *VERBS}


def test_no_files_import_each_other_in_a_circle():
    graph = {
        name: {one for one in imports(path) if one in modules() and one != name and not name.startswith(f"{one}.")}
        for name, path in modules().items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for used in sorted(graph[name]):
                visit(used, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def local_imports() -> list[tuple[str, int, str]]:
    """(module, line, what) of every import inside a function."""
    found = []
    for name, path in modules().items():
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.ImportFrom):
                    found.append((name, node.lineno, node.module or ""))
                elif isinstance(node, ast.Import):
                    found += [(name, node.lineno, alias.name) for alias in node.names]
    return sorted(set(found))


def test_imports_inside_functions_are_few():
    found = local_imports()
    assert len(found) <= MOST_LOCAL_IMPORTS, "\n".join(map(str, found))


def test_maths_imports_numpy_and_torch_only():
    for path in (ROOT / "stages/maths").rglob("*.py"):
        outside = {module.split(".")[0] for module in imports(path)} & HEAVY
        assert outside <= {"numpy", "torch"}, path


def test_stages_never_import_the_surface_nor_print():
    for path in (ROOT / "stages").rglob("*.py"):
        assert not any(module.split(".")[0] in {"spo_cli", "rich", "typer"} for module in imports(path)), path
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"], path


def reached(start: str) -> set[str]:
    """What importing a module imports at once: everything at the top of it and of what it imports."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in modules():
            body = ast.parse(modules()[name].read_text()).body
            top = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
            for node in top:
                if isinstance(node, ast.Import):
                    waiting += [alias.name for alias in node.names]
                elif node.module:
                    waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return seen


@pytest.mark.parametrize("name", [name for name in modules() if room(name) == "configs"])
def test_what_the_command_line_is_built_from_imports_nothing_heavy(name: str):
    """Else `spo VERB --help` would wait for torch."""
    assert not {module.split(".")[0] for module in reached(name)} & HEAVY


def test_the_command_line_imports_only_public_names_of_typer():
    """Private ones move between its versions; `spo_cli.vendored` is where the few that are needed come from."""
    for path in (ROOT / "spo_cli").glob("*.py"):
        if path.stem == "vendored":
            continue
        for module in imports(path):
            assert module.split(".")[0] != "click", path
            assert not (module.startswith("typer.") and any(part.startswith("_") for part in module.split("."))), path


WRITERS = {"stages.core.storage", "stages.core.store"}
"""The modules that create files: by a temporary name, a flush and a rename, or as one object of a store."""
APPENDERS = {
    "stages.shards.logs",
    "stages.models.transfer",
    "stages.training.resumable",
    "stages.tracking.metrics_log",
    "spo_cli.completion",
}


def test_one_writer_creates_every_file_that_a_later_call_reads():
    """Others may append lines; a file that is opened for writing would be empty after a crash or on a full disk."""
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or module in WRITERS:
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            modes = {value.value for value in node.args if isinstance(value, ast.Constant)} if name == "open" else set()
            assert name not in {"write_text", "write_bytes"}, f"{module}:{node.lineno}"
            assert not modes & {"w", "wb", "x", "xb", "w+", "w+b"}, f"{module}:{node.lineno}"
            assert "a" not in modes or module in APPENDERS, f"{module}:{node.lineno}"


def option_classes() -> list[type]:
    """Every dataclass of options: the groups that verbs share, and the Configs."""
    found = []
    for name in sorted(name for name in modules() if room(name) == "configs"):
        classes = (value for value in vars(importlib.import_module(name)).values() if isinstance(value, type))
        found += [value for value in classes if dataclasses.is_dataclass(value) and value.__module__ == name]
    return found


def is_group(options: type) -> bool:
    return options.__name__.endswith("Options")


def test_a_group_of_options_inherits_nothing_and_a_config_inherits_groups_or_one_config():
    """So a reader finds an option of `spo train` in its Config or one step away.

    A command that adds options to another one (`spo slurm` to `spo run`) extends the Config of that command.
    """
    for options in option_classes():
        bases = [base for base in options.__bases__ if base is not object]
        configs = [base for base in bases if not is_group(base)]
        assert not (is_group(options) and bases), options
        assert len(configs) <= 1, options
        assert all(is_group(base) for config in configs for base in config.__bases__ if base is not object), options


def test_no_group_repeats_an_option_of_another_one_in_the_same_config():
    for options in option_classes():
        groups = [base for base in options.__bases__ if base is not object]
        names = [field.name for group in groups for field in dataclasses.fields(group)]
        assert len(names) == len(set(names)), options
