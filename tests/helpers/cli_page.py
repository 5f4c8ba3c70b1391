"""Write the page of the command line: ``PYTHONPATH=tests python tests/helpers/cli_page.py docs/cli.md``."""

import inspect
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

from typer.main import get_command

from mvad.cli import application

INTRODUCTION = """# Command line

`make docs` writes this page from the program. All commands end with one of the [exit codes](results.md#exit-codes).
"""


def cli_page():
    """Render every command with its arguments, options, panels and defaults as Markdown."""
    commands = get_command(application()).commands
    contents = [f"- [`mvad {name}`](#mvad-{name}): {_summary(command)}" for name, command in commands.items()]
    sections = [_section(name, command) for name, command in commands.items()]
    return "\n".join([INTRODUCTION, *contents, "", "\n".join(sections)])


def _summary(command):
    return inspect.cleandoc(command.help).splitlines()[0]


def _section(name, command):
    panels = {}
    for parameter in command.params:
        if not getattr(parameter, "hidden", False):
            title = "Arguments" if parameter.param_type_name == "argument" else "Options"
            panels.setdefault(getattr(parameter, "rich_help_panel", None) or title, []).append(parameter)
    lines = [f"## mvad {name}", "", *_paragraphs(command.help), ""]
    for title, parameters in panels.items():
        lines += [f"| {title} | | default |", "|---|---|---|"]
        lines += [f"| {_names(each)} | {_cell(each.help or '')} | {_cell(_default(each))} |" for each in parameters]
        lines.append("")
    return "\n".join(lines)


def _paragraphs(text):
    for line in inspect.cleandoc(text).splitlines():
        command = line.removeprefix("Example: ")
        yield f"Example: `{command}`" if command != line else line


def _names(parameter):
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    names = " ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    choices = _choices(parameter.type_descriptor.annotation)
    return f"{names} {', '.join(choices)}" if choices else names


def _choices(annotation):
    """The values of a Literal, wherever it is in the annotation."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in _choices(part)]


def _default(parameter):
    if parameter.required:
        return "required"
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    default = parameter.default
    if parameter.show_default is False or default is None or default is False or default == ():
        return ""
    if default is True:
        return "on"
    return f"`{','.join(map(str, default)) if isinstance(default, list | tuple) else default}`"


def _cell(text):
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(cli_page())
