"""The `spo` command: names → verbs, errors → exit codes. A verb is imported only when its command is used.

So `spo --help` stays quick, and a broken dependency of one stage cannot break another. The commands of the Typer
application are placeholders; `_Application.resolve_command` replaces the one that is used by the real one
(`options.ConfigCommand`). All options of `spo` itself are flags: Typer converts values of other types with pydantic,
which takes long to import.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from spo_cli.dotted import dotted_flags, translate_dotted
from spo_cli.vendored import Command, CompletionItem, Context, NoSuchOption
from stages.core.errors import Interrupted, SpoError, UserError, did_you_mean
from stages.core.launcher import drop_local_rank, read_launch

if TYPE_CHECKING:
    from spo_cli.options import ConfigCommand


class Verb(NamedTuple):
    """Where a command lives, and what the list of commands says about it.

    Attributes:
      config: module that declares its options; light, so that help is quick.
      module: module that runs it; imported only then.
      ranks: a launcher may start several processes of it; the first one reports for all.
      group: heading in the list of commands.
    """

    config: str
    module: str
    help: str
    ranks: bool = False
    group: str = "Stages"


VERBS = {
    "sft": Verb("stages.configs.sft", "stages.sft", "Warm-start a model on worked solutions."),
    "rollout": Verb("stages.configs.rollout", "stages.rollout", "Sample trajectories for the questions of a task."),
    "segment": Verb(
        "stages.configs.segment",
        "stages.segment",
        "Cut each trajectory into segments at its cutpoints, or another way.",
    ),
    "estimate": Verb(
        "stages.configs.estimate",
        "stages.estimate",
        "Estimate the value of every segment boundary and the segments' advantages.",
    ),
    "train": Verb("stages.configs.train", "stages.train", "Update the policy from the advantages.", ranks=True),
    "eval": Verb(
        "stages.configs.evaluation_forms", "spo_cli.evaluation", "Measure a model's accuracy on a split of a task."
    ),
    "run": Verb(
        "stages.configs.run",
        "stages.pipeline.iterate",
        "Run whole iterations from a recipe, in one process.",
        group="Runs",
    ),
    "slurm": Verb(
        "stages.configs.slurm",
        "spo_cli.slurm",
        "Write the iterations of a recipe as SLURM jobs, and submit them.",
        group="Runs",
    ),
    "prune": Verb(
        "stages.configs.prune",
        "stages.pipeline.prune",
        "Delete the weights and optimizer states of a run's old checkpoints.",
        group="Runs",
    ),
    "status": Verb(
        "stages.configs.status",
        "spo_cli.status",
        "Show how far a run is: parts done, running, queued, failed.",
        group="Runs",
    ),
    "show": Verb(
        "stages.configs.show",
        "spo_cli.show",
        "Show an artefact: lineage, schema, statistics, a trajectory.",
        group="Inspection",
    ),
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
    except typer.TyperException as error:
        title, message = _title(arguments), _message(error)
        code = _fail(title, f"{message} (see {title} --help)", error.exit_code, "--debug" in arguments)
    except typer.Abort:  # Ctrl-C before the stage has begun
        code = 130
    except OSError as error:
        if error.errno not in _DISK:
            raise
        place = f"{error.filename}: " if error.filename else ""
        message = f"{place}{error.strerror}. No partial output was left. Fix the problem and rerun the command"
        code = _fail(_title(arguments), message, 2, "--debug" in arguments)
    raise SystemExit(code if isinstance(code, int) else 0)


def _message(error: typer.TyperException) -> str:
    """Return the message of a usage error in one line, with the option that was probably meant.

    Typer itself names the command that was probably meant.
    """
    if isinstance(error, NoSuchOption) and error.ctx:
        names = [name for one in error.ctx.command.params for name in (*one.opts, *one.secondary_opts)]
        return f"No such option {error.option_name!r}.{did_you_mean(error.option_name, names)}"
    message = error.format_message().replace("Value error, ", "")  # pydantic adds it to what a parser says
    return " ".join(message.split())


class _Application(TyperGroup):
    """The list of commands. Listing commands imports none of them; using one imports that one."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse the options of `spo` itself; keep the shell that may follow a flag for the completion.

        Typer has no option whose value may be left out.
        """
        ctx.obj = next(iter(args[1:2]), "")
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        """Return the command in question, built for the form that its arguments choose; `--help` goes before all."""
        from spo_cli.options import HELP_FLAGS

        name, command, rest = super().resolve_command(ctx, args)
        if name is None or command is None:
            return name, command, rest
        asked = [word for word in rest if word in HELP_FLAGS]
        return name, load_command(name, rest), asked[:1] or rest

    def shell_complete(self, ctx: Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands and flags that begin so; after a flag for the completion, the shells."""
        if not any(ctx.params.get(name) for name in ("install_completion", "show_completion")):
            return super().shell_complete(ctx, incomplete)
        from spo_cli.completion import SHELLS

        return [CompletionItem(shell) for shell in SHELLS if shell.startswith(incomplete)]


