"""The command line as the shell sees it: one line per error, exit codes, dotted flags, and fast help."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from spo_cli.app import VERBS, main
from spo_cli.dotted import translate_dotted

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "numpy", "pyarrow", "transformers", "pandas")


def spo(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    captured = capsys.readouterr()
    assert isinstance(exited.value.code, int)
    return exited.value.code, captured.out, captured.err


def in_shell(verbs: Path, *arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run `spo …` in a separate process, with the fake `rollout` command."""
    program = (
        "from spo_cli import app\n"
        "app.VERBS['rollout'] = app.Verb('pretend_rollout', 'pretend_rollout', 'Pretend.')\n"
        "app.main()"
    )
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{verbs}"}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, **options)  # type: ignore[call-overload]


def test_every_kind_of_option_arrives_in_the_config(verbs, capsys):
    flags = "in --output-dir o -m big --partition fixed --rho 0.5 --no-whiten --stop a --stop b --threads 2"
    code, out, err = spo(capsys, "rollout", *flags.split())
    assert code == 0
    assert (
        "Config(threads=2, source=PosixPath('in'), out=PosixPath('o'), model='big', partition='fixed', rho=0.5, "
        "whiten=False, stop=('a', 'b'))" in err
    )
    assert "spo rollout → o" in out


def test_omitted_options_take_the_default_of_the_config(verbs, capsys):
    _, _, err = spo(capsys, "rollout", "in", "--out", "o")
    assert "threads=None" in err
    assert "model='tiny', partition='cutpoints', rho=0.9, whiten=True, stop=('$',)" in err


def test_help_shows_each_flag_with_its_help_default_and_choices(verbs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, _ = spo(capsys, "rollout", "--help-all")
    lines = [" ".join(line.split()) for line in re.split(r"\n(?=  \S)", out)]
    assert code == 0
    assert "Usage: spo rollout SOURCE --out PATH [OPTIONS]" in out
    assert "SOURCE Where from [see below]." in lines
    assert "--partition {cutpoints|fixed} How to cut. (default: cutpoints)" in lines
    assert "--whiten, --no-whiten Whiten. (default: on)" in lines
    assert "-m, --model NAME Model, e.g. [cpu]. (default: tiny)" in lines
    assert "--stop NAME... Stop string. (repeatable; default: $)" in lines
    assert lines[lines.index("SOURCE Where from [see below].") + 1].startswith("--out, --output-dir PATH Where to.")


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["rollout", "in"], 2, "spo rollout: Missing option '--out' / '--output-dir'. (see spo rollout --help)"),
        (["rollout", "--out", "o"], 2, "spo rollout: Missing argument 'SOURCE'. (see spo rollout --help)"),
        (
            ["rollout", "in", "--out", "o", "--threads", "many"],
            2,
            "spo rollout: Invalid value for '--threads': 'many' is not a whole number (see spo rollout --help)",
        ),
        (
            ["rollout", "in", "--out", "o", "--partition", "cut-points"],
            2,
            "spo rollout: --partition must be one of cutpoints, fixed; got 'cut-points'. Did you mean 'cutpoints'?",
        ),
        (
            ["rollout", "in", "--out", "o", "--partition", "lines"],
            2,
            "spo rollout: --partition must be one of cutpoints, fixed; got 'lines'",
        ),
        (["rollout", "in", "--out", "o", "--rho", "1.5"], 2, "spo rollout: --rho must be at most 1; got 1.5"),
        (
            ["rollout", "in", "--out", "o", "--modle", "x"],
            2,
            "spo rollout: No such option '--modle'. Did you mean '--model'? (see spo rollout --help)",
        ),
        (
            ["rollout", "in", "--out", "o", "--zzz"],
            2,
            "spo rollout: No such option '--zzz'. (see spo rollout --help)",
        ),
        (["--versoin"], 2, "spo: No such option '--versoin'. Did you mean '--version'? (see spo --help)"),
        (["rolout"], 2, "spo: No such command 'rolout'. Did you mean 'rollout', 'plot'? (see spo --help)"),
        (
            ["rollout", "in", "--out", "o", "-m", "missing-part"],
            3,
            "spo rollout: part 3 of 8 is missing in runs/x; run spo rollout --shard 3/8",
        ),
        (
            ["rollout", "in", "--out", "o", "-m", "full"],
            2,
            "spo rollout: runs/x/part: No space left on device. No partial output was left. Fix the problem and rerun "
            "the command",
        ),
    ],
)
def test_an_error_is_one_line_on_stderr_with_its_own_exit_code(verbs, capsys, arguments, code, line):
    assert spo(capsys, *arguments) == (code, "", line + "\n")


def test_debug_shows_the_traceback_before_the_line(verbs, capsys):
    code, _, err = spo(capsys, "rollout", "in", "--out", "o", "-m", "missing-part", "--debug")
    assert code == 3
    assert err.startswith("Traceback (most recent call last)")
    assert err.splitlines()[-1].startswith("spo rollout: part 3 of 8 is missing")


