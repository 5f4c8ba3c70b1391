"""The tables of an inspection: one row per image, and one row per category."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mvad.data.manifest import Manifest
from mvad.inspection.duplicates import NearDuplicates, exact_duplicates, near_duplicates_of_distinct
from mvad.inspection.outliers import find_outliers

IMAGES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("label", pa.int8()),
        pa.field("defect", pa.string()),
        pa.field("mask_uri", pa.string()),
        pa.field("format", pa.string()),
        pa.field("mode", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("bytes", pa.int64()),  # null if the file cannot be opened
        pa.field("brightness", pa.float32()),  # see measure.Measurement
        pa.field("contrast", pa.float32()),
        pa.field("sharpness", pa.float32()),
        pa.field("brightness_z", pa.float32()),  # modified z-scores within the category: see outliers.OutlierScores
        pa.field("sharpness_z", pa.float32()),
        pa.field("unusual_z", pa.float32()),
        pa.field("outlier", pa.string()),  # why it is one; null if it is not
        pa.field("sha256", pa.string()),
        pa.field("pixel_sha256", pa.string()),
        pa.field("duplicate_group", pa.int64()),  # the same pixels, over all categories; null if unique
        pa.field("near_group", pa.int64()),  # see duplicates.near_duplicates; null if unique
        pa.field("near_image_id", pa.string()),  # the most similar near duplicate, and its correlation
        pa.field("near_similarity", pa.float32()),
        pa.field("map_x", pa.float32()),  # see embedding; null if not in the sample
        pa.field("map_y", pa.float32()),
        pa.field("error", pa.string()),
    ]
)
SUBSETS = ("train", "good", "defect", "unlabelled")  # train/good, and the test images by label
Z_SCORES = ("brightness", "sharpness", "unusual")


def subsets(images: pa.Table) -> NDArray[np.object_]:
    """The subset of each row, one of ``SUBSETS``."""
    label = pc.fill_null(images["label"], -1).to_numpy()
    train = np.array(images["split"].to_pylist(), object) == "train"
    return np.select([train, label == 0, label == 1], list(SUBSETS[:3]), SUBSETS[3]).astype(object)


def image_table(manifest: Manifest, measurements: Mapping[str, NDArray[Any]]) -> pa.Table:
    """Compare the images with each other, and put everything known of them in one table.

    Parameters
    ----------
    measurements
        As `distributed.measure_images` returns them.
    """
    images = manifest.table
    count, failed = len(images), measurements["error"] != ""
    columns: dict[str, Any] = {name: images[name] for name in images.column_names}
    for name in ("format", "mode", "width", "height", "brightness", "contrast", "sharpness"):
        columns[name] = pa.array(measurements[name], IMAGES.field(name).type, mask=failed)
    unopened = measurements["bytes"] < 0
    columns["bytes"] = pa.array(measurements["bytes"], mask=unopened)
    columns["error"] = pa.array(measurements["error"], mask=~failed)
    columns["sha256"] = _hexadecimal(measurements["file_digest"], unopened)
    columns["pixel_sha256"] = _hexadecimal(measurements["pixel_digest"], failed)

    exact = np.full(count, -1, np.int64)
    exact[~failed] = exact_duplicates(measurements["pixel_digest"][~failed])
    near = NearDuplicates.none(count)
    z_scores = {name: np.full(count, np.nan, np.float32) for name in Z_SCORES}
    reasons = np.full(count, "", object)
    names, subset = np.array(images["category"].to_pylist(), object), subsets(images)
    n_groups = 0
    for category in manifest.categories:
        rows = np.flatnonzero((names == category) & ~failed)
        if not len(rows):
            continue
        duplicates = near_duplicates_of_distinct(measurements["fingerprint"][rows], exact[rows])
        near.group[rows] = np.where(duplicates.group < 0, -1, duplicates.group + n_groups)
        near.nearest[rows] = np.where(duplicates.nearest < 0, -1, rows[duplicates.nearest])
        near.similarity[rows] = duplicates.similarity
        n_groups += int(duplicates.group.max()) + 1
        outliers = find_outliers(
            measurements["brightness"][rows],
            measurements["contrast"][rows],
            measurements["sharpness"][rows],
            measurements["features"][rows] if "features" in measurements else None,
            subset[rows] == "train",
        )
        for name, column in z_scores.items():
            column[rows] = getattr(outliers, name)
        reasons[rows] = outliers.reasons

    columns["duplicate_group"] = pa.array(exact, mask=exact < 0)
    columns["near_group"] = pa.array(near.group, mask=near.group < 0)
    columns["near_image_id"] = images["image_id"].take(pa.array(near.nearest, mask=near.nearest < 0))
    columns["near_similarity"] = pa.array(near.similarity, mask=near.nearest < 0)
    columns |= {f"{name}_z": pa.array(column, mask=np.isnan(column)) for name, column in z_scores.items()}
    columns["outlier"] = pa.array(reasons, pa.string(), mask=reasons == "")
    columns |= {name: pa.nulls(count, pa.float32()) for name in ("map_x", "map_y")}
    return pa.table({name: columns[name] for name in IMAGES.names}, schema=IMAGES)


def _hexadecimal(digests: NDArray[np.uint8], missing: NDArray[np.bool_]) -> pa.Array:
    return pa.array([row.tobytes().hex() for row in digests], pa.string(), mask=missing)


def category_rows(images: pa.Table) -> list[dict[str, Any]]:
    """One row per category: counts, sizes, formats, medians; ``n_outlier`` leaves defective images out."""
    return [_category_row(name, rows) for name, rows in by_category(images)]


def by_category(images: pa.Table) -> list[tuple[str, pa.Table]]:
    """The rows of each category, in their order; slices, not copies, of a table in the manifest's order."""
    names = images["category"].to_pylist()
    starts = [row for row, name in enumerate(names) if row == 0 or name != names[row - 1]]
    ends = [*starts[1:], len(names)]
    return [(names[start], images.slice(start, end - start)) for start, end in zip(starts, ends, strict=True)]


