"""Files of score rows of a finished run, column by column as a test names them, without models or Ray."""

import pyarrow as pa

from mvad import results
from mvad.results.schema import SCORES, RowOrigin, score_table
from mvad.results.store import write_part
from mvad.storage import join, to_uri

CROPPED = {"resize": 128, "crop": 64}


def write_rows(out, category, rows, without=()):
    """Write a file of score rows of a category, but for the columns ``without``.

    Rows are dictionaries of columns, with ``image_id`` at least. Images are 120 x 60 pixels unless they say otherwise.
    """
    defaults = {"split": "test", "status": "ok", "score": 1.5, "width": 120, "height": 60, "category": category}
    rows = [defaults | {"uri": f"file:///data/{row['image_id']}"} | row for row in rows]
    names = {name for row in rows for name in row} - {"image_id", "uri", "category", "split"}
    columns = {name: pa.array([row.get(name) for row in rows], SCORES.field(name).type) for name in names}
    images = pa.table({name: [row[name] for row in rows] for name in ("image_id", "uri", "category", "split")})
    table = score_table(images, RowOrigin("run-1"), columns)
    write_part(to_uri(out), table.drop_columns(list(without)))


def write_run(out, **pixel_thresholds):
    """Write ``run.json`` of a finished run of categories with these pixel thresholds."""
    categories = {name: {"size": CROPPED, "pixel_threshold": value} for name, value in pixel_thresholds.items()}
    run = {"command": "score", "status": "done", "categories": categories, "exit_code": 0}
    results.write_json(join(to_uri(out), "run.json"), run)
