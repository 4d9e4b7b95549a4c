"""Shell completion of `spo`: print the script of a shell, or install it where the shell reads it at its start."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from typer.completion import completion_init, get_completion_script

from stages.core.errors import UserError
from stages.core.storage import write_atomically

SHELLS = ("bash", "zsh", "fish")

_ZSH_SETUP = "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }; "


def find_shell(name: str) -> str:
    """Return the shell of this name; for an empty name, the login shell.

    Raises:
      UserError: another shell than bash, zsh or fish.
    """
    shell = name or Path(os.environ.get("SHELL", "")).name
    if shell in SHELLS:
        return shell
    found = f"got {name!r}" if name else f"$SHELL is {os.environ.get('SHELL', 'not set')}"
    raise UserError(f"completion is available for {', '.join(SHELLS)}; {found}: name one, as in --show-completion bash")


def register_shells() -> None:
    """Register the completion classes of Typer for each shell.

    Typer wraps descriptions to the width of the terminal, and fish reads each line as another word, so the width
    is set to one that fits every description.
    """
    os.environ["COLUMNS"] = "1000"
    completion_init()


def completion_script(shell: str) -> str:
    """Return the script that a shell evaluates to complete `spo`."""
    return get_completion_script(prog_name="spo", complete_var="_SPO_COMPLETE", shell=shell)


def install_completion(shell: str) -> list[Path]:
    """Write the script, and a line that reads it into the startup file of bash or zsh.

    Returns:
      The files that were written.
    """
    home = Path.home()
    if shell == "fish":
        folder = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "fish" / "completions"
        return [_write(folder / "spo.fish", completion_script(shell))]
    folder = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share") / "spo"
    script = _write(folder / f"completion.{shell}", completion_script(shell))
    startup = home / ".bashrc" if shell == "bash" else Path(os.environ.get("ZDOTDIR") or home) / ".zshrc"
    line = f"{_ZSH_SETUP if shell == 'zsh' else ''}source {shlex.quote(str(script))}"
    text = startup.read_text() if startup.exists() else ""
    if line not in text.splitlines():
        with startup.open("a") as file:
            file.write(f"{'' if not text or text.endswith(chr(10)) else chr(10)}{line}\n")
    return [script, startup]


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())
    return path
