"""The `spo` command: find the module of a command, run it, and turn errors into exit codes.

The module of a command is imported only when the command runs. Help is therefore quick, and a broken dependency of one
stage does not break another. Everything that this file imports at its top must stay light: no torch, numpy, pyarrow or
transformers.

The commands of the Typer application are placeholders; `_Application.resolve_command` replaces the requested one by an
`options.ConfigCommand`. All options of `spo` itself are flags, because Typer converts values of other types with
pydantic, which takes about 0.1 s to import.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType, TracebackType
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from spo_cli import console
from spo_cli.completion import SHELLS, completion_script, find_shell, install_completion, register_shells
from spo_cli.dotted import dotted_flags, translate_dotted
from spo_cli.examples import EXAMPLES
from spo_cli.help import Entry, show_application
from spo_cli.limits import limit_message
from spo_cli.options import HELP_FLAGS, ConfigCommand
from spo_cli.screen import ReaderLeft
from spo_cli.vendored import Command, CompletionItem, Context, NoSuchOption
from stages.core.errors import Interrupted, SpoError, UserError, did_you_mean
from stages.core.launcher import drop_local_rank, read_launch
from stages.shards.sharding import ignore_signals, interruptible


class Verb(NamedTuple):
    """The modules of a command, and its line in the list of commands.

    Attributes:
      config: module that declares the options; imported for help, so it must be light.
      module: module with `run` and, optionally, `report`; imported when the command runs.
      help: one sentence for the list of commands and for the command's own help.
      ranks: whether a launcher may start several processes of the command; rank 0 reports for all of them.
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
    "import": Verb(
        "stages.configs.importing", "stages.importing", "Turn responses that another tool sampled into trajectories."
    ),
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
    "plan": Verb(
        "stages.configs.plan",
        "spo_cli.plan",
        "Predict the tokens, seconds, files and memory of a run.",
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
        "Show the progress of a run: parts done, running, queued, failed.",
        group="Runs",
    ),
    "grade": Verb(
        "stages.configs.grade",
        "spo_cli.grade",
        "Grade existing responses: try a reward before training.",
        group="Inspection",
    ),
    "show": Verb(
        "stages.configs.show",
        "spo_cli.show",
        "Show an artefact: lineage, schema, statistics, a trajectory.",
        group="Inspection",
    ),
    "report": Verb(
        "stages.configs.report",
        "stages.reporting.report",
        "Write runs and artefacts as one HTML file for the browser.",
        group="Inspection",
    ),
    "audit": Verb(
        "stages.configs.audit",
        "spo_cli.audit",
        "Compare estimated values with the means of many more rollouts.",
        group="Inspection",
    ),
    "plot": Verb(
        "stages.configs.plot",
        "stages.reporting.plot",
        "Draw the learning curves of runs as a figure.",
        group="Inspection",
    ),
    "doctor": Verb(
        "stages.configs.doctor",
        "spo_cli.doctor",
        "Show versions, hardware, and which samples are bitwise reproducible here.",
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
# Errors of the disk are the user's to solve; any other OSError is a defect.
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code: 0 done, 2 user error, 3 incomplete input, 4 interrupted, 5 no signal.

    Any other exception goes to `sys.excepthook`, which prints the traceback; the exit code is 1.

    Args:
      arguments: the words after `spo`. Default: those of this process.
    """
    arguments = drop_local_rank(sys.argv[1:] if arguments is None else arguments)
    sys.excepthook = _report_defect
    try:
        code = _application().main(args=arguments, prog_name="spo", standalone_mode=False)
    except (SpoError, Interrupted) as error:
        if isinstance(error, Interrupted):
            ignore_signals()  # schedulers repeat signals, but the exit code is decided
        code = _fail(_title(arguments), str(error), error.exit_code, "--debug" in arguments)
    except typer.TyperException as error:
        title, message = _title(arguments), _message(error)
        code = _fail(title, f"{message} (see {title} --help)", error.exit_code, "--debug" in arguments)
    except typer.Abort:  # Ctrl-C before the stage started
        code = 130
    except (MemoryError, RuntimeError, ImportError) as error:
        if not (limit := limit_message(error)):
            raise
        code = _fail(_title(arguments), limit, 2, "--debug" in arguments)
    except OSError as error:
        if limit := limit_message(error):
            raise SystemExit(_fail(_title(arguments), limit, 2, "--debug" in arguments)) from error
        if error.errno not in _DISK_ERRORS:
            raise
        place = f"{error.filename}: " if error.filename else ""
        message = f"{place}{error.strerror}. No partial output was left. Fix the problem and rerun the command"
        code = _fail(_title(arguments), message, 2, "--debug" in arguments)
    raise SystemExit(code if isinstance(code, int) else 0)


def _message(error: typer.TyperException) -> str:
    """Return the message of a usage error in one line, with the most similar option if there is one.

    Typer itself suggests the most similar command.
    """
    if isinstance(error, NoSuchOption) and error.ctx:
        names = [name for one in error.ctx.command.params for name in (*one.opts, *one.secondary_opts)]
        return f"No such option {error.option_name!r}.{did_you_mean(error.option_name, names)}"
    message = error.format_message().replace("Value error, ", "")  # pydantic's prefix of a parser's message
    return " ".join(message.split())


class _Application(TyperGroup):
    """The list of commands; resolving a command builds only that command."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        """Parse the options of `spo` itself; store the word after a completion flag, the name of a shell, in `ctx.obj`.

        Typer has no option with an optional value.
        """
        ctx.obj = next(iter(args[1:2]), "")
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        """Build the requested command, in the form that its arguments select.

        A help flag drops all other arguments, so that `--help` works beside invalid or missing ones.
        """
        name, command, rest = super().resolve_command(ctx, args)
        if name is None or command is None:
            return name, command, rest
        help_flags = [word for word in rest if word in HELP_FLAGS]
        return name, load_command(name, rest), help_flags[:1] or rest

    def shell_complete(self, ctx: Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands and flags that start with `incomplete`; after a completion flag, the shells."""
        if not any(ctx.params.get(name) for name in ("install_completion", "show_completion")):
            return super().shell_complete(ctx, incomplete)
        return [CompletionItem(shell) for shell in SHELLS if shell.startswith(incomplete)]


def load_command(name: str, args: Sequence[str] = ()) -> ConfigCommand:
    """Build a command from its Config class; the module of the command is imported when it runs.

    Args:
      name: key of `VERBS`.
      args: arguments of the command. They select the form of a command that has several (`FORMS`: flag → Config).
    """
    verb = VERBS[name]
    options = importlib.import_module(verb.config)

    def execute(config: Any) -> None:
        module = importlib.import_module(verb.module)
        with interruptible(), console.Reporter() as progress:
            summary = _run(module, config, progress)
        if summary is not None and not _is_follower(name):
            getattr(module, "report", console.print_summary)(summary)

    title, help, config = name, verb.help, options.Config
    given = {word.partition("=")[0] for word in args}
    form = next((flag for flag in getattr(options, "FORMS", {}) if flag in given), None)
    if form:
        config = options.FORMS[form]
        title, help = f"{name} {form}", config.__doc__
    takes_recipe = name in ("run", "slurm", "plan", "prune")
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


def _run(module: ModuleType, config: Any, progress: console.Reporter) -> Any:
    """Call the stage; a function of the user that calls `sys.exit` must not decide the exit code of `spo`."""
    try:
        return module.run(config, progress)
    except ReaderLeft:
        raise
    except SystemExit as end:
        raise UserError(f"code that the command called ended the process: sys.exit({end.code!r:.100})") from end


def _application() -> TyperGroup:
    if "_SPO_COMPLETE" in os.environ:
        register_shells()
    app = typer.Typer(cls=_Application, add_completion=False, add_help_option=False, invoke_without_command=True)
    app.callback()(_spo)
    group = typer.main.get_group(app)
    for name, verb in VERBS.items():
        group.add_command(TyperCommand(name, help=verb.help, short_help=verb.help))
    return group


def _action(name: str, help: str, act: Callable[[typer.Context], None], metavar: str | None = None) -> Any:
    """Declare a flag of `spo` itself that calls `act` and exits."""

    def callback(ctx: typer.Context, given: bool) -> bool:
        if given and not ctx.resilient_parsing:
            act(ctx)
            raise typer.Exit
        return given

    return typer.Option(name, help=help, metavar=metavar, is_eager=True, callback=callback)


def _install(ctx: typer.Context) -> None:
    files = install_completion(find_shell(ctx.obj))
    console.print_line(f"installed in {' and '.join(map(str, files))}; it takes effect in the next shell")


def _show_script(ctx: typer.Context) -> None:
    console.print_line(completion_script(find_shell(ctx.obj)).rstrip())


def _show_version(_: typer.Context) -> None:
    console.print_line(f"spo {_version()}")


def _show_commands(ctx: typer.Context) -> None:
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
    """Show the list of commands if none is given; the callbacks of the flags have run before."""
    if ctx.invoked_subcommand is None:
        _show_commands(ctx)
        raise typer.Exit(2)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # takes 20 ms, and few commands need it

    try:
        return version("spo-cli")
    except PackageNotFoundError:
        return "(not installed: run from the source tree)"


def _title(arguments: Sequence[str]) -> str:
    """Return `spo rollout` if a command is named, else `spo`."""
    named = next((word for word in arguments if not word.startswith("-")), None)
    return f"spo {named}" if named in VERBS else "spo"


def _is_follower(name: str) -> bool:
    """Return whether this process is a rank above 0; rank 0 reports for all ranks."""
    try:
        return name in VERBS and VERBS[name].ranks and read_launch().rank > 0
    except UserError:  # the launcher's variables are invalid: every process reports the error
        return False


def _fail(title: str, message: str, code: int, debug: bool) -> int:
    if debug and (error := sys.exception()):
        console.print_traceback(error)
    if not _is_follower(title.removeprefix("spo ")):
        console.print_error(title, message)
    return code


def _report_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an unexpected error, and a request to report it."""
    console.print_traceback(error.with_traceback(trace))
    if not isinstance(error, KeyboardInterrupt):
        message = f"this is a defect of spo {_version()}, not of your input; please report it with the lines above"
        console.print_error(_title(sys.argv[1:]), message)
