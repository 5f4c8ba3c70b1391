"""The tables of an inspection: one row an image, and one row a category."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mvad.data.manifest import Manifest
from mvad.inspection import outliers, twins

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
        pa.field("bytes", pa.int64()),  # null if the file cannot even be opened
        pa.field("brightness", pa.float32()),  # see measure.Measured
        pa.field("contrast", pa.float32()),
        pa.field("sharpness", pa.float32()),
        pa.field("brightness_z", pa.float32()),  # modified z-scores within the category: see outliers.Scores
        pa.field("sharpness_z", pa.float32()),
        pa.field("unusual_z", pa.float32()),
        pa.field("outlier", pa.string()),  # why it stands out; null: it does not
        pa.field("sha256", pa.string()),
        pa.field("pixel_sha256", pa.string()),
        pa.field("duplicate_group", pa.int64()),  # the same pixels, over all categories; null: alone
        pa.field("near_group", pa.int64()),  # see twins.near; null: alone
        pa.field("near_image_id", pa.string()),  # the most similar one, and how much
        pa.field("near_similarity", pa.float32()),
        pa.field("map_x", pa.float32()),  # null: not in the sample that the map is drawn of
        pa.field("map_y", pa.float32()),
        pa.field("error", pa.string()),
    ]
)
KINDS = ("train", "good", "defect", "unlabelled")  # train/good, and the test images by label


def kinds(images: pa.Table) -> NDArray[np.object_]:
    """Of each row, one of ``KINDS``."""
    label = pc.fill_null(images["label"], -1).to_numpy()
    train = np.array(images["split"].to_pylist(), object) == "train"
    found = np.select([train, label == 0, label == 1], list(KINDS[:3]), KINDS[3])
    return found.astype(object)


def image_table(manifest: Manifest, found: Mapping[str, NDArray[Any]]) -> pa.Table:
    """Compare the images with each other, and put all that is known of them in one table.

    Parameters
    ----------
    found
        The columns that `flow.measured` gives.
    """
    images = manifest.table
    count, bad = len(images), found["error"] != ""
    columns: dict[str, Any] = {name: images[name] for name in images.column_names}
    for name in ("format", "mode", "width", "height", "brightness", "contrast", "sharpness"):
        columns[name] = pa.array(found[name], IMAGES.field(name).type, mask=bad)
    columns["bytes"] = pa.array(found["bytes"], mask=found["bytes"] < 0)
    columns["error"] = pa.array(found["error"], mask=~bad)
    columns["sha256"] = _hexadecimal(found["file_digest"], found["bytes"] < 0)
    columns["pixel_sha256"] = _hexadecimal(found["pixel_digest"], bad)

    duplicates = np.full(count, -1, np.int64)
    duplicates[~bad] = twins.same(found["pixel_digest"][~bad])
    near = twins.Twins(np.full(count, -1, np.int64), np.full(count, -1, np.int64), np.full(count, np.nan, np.float32))
    scores = {name: np.full(count, np.nan, np.float32) for name in ("brightness", "sharpness", "unusual")}
    reasons = np.full(count, "", object)
    names, kind = np.array(images["category"].to_pylist(), object), kinds(images)
    groups = 0
    for category in manifest.categories:
        rows = np.flatnonzero((names == category) & ~bad)
        if not len(rows):
            continue
        own = _near_distinct(found["thumbnail"][rows], duplicates[rows])
        near.group[rows] = np.where(own.group < 0, -1, own.group + groups)
        near.nearest[rows] = np.where(own.nearest < 0, -1, rows[own.nearest])
        near.similarity[rows] = own.similarity
        groups += int(own.group.max()) + 1
        stands = outliers.stand_out(
            found["brightness"][rows],
            found["contrast"][rows],
            found["sharpness"][rows],
            found["features"][rows] if "features" in found else None,
            kind[rows] == "train",
        )
        for name, column in scores.items():
            column[rows] = getattr(stands, name)
        reasons[rows] = stands.reasons

    columns["duplicate_group"] = pa.array(duplicates, mask=duplicates < 0)
    columns["near_group"] = pa.array(near.group, mask=near.group < 0)
    columns["near_image_id"] = images["image_id"].take(pa.array(near.nearest, mask=near.nearest < 0))
    columns["near_similarity"] = pa.array(near.similarity, mask=near.nearest < 0)
    columns |= {f"{name}_z": pa.array(column, mask=np.isnan(column)) for name, column in scores.items()}
    columns["outlier"] = pa.array(reasons, pa.string(), mask=reasons == "")
    columns |= {name: pa.nulls(count, pa.float32()) for name in ("map_x", "map_y")}
    return pa.table({name: columns[name] for name in IMAGES.names}, schema=IMAGES)


def _near_distinct(thumbnails: NDArray[np.uint8], duplicates: NDArray[np.int64]) -> twins.Twins:
    """Near duplicates among images of which those with the same pixels count once, as the first of them."""
    repeated = duplicates >= 0
    _, first = np.unique(duplicates[repeated], return_index=True)
    kept = ~repeated
    kept[np.flatnonzero(repeated)[first]] = True
    places = np.flatnonzero(kept)
    own = twins.near(thumbnails[places])
    group, nearest = np.full(len(kept), -1, np.int64), np.full(len(kept), -1, np.int64)
    similarity = np.full(len(kept), np.nan, np.float32)
    group[places] = own.group
    nearest[places] = np.where(own.nearest < 0, -1, places[own.nearest])
    similarity[places] = own.similarity
    leader = {int(duplicates[place]): place for place in places if duplicates[place] >= 0}
    for place in np.flatnonzero(~kept):
        first_one = leader[int(duplicates[place])]
        group[place], nearest[place] = group[first_one], nearest[first_one]
        similarity[place] = similarity[first_one]
    return twins.Twins(group, nearest, similarity)


def _hexadecimal(digests: NDArray[np.uint8], missing: NDArray[np.bool_]) -> pa.Array:
    return pa.array([row.tobytes().hex() for row in digests], pa.string(), mask=missing)


def category_rows(table: pa.Table) -> list[dict[str, Any]]:
    """One row a category: counts, sizes, formats, medians, twins; ``n_outlier`` leaves defective images out."""
    return [_category_row(name, part) for name, part in by_category(table)]


def by_category(table: pa.Table) -> list[tuple[str, pa.Table]]:
    """The rows of each category, sorted by name; slices, not copies, as long as the manifest's order is kept."""
    names = table["category"].to_pylist()
    starts = [row for row, name in enumerate(names) if row == 0 or name != names[row - 1]]
    ends = [*starts[1:], len(names)]
    return [(names[start], table.slice(start, end - start)) for start, end in zip(starts, ends, strict=True)]


