"""A user's function is imported by its name, and errors say what is wrong with the name or the module."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stages.core.errors import UserError
from stages.core.user_function import load_function

MODULE = """
from functools import partial

number = 3

def double(x):
    return 2 * x

def add(x, y):
    return x + y

increment = partial(add, 1)
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory that contains modules of a user."""
    (tmp_path / "pkg").mkdir()
    for name, text in {
        "pkg/__init__.py": "",
        "pkg/fine.py": MODULE,
        "pkg/broken.py": "def f(:\n",
        "pkg/lacking.py": "import not_installed_anywhere",
        "pkg/failing.py": "1 / 0",
    }.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.split(".")[0] == "pkg"]:
        del sys.modules[name]
    return tmp_path


def test_a_function_is_imported_from_the_current_directory():
    function, digest = load_function("pkg.fine:double", "--partition")
    assert function(4) == 8
    assert load_function("pkg.fine:double", "--partition")[1] == digest


def test_the_digest_depends_on_the_source_file_alone(here: Path):
    before = {load_function(f"pkg.fine:{name}", "--x")[1] for name in ("double", "add", "increment")}
    assert len(before) == 1
    (here / "pkg" / "fine.py").write_text(MODULE + "\n# edited\n")
    assert load_function("pkg.fine:double", "--x")[1] not in before


def test_a_function_without_python_source_is_identified_by_its_name():
    root, digest = load_function("math:sqrt", "--partition")
    assert root(9) == 3
    assert digest != load_function("math:cos", "--partition")[1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("double", "expected package.module:function; got 'double'"),
        ("pkg.fine:", "expected package.module:function"),
        (":double", "expected package.module:function"),
        ("./pkg/fine.py:double", "expected package.module:function"),
        (".fine:double", "expected package.module:function"),
        ("pkg.absent:double", r"cannot import pkg.absent \(No module named 'pkg.absent'\); install it"),
        ("pkg.lacking:f", "No module named 'not_installed_anywhere'"),
        ("pkg.broken:f", "importing pkg.broken raised SyntaxError"),
        ("pkg.failing:f", "importing pkg.failing raised ZeroDivisionError"),
        ("pkg.fine:absent", "the module pkg.fine has no absent"),
        ("pkg.fine:number", "number must be a function; found int"),
    ],
)
def test_unusable_names_and_modules_are_user_errors(name: str, message: str):
    with pytest.raises(UserError, match=rf"--partition.*{message}"):
        load_function(name, "--partition")
