"""What is in a folder of images before any model: counts, sizes, unreadable files, twins, outliers, a map."""

from __future__ import annotations

from mvad.inspection.command import Inspection, inspect

__all__ = ["Inspection", "inspect"]