def _category_row(name: str, table: pa.Table) -> dict[str, Any]:
    good = table.filter(pc.is_null(table["error"]))
    kind = Counter(kinds(table))
    sound = good.filter(pc.not_equal(pc.fill_null(good["label"], 0), 1))
    sizes = Counter(zip(good["width"].to_pylist(), good["height"].to_pylist(), strict=True))
    formats = Counter(zip(good["format"].to_pylist(), good["mode"].to_pylist(), strict=True))
    defects = Counter(table.filter(pc.equal(table["label"], 1))["defect"].to_pylist())
    return {
        "category": name,
        **{f"n_{one}": kind[one] for one in KINDS},
        "n_error": len(table) - len(good),
        "defects": {defect or "": defects[defect] for defect in sorted(defects, key=str)},
        "sizes": _common(sizes, lambda size: f"{size[0]} x {size[1]}"),
        "n_sizes": len(sizes),
        "size": _span(good),
        "formats": _common(formats, " ".join),
        "bytes": pc.sum(table["bytes"]).as_py() or 0,
        "median_brightness": _median(good["brightness"]),
        "median_sharpness": _median(good["sharpness"]),
        "n_duplicate": len(good) - good["duplicate_group"].null_count,
        "n_near": len(good) - good["near_group"].null_count,
        "n_outlier": len(sound) - sound["outlier"].null_count,
    }


def _common(counts: Counter[Any], text: Any) -> dict[str, int]:
    """The ten most frequent, most frequent first."""
    return {text(key): count for key, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:10]}


def _span(table: pa.Table) -> str:
    """The one size of all images, or from the smallest to the largest width and height."""
    if not len(table):
        return "-"
    ends = [pc.min_max(table[side]).as_py() for side in ("width", "height")]
    texts = [str(end["min"]) if end["min"] == end["max"] else f"{end['min']}-{end['max']}" for end in ends]
    return " x ".join(texts)


def _median(values: pa.ChunkedArray) -> float | None:
    known: Sequence[float] = values.drop_null().to_pylist()
    return float(np.median(known)) if len(known) else None
