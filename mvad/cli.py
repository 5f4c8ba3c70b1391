"""The command line: one command per function in `commands`, with the same options."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from typing import Annotated, Any

import click
import typer
from rich.console import Console
from rich.markup import escape

from mvad import __version__
from mvad.commands import COMMANDS
from mvad.console import as_document
from mvad.errors import UsageError
from mvad.options import keywords_of, panels

Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document to standard output, and all else to standard error."),
]
EXIT_USAGE = 2

app = typer.Typer(
    help="Learn what good products look like, score new images, get a table. On a laptop or a Ray cluster.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _callback(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _command(name: str) -> Callable[..., None]:
    """The command line's form of a function: options in panels, ``--json``, and the exit code of its result."""
    function = getattr(importlib.import_module(f"mvad.commands.{name}"), name)
    own = [p for p in inspect.signature(function).parameters.values() if p.annotation is not inspect.Parameter.empty]
    options = keywords_of(function.options)
    names = {parameter.name for parameter in options} | {"options"}
    panel = {option: title for title, group in panels(function.options).items() for option in group}

    @functools.wraps(function)
    def call(*, json: bool = False, **arguments: Any) -> None:
        with redirect_stdout(sys.stderr) if json else nullcontext():
            result = function(**arguments)
        if json:
            typer.echo(as_document(result))
        raise typer.Exit(getattr(result, "exit_code", 0))

    extra = (
        []
        if name == "serve"
        else [inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json)]
    )
    positional = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own if p.name not in names]
    shown = [_in_panel(parameter, panel[parameter.name]) for parameter in options]
    call.__signature__ = inspect.Signature([*positional, *shown, *extra])  # type: ignore[attr-defined]
    first = inspect.cleandoc(function.__doc__ or "").split("\n\n")[0]
    call.__doc__ = f"{first}\n\nExample: {COMMANDS[name]}"
    return call


def _in_panel(parameter: inspect.Parameter, panel: str) -> inspect.Parameter:
    """A parameter whose option is shown in a panel of ``--help``."""
    for info in parameter.annotation.__metadata__:
        if hasattr(info, "rich_help_panel"):
            info.rich_help_panel = panel
    return parameter


for _name in COMMANDS:
    app.command(_name.replace("_", "-"))(_command(_name))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 wrong use, 3 too many unreadable files, 4 drift, 1 anything else."""
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name="mvad", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(EXIT_USAGE)
    except (UsageError, click.ClickException) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        Console(stderr=True, highlight=False).print(f"mvad: {escape(message)}", soft_wrap=True)
        sys.exit(EXIT_USAGE)
    except click.Abort:
        sys.exit(1)
    sys.exit(code)


if __name__ == "__main__":
    main()
