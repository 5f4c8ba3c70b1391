"""What an export did, and how its scores differ from mvad's."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

TOLERANCE = 1e-4  # relative difference of scores, and of maps, that is only rounding
EXIT_DIFFERENT = 1


@dataclass
class Comparison:
    """How the scores of an export differ from mvad's; differences are relative to the larger one of two scores."""

    n_images: int = 0
    largest_difference: float = 0.0
    largest_image: str | None = None  # the image that has it
    # Of any pixel, relative to the largest value of the map; None if there are no maps.
    largest_map_difference: float | None = None
    # image_id, score, exported_score, is_anomaly, exported_is_anomaly of images on which the two decide differently.
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, str]] = field(default_factory=list)  # image_id and error of images that cannot be read

    @property
    def is_same(self) -> bool:
        """Whether all scores and maps are the same up to rounding, and all verdicts."""
        differences = self.largest_difference, self.largest_map_difference or 0.0
        return all(one <= TOLERANCE for one in differences) and not self.verdicts


@dataclass
class ExportResult:
    """What was exported, and how it compares with mvad if that was asked for."""

    model_id: str
    file: str | None  # None if nothing was written
    n_bytes: int
    seconds: float  # that the export took; 0 if an earlier file was checked
    comparison: Comparison | None = None

    @property
    def exit_code(self) -> int:
        """0; or 1 if the export scores images differently."""
        return 0 if self.comparison is None or self.comparison.is_same else EXIT_DIFFERENT

    def document(self) -> dict[str, Any]:
        """All of it as plain values, for ``--json``."""
        return {"exit_code": self.exit_code, **asdict(self)}
