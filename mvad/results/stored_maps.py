"""Anomaly maps from the patch scores that results keep, and the scale of their colours."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mvad import results
from mvad.anomaly_maps.colours import MAX_SCALE_IMAGES, Scale, colour_scale
from mvad.anomaly_maps.geometry import anomaly_map
from mvad.data.image_size import ImageSize
from mvad.data.sampling import evenly_spaced
from mvad.errors import ImageError


def stored_map(row: dict[str, Any], size: ImageSize) -> NDArray[np.float32] | None:
    """Compute the map, as large as the model's input, float32, from a score row; None if it kept none.

    ImageError if the patch scores are damaged.
    """
    values, shape = row["patch_scores"], row["patch_grid"]
    if values is None or shape is None:
        return None
    scores = np.asarray(values, np.float32)
    if len(shape) != 2 or min(shape) < 1 or scores.size != shape[0] * shape[1] or not np.isfinite(scores).all():
        raise ImageError("the grid of patch scores is damaged")
    return anomaly_map(scores.reshape(shape), size)


def read_scale(out: str, category: str, size: ImageSize) -> Scale | None:
    """Compute a category's colour scale from a sample of the maps in OUT (a URI); None if it has no maps.

    Damaged maps are left out; the code that draws them reports them.
    """
    rows = results.read_scores(out, ["image_id", "score", "threshold", "patch_grid"], category)
    rows = rows.filter(pc.is_valid(rows["patch_grid"])).drop_columns(["patch_grid"])
    if not len(rows):
        return None
    rows = rows.sort_by("score").take(pa.array(evenly_spaced(len(rows), MAX_SCALE_IMAGES)))
    sample = results.read_images(out, category, rows["image_id"].to_pylist(), ["score", "patch_scores", "patch_grid"])
    maps, scores = [], []
    for row in sample.to_pylist():
        try:
            model_map = stored_map(row, size)
        except ImageError:
            continue
        if model_map is not None:
            maps.append(model_map)
            scores.append(row["score"])
    return colour_scale(maps, scores, one_threshold(rows["threshold"])) if maps else None


def one_threshold(column: pa.ChunkedArray) -> float | None:
    """Return the threshold of rows if all have the same one and it is finite."""
    values = column.drop_null().unique().to_pylist()
    return values[0] if len(values) == 1 and np.isfinite(values[0]) else None


def patch_score_range(files: Sequence[str]) -> tuple[float, float] | None:
    """Return the lowest and highest patch score in files of score rows (URIs); None if no image kept its map.

    All maps lie between the two, because smoothing and interpolation only average.
    """
    ends: list[float] = []
    for file in files:
        scores = pc.list_flatten(results.read_part(file, ["patch_scores"])["patch_scores"])
        extremes = pc.min_max(scores.filter(pc.is_finite(scores)))
        if extremes["min"].is_valid:
            ends += [extremes["min"].as_py(), extremes["max"].as_py()]
    return (min(ends), max(ends)) if ends else None
