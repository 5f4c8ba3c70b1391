"""Whether a class of another package is a method, and its parameters can be options beside those of mvad."""

import ast
import dataclasses
import functools
import inspect
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic.dataclasses import dataclass
from typer.models import OptionInfo

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
TYPES = (bool, int, float, str)
PACKAGE = Path(__file__).parents[1]
OTHER_OPTIONS = {"json", "help", "version", "options", "seed", "copies", "channels"}  # not written where others are


class UnusableError(ValueError):
    """A class that is no method, or not one that can be added: the reason."""


def check_method(found: Any, name: str, base: type, kinds: Collection[str]) -> None:
    """Check a class that is to be the method called ``name``; UnusableError says what is wrong."""
    if not (inspect.isclass(found) and issubclass(found, base)):
        raise UnusableError(f"it is no subclass of mvad.detectors.{base.__name__}")
    if inspect.isabstract(found):
        lacking = sorted(getattr(found, "__abstractmethods__", ()))
        raise UnusableError(f"its class lacks {', '.join(lacking)}")
    if getattr(found, "method", None) != name:
        raise UnusableError(f"its class has the name {getattr(found, 'method', None)!r}; give both the same")
    if not NAME.fullmatch(name):
        raise UnusableError("a name has lower-case letters, digits and single hyphens only")
    if getattr(found, "feature", None) not in kinds:
        raise UnusableError(f"its feature is none of {', '.join(kinds)}")
    if "Params" in vars(found) and not issubclass(found.Params, base.Params):  # type: ignore[attr-defined]
        raise UnusableError(f"its Params are no subclass of those of {base.__name__}")


def check_params(params: type, others: Sequence[type]) -> None:
    """Check that parameters can be options together with ``others``; UnusableError or another says what is wrong."""
    params()  # all of them have defaults
    if params in others:
        return
    given = {name for other in others for name in inspect.get_annotations(other)}
    hints = get_type_hints(params, include_extras=True)
    inherited = {field.name for parent in params.__mro__[1:] for field in _fields(parent)}
    for name in inspect.get_annotations(params):
        if name in inherited:
            raise UnusableError(f"its parameter {name} is one of the class that it inherits from")
        for word in (name, *_written(_option(name, hints[name]))):
            if word in given | own_options():
                raise UnusableError(f"its option --{word.replace('_', '-')} exists already")
    # As the options of all methods will be: one frozen class, the parts of which have one order.
    bases = tuple(dict.fromkeys([params, *others]))
    dataclass(frozen=True, kw_only=True)(type("Options", bases, {"__annotations__": {}}))


def _fields(kind: type) -> Sequence[dataclasses.Field[Any]]:
    return dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()


def _option(name: str, hint: Any) -> OptionInfo:
    """The option of a parameter."""
    kind, *details = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    options = [detail for detail in details if isinstance(detail, OptionInfo)]
    if len(options) != 1 or not options[0].help:
        raise UnusableError(f"its parameter {name} needs a typer.Option with help")
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    plain = [get_args(part)[0] if get_origin(part) is Annotated else part for part in parts if part is not NoneType]
    if not options[0].metavar and not all(part in TYPES or get_origin(part) is Literal for part in plain):
        raise UnusableError(f"its parameter {name} is no number, text, switch or choice, and has no metavar")
    return options[0]


def _written(option: OptionInfo) -> Iterator[str]:
    """The names that an option is given by hand, as identifiers."""
    for declared in (option.default, *(option.param_decls or ())):  # typer takes the first one for a default
        for word in declared.split("/") if isinstance(declared, str) else ():
            yield word.strip().lstrip("-").removeprefix("no-").replace("-", "_")


@functools.cache
def own_options() -> frozenset[str]:
    """The names of all options and arguments of mvad's commands.

    They are read from the source: the classes that define them are made after the methods that they include.
    """
    names = {*OTHER_OPTIONS}
    for node in ast.walk(ast.parse((PACKAGE / "options.py").read_text())):
        if isinstance(node, ast.ClassDef):
            parts = (part.target for part in node.body if isinstance(part, ast.AnnAssign))
            names |= {part.id for part in parts if isinstance(part, ast.Name)}
    for file in (PACKAGE / "commands").glob("[!_]*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name == file.stem:
                names |= {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
    return frozenset(names)
