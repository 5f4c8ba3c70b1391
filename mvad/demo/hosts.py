"""Which requests come from the demo's own page or from a program: not from a page of another site in a browser.

A browser sends the demo what any page asks it to: a form, or, after DNS rebinding, everything under a name of the
page's own. The headers ``Host``, ``Origin`` and ``Sec-Fetch-Site`` tell, and no page can forge them.
"""

import ipaddress
import re
import socket
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
WILDCARDS = ("0.0.0.0", "::")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")  # they change nothing, and other sites cannot read their answers
AUTHORITY = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^\s\[\]:@/?#]+))(?::\d*)?")  # host and port, as in a URL
MAX_SHOWN = 100  # characters of a name in an answer


class AllowedHosts:
    """The names that the demo may be addressed by, with any port.

    They are those of the loopback interface, ``bound``, which is the address that it listens on, and ``others``. If it
    listens on all addresses, any IP address and the name of this machine are allowed, too: they are none that another
    site could have.
    """

    def __init__(self, bound: str, others: Iterable[str] = ()) -> None:
        self._others = {_normal(name) for name in others}
        self._names = {*LOOPBACK_NAMES, _normal(bound), *self._others} - {*WILDCARDS}
        self._any_address = bound in WILDCARDS
        if self._any_address:
            self._names.add(_normal(socket.gethostname()))

    def check(self, method: str, headers: Headers) -> None:
        """HTTPException of status 421 for a name that is not allowed, or 403 for a request from another site."""
        authority = headers.get("host", "")
        name = host_name(authority)
        if name is None or not (name in self._names or (self._any_address and _is_address(name))):
            shown = authority[:MAX_SHOWN]
            raise HTTPException(
                421, f"the demo is not known as {shown!r}; if that is its name, start it with --allow-host NAME."
            )
        if method not in SAFE_METHODS and self._is_from_another_site(authority, headers):
            raise HTTPException(403, "a page of another site sent this request; use the demo's own page, or a program.")

    def _is_from_another_site(self, authority: str, headers: Headers) -> bool:
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return True
        origin = headers.get("origin")
        if origin is None or origin.partition("://")[2].lower() == authority.lower():
            return False
        # Behind a proxy that has a name of its own, Host may be the name that the proxy uses.
        return host_name(origin.partition("://")[2]) not in self._others


def host_name(authority: str) -> str | None:
    """The host of ``host``, ``host:port``, ``[IPv6]`` or ``[IPv6]:port``, in its normal form; None for another text."""
    match = AUTHORITY.fullmatch(authority)
    return _normal(match[1] or match[2]) if match else None


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine alone."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _normal(name: str) -> str:
    return str(ipaddress.ip_address(name)) if _is_address(name) else name.lower().removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
