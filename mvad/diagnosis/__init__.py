"""What `mvad doctor` looks at: the software, the machine, the weights and Ray; what is slow or broken, and why."""

from mvad.diagnosis.diagnosis import Diagnosis, diagnose
from mvad.diagnosis.finding import Finding

__all__ = ["Diagnosis", "Finding", "diagnose"]
