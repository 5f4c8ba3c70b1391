"""What the tables of results hold.

::

    OUT/scores/<safe name>/part-*.parquet    one row per image; one category per file, and ``category`` a column of it
    OUT/scores/<safe name>/_joined-*.json    while `mvad compact` replaces files: which do not count any more
    OUT/summary.parquet, OUT/summary.json    one row per category, then their mean
    OUT/run.json                             configuration, versions, models, counts, seconds
    OUT/_SUCCESS                             written last, and only if the exit code is 0
    OUT/report.html, OUT/report, OUT/maps    for people, by `mvad report` and `mvad maps`
    OUT/regions                              for other programs, by `mvad regions`

Columns are added at the end, never changed.
"""

import datetime
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

REGIONS = pa.list_(  # of an image, largest peak first
    pa.struct(
        [
            pa.field("x", pa.int32()),  # box: left, top, width and height in the upright image's own pixels
            pa.field("y", pa.int32()),
            pa.field("width", pa.int32()),
            pa.field("height", pa.int32()),
            pa.field("area", pa.int64()),  # pixels of the box where the map is above the pixel threshold
            pa.field("peak", pa.float32()),  # of the map
            pa.field("mean", pa.float32()),
        ]
    )
)
SCORES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("label", pa.int8()),
        pa.field("defect", pa.string()),
        pa.field("mask_uri", pa.string()),
        pa.field("score", pa.float32()),  # higher is more abnormal; never clamped or rescaled
        pa.field("p_value", pa.float64()),
        pa.field("threshold", pa.float64()),
        pa.field("is_anomaly", pa.bool_()),  # null where there is no threshold
        pa.field("status", pa.string(), nullable=False),  # ok | error
        pa.field("error", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("patch_scores", pa.list_(pa.float32())),  # row by row; patch_grid is [rows, columns]
        pa.field("patch_grid", pa.list_(pa.int32())),
        pa.field("model_id", pa.string()),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("file_size", pa.int64()),  # bytes, when the image was listed; null if unknown
        pa.field("file_mtime", pa.timestamp("us", "UTC")),  # when the file was last changed
        pa.field("verdict", pa.string()),  # good | uncertain | anomalous; null where there is no threshold
        pa.field("regions", REGIONS),  # where the map is above the pixel threshold; null without one
        pa.field("anomalous_area", pa.float64()),  # share of the pixels looked at that are above it
        # With --category auto, else null: `calibration.assignment`.
        pa.field("margin", pa.float64()),  # by how much strange_share is larger for the second best category
        pa.field("strange_share", pa.float64()),  # patches that are unlike good ones of the nearest category
        pa.field("nearest_category", pa.string()),  # that of the row, unless the product is unknown
        pa.field("night", pa.date32()),  # of `mvad nightly`, else null
        pa.field("scored_at", pa.timestamp("us", "UTC")),  # when the row was written
        pa.field("method", pa.string()),  # null where no model was used
        pa.field("backbone", pa.string()),
    ]
)
SUMMARY = pa.schema(
    [
        pa.field("category", pa.string(), nullable=False),  # the last row is the mean
        pa.field("method", pa.string()),
        pa.field("backbone", pa.string()),
        pa.field("n_train", pa.int64()),  # good images the model was fitted on
        pa.field("n_good", pa.int64()),
        pa.field("n_defect", pa.int64()),
        pa.field("n_error", pa.int64()),  # unreadable files, in training and test
        pa.field("image_auroc", pa.float64()),
        pa.field("image_ap", pa.float64()),
        pa.field("image_f1_max", pa.float64()),
        pa.field("threshold", pa.float64()),
        pa.field("recall_at_threshold", pa.float64()),
        pa.field("false_alarm_rate", pa.float64()),
        pa.field("pixel_auroc", pa.float64()),
        pa.field("pixel_aupro", pa.float64()),
        pa.field("fit_seconds", pa.float64()),  # the category's share of the actors' time, and its coreset
        pa.field("score_seconds", pa.float64()),  # the category's share of the actors' time
        pa.field("images_per_second", pa.float64()),  # images scored / score_seconds
        pa.field("n_calibration", pa.int64()),  # good images that set the threshold
        pa.field("n_scored", pa.int64()),
        pa.field("n_flagged", pa.int64()),
        pa.field("drift_p_value", pa.float64()),  # of the scores against the calibration scores: Kolmogorov-Smirnov
        pa.field("drift_share_below", pa.float64()),  # images with a p-value below 0.05
        pa.field("drift_median_shift", pa.float64()),  # in robust deviations of the calibration scores
        pa.field("drifted", pa.bool_()),  # the batch as a whole scores differently: see calibration.drift
        pa.field("note", pa.string()),  # why a number is missing
        pa.field("n_found", pa.int64()),  # defective images that are flagged; null without a threshold
        pa.field("n_false_alarms", pa.int64()),  # good images that are flagged; null without a threshold
        pa.field("n_uncertain", pa.int64()),  # images with that verdict; null without a threshold
        pa.field("pixel_ap", pa.float64()),
        pa.field("pixel_f1_max", pa.float64()),
        pa.field("pixel_aupro_5", pa.float64()),  # up to a false-positive rate of 5 %
        pa.field("pixel_aupimo", pa.float64()),  # null without good test images that have a map
        pa.field("defects_touched", pa.float64()),  # share of defect regions; null without a pixel threshold
    ]
)


class RowOrigin(NamedTuple):
    """What score rows say of the run that writes them."""

    run_id: str
    night: datetime.date | None = None


def constant(value: Any, count: int, type_: pa.DataType) -> pa.Array:
    """A column that holds one value ``count`` times."""
    return pa.repeat(pa.scalar(value, type_), count)


def score_table(images: pa.Table, origin: RowOrigin, columns: Mapping[str, Any]) -> pa.Table:
    """Rows of the score table: the manifest's columns of images, then ``columns``, null where there is none."""
    count = len(images)
    facts = {**origin._asdict(), "scored_at": datetime.datetime.now(datetime.timezone.utc)}
    values = {name: images[name] for name in SCORES.names if name in images.column_names}
    values |= {name: constant(fact, count, SCORES.field(name).type) for name, fact in facts.items()} | dict(columns)
    return pa.table({field.name: values.get(field.name, pa.nulls(count, field.type)) for field in SCORES}, SCORES)


def plain_rows(rows: pa.RecordBatch | pa.Table) -> list[dict[str, Any]]:
    """Rows as JSON has them: dates as text, numbers with their fewest digits, those that are not finite as None."""
    types = {field.name: field.type for field in rows.schema}
    return [{name: _plain(value, types[name]) for name, value in row.items()} for row in rows.to_pylist()]


def _plain(value: Any, type_: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_floating(type_):
        if not math.isfinite(value):
            return None
        return float(str(np.float32(value))) if pa.types.is_float32(type_) else value
    if pa.types.is_list(type_):
        return [_plain(item, type_.value_type) for item in value]
    if pa.types.is_struct(type_):
        return {field.name: _plain(value[field.name], field.type) for field in type_}
    return value.isoformat() if isinstance(value, datetime.date) else value
