"""Tell people and programs how a night went: by HTTP, by e-mail, and in a file for Prometheus."""

from mvad.alarms.alarms import Alarms

__all__ = ["Alarms"]
