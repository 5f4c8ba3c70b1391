"""Pages for people: what a report and an inspection have in common.

A page is one HTML file that holds all it shows. Templates escape every name, and a policy in the page lets it load and
run nothing, and use no style but its own.
"""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

MISSING = "-"  # where there is no number
BASE_STYLE = "base.css"


def environment(package: str, filters: Mapping[str, Callable[..., str]]) -> Environment:
    """The templates of a package, which may extend ``base.html``, with filters of its own and those of all pages."""
    found = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("mvad.html")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shared = {"name": visible, "count": unless_missing(lambda value: f"{value:,}"), "size": unless_missing(size)}
    found.filters |= shared | dict(filters)
    return found


def render(own: Environment, template: str, style: str, **content: Any) -> str:
    """A page; ``style`` is the name of its style sheet, which follows that of all pages."""
    loader = own.loader
    assert loader is not None
    text = "".join(loader.get_source(own, name)[0] for name in (BASE_STYLE, style))
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return own.get_template(template).render(style=Markup(text), style_hash=digest, **content)


def unless_missing(show: Callable[[Any], str]) -> Callable[[Any], str]:
    """A filter that shows None as `MISSING`."""
    return lambda value: MISSING if value is None else show(value)


def visible(name: str) -> str:
    """A name in which characters that are not seen, or change the order of others, are written out."""
    return "".join(
        char if unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") else _escape(char)
        for char in name
    )


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()


def size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
