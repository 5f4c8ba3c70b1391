"""Two detectors of one image: of its windows, and of all of it squeezed; and how their scores become one."""

from mvad.detectors.levels.two_levels import Levels, with_units

__all__ = ["Levels", "with_units"]
