"""All checks, one after the other; one that fails itself is a line as well."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mvad.diagnosis.finding import Finding
from mvad.diagnosis.machine import cores, gpu, memory, shared_memory
from mvad.diagnosis.ray_here import ray_here
from mvad.diagnosis.software import engines, extras, imports, packages, versions
from mvad.diagnosis.storage_here import cache, weights
from mvad.errors import failure_reason
from mvad.options import DoctorOptions

Check = Callable[[DoctorOptions], Iterator[Finding]]
CHECKS: dict[str, Check] = {  # in the order of lines; by what is said of a check that fails
    "versions": versions,
    "packages": packages,
    "imports": imports,
    "extras": extras,
    "engines": engines,
    "cores": cores,
    "memory": memory,
    "/dev/shm": shared_memory,
    "GPU": gpu,
    "cache": cache,
    "weights": weights,
    "Ray": ray_here,
}


@dataclass(frozen=True)
class Diagnosis:
    """What was found."""

    findings: list[Finding]

    def of(self, *states: str) -> list[Finding]:
        """The findings in some of the states."""
        return [finding for finding in self.findings if finding.state in states]

    @property
    def exit_code(self) -> int:
        """1 if something that mvad needs is broken, else 0."""
        return 1 if self.of("broken") else 0

    def document(self) -> dict[str, Any]:
        """All of it as plain values, for ``--json``."""
        return {"exit_code": self.exit_code, "findings": [finding._asdict() for finding in self.findings]}


def diagnose(options: DoctorOptions) -> Diagnosis:
    """Look at everything; nothing is raised."""
    return Diagnosis([finding for name in CHECKS for finding in _findings(name, CHECKS[name], options)])


def _findings(name: str, check: Check, options: DoctorOptions) -> list[Finding]:
    found: list[Finding] = []
    try:
        for finding in check(options):
            found.append(finding)
    except Exception as error:
        reason = failure_reason(error)
        found.append(Finding(name, f"cannot be told ({reason})", "unknown", f"this could not be looked at: {reason}"))
    return found
