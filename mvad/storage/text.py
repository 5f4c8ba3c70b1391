"""Texts of other people, such as the names of files and folders, as a terminal, a log and a document may hold them."""

import json
import re
import unicodedata
from collections.abc import Callable

from mvad.storage import hide_keys

_NOT_ASCII = re.compile(r"[^ -~]")
_NOT_PLAIN = re.compile(r"^$|^\s|\s$|\s\s|:\s|^['\"]")


def one_printable_line(text: str) -> str:
    """Return a text as one line that shows as it is, without keys of object storage: see `visible`."""
    return hide_keys(visible(text))


def visible(text: str) -> str:
    r"""Return a text on one line and in its own order, with escapes for characters that would do more than show.

    Control characters, with which a terminal is told to rewrite what it shows, ends of lines, and marks that turn the
    direction of writing become ``\n``, ``\x1b``, ``\u202e`` and the like.
    """
    return _replace_harmful(text, lambda one: one.encode("unicode_escape").decode())


def printable_json(document: str) -> str:
    """Return a JSON document without characters that a terminal would obey; it means the same."""
    return _replace_harmful(document, lambda one: one if one == "\n" else json.dumps(one)[1:-1])


def shown_name(name: str) -> str:
    """Return the name of a category as it stands in a sentence or a table.

    It is in quotes if it could be taken for more than a name, such as one that ends like a verdict: ``line1: OK``.
    """
    return f'"{visible(name)}"' if _NOT_PLAIN.search(name) else visible(name)


def _replace_harmful(text: str, escape: Callable[[str], str]) -> str:
    def replace(match: re.Match[str]) -> str:
        one = match[0]
        return one if one.isprintable() or unicodedata.category(one) == "Zs" else escape(one)

    return _NOT_ASCII.sub(replace, text)
