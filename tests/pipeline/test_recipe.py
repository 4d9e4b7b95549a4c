"""Reading a recipe: option tables, options shared by [run], overrides, and an error message for each mistake."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from stages.core.config import option, validate
from stages.core.errors import UserError
from stages.core.paths import AnyPath
from stages.pipeline.recipe import Recipe, coerce, read_recipe


@dataclass(frozen=True, kw_only=True)
class Run:
    out: AnyPath = option("Where.")
    iterations: int = option("How many.", minimum=0)


@dataclass(frozen=True, kw_only=True)
class Stage:
    out: AnyPath = option("Where.")
    task: str = option("Task.")
    rate: float = option("Rate.", default=0.5, above=0)
    steps: int | None = option("Steps.", default=None)
    stop: tuple[str, ...] = option("Stop strings.", default=())
    ends: tuple[str, ...] | None = option("Ends.", default=None)
    kind: Literal["a", "b"] = option("Kind.", default="a")
    careful: bool = option("Careful.", default=False)

    def __post_init__(self) -> None:
        validate(self)


TABLES = {"run": Run, "stage": Stage, "other": Stage}


def read(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return read_recipe(path, overrides, TABLES, shared_in="run")


def stage(recipe: Recipe, name: str = "stage", **given: Any) -> Stage:
    return recipe.config(name, Stage, out=Path("x"), **given)


BASE = '[run]\nout = "runs/x"\niterations = 2\ntask = "arithmetic"\n'


def test_run_shares_options_and_a_stage_table_takes_precedence(tmp_path: Path):
    recipe = read(tmp_path, BASE + "rate = 0.1\nsteps = 7\n[stage]\nrate = 0.2\n")
    assert recipe.config("run", Run) == Run(out=Path("runs/x"), iterations=2)
    assert stage(recipe) == Stage(out=Path("x"), task="arithmetic", rate=0.2, steps=7)
    assert stage(recipe, "other") == Stage(out=Path("x"), task="arithmetic", rate=0.1, steps=7)


def test_an_override_takes_precedence_over_the_recipe(tmp_path: Path):
    text = BASE + "[stage]\nrate = 0.2\nsteps = 3\n"
    recipe = read(tmp_path, text, "stage.rate=1e-3", "run.task=gsm8k", "other.kind=b", "run.iterations=0")
    assert stage(recipe) == Stage(out=Path("x"), task="gsm8k", rate=1e-3, steps=3)
    assert stage(recipe, "other").kind == "b"
    assert recipe.config("run", Run).iterations == 0


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("stage.rate=2", "rate", 2.0),
        ("stage.steps=12", "steps", 12),
        ("stage.careful=true", "careful", True),
        ("stage.task=007", "task", "007"),
        ("stage.task=a=b", "task", "a=b"),
        ("stage.task='quoted'", "task", "quoted"),
        ("stage.task=", "task", ""),
        ("stage.stop=#", "stop", ("#",)),
        ("stage.stop=5", "stop", ("5",)),
        ('stage.stop=["#", "\\n"]', "stop", ("#", "\n")),
        ("stage.ends=5", "ends", ("5",)),
        ("stage.ends=4#", "ends", ("4#",)),
        ("stage.kind=b", "kind", "b"),
        ("run.task=5", "task", "5"),
        ("run.stop=5", "stop", ("5",)),
    ],
)
def test_an_override_is_parsed_according_to_its_option(tmp_path: Path, override: str, field: str, value: object):
    assert getattr(stage(read(tmp_path, BASE, override)), field) == value


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, float, 1.0),
        ("a/b", AnyPath, Path("a/b")),
        (["a", "b"], tuple[str, ...], ("a", "b")),
        ("a", tuple[str, ...], ("a",)),
        (3, int | None, 3),
        (["a"], tuple[str, ...] | None, ("a",)),
        ("a", Literal["a", "b"], "a"),
    ],
)
def test_values_are_coerced_to_the_type_of_the_option(value: object, hint: object, expected: object):
    assert coerce(value, hint, "here") == expected
    assert type(coerce(value, hint, "here")) is type(expected)


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("[stage\n", (), "is not TOML"),
        ("[stages]\n", (), r"has stages; expected the tables \[run\], \[stage\], \[other\]. Did you mean 'stage'\?$"),
        ("out = 'x'\n", (), "has out; expected the tables"),
        ("[run]\ntreshold = 1\n", (), r"sets treshold in \[run\], which no stage has$"),
        ("[run]\nrte = 1\n", (), r"sets rte in \[run\], which no stage has. Did you mean 'rate'\?$"),
        (BASE, ("rate=1",), r"an override is table.key=value with one of .*; got 'rate=1'"),
        (BASE, ("stage.rate",), "got 'stage.rate'$"),
        (BASE, ("stages.rate=1",), r"got 'stages.rate=1'. Did you mean 'stage'\?$"),
    ],
)
def test_an_invalid_recipe_is_reported(tmp_path: Path, text: str, overrides: tuple[str, ...], message: str):
    with pytest.raises(UserError, match=message):
        read(tmp_path, text, *overrides)


def test_a_missing_recipe_is_reported(tmp_path: Path):
    with pytest.raises(UserError, match=r"the recipe .*none.toml cannot be read: No such file"):
        read_recipe(tmp_path / "none.toml", (), TABLES, shared_in="run")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("zzz = 1", r"recipe.toml: \[stage\] has no option zzz; `spo stage --help-all` lists them$"),
        ("ratte = 1", r"option ratte; `spo stage --help-all` lists them. Did you mean 'rate'\?$"),
        (
            "ratte = 1\ncare-full = true",
            r"option care_full, ratte; .*. Did you mean 'careful'\? Did you mean 'rate'\?$",
        ),
        ("out = 'y'", r"recipe.toml: \[stage\] must not set out: `spo run` decides it"),
        ("steps = 1.5", r"recipe.toml: \[stage\] steps must be of type int; got 1.5"),
        ("steps = true", r"\[stage\] steps must be of type int; got True"),
        ("rate = '1e-3'", r"\[stage\] rate must be of type float; got '1e-3'"),
        ("stop = [true]", r"\[stage\] stop must be of type str; got True"),
        ("kind = 'c'", r"recipe.toml: \[stage\] --kind must be one of a, b; got 'c'"),
        ("rate = 0", r"recipe.toml: \[stage\] --rate must be greater than 0; got 0"),
        ("rate = nan", r"\[stage\] --rate must be a finite number"),
    ],
)
def test_an_invalid_option_is_reported_with_its_table(tmp_path: Path, table: str, message: str):
    recipe = read(tmp_path, f"{BASE}[stage]\n{table}\n")
    with pytest.raises(UserError, match=message):
        stage(recipe)


def test_a_missing_required_option_is_reported(tmp_path: Path):
    recipe = read(tmp_path, "[run]\nout = 'x'\n[stage]\nrate = 1\n")
    with pytest.raises(UserError, match=r"recipe.toml: \[run\] lacks iterations"):
        recipe.config("run", Run)
    with pytest.raises(UserError, match=r"recipe.toml: \[stage\] lacks task"):
        stage(recipe)
