"""Methods of other packages, which name them as entry points of the group ``mvad.methods``."""

from mvad.plugins.entry_points import Methods, method_packages

__all__ = ["Methods", "method_packages"]
