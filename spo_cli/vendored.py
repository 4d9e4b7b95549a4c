"""The names of Typer's private copy of click that `spo` needs and Typer does not make public.

Typer 0.29 vendors click as `typer._click`; the separate distribution `click` is another library, whose classes Typer
does not recognize. No other module imports private parts of Typer (`tests/test_architecture.py` checks it), so a
version of Typer that moves them changes these lines only:

- `Command`, `Context`, `Parameter` annotate what the methods of `TyperCommand` and `TyperGroup` take and return;
- `CompletionItem` is what a command offers to the shell;
- `NoSuchOption` carries the option that was mistyped; the public `typer.TyperException` has only the message.
"""

from typer._click import Command, Context, Parameter
from typer._click.exceptions import NoSuchOption
from typer._click.shell_completion import CompletionItem

__all__ = ["Command", "CompletionItem", "Context", "NoSuchOption", "Parameter"]
