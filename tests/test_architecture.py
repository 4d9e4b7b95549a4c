"""Who may import whom (CONTRIBUTING, the dependency rule)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
VERBS = {"rollout", "segment", "estimate", "train", "evaluate", "regrade", "sft", "status"}
ORDER = {"planning", "iterate", "slurm", "prune"}
"""What knows the order of the verbs."""
BASE = {"errors", "config", "progress", "storage", "places", "launcher"}
HEAVY = {"torch", "numpy", "pyarrow", "transformers", "tokenizers", "safetensors", "vllm", "deepspeed", "pandas"}
# room of stages → the rooms it may import
ALLOWED = {
    "maths": {"maths", "errors"},
    "shards": {"shards", "maths"} | BASE,
    "engines": {"engines", "maths"} | BASE,
    "tasks": {"tasks", "maths", "user_function"} | BASE,
    "estimators": {"estimators", "cuts", "trees", "grading", "flags", "shards", "engines", "tasks", "maths"} | BASE,
    "evaluation": {"evaluation", "shards", "maths"} | BASE,
    "scheduling": {"scheduling", "shards"} | BASE,
    "training": {"training", "trees", "unfinished", "shards", "engines", "maths"} | BASE,
}
LIGHT = {"stages.flags", "stages.scheduling.resources", "stages.estimators.options", "stages.training.options"}
"""What a verb may import at its top besides: nothing in them is heavy."""


def imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere, dotted."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms(modules: set[str]) -> set[str]:
    return {module.split(".")[1] for module in modules if module.startswith("stages.")}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_rooms_below_it(room: str):
    for path in sources(f"stages/{room}"):
        assert rooms(imports(path)) <= ALLOWED[room], path
        assert not any(module.startswith("spo_cli") for module in imports(path)), path


def test_maths_imports_numpy_and_torch_only():
    for path in sources("stages/maths"):
        outside = {module.split(".")[0] for module in imports(path)} & HEAVY
        assert outside <= {"numpy", "torch"}, path


def test_verbs_do_not_import_each_other():
    for verb in VERBS:
        path = ROOT / "stages" / f"{verb}.py"
        assert rooms(imports(path)) & (VERBS | ORDER) <= {verb}, path


def test_what_verbs_share_imports_no_verb():
    shared = {path.stem for path in (ROOT / "stages").glob("*.py")} - VERBS - ORDER - {"__init__"}
    for name in shared:
        above = VERBS | ORDER | (shared | set(ALLOWED) if name in BASE else set())
        assert rooms(imports(ROOT / "stages" / f"{name}.py")) & above <= (BASE if name in BASE else set()), name


def test_stages_never_import_the_surface_nor_print():
    for path in sources("stages"):
        assert not any(module.split(".")[0] in {"spo_cli", "rich", "typer", "click"} for module in imports(path)), path
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"], path


def test_the_command_line_uses_what_typer_makes_public():
    """One module names private parts of Typer; the separate distribution click is not installed with it."""
    for path in sources("spo_cli"):
        modules = [module.split(".") for module in imports(path)]
        assert not [parts for parts in modules if parts[0] == "click"], path
        private = [parts for parts in modules if parts[0] == "typer" and any(part.startswith("_") for part in parts)]
        assert bool(private) == (path.name == "vendored.py"), path


@pytest.mark.parametrize("verb", sorted(VERBS | ORDER))
def test_a_verb_imports_nothing_heavy_at_its_top(verb: str):
    """Else `spo VERB --help` would wait for torch."""
    tree = ast.parse((ROOT / "stages" / f"{verb}.py").read_text())
    top = {node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)}
    modules = {node.module or "" for node in top if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    assert not {module.split(".")[0] for module in modules} & HEAVY
    assert rooms(modules - LIGHT) <= BASE | (VERBS | {"planning", "iterate"} if verb in ORDER else set())