def _category_row(name: str, images: pa.Table) -> dict[str, Any]:
    readable = images.filter(pc.is_null(images["error"]))
    not_defective = readable.filter(pc.not_equal(pc.fill_null(readable["label"], 0), 1))
    counts = Counter(subsets(images))
    sizes = Counter(zip(readable["width"].to_pylist(), readable["height"].to_pylist(), strict=True))
    formats = Counter(zip(readable["format"].to_pylist(), readable["mode"].to_pylist(), strict=True))
    defects = Counter(images.filter(pc.equal(images["label"], 1))["defect"].to_pylist())
    return {
        "category": name,
        **{f"n_{subset}": counts[subset] for subset in SUBSETS},
        "n_error": len(images) - len(readable),
        "defects": {defect or "": defects[defect] for defect in sorted(defects, key=str)},
        "sizes": _ten_most_frequent(sizes, "{0[0]} x {0[1]}".format),
        "n_sizes": len(sizes),
        "size": _size_range(readable),
        "formats": _ten_most_frequent(formats, " ".join),
        "bytes": pc.sum(images["bytes"]).as_py() or 0,
        "median_brightness": _median(readable["brightness"]),
        "median_sharpness": _median(readable["sharpness"]),
        "n_duplicate": len(readable) - readable["duplicate_group"].null_count,
        "n_near": len(readable) - readable["near_group"].null_count,
        "n_outlier": len(not_defective) - not_defective["outlier"].null_count,
    }


def _ten_most_frequent(counts: Counter[Any], show: Callable[[Any], str]) -> dict[str, int]:
    return {show(key): count for key, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:10]}


def _size_range(images: pa.Table) -> str:
    """The one size of all images, or the range of widths and heights."""
    if not len(images):
        return "-"
    ranges = [pc.min_max(images[side]).as_py() for side in ("width", "height")]
    texts = [str(ends["min"]) if ends["min"] == ends["max"] else f"{ends['min']}-{ends['max']}" for ends in ranges]
    return " x ".join(texts)


def _median(values: pa.ChunkedArray) -> float | None:
    numbers = values.drop_null().to_numpy()
    return float(np.median(numbers.astype(float))) if len(numbers) else None
