"""Shell completion: a script for each shell, its installation, and completion in a real bash."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from spo_cli.app import main

REPOSITORY = Path(__file__).resolve().parents[2]
HEAVY = {"torch", "numpy", "pyarrow", "transformers", "pandas", "pydantic"}


def spo(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exited:
        main(words)
    captured = capsys.readouterr()
    assert isinstance(exited.value.code, int)
    return exited.value.code, captured.out, captured.err


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a temporary home directory, with `spo` on the path."""
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    program = tmp_path / "bin" / "spo"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m spo_cli "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    return tmp_path


def completed(*words: str) -> list[str]:
    """Return what bash, with the installed completion, offers for the last of the words."""
    typed = " ".join(map(shlex.quote, words))
    program = (
        f"source ~/.bashrc\nCOMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}\n"
        'found=$(complete -p spo | sed "s/.*-F \\([^ ]*\\).*/\\1/")\n$found spo\nprintf "%s\\n" "${COMPREPLY[@]}"'
    )
    result = subprocess.run(["bash", "--norc", "-c", program], capture_output=True, text=True, check=True)
    assert not result.stderr
    return result.stdout.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_own_script(shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    code, script, _ = spo(capsys, "--show-completion", shell)
    assert code == 0
    assert f"_SPO_COMPLETE=complete_{shell}" in script
    monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
    assert spo(capsys, "--show-completion") == (0, script, "")


@pytest.mark.parametrize(("words", "got"), [(["tcsh"], "got 'tcsh'"), ([], "$SHELL is /bin/sh")])
def test_an_unsupported_shell_is_a_user_error(words: list[str], got: str, capsys, monkeypatch):
    monkeypatch.setenv("SHELL", "/bin/sh")
    code, out, err = spo(capsys, "--show-completion", *words)
    assert (code, out) == (2, "")
    assert err == (f"spo: completion is available for bash, zsh, fish; {got}: name one, as in --show-completion bash\n")


def test_bash_completes_commands_flags_and_choices(home: Path, capsys):
    assert spo(capsys, "--install-completion", "bash")[0] == 0
    assert completed("spo", "r") == ["rollout", "run", "report"]
    assert completed("spo", "rollout", "--max-t") == ["--max-tokens"]
    assert completed("spo", "rollout", "--engine", "") == ["auto", "transformers", "vllm"]
    assert completed("spo", "train", "--report-to", "w") == ["wandb"]
    assert not {"--out", "--output-dir"} & set(completed("spo", "train", "--out", "x", "--"))
    assert "--trajectories" in completed("spo", "train", "--trajectories", "x", "--")
    assert completed("spo", "--show-completion", "") == ["bash", "zsh", "fish"]
    assert completed("spo", "eval", "--compare", "--f") == ["--format"]
    assert completed("spo", "run", "r.toml", "--rollout.temp") == ["--rollout.temperature"]
    assert {"--out", "--model", "--no-overwrite", "--help-all"} <= set(completed("spo", "estimate", "--"))


@pytest.mark.parametrize(
    ("shell", "startup"), [("bash", ".bashrc"), ("zsh", ".zshrc"), ("fish", ".config/fish/completions/spo.fish")]
)
def test_installing_twice_sources_the_script_once(shell: str, startup: str, home: Path, capsys):
    if shell != "fish":
        (home / startup).write_text("alias x=y")
    for _ in range(2):
        code, out, _ = spo(capsys, "--install-completion", shell)
        assert code == 0
        assert str(home / startup) in out.replace("\n", "")
    text = (home / startup).read_text()
    if shell == "fish":
        assert "complete --command spo --no-files" in text
    else:
        assert text.startswith("alias x=y\n")
        assert text.count("source ") == 1
        assert Path(shlex.split(text)[-1]).read_text().count("_spo_completion() {") == 1


def test_fish_and_zsh_get_each_word_with_its_description(home: Path):
    """Each word has one line, because fish reads every line as a separate word."""
    variables = {"_TYPER_COMPLETE_ARGS": "spo train --epsi", "_TYPER_COMPLETE_FISH_ACTION": "get-args", "COLUMNS": "40"}
    output = {}
    for shell in ("fish", "zsh"):
        environment = {**os.environ, **variables, "_SPO_COMPLETE": f"complete_{shell}"}
        command = [sys.executable, "-m", "spo_cli"]
        output[shell] = subprocess.run(command, capture_output=True, text=True, env=environment).stdout
    words = [line.partition("\t") for line in output["fish"].splitlines()]
    assert [word for word, _, _ in words] == ["--epsilon", "--epsilon-high"]
    assert all(text.endswith(".") for _, _, text in words)
    assert '"--epsilon-high":"' in output["zsh"]


@pytest.mark.parametrize("words", ["spo ", "spo rollout --", "spo eval --compare --", "spo run r.toml --train."])
def test_completion_imports_nothing_heavy(words: str):
    program = (
        "import json, sys\n"
        "from spo_cli.app import main\n"
        "try: main([])\n"
        "except SystemExit as exited: code = exited.code\n"
        "sys.stderr.write(json.dumps([code, sorted(sys.modules)]))"
    )
    number = str(len(words.split(" ")) - 1)
    environment = {**os.environ, "_SPO_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": number}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, env=environment
    )
    code, modules = json.loads(result.stderr)
    assert code == 0
    assert len(result.stdout.splitlines()) > 1
    assert not HEAVY & set(modules)