def load_command(name: str, args: Sequence[str] = ()) -> ConfigCommand:
    """Build a verb's command from its Config; its module is imported when it runs.

    Args:
      args: its arguments; a verb that has several forms (`FORMS`: flag → Config) takes the one whose flag is there.
    """
    from spo_cli.examples import EXAMPLES
    from spo_cli.options import ConfigCommand

    verb = VERBS[name]
    options = importlib.import_module(verb.config)

    def execute(config: Any) -> None:
        from spo_cli import console
        from stages.shards.sharding import interruptible

        module = importlib.import_module(verb.module)
        with interruptible(), console.Reporter() as progress:
            summary = module.run(config, progress)
        if summary is not None and not _follows(name):
            getattr(module, "report", console.print_summary)(summary)

    title, help, config = name, verb.help, options.Config
    given = {word.partition("=")[0] for word in args}
    form = next((flag for flag in getattr(options, "FORMS", {}) if flag in given), None)
    if form:
        config = options.FORMS[form]
        title, help = f"{name} {form}", config.__doc__
    takes_recipe = name in ("run", "slurm", "prune")
    return ConfigCommand(
        title,
        help,
        config,
        execute,
        note=_RECIPE_NOTE if takes_recipe else getattr(options, "NOTE", None),
        examples=EXAMPLES[title],
        translate=translate_dotted if takes_recipe else list,
        further=dotted_flags if takes_recipe else tuple,
    )


def _application() -> TyperGroup:
    if "_SPO_COMPLETE" in os.environ:
        from spo_cli.completion import register_shells

        register_shells()
    app = typer.Typer(cls=_Application, add_completion=False, add_help_option=False, invoke_without_command=True)
    app.callback()(_spo)
    group = typer.main.get_group(app)
    for name, verb in VERBS.items():
        group.add_command(TyperCommand(name, help=verb.help, short_help=verb.help))
    return group


def _action(name: str, help: str, act: Callable[[typer.Context], None], metavar: str | None = None) -> Any:
    """Return a flag of `spo` itself, which does one thing and exits."""

    def callback(ctx: typer.Context, asked: bool) -> bool:
        if asked and not ctx.resilient_parsing:
            act(ctx)
            raise typer.Exit
        return asked

    return typer.Option(name, help=help, metavar=metavar, is_eager=True, callback=callback)


def _install(ctx: typer.Context) -> None:
    from spo_cli.completion import find_shell, install_completion

    files = install_completion(find_shell(ctx.obj))
    _print_line(f"installed in {' and '.join(map(str, files))}; it takes effect in the next shell")


def _show_script(ctx: typer.Context) -> None:
    from spo_cli.completion import completion_script, find_shell

    _print_line(completion_script(find_shell(ctx.obj)).rstrip())


def _show_version(_: typer.Context) -> None:
    _print_line(f"spo {_version()}")


def _show_commands(ctx: typer.Context) -> None:
    from spo_cli.examples import EXAMPLES
    from spo_cli.help import Entry, show_application

    longest = max(map(len, VERBS))
    rows = [Entry(verb.group, name.ljust(longest), verb.help) for name, verb in VERBS.items()]
    for option in ctx.command.params:
        assert isinstance(option, TyperOption)
        rows.append(Entry("Options", f"{option.opts[0]} {option.metavar or ''}".rstrip(), option.help or ""))
    show_application(_SUMMARY, rows, EXAMPLES[""], "spo COMMAND --help shows the options of a command.")


_Install = _action("--install-completion", "Complete commands, options and choices in this shell.", _install, "[SHELL]")
_Show = _action("--show-completion", "Print the completion script: bash, zsh or fish.", _show_script, "[SHELL]")
_Version = _action("--version", "Print the version and exit.", _show_version)
_Help = _action("--help", "Show this text and exit.", _show_commands)


def _spo(
    ctx: typer.Context,
    install_completion: Annotated[bool, _Install] = False,
    show_completion: Annotated[bool, _Show] = False,
    version: Annotated[bool, _Version] = False,
    help: Annotated[bool, _Help] = False,
) -> None:
    """Show the commands where none was given; what a flag does is its callback."""
    if ctx.invoked_subcommand is None:
        _show_commands(ctx)
        raise typer.Exit(2)


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
