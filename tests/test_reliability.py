"""Test the inputs of a trial from outside, each of which once passed in silence or ended in a traceback."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.command_server import CommandResult, Commands


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


def test_damaged_and_edited_parquet(inputs: Path, spo: Commands, tmp_path: Path):
    for file in sorted(inputs.glob("*.parquet")):
        part = tmp_path / file.stem / "part-00000-of-00001.parquet"
        part.parent.mkdir()
        shutil.copy(file, part)
        out = tmp_path / "out" / file.stem
        if file.stem.startswith(("foreign", "escape")):
            continue
        command = "estimate" if "-C-" in file.stem else "segment"
        # In one of them, a bit of the key of the lineage is flipped; it is older than the checksum of the footer.
        code = 2 if file.stem.startswith("silent") else 3
        refused(spo.run("show", part.parent), code)
        refused(spo.run(command, part.parent, "--out", out), code)
        assert not out.exists()


def test_a_foreign_nan_is_found_by_the_first_stage(inputs: Path, spo: Commands, tmp_path: Path):
    line = refused(spo.run("segment", inputs / "foreign-nan-reward.parquet", "--out", tmp_path / "out"), 2)
    assert "reward must be a finite number" in line
    assert "row " in line
    refused(spo.run("show", inputs / "foreign-nan-reward.parquet"), 2)


def test_hostile_data_and_recipes(inputs: Path, policy: Path, spo: Commands, tmp_path: Path):
    for name in ("deep", "huge-number"):
        task = ["--task", "custom", "--data", inputs / f"{name}.jsonl", "--task-arg", "grader=exact"]
        result = spo.run("rollout", "-m", policy, *task, "--max-tokens", "8", "--out", tmp_path / name)
        assert "line 1" in refused(result, 2)
    for file in sorted(inputs.glob("*.toml")):
        for command in (["run"], ["slurm", "--dry-run"]):
            refused(spo.run(*command, file, "--out", tmp_path / "run") if file.stem[0] == "r" else spo.run(
                "slurm", file, f"--run.model={policy}"), 2)  # fmt: skip


def test_torn_settings_and_endless_templates(inputs: Path, policy: Path, spo: Commands, tmp_path: Path):
    for name, options in (("generation_config-torn", []), ("template_loop-tokenizer_config", ["--chat-template"])):
        model = shutil.copytree(policy, tmp_path / name)
        shutil.copy(inputs / f"{name}.json", model / f"{name.replace('-torn', '').replace('template_loop-', '')}.json")
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
