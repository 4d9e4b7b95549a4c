"""The `spo` command: names → verbs, errors → exit codes. A verb is imported only when its command is used.

So `spo --help` stays quick, and a broken dependency of one stage cannot break another.
"""

from __future__ import annotations

import errno
import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from types import TracebackType
from typing import Any, NamedTuple

import click

from spo_cli.dotted import dotted_flags, translate_dotted
from stages.errors import Interrupted, SpoError, UserError
from stages.launcher import drop_local_rank, read_launch


class Verb(NamedTuple):
    """Where a command lives, and what the list of commands says about it.

    Attributes:
      ranks: a launcher may start several processes of it; the first one reports for all.
      group: heading in the list of commands.
    """

    module: str
    help: str
    ranks: bool = False
    group: str = "Stages"


VERBS = {
    "sft": Verb("stages.sft", "Warm-start a model on worked solutions."),
    "rollout": Verb("stages.rollout", "Sample trajectories for the questions of a task."),
    "segment": Verb("stages.segment", "Cut each trajectory into segments at its cutpoints, or another way."),
    "estimate": Verb("stages.estimate", "Estimate the value of every segment boundary and the segments' advantages."),
    "train": Verb("stages.train", "Update the policy from the advantages.", ranks=True),
    "eval": Verb("spo_cli.evaluation", "Measure a model's accuracy on a split of a task."),
    "run": Verb("stages.iterate", "Run whole iterations from a recipe, in one process.", group="Runs"),
    "slurm": Verb("spo_cli.slurm", "Write the iterations of a recipe as SLURM jobs, and submit them.", group="Runs"),
    "prune": Verb("stages.prune", "Delete the weights and optimizer states of a run's old checkpoints.", group="Runs"),
    "status": Verb("spo_cli.status", "Show how far a run is: parts done, running, queued, failed.", group="Runs"),
    "show": Verb("spo_cli.show", "Show an artefact: lineage, schema, statistics, a trajectory.", group="Inspection"),
}

