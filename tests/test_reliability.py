"""Test the inputs of a trial from outside, each of which once passed in silence or ended in a traceback."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.command_server import CommandResult, Commands

DAMAGED = (
    *("rewards-flipped-footer-kept.parquet", "logprob-minus-inf-footer-kept.parquet"),
    *("logprobs-one-too-long-footer-kept.parquet", "silent-C-flipfoot-cmd-1-254.parquet"),
    *("bits-C-cut-1-1100.parquet", "bits-T-dup-1-680.parquet", "bits-T-flipfoot-1-825.parquet"),
    "bits-T-insert-1-166.parquet",
)
RECIPES = (
    *(f"recipe-1-{n}.toml" for n in (3, 37, 104, 126, 148, 194, 237, 395, 402, 431)),
    *("slurm-newline-in-out.toml", "slurm-newline-in-partition.toml"),
)
DATA = ("deep.jsonl", "huge-number.jsonl")
MODEL_FILES = {
    "generation_config-torn.json": ("generation_config.json", []),
    "template_loop-tokenizer_config.json": ("tokenizer_config.json", ["--chat-template"]),
}
FOREIGN_NAN, HOSTILE_ID = "foreign-nan-reward.parquet", "escape-in-trajectory_id.parquet"
HOSTILE_DATA_ID = "escape-in-unique_id.jsonl"


@pytest.fixture
def inputs(shared: Path) -> Path:
    folder = shared / "reliability"
    if not folder.is_dir():
        pytest.skip(f"needs the inputs in {folder}, which are not part of the project")
    return folder


def refused(result: CommandResult, code: int) -> str:
    """Return the one line of a command that refuses its input."""
    assert result.code == code, result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    *notes, line = result.stderr.splitlines()
    assert line.startswith("spo ")
    assert not any(note.startswith("spo ") for note in notes)
    assert result.stderr.replace("\n", "").isprintable()
    return line


def test_every_input_of_the_trial_is_tested_here(inputs: Path):
    tested = {*DAMAGED, *RECIPES, *DATA, *MODEL_FILES, FOREIGN_NAN, HOSTILE_ID, HOSTILE_DATA_ID, "README.md"}
    assert {file.name for file in inputs.iterdir()} == tested


def test_damaged_and_edited_parquet(inputs: Path, spo: Commands, tmp_path: Path):
    for name in DAMAGED:
        file, out = inputs / name, tmp_path / "out"
        refused(spo.run("show", file), 3)
        refused(spo.run("estimate" if "-C-" in name else "segment", file, "--out", out), 3)
        assert not out.exists()


def test_a_foreign_nan_is_found_by_the_first_stage(inputs: Path, spo: Commands, tmp_path: Path):
    line = refused(spo.run("segment", inputs / FOREIGN_NAN, "--out", tmp_path / "out"), 2)
    assert "reward must be a finite number" in line
    assert "row " in line
    refused(spo.run("show", inputs / FOREIGN_NAN), 2)


def test_control_characters_in_ids_are_made_visible(inputs: Path, policy: Path, spo: Commands, tmp_path: Path):
    line = refused(spo.run("show", inputs / HOSTILE_ID), 3)  # its footer is older than checksums
    assert "edited or damaged" in line
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pq.read_table(inputs / HOSTILE_ID).replace_schema_metadata(), foreign)
    task = ["--task", "custom", "--data", inputs / HOSTILE_DATA_ID, "--task-arg", "grader=exact"]
    # Any text is an id; only a terminal must not receive it as it is.
    spo.finish("rollout", "-m", policy, *task, "--split", "train", "--max-tokens", "4", "--out", tmp_path / "sampled")
    for artefact in (foreign, tmp_path / "sampled"):
        for options in ([], ["--row", "0"], ["--json"]):
            shown = spo.run("show", artefact, *options)
            assert shown.stdout.replace("\n", "").isprintable()
            assert shown.stderr.replace("\n", "").isprintable()
            assert shown.code == 0, shown.stderr
        assert "\\u001b" in spo.finish("show", artefact, "--row", "0").stdout


def test_hostile_data_and_recipes(inputs: Path, policy: Path, spo: Commands, tmp_path: Path):
    for name in DATA:
        task = ["--task", "custom", "--data", inputs / name, "--task-arg", "grader=exact"]
        result = spo.run("rollout", "-m", policy, *task, "--max-tokens", "8", "--out", tmp_path / name)
        assert "line 1" in refused(result, 2)
    for name in RECIPES:
        if name.startswith("slurm"):
            refused(spo.run("slurm", inputs / name, f"--run.model={policy}"), 2)
        else:
            refused(spo.run("run", inputs / name, "--out", tmp_path / "run"), 2)
            refused(spo.run("slurm", inputs / name, "--out", tmp_path / "run", "--dry-run"), 2)
    assert not (tmp_path / "run").exists()


def test_torn_settings_and_endless_templates(inputs: Path, policy: Path, spo: Commands, tmp_path: Path):
    for name, (place, options) in MODEL_FILES.items():
        model = shutil.copytree(policy, tmp_path / name)
        shutil.copy(inputs / name, model / place)
        task = ["--task", "arithmetic", "--num-questions", "1", "--max-tokens", "8", *options]
        refused(spo.run("rollout", "-m", model, *task, "--out", tmp_path / "out"), 2)


def test_no_output_replaces_data_of_another_kind(policy: Path, chain: Path, spo: Commands, tmp_path: Path):
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "file").write_text("mine")
    places = [policy, tmp_path / "dangling", tmp_path / "circle", tmp_path / "file"]
    before = {path: path.read_bytes() for path in policy.iterdir() if path.is_file()}
    for out in places:
        refused(spo.run("segment", chain / "trajectories", "--out", out), 2)
    for out in [chain / "trajectories", *places[1:]]:
        refused(spo.run("train", chain / "advantages", "--out", out), 2)
    assert {path: path.read_bytes() for path in policy.iterdir() if path.is_file()} == before
    assert (tmp_path / "file").read_text() == "mine"


RECIPE = """
[run]
model = {model}
out = {out}
iterations = 1
task = "arithmetic"
max_tokens = 8
threads = 1
[rollout]
num_questions = 1
[estimate]
rollouts = 1
[slurm]
"""


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ('partition = "a\\ntouch pwned"', "has a line break or a control character"),
        ('directives = ["--exclusive\\n#SBATCH --x"]', "has a line break or a control character"),
        ("time = 3", "[slurm] time must be more than"),
        ('[train]\nlr = 1e-3', "Did you mean 'learning_rate'?"),
        ('[train]\nlearning_rat = 1e-3', "Did you mean 'learning_rate'?"),
        ('[eval]\nthreads = 99999999999999999999', "[eval] --threads must be"),
        ('[segment]\n"\\u001b" = 1', "[segment] has no option \\u001b"),
        ("[train]\nepochs = 9999999999", "[train] --epochs must be"),
        ("[x" + ".x" * 2000 + "]\na = 1", "nest too deep"),
        ("x = " + "[" * 5000, "nest too deep"),
        ("x = " + "9" * 5000, "is not TOML"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_recipe_names_its_table_and_key(
    more: str, problem: str, policy: Path, spo: Commands, tmp_path: Path
):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(model=f'"{policy}"', out=f'"{tmp_path}/run"') + more + "\n")
    assert problem in refused(spo.run("slurm", recipe), 2)
    assert not (tmp_path / "run").exists()


def test_tables_and_keys_of_a_recipe_can_be_unset(policy: Path, spo: Commands, tmp_path: Path):
    recipe = tmp_path / "recipe.toml"
    text = RECIPE.format(model=f'"{policy}"', out=f'"{tmp_path}/run"')
    recipe.write_text(f"{text}time = 'soon'\n[eval]\nnum_questions = 1\n")
    refused(spo.run("slurm", recipe, "--dry-run"), 2)
    shown = spo.finish("slurm", recipe, "--dry-run", "--unset", "slurm.time", "--unset", "eval")
    assert "rollout_000" in shown.stdout
    assert "eval" not in shown.stdout
    line = refused(spo.run("slurm", recipe, "--unset", "evil"), 2)
    assert "Did you mean 'eval'?" in line


@pytest.mark.parametrize(
    ("flag", "value"), [("--model", "x"), ("--temperature", "0.5"), ("--engine", "vllm"), ("--task", "arithmetic")]
)
def test_options_that_an_estimator_does_not_read_are_refused(
    flag: str, value: str, chain: Path, spo: Commands, tmp_path: Path
):
    result = spo.run("estimate", chain / "cutpoints", "--estimator", "grpo", flag, value, "--out", tmp_path / "out")
    assert f"{flag} is an option of --estimator monte-carlo" in refused(result, 2)


def test_huge_numbers_and_credentials_are_refused_at_once(policy: Path, spo: Commands, tmp_path: Path):
    task = ["--task", "arithmetic", "--num-questions", "1", "--max-tokens", "8"]
    for number in ("99999999999999999999", "9" * 5000, "2147483648"):
        line = refused(spo.run("rollout", "-m", policy, *task, "--num-generations", number, "--out", tmp_path / "x"), 2)
        assert len(line) < 2000
    line = refused(spo.run("rollout", "-m", policy, *task, "--out", "s3://AKIA:secret@bucket/key"), 2)
    assert "credentials" in line
    assert "secret" not in line