@pytest.mark.parametrize(("model", "error"), [("defect", "ZeroDivisionError: boom"), ("absent", "FileNotFoundError")])
def test_an_unexpected_exception_is_a_defect_with_traceback_and_exit_code_1(verbs, model, error):
    result = in_shell(verbs, "rollout", "in", "--out", "o", "-m", model)
    assert result.returncode == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert error in result.stderr
    assert result.stderr.splitlines()[-1].startswith("spo rollout: this is a defect of spo")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_ends_any_command_with_exit_code_4_and_one_line(verbs, name):
    result = in_shell(verbs, "rollout", "in", "--out", "o", "-m", name)
    assert result.returncode == 4
    assert result.stderr.splitlines()[-1].startswith(f"spo rollout: stopped by {name}")
    assert "Traceback" not in result.stderr


def test_a_closed_pipe_ends_the_command_without_a_message(verbs):
    read, write = os.pipe()
    os.close(read)
    program = "from spo_cli import app; app.main(['--version'])"
    result = subprocess.run([sys.executable, "-c", program], stdout=write, stderr=subprocess.PIPE, cwd=REPOSITORY)
    os.close(write)
    assert (result.returncode, result.stderr) == (0, b"")


def test_spo_alone_shows_the_commands_and_fails(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = spo(capsys)
    assert (code, err) == (2, "")
    assert all(re.search(rf"{name} +{re.escape(verb.help)}", out) for name, verb in VERBS.items())


def test_the_version_is_printed(capsys):
    code, out, _ = spo(capsys, "--version")
    assert code == 0
    assert out.startswith("spo ")


def test_dotted_flags_become_overrides_of_the_recipe(verbs, capsys):
    code, _, err = spo(
        capsys,
        "run",
        "--rollout.top-k",
        "2",
        "r.toml",
        "--iterations",
        "3",
        "--train.no-gradient-checkpointing",
        "--set",
        "eval.k=4",
    )
    assert code == 0
    assert "recipe=PosixPath('r.toml'), iterations=3" in err
    assert "overrides=('rollout.top_k=2', 'train.gradient_checkpointing=false', 'eval.k=4')" in err


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("--segment.rho=0.5", "--set segment.rho=0.5"),
        ("--train.beta -1e-4", "--set train.beta=-1e-4"),
        ("--rollout.task=a=b", "--set rollout.task=a=b"),
        ("--rollout.overwrite --iterations 2", "--set rollout.overwrite=true --iterations 2"),
        ("--rollout.overwrite=false", "--set rollout.overwrite=false"),
        ("--run.no-overwrite r.toml", "--set run.overwrite=false r.toml"),
        ("--slurm.train.time 1:00:00", "--set slurm.train.time=1:00:00"),
        ("recipe.toml --set a.b=c", "recipe.toml --set a.b=c"),
    ],
)
def test_a_dotted_flag_is_translated_to_its_override(written, expected):
    assert translate_dotted(written.split()) == expected.split()


def test_a_dotted_flag_without_a_value_is_a_usage_error(verbs, capsys):
    code, _, err = spo(capsys, "run", "r.toml", "--segment.rho", "--debug")
    assert code == 2
    assert err.splitlines()[-1].startswith("spo run: Invalid value for --segment.rho: the flag takes a value")


@pytest.mark.parametrize(
    ("written", "guess"),
    [
        ("--train.lerning-rate", "Did you mean '--train.learning-rate'?"),
        ("--trian.beta=1", "Did you mean '--train.beta'?"),
        ("--train.packng", "Did you mean '--train.packing'?"),
        ("--train.no-packng", "Did you mean '--train.packing'?"),
        ("--slurm.train.tyme", "Did you mean '--slurm.train.time'?"),
        ("--run.temprature", "Did you mean '--run.temperature'?"),
        ("--zzz.qqq", ""),
    ],
)
def test_a_mistyped_dotted_flag_is_reported_with_a_suggestion(verbs, capsys, written, guess):
    code, out, err = spo(capsys, "run", written, "r.toml")
    message = f"spo run: No such option '{written.partition('=')[0]}'. {guess}".rstrip()
    assert (code, out, err) == (2, "", message + "\n")


def test_an_error_of_the_recipe_reader_is_a_user_error(verbs, capsys):
    code, _, err = spo(capsys, "run", "r.toml", "--set", "nonsense.key=3")
    assert code == 2
    assert err.endswith("spo run: the recipe has no table nonsense\n")


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help-all"] for name in VERBS)], ids=" ".join)
def test_help_imports_nothing_heavy(arguments):
    program = (
        "import json, sys\n"
        "from spo_cli.app import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as exited: code = exited.code\n"
        "sys.stderr.write(json.dumps([code, sorted(sys.modules)]))"
    )
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=REPOSITORY)
    code, modules = json.loads(result.stderr)
    assert code == 0
    assert not set(HEAVY) & set(modules)


@pytest.mark.parametrize(("arguments", "times"), [(["--help"], 3.0), (["rollout", "--help"], 4.0)])
def test_help_is_fast(arguments, times):
    """Compare with the processor time that importing the command-line libraries alone takes."""
    libraries = ["-c", "import dataclasses, typer, rich.console, rich.panel, rich.table"]
    measured, expected = [], []
    for _ in range(5):  # alternate and take the minimum of each, so that other load on the machine has no effect
        measured.append(processor_seconds("-m", "spo_cli", *arguments))
        expected.append(processor_seconds(*libraries))
    assert min(measured) < times * min(expected)


def processor_seconds(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=REPOSITORY)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
