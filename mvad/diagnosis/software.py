"""Python, packages, the extras of mvad, and what runs backbones."""

import importlib
import importlib.metadata
import platform
from collections.abc import Iterator

from packaging.requirements import Requirement

from mvad.diagnosis.finding import Finding
from mvad.errors import failure_reason
from mvad.options import DoctorOptions
from mvad.version import VERSION

SHOWN = ("torch", "torchvision", "timm", "ray", "onnxruntime", "numpy", "pyarrow")
IMPORTED = ("torch", "torchvision", "ray", "pyarrow.parquet", "faiss")  # of which native code may not load
ENGINE = ("onnxruntime", "onnxscript")  # modules that the engine onnx needs


def versions(options: DoctorOptions) -> Iterator[Finding]:
    """The versions of mvad, of Python and of the packages that results depend on."""
    yield Finding("mvad", f"{VERSION}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    yield Finding("versions", ", ".join(f"{name} {_version(name) or 'missing'}" for name in SHOWN))


def packages(options: DoctorOptions) -> Iterator[Finding]:
    """Whether the packages that every command needs are there, in versions that mvad works with."""
    try:
        needed = requirements("")
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", "unknown: mvad is not installed, this is its source alone")
        return
    wrong = [(requirement, _version(requirement.name)) for requirement in needed if not satisfied(requirement)]
    yield Finding("packages", f"{len(needed) - len(wrong)} of {len(needed)} that mvad needs")
    for requirement, found in wrong:
        state = f"{found} is not {requirement.specifier}" if found else "missing"
        install = f'install it: pip install "{requirement.name}{requirement.specifier}"'
        yield Finding(requirement.name, state, "broken", f"mvad needs another version of it; {install}")


def imports(options: DoctorOptions) -> Iterator[Finding]:
    """Packages that are installed and cannot be imported, such as those made for another machine."""
    for name in IMPORTED:
        package = name.partition(".")[0]
        try:
            importlib.import_module(name)
        except Exception as error:  # native code may fail with anything
            if not isinstance(error, ModuleNotFoundError) or error.name != package:  # `packages` has said that
                reason = failure_reason(error)
                yield Finding(package, f"cannot be imported ({reason})", "broken", "install it again for this machine")


def extras(options: DoctorOptions) -> Iterator[Finding]:
    """Which extras of mvad are installed."""
    try:
        names = importlib.metadata.metadata("mvad").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return
    missing = [name for name in names if name != "all" and not all(map(satisfied, requirements(name)))]
    there = [name for name in names if name not in ("all", *missing)]
    if there or missing:
        advice = f'; to add one: pip install "mvad[{missing[0]}]"' if missing else ""
        text = ", ".join(there) or "none"
        yield Finding("extras", text + (f" (without {', '.join(missing)}{advice})" if missing else ""))


def engines(options: DoctorOptions) -> Iterator[Finding]:
    """What can run backbones on CPUs."""
    lacking = []
    for name in ENGINE:
        try:
            importlib.import_module(name)
        except Exception as error:
            lacking.append(f"{name}: {failure_reason(error)}")
    if not lacking:
        yield Finding("engines", "onnx, torch")
        return
    advice = "backbones take about twice as long on CPUs without ONNX Runtime; pip install onnxruntime onnxscript"
    yield Finding("engines", f"torch only ({lacking[0]})", "slow", advice)


def requirements(extra: str) -> list[Requirement]:
    """What mvad needs here, or one of its extras besides; PackageNotFoundError if mvad is not installed."""
    found = [Requirement(line) for line in importlib.metadata.requires("mvad") or []]
    return [each for each in found if _applies(each, extra) and not (extra and _applies(each, ""))]


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def satisfied(requirement: Requirement) -> bool:
    """Whether a package is installed in a version that fits, together with its extras' own packages."""
    version = _version(requirement.name)
    if version is None or not requirement.specifier.contains(version, prereleases=True):
        return False
    inner = [Requirement(line) for line in importlib.metadata.requires(requirement.name) or []]
    needed = [
        each
        for extra in requirement.extras
        for each in inner
        if each.name != requirement.name and _applies(each, extra) and not _applies(each, "")
    ]
    return all(_version(each.name) is not None for each in needed)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
