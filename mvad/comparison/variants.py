"""What is compared: methods, and variants of options that a TOML file names.

::

    [larger]
    image_size = 320

    [top1]
    method = "patchcore"
    reweight = 0

Each table is a variant: its name, and values of options of `mvad fit`, written with ``-`` or ``_``. All other options
are those of the command.
"""

import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mvad import storage
from mvad.errors import ImageError, UsageError
from mvad.options import CompareOptions, FitOptions, JobOptions, NetworkOptions, RunOptions, build, option_names

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_FILE_BYTES = 1 << 20
# Options of `mvad fit` that are not the model's: those of every job, but for the backbone's own.
_OF_JOB = option_names(JobOptions) - option_names(NetworkOptions) | {"new_run"}
_NOT_COMPARED = {"folds": "calibrates, which a comparison leaves out"}


class Line(NamedTuple):
    """What has a line of the table: a method or a variant, with all training images or so many of them."""

    method: str
    shots: int | None = None
    variant: str | None = None

    @property
    def title(self) -> str:
        return self.variant or self.method


class MethodRun(NamedTuple):
    """One fit of a line to all categories: its name, which is that of its folder, and its options."""

    name: str
    options: RunOptions
    line: Line


def read_variants(options: CompareOptions) -> dict[str, dict[str, Any]]:
    """The option values of each variant in the file of ``--variants``, by its name, in the file's order.

    UsageError if the file cannot be read or names no variant; or names the first variant that is wrong, and its key.
    """
    if options.variants is None:
        return {}
    uri = storage.to_uri(options.variants)
    place = f"--variants {storage.readable(uri)}"
    try:
        tables = tomllib.loads(storage.read_bytes(uri, MAX_FILE_BYTES).decode())
    except (ImageError, ValueError) as error:  # ValueError: no TOML, or no UTF-8
        raise UsageError(f"{place} cannot be used: {error}.") from error
    if not tables:
        raise UsageError(f"{place} names no variant; write a table such as [larger] with image_size = 320 below it.")
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise UsageError(f"{place}: {name!r} is outside of a variant; write [NAME] above it.")
        if not name.strip():
            raise UsageError(f"{place}: a variant has no name.")
    return {name: _checked(f"{place}: variant {name!r}", table, options) for name, table in tables.items()}


def _checked(place: str, table: Mapping[str, Any], options: CompareOptions) -> dict[str, Any]:
    """The values of a table by the names of options, as these take them; UsageError, which begins with ``place``."""
    known = option_names(FitOptions)
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name in values:
            raise UsageError(f"{place} gives {key!r} twice.")
        if name in _NOT_COMPARED:
            raise UsageError(f"{place} gives {key!r}, which {_NOT_COMPARED[name]}.")
        if name in _OF_JOB:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{place} gives {key!r}, which is not the model's; all variants share {option}.")
        if name not in known:
            raise UsageError(f"{place} gives {key!r}, which is no option of mvad fit.")
        values[name] = value
    try:
        fit = build(FitOptions, options.common_with(FitOptions) | values)
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from error
    return {name: getattr(fit, name) for name in values}


def method_runs(options: CompareOptions, variants: Mapping[str, Mapping[str, Any]]) -> list[MethodRun]:
    """The fits of a comparison: of the variants, then of the methods.

    All training images come first, then few of them, each number of shots as often as asked for. A variant that gives
    ``shots`` has these alone. UsageError if two fits have the same name.
    """
    runs = [run for name, values in variants.items() for run in _fits(options, values, name)]
    runs += [run for method in options.method_names for run in _fits(options, {"method": method})]
    names: set[str] = set()
    for run in runs:
        if run.name in names:
            raise UsageError(f"--variants: {run.line.title!r} has the name of another fit; choose another name.")
        names.add(run.name)
    return runs


def _fits(options: CompareOptions, values: Mapping[str, Any], variant: str | None = None) -> Iterable[MethodRun]:
    method = values.get("method", FitOptions.method)
    all_shots = [values["shots"]] if values.get("shots") else [None, *sorted(set(options.shots or ()))]
    for shots in all_shots:
        for repeat in range(1 if shots is None else options.shot_repeats):
            fit = options.fit_options(method, shots, repeat, values)
            name = variant or method
            name = name if shots is None else f"{name}-{shots}shot-{fit.shot_seed}"
            yield MethodRun(storage.safe_name(name), fit, Line(method, shots, variant))
