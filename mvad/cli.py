"""The command line: one command per function in `commands`, with the same options."""

import copy
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, redirect_stdout
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from rich.console import Console
from rich.markup import escape
from typer.exceptions import TyperException
from typer.models import OptionInfo

from mvad.commands import COMMANDS, typed_name
from mvad.console import AS_IT_IS, as_document
from mvad.errors import UsageError, outside_trouble
from mvad.options import keywords_of, panels
from mvad.process import GO_ON, UnfailingStream
from mvad.storage.text import one_printable_line
from mvad.version import VERSION

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document to standard output, and all else to standard error.")
]
EXIT_USAGE = 2
AS_TYPED = ("N", "URL", "ADDRESS")  # metavars of options that typer reads itself: numbers, and what may be repeated
WITHOUT_DOCUMENT = ("serve", "export_results")  # commands whose standard output is something else


def application(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The command line with these commands, whose modules are imported."""
    app = typer.Typer(
        help="Learn what good products look like, score new images, get a table. On a laptop or a Ray cluster.",
        add_completion=True,
        pretty_exceptions_enable=False,
    )
    app.callback(invoke_without_command=True)(_callback)
    for name in names:
        app.command(typed_name(name))(_command(name))
    return app


def _callback(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        typer.echo(VERSION)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(EXIT_USAGE)


def _command(name: str) -> Callable[..., None]:
    """The command line's form of a function: options in panels, ``--json``, and the exit code of its result."""
    module = importlib.import_module(f"mvad.commands.{name}")
    function = getattr(module, name)
    options = keywords_of(function.options)
    names = {parameter.name for parameter in options} | {"options"}
    panel = {option: title for title, group in panels(function.options).items() for option in group}

    @functools.wraps(function)
    def call(*, json: bool = False, **arguments: Any) -> None:
        with redirect_stdout(sys.stderr) if json else nullcontext():
            result = getattr(module, name)(**arguments)
        if json:
            _print_document(result)
        raise typer.Exit(getattr(result, "exit_code", 0))

    parameters = inspect.signature(function).parameters.values()
    shown = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters if p.name not in names]
    shown += [_in_panel(parameter, panel[parameter.name]) for parameter in options]
    if name not in WITHOUT_DOCUMENT:
        shown.append(inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json))
    call.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    first = inspect.cleandoc(function.__doc__ or "").split("\n\n")[0]
    call.__doc__ = f"{first}\n\nExample: {COMMANDS[name]}"
    return call


def _print_document(result: Any) -> None:
    """Print a result as JSON. RuntimeError if it cannot be written: a lost document is no success."""
    sys.stdout.write(as_document(result) + "\n")
    sys.stdout.flush()
    if isinstance(sys.stdout, UnfailingStream) and (error := sys.stdout.error) is not None:
        # Not an OSError itself: typer ends without a word where a pipe is broken.
        raise RuntimeError("the document is lost") from OSError(error.errno, error.strerror, "standard output")


def _in_panel(parameter: inspect.Parameter, panel: str) -> inspect.Parameter:
    """An option as typer takes it: in a panel of ``--help``, and as text where `options` reads and checks it better."""
    hint, *metadata = get_args(parameter.annotation)
    (info,) = (copy.copy(one) for one in metadata if isinstance(one, OptionInfo))
    hint, default = _plain(hint), parameter.default
    info.rich_help_panel, info.help = panel, escape(info.help or "")
    literals = [part for part in (hint, *get_args(hint)) if get_origin(part) is Literal]
    if literals:
        choices = list(get_args(literals[0]))
        info.metavar, info.autocompletion = "|".join(choices), lambda: choices
    if info.metavar and info.metavar not in AS_TYPED:  # choices, sizes and lists
        hint = str | None
        default = ",".join(map(str, default)) if isinstance(default, tuple) else default and str(default)
    return parameter.replace(annotation=Annotated[hint, info], default=default)


def _plain(hint: Any) -> Any:
    """A type without what pydantic checks."""
    if get_origin(hint) is Annotated:
        return _plain(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return Union[tuple(_plain(part) for part in get_args(hint))]  # noqa: UP007
    return hint


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 wrong use, 3 too many unreadable files, 4 drift, 1 anything else."""
    sys.exit(_exit_code(arguments))


def _exit_code(arguments: Sequence[str] | None) -> int:
    try:
        if sys.platform == "win32":
            raise UsageError("mvad runs on Linux and macOS; on Windows, run it in WSL 2.")
        words = sys.argv[1:] if arguments is None else list(arguments)
        # To import all commands takes as long again as to import one.
        names = [name for name in COMMANDS if typed_name(name) in words[:1]] or COMMANDS
        return application(names)(args=words, prog_name="mvad", standalone_mode=False) or 0
    except typer.Abort:
        return 1
    except TyperException as error:
        _say(error.format_message())
        return EXIT_USAGE
    except UsageError as error:
        _say(str(error))
        return EXIT_USAGE
    except Exception as error:
        trouble = outside_trouble(error)
        if trouble is None:
            raise
        message, unusable = trouble
        _say(f"{message}; {GO_ON}")
        return EXIT_USAGE if unusable else 1


def _say(message: str) -> None:
    Console(stderr=True, soft_wrap=True, **AS_IT_IS).print(f"mvad: {one_printable_line(message)}")
