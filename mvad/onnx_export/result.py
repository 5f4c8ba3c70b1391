"""What an export did, and how its scores differ from mvad's."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

FLOAT32, INT8 = "float32", "int8"  # what a backbone computes with
MAX_AUROC_LOSS = 0.002  # that an INT8 file may cost
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
    # Median of the time that ONNX Runtime takes to score an image that is in memory.
    ms_per_image: float | None = field(default=None, compare=False)

    @property
    def is_same(self) -> bool:
        """Whether all scores and maps are the same up to rounding, and all verdicts."""
        differences = self.largest_difference, self.largest_map_difference or 0.0
        return all(one <= TOLERANCE for one in differences) and not self.verdicts

    @property
    def passes(self) -> bool:
        """Whether the file does what it is meant to."""
        return self.is_same


@dataclass
class Int8Comparison(Comparison):
    """How well an INT8 file tells good images from defective ones, next to the model; scores differ by intention."""

    n_defective: int = 0
    image_auroc: float = 0.0
    exported_image_auroc: float = 0.0

    @property
    def auroc_loss(self) -> float:
        """By how much the image AUROC of the file is lower than that of the model."""
        return self.image_auroc - self.exported_image_auroc

    @property
    def passes(self) -> bool:
        return self.auroc_loss <= MAX_AUROC_LOSS


@dataclass
class ExportResult:
    """What was exported, and how it compares with mvad if that was asked for."""

    model_id: str
    file: str | None  # None if nothing was written
    precision: str  # of the backbone: float32 or int8
    n_bytes: int
    seconds: float  # that the export took; 0 if an earlier file was checked
    comparison: Comparison | None = None

    @property
    def exit_code(self) -> int:
        """0; or 1 if the export scores images differently, or an INT8 file tells them apart less well."""
        return 0 if self.comparison is None or self.comparison.passes else EXIT_DIFFERENT

    def document(self) -> dict[str, Any]:
        """All of it as plain values, for ``--json``."""
        return {"exit_code": self.exit_code, **asdict(self)}
