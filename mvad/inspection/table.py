"""The tables of an inspection: one row per image, and one row per category."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mvad.data.manifest import Manifest
from mvad.data.tables import SCHEMA
from mvad.inspection.outliers import find_outliers
from mvad.search.duplicates import NearDuplicates, exact_duplicates, near_duplicates_of_distinct

FILE_COLUMNS = ("file_size", "file_mtime")
IMAGES = pa.schema(
    [
        *(field for field in SCHEMA if field.name not in FILE_COLUMNS),
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
        *(SCHEMA.field(name) for name in FILE_COLUMNS),
    ]
)
COUNTS = {  # of a category, with their titles on the page and at a terminal
    "n_train": ("train", "train"),
    "n_good": ("good", "good"),
    "n_defect": ("defect", "defect"),
    "n_unlabelled": ("unlabelled", "unlabelled"),
    "n_error": ("unreadable", "errors"),
    "n_duplicate": ("exact duplicates", "dup."),
    "n_near": ("near duplicates", "near dup."),
    "n_outlier": ("outliers", "outliers"),
}
SUBSETS = ("train", "good", "defect", "unlabelled")  # train/good, and the test images by label
Z_SCORES = ("brightness", "sharpness", "unusual")


def subsets(images: pa.Table) -> NDArray[np.object_]:
    """The subset of each row, one of ``SUBSETS``."""
    label = pc.fill_null(images["label"], -1).to_numpy()
    train = np.array(images["split"].to_pylist(), object) == "train"
    return np.select([train, label == 0, label == 1], list(SUBSETS[:3]), SUBSETS[3]).astype(object)


def image_table(manifest: Manifest, measurements: Mapping[str, NDArray[Any]]) -> pa.Table:
    """Compare the images with each other, and put all that is known of them in one table, measurements included."""
    images = manifest.table
    count, failed = len(images), measurements["error"] != ""
    columns: dict[str, Any] = {name: images[name] for name in images.column_names}
    for name in ("format", "mode", "width", "height", "brightness", "contrast", "sharpness"):
        columns[name] = pa.array(measurements[name], IMAGES.field(name).type, mask=failed)
    unopened = measurements["bytes"] < 0
    columns["bytes"] = pa.array(measurements["bytes"], mask=unopened)
    columns["error"] = pa.array(measurements["error"], mask=~failed)
    for name, digests, missing in (("sha256", "file_digest", unopened), ("pixel_sha256", "pixel_digest", failed)):
        columns[name] = pa.array([digest.tobytes().hex() for digest in measurements[digests]], mask=missing)

    exact = np.full(count, -1, np.int64)
    exact[~failed] = exact_duplicates(measurements["pixel_digest"][~failed])
    near = NearDuplicates.none(count)
    z_scores = {name: np.full(count, np.nan, np.float32) for name in Z_SCORES}
    reasons = np.full(count, "", object)
    subset = subsets(images)
    n_groups = 0
    for _, start, category_images in by_category(images):
        rows = start + np.flatnonzero(~failed[start : start + len(category_images)])
        if not len(rows):
            continue
        duplicates = near_duplicates_of_distinct(measurements["fingerprint"][rows], exact[rows])
        near.group[rows] = np.where(duplicates.group < 0, -1, duplicates.group + n_groups)
        near.nearest[rows] = np.where(duplicates.nearest < 0, -1, rows[duplicates.nearest])
        near.similarity[rows] = duplicates.similarity
        n_groups += int(duplicates.group.max()) + 1
        brightness, contrast, sharpness = (measurements[name][rows] for name in ("brightness", "contrast", "sharpness"))
        features = measurements["features"][rows] if "features" in measurements else None
        outliers = find_outliers(brightness, contrast, sharpness, features, subset[rows] == "train")
        for name, column in z_scores.items():
            column[rows] = getattr(outliers, name)
        reasons[rows] = outliers.reasons

    columns["duplicate_group"] = pa.array(exact, mask=exact < 0)
    columns["near_group"] = pa.array(near.group, mask=near.group < 0)
    columns["near_image_id"] = images["image_id"].take(pa.array(near.nearest, mask=near.nearest < 0))
    columns["near_similarity"] = pa.array(near.similarity, mask=near.nearest < 0)
    columns |= {f"{name}_z": pa.array(column, mask=np.isnan(column)) for name, column in z_scores.items()}
    columns["outlier"] = pa.array(reasons, pa.string(), mask=reasons == "")
    columns |= dict.fromkeys(("map_x", "map_y"), pa.nulls(count, pa.float32()))
    return pa.table(columns, IMAGES)


def by_category(images: pa.Table) -> list[tuple[str, int, pa.Table]]:
    """Name, first row, and rows (a slice, not a copy) of each category of a table in the manifest's order."""
    counts = images["category"].value_counts().to_pylist()
    starts = itertools.accumulate((count["counts"] for count in counts), initial=0)
    return [
        (count["values"], start, images.slice(start, count["counts"]))
        for count, start in zip(counts, starts, strict=False)
    ]


def category_rows(images: pa.Table) -> list[dict[str, Any]]:
    """One row per category: counts, sizes, formats, medians; ``n_outlier`` leaves defective images out."""
    return [_category_row(name, rows) for name, _, rows in by_category(images)]


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
        "size": " x ".join(_range(readable[side]) for side in ("width", "height")) if len(readable) else "-",
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


def _range(values: pa.ChunkedArray) -> str:
    low, high = pc.min_max(values).as_py().values()
    return str(low) if low == high else f"{low}-{high}"


def _median(values: pa.ChunkedArray) -> float | None:
    numbers = values.drop_null().to_numpy()
    return float(np.median(numbers.astype(float))) if len(numbers) else None
