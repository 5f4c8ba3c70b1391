"""The grids of patch scores that results keep, their range and the scale of their colours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mvad import results
from mvad.anomaly_maps.colours import SCALE_IMAGES, Scale, colour_scale
from mvad.anomaly_maps.geometry import anomaly_map
from mvad.data.image_size import ImageSize
from mvad.data.sampling import evenly_spaced
from mvad.errors import ImageError


def stored_map(row: dict[str, Any], size: ImageSize) -> NDArray[np.float32] | None:
    """The map of the model's square, (crop, crop) float32, from a score row's grid; None if it has none.

    Raises
    ------
    ImageError
        The grid is damaged.
    """
    values, shape = row["patch_scores"], row["patch_grid"]
    if values is None or shape is None:
        return None
    grid = np.asarray(values, np.float32)
    if len(shape) != 2 or min(shape) < 1 or grid.size != shape[0] * shape[1] or not np.isfinite(grid).all():
        raise ImageError("the grid of patch scores is damaged")
    return anomaly_map(grid.reshape(shape), size.crop)


def read_scale(out: str, category: str, size: ImageSize) -> Scale | None:
    """The scale of a category's colours, from a sample of the maps in OUT (a URI); None if there are none.

    Damaged grids are left out; who draws them says so.
    """
    columns = ["image_id", "score", "threshold", "patch_grid"]
    rows = results.read_scores(out, columns, category)
    rows = rows.filter(pc.is_valid(rows["patch_grid"])).drop_columns(["patch_grid"])
    if not len(rows):
        return None
    rows = rows.sort_by("score").take(pa.array(evenly_spaced(len(rows), SCALE_IMAGES)))
    found = results.read_images(out, category, rows["image_id"].to_pylist(), ["score", "patch_scores", "patch_grid"])
    maps, scores = [], []
    for row in found.to_pylist():
        try:
            square = stored_map(row, size)
        except ImageError:
            continue
        if square is not None:
            maps.append(square)
            scores.append(row["score"])
    return colour_scale(maps, scores, one_threshold(rows["threshold"])) if maps else None


def one_threshold(column: pa.ChunkedArray) -> float | None:
    """The threshold of rows, if they have the same one and it is a number."""
    values = pc.unique(column.drop_null()).to_pylist()
    return values[0] if len(values) == 1 and np.isfinite(values[0]) else None


def patch_score_range(parts: list[str]) -> tuple[float, float] | None:
    """The least and the greatest patch score in files of score rows (URIs), between which all maps lie.

    Smoothing and interpolation make nothing but averages. None where no image kept its map.
    """
    ends: list[float] = []
    for part in parts:
        values = results.read_part(part, ["patch_scores"])["patch_scores"]
        scores = pc.list_flatten(values)
        found = pc.min_max(scores.filter(pc.is_finite(scores)))
        if found["min"].is_valid:
            ends += [found["min"].as_py(), found["max"].as_py()]
    return (min(ends), max(ends)) if ends else None
