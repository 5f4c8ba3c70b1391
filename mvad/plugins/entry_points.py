"""Which methods are installed, and those of them that can be used."""

import functools
import logging
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from mvad.errors import failure_reason
from mvad.plugins.checks import UnusableError, check_method, check_params

GROUP = "mvad.methods"


def method_packages() -> list[str]:
    """The names of the installed distributions that have methods."""
    return sorted({entry.dist.name for entry in entry_points(group=GROUP) if entry.dist is not None})


class Methods(Mapping[str, Any]):
    """Methods by name: those of mvad, then the installed ones, which are loaded when a method is first looked for.

    Whoever imports the module of an installed method first, as a worker does, imports mvad on the way.

    Parameters
    ----------
    own
        The methods of mvad.
    base
        The class that methods are subclasses of.
    kinds
        The kinds of features that they may ask for.
    """

    def __init__(self, own: Mapping[str, type], base: type, kinds: Collection[str]) -> None:
        self._own, self._base, self._kinds = own, base, kinds

    @functools.cached_property
    def known(self) -> dict[str, Any]:
        """All methods that can be used. One that cannot is left out with a warning that names its distribution."""
        methods: dict[str, Any] = {**self._own}
        for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, _distribution(entry))):
            try:
                if entry.name in methods:
                    raise UnusableError("there is a method of that name already")
                found = entry.load()
                check_method(found, entry.name, self._base, self._kinds)
                check_params(found.Params, self._params(methods))
                methods[entry.name] = found
            except (Exception, SystemExit) as error:  # somebody else's code, which may do anything
                reason = str(error) if isinstance(error, UnusableError) else failure_reason(error)
                text = f"warning: the method {entry.name!r} of {_distribution(entry)} is left out: {reason}"
                logging.getLogger("mvad").warning(" ".join(text.split()))
        return methods

    @property
    def params(self) -> list[type]:
        """The parameters of all methods, each once; installed ones come before those that they may inherit from."""
        return self._params(self.known)

    def _params(self, methods: Mapping[str, Any]) -> list[type]:
        installed = [method.Params for name, method in methods.items() if name not in self._own]
        return list(dict.fromkeys([*reversed(installed), *(methods[name].Params for name in self._own)]))

    def __getitem__(self, name: str) -> Any:
        return self.known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.known)

    def __len__(self) -> int:
        return len(self.known)


def _distribution(entry: EntryPoint) -> str:
    return "an unknown package" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
