from mvad.console import Reporter, plural
from mvad.diagnosis import Diagnosis, diagnose
from mvad.options import DoctorOptions, takes

MARKS = {"ok": " ", "slow": "!", "broken": "x", "unknown": "?"}


@takes(DoctorOptions)
def doctor(options: DoctorOptions) -> Diagnosis:
    """Say what this machine has for mvad, what is slow and why, and what is broken; exit code 1 if something is.

    It takes seconds and starts nothing, unless ``ray`` asks for that.

    Examples
    --------
    >>> mvad.doctor(quiet=True).exit_code
    0
    """
    report = Reporter(options.quiet)
    diagnosis = diagnose(options)
    for finding in diagnosis.findings:
        report.result(f"{MARKS[finding.state]} {finding.name:<13} {finding.value}")
    for finding in diagnosis.of("slow", "broken", "unknown"):
        report.warn(f"{finding.name} ({finding.state}): {finding.advice}")
    broken = diagnosis.of("broken")
    report.result(f"{plural(len(broken), 'thing')} to mend before mvad works here" if broken else "mvad can work here")
    return diagnosis
