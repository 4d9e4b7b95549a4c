"""The `spo` command: names → verbs, errors → exit codes. A verb is imported only when its command is used.

So `spo --help` stays quick, and a broken dependency of one stage cannot break another.
"""

from __future__ import annotations

import errno
import importlib
import re
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from stages.errors import Interrupted, SpoError, UserError
from stages.launcher import drop_local_rank, read_launch


class Verb(NamedTuple):
    """Where a command lives, and what the list of commands says about it.

    Attributes:
      ranks: it may be several processes that a launcher has started, of which the first one speaks for all.
    """

    module: str
    help: str
    ranks: bool = False


VERBS = {
    "sft": Verb("stages.sft", "Warm-start a model on worked solutions."),
    "rollout": Verb("stages.rollout", "Sample trajectories for the questions of a task."),
    "segment": Verb("stages.segment", "Cut each trajectory into segments at its cutpoints, or another way."),
    "estimate": Verb("stages.estimate", "Estimate the value of every segment boundary and the segments' advantages."),
    "train": Verb("stages.train", "Update the policy from the advantages.", ranks=True),
    "eval": Verb("spo_cli.evaluation", "Measure a model's accuracy on a split of a task."),
    "run": Verb("stages.iterate", "Run whole iterations from a recipe, in one process."),
    "slurm": Verb("spo_cli.slurm", "Write the iterations of a recipe as SLURM jobs, and submit them."),
    "prune": Verb("stages.prune", "Delete the weights and optimiser states that keep_checkpoints does not keep."),
    "status": Verb("spo_cli.status", "Show how far a run is: parts done, running, queued, failed and missing."),
    "show": Verb("spo_cli.show", "Show what an artefact holds: lineage, schema, statistics, a trajectory."),
}

_RUN_EPILOG = (
    "Every flag of a stage can be given with the stage's name before it: --train.learning-rate 2e-4 is the same as "
    "--set train.learning_rate=2e-4. The flags of a stage are listed by its own --help."
)
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code: 0 done, 2 user's mistake, 3 input incomplete, 4 interrupted.

    Anything unforeseen goes to `sys.excepthook`, which shows the traceback and leaves with 1.
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
        title = _title(arguments)
        message = " ".join(error.format_message().replace("Value error, ", "").split())
        code = _fail(title, f"{message} (see {title} --help)", error.exit_code, "--debug" in arguments)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        place = f"{error.filename}: " if error.filename else ""
        message = f"{place}{error.strerror}. Nothing half-written is left; mend it and run the same command again"
        code = _fail(_title(arguments), message, 2, "--debug" in arguments)
    raise SystemExit(code if isinstance(code, int) else 0)


class _Application(TyperGroup):
    """The list of commands."""

    def get_help_option(self, ctx: Any) -> Any:
        """Its flag is False rather than None where it is not given, which spares Typer the import of pydantic."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.default = False
        return option


class _LazyCommand(TyperCommand):
    """Stands in the list of commands; the real command is built when arguments are parsed for it."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        assert self.name is not None
        command = load_command(self.name, args)
        return command.make_context(info_name, ["--help"] if "--help" in args else args, parent, **extra)


def load_command(name: str, args: Sequence[str] = ()) -> TyperCommand:
    """Import a verb and build its command from its Config.

    Args:
      args: what it is given; a verb that has several forms (`FORMS`: flag → Config) takes the one whose flag is there.
    """
    from spo_cli import options

    verb = VERBS[name]
    module = importlib.import_module(verb.module)

    def execute(config: Any) -> None:
        from spo_cli import console
        from stages.shards.sharding import interruptible

        with interruptible(), console.Reporter() as progress:
            summary = module.run(config, progress)
        if summary is not None and not _follows(name):
            getattr(module, "report", console.print_summary)(summary)

    if name in ("run", "slurm", "prune"):
        return options.build_command(
            name, verb.help, module.Config, execute, epilog=_RUN_EPILOG, translate=translate_dotted
        )
    given = {word.partition("=")[0] for word in args}
    form = next((form for flag, form in getattr(module, "FORMS", {}).items() if flag in given), None)
    told = form.__doc__ if form else verb.help
    return options.build_command(name, told, form or module.Config, execute, epilog=getattr(module, "EPILOG", None))


_DOTTED = re.compile(r"--([a-z.]+)\.([A-Za-z0-9_-]+)(?:=(.*))?", re.DOTALL)


def translate_dotted(args: Sequence[str]) -> list[str]:
    """Write `--train.learning-rate 2e-4` as `--set train.learning_rate=2e-4`; other arguments stay as they are.

    A flag of type bool takes no value: `--train.x` is true, `--train.no-x` is false. A table or key that does not exist
    is left for the recipe reader to refuse.
    """
    rest, translated = list(args), []
    while rest:
        match = _DOTTED.fullmatch(rest[0])
        if not match:
            translated.append(rest.pop(0))
            continue
        written = rest.pop(0)
        table, key, value = match[1], match[2].replace("-", "_"), match[3]
        bools = _bool_keys(table)
        if value is None and key in bools:
            value = "true"
        elif value is None and key.removeprefix("no_") in bools:
            key, value = key.removeprefix("no_"), "false"
        elif value is None:
            if not rest or rest[0].startswith("--"):
                raise typer.BadParameter("the flag takes a value", param_hint=written)
            value = rest.pop(0)
        translated += ["--set", f"{table}.{key}={value}"]
    return translated


def _bool_keys(table: str) -> set[str]:
    """The flags of a recipe's table that take no value; [run] may hold those of every stage."""
    from stages.config import bare_type, field_types
    from stages.planning import SLURM_TABLES, TABLES

    apart = SLURM_TABLES.get(table)
    configs = [apart] if apart else [config for name, config in TABLES.items() if table in (name, "run")]
    types = [entry for config in configs for entry in field_types(config).items()]
    return {name for name, annotation in types if bare_type(annotation) is bool}


def _application() -> TyperGroup:
    app = typer.Typer(cls=_Application, add_completion=False, invoke_without_command=True)
    app.callback()(_spo)
    group = typer.main.get_group(app)
    for name, verb in VERBS.items():
        group.add_command(_LazyCommand(name, help=verb.help))
    return group


def _spo(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Segment Policy Optimization from the command line: rollout, segment, estimate, train, eval; repeat."""
    if version:
        from spo_cli.console import print_line

        print_line(f"spo {_version()}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        ctx.get_help()  # Typer prints it
        raise typer.Exit(2)


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
    """Whether this process is a rank of a command that another one speaks for."""
    try:
        return name in VERBS and VERBS[name].ranks and read_launch().rank > 0
    except UserError:  # of the launcher's variables: nobody knows who is first
        return False


def _fail(title: str, message: str, code: int, debug: bool) -> int:
    from spo_cli import console

    if debug:
        traceback.print_exc()
    if not _follows(title.removeprefix("spo ")):
        console.print_error(title, message)
    return code


def _ignore_signals() -> None:
    """Schedulers send their signals more than once: none may change the exit code of what has already ended."""
    from stages.shards.sharding import ignore_signals

    ignore_signals()


def _report_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    from spo_cli import console

    traceback.print_exception(kind, error, trace)
    if not isinstance(error, KeyboardInterrupt):
        message = f"this is a defect of spo {_version()}, not of your input; please report it with the lines above"
        console.print_error(_title(sys.argv[1:]), message)
