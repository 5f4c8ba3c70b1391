"""Self-contained HTML pages: names are escaped, and a policy forbids to load or run anything but the page's own.

What that is, its style and perhaps one script, the policy knows by hashes.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mvad.storage.text import visible

MISSING = "-"  # shown where there is no number


def environment(package: str, filters: Mapping[str, Callable[[Any], str]]) -> Environment:
    """The templates of a package, which may extend ``base.html``; its filters show None as `MISSING`."""
    loader = ChoiceLoader([PackageLoader(package), PackageLoader("mvad.html")])
    env = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    numbers = {"count": "{:,}".format, "size": readable_size, **filters}
    env.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    env.filters |= {"name": visible, **{name: _unless_missing(show) for name, show in numbers.items()}}
    return env


def render(env: Environment, template: str, style: str, script: str | None = None, **content: Any) -> str:
    """Render a page; ``style`` is the name of its style sheet, which follows that of all pages."""
    styles = _source(env, "base.css") + _source(env, style)
    code = None if script is None else _source(env, script)
    return env.get_template(template).render(
        style=styles,
        style_hash=_digest(styles),
        script=code,
        script_hash=None if code is None else _digest(code),
        **content,
    )


def _source(env: Environment, name: str) -> Markup:
    assert env.loader is not None
    return Markup(env.loader.get_source(env, name)[0])


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _unless_missing(show: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda value: MISSING if value is None else show(value)


def readable_size(n_bytes: float) -> str:
    """A number of bytes with a unit: ``3 bytes``, ``1.5 MB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" or n_bytes >= 100 else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"