_SUMMARY = (
    "Segment Policy Optimization: reinforcement learning of reasoning LLMs with credit per segment. Each stage reads "
    "and writes directories of Parquet files."
)
_RECIPE_NOTE = (
    "Every option of a stage can be given with the stage's name before it: --train.learning-rate 2e-4 is the same as "
    "--set train.learning_rate=2e-4. spo STAGE --help-all lists the options of a stage."
)
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code: 0 done, 2 user's mistake, 3 input incomplete, 4 interrupted.

    Any other exception goes to `sys.excepthook`, which prints the traceback; the exit code is 1.
    """
    arguments = drop_local_rank(sys.argv[1:] if arguments is None else arguments)
    sys.excepthook = _report_defect
    try:
        code = _application().main(args=arguments, prog_name="spo", standalone_mode=False)
    except (SpoError, Interrupted) as error:
        if isinstance(error, Interrupted):
            _ignore_signals()
        code = _fail(_title(arguments), str(error), error.exit_code, "--debug" in arguments)
    except click.ClickException as error:
        title, message = _title(arguments), _message(error)
        code = _fail(title, f"{message} (see {title} --help)", error.exit_code, "--debug" in arguments)
    except click.Abort:  # Ctrl-C before the stage has begun
        code = 130
    except OSError as error:
        if error.errno not in _DISK:
            raise
        place = f"{error.filename}: " if error.filename else ""
        message = f"{place}{error.strerror}. No partial output was left. Fix the problem and rerun the command"
        code = _fail(_title(arguments), message, 2, "--debug" in arguments)
    raise SystemExit(code if isinstance(code, int) else 0)


def _message(error: click.ClickException) -> str:
    """Return the message of a usage error in one line, with the name that was probably meant."""
    names = list[str]()
    if isinstance(error, click.NoSuchOption) and error.ctx:
        names = [name for one in error.ctx.command.params for name in (*one.opts, *one.secondary_opts)]
        given, message = error.option_name, f"No such option {error.option_name!r}."
    elif isinstance(error, click.NoSuchCommand):
        names, given, message = list(VERBS), error.command_name, f"No such command {error.command_name!r}."
    else:
        return " ".join(error.format_message().split())
    bare = {name.lstrip("-"): name for name in names}  # dashes are no likeness
    found = get_close_matches(given.lstrip("-"), bare, n=1)
    return f"{message} Did you mean {bare[found[0]]!r}?" if found else message


class _Application(click.Group):
    """The list of commands. Listing commands imports none of them; using one imports that one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command in question, built for the form that its arguments choose; `--help` goes before all."""
        from spo_cli.options import HELP_FLAGS

        name, command, rest = super().resolve_command(ctx, args)
        if name is None or command is None:
            return name, command, rest
        asked = [word for word in rest if word in HELP_FLAGS]
        return name, load_command(name, rest), asked[:1] or rest


def load_command(name: str, args: Sequence[str] = ()) -> click.Command:
    """Import a verb and build its command from its Config.

    Args:
      args: its arguments; a verb that has several forms (`FORMS`: flag → Config) takes the one whose flag is there.
    """
    from spo_cli.examples import EXAMPLES
    from spo_cli.options import ConfigCommand

    verb = VERBS[name]
    module = importlib.import_module(verb.module)

    def execute(config: Any) -> None:
        from spo_cli import console
        from stages.shards.sharding import interruptible

        with interruptible(), console.Reporter() as progress:
            summary = module.run(config, progress)
        if summary is not None and not _follows(name):
            getattr(module, "report", console.print_summary)(summary)

    title, help, config = name, verb.help, module.Config
    given = {word.partition("=")[0] for word in args}
    form = next((flag for flag in getattr(module, "FORMS", {}) if flag in given), None)
    if form:
        config = module.FORMS[form]
        title, help = f"{name} {form}", config.__doc__
    takes_recipe = name in ("run", "slurm", "prune")
    return ConfigCommand(
        title,
        help,
        config,
        execute,
        note=_RECIPE_NOTE if takes_recipe else getattr(module, "NOTE", None),
        examples=EXAMPLES[title],
        translate=translate_dotted if takes_recipe else list,
        further=dotted_flags if takes_recipe else tuple,
    )


def _application() -> click.Group:
    return _Application(
        "spo",
        commands={name: click.Command(name, help=verb.help) for name, verb in VERBS.items()},
        params=[
            _action(
                "--install-completion", "Complete commands, options and choices in this shell.", _install, "[SHELL]"
            ),
            _action("--show-completion", "Print the completion script: bash, zsh or fish.", _show_script, "[SHELL]"),
            _action("--version", "Print the version and exit.", lambda _, __: _print_line(f"spo {_version()}")),
            _action("--help", "Show this text and exit.", lambda ctx, _: _show_commands(ctx)),
        ],
        callback=_require_command,
        invoke_without_command=True,
        add_help_option=False,
    )


def _action(
    name: str, help: str, act: Callable[[click.Context, Any], None], metavar: str | None = None
) -> click.Option:
    """Return an option of `spo` itself, which does one thing and exits.

    Args:
      act: is called with the value; "" where the option takes one and none is given.
      metavar: a value that may follow, a shell.
    """

    def callback(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        if value not in (None, False) and not ctx.resilient_parsing:
            act(ctx, value)
            ctx.exit()

    settings: dict[str, Any] = {"is_flag": True}
    if metavar:
        settings = {"is_flag": False, "flag_value": "", "metavar": metavar, "shell_complete": _complete_shell}
    return click.Option([name], help=help, is_eager=True, expose_value=False, callback=callback, **settings)


def _complete_shell(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from spo_cli.completion import SHELLS

    return [shell for shell in SHELLS if shell.startswith(incomplete)]


def _install(ctx: click.Context, shell: str) -> None:
    from spo_cli.completion import find_shell, install_completion

    files = install_completion(ctx.command, find_shell(shell))
    _print_line(f"installed in {' and '.join(map(str, files))}; it takes effect in the next shell")


def _show_script(ctx: click.Context, shell: str) -> None:
    from spo_cli.completion import completion_script, find_shell

    _print_line(completion_script(ctx.command, find_shell(shell)).rstrip())


def _show_commands(ctx: click.Context) -> None:
    from spo_cli.examples import EXAMPLES
    from spo_cli.help import Entry, show_application

    longest = max(map(len, VERBS))
    rows = [Entry(verb.group, name.ljust(longest), verb.help) for name, verb in VERBS.items()]
    for option in ctx.command.params:
        assert isinstance(option, click.Option)
        rows.append(Entry("Options", f"{option.opts[0]} {option.metavar or ''}".rstrip(), option.help or ""))
    show_application(_SUMMARY, rows, EXAMPLES[""], "spo COMMAND --help shows the options of a command.")


@click.pass_context
def _require_command(ctx: click.Context) -> None:
    """Show the commands where none was given."""
    if ctx.invoked_subcommand is None:
        _show_commands(ctx)
        ctx.exit(2)


def _print_line(text: str) -> None:
    from spo_cli.console import print_line

    print_line(text)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("spo-cli")
    except PackageNotFoundError:
        return "(not installed: run from the source tree)"


def _title(arguments: Sequence[str]) -> str:
    """`spo rollout` where a command was named, else `spo`."""
    named = next((word for word in arguments if not word.startswith("-")), None)
    return f"spo {named}" if named in VERBS else "spo"


def _follows(name: str) -> bool:
    """Return whether this process is a rank other than the first, which reports for all."""
    try:
        return name in VERBS and VERBS[name].ranks and read_launch().rank > 0
    except UserError:  # the launcher's variables are wrong, so every process reports the error
        return False


def _fail(title: str, message: str, code: int, debug: bool) -> int:
    from spo_cli import console

    if debug:
        traceback.print_exc()
    if not _follows(title.removeprefix("spo ")):
        console.print_error(title, message)
    return code


def _ignore_signals() -> None:
    """Ignore further signals: schedulers repeat them, and the exit code is already decided."""
    from stages.shards.sharding import ignore_signals

    ignore_signals()


def _report_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    from spo_cli import console

    traceback.print_exception(kind, error, trace)
    if not isinstance(error, KeyboardInterrupt):
        message = f"this is a defect of spo {_version()}, not of your input; please report it with the lines above"
        console.print_error(_title(sys.argv[1:]), message)
