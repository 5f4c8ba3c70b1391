"""Write an export: one file of all images, or one file per image."""

from collections.abc import Callable, Mapping
from typing import Any

from mvad import storage
from mvad.data.image_size import ImageSize
from mvad.errors import ImageError, one_line
from mvad.exports.coco import coco_document
from mvad.exports.csv_rows import csv_document
from mvad.exports.folder import label_path, repeated_stems
from mvad.exports.labelme import labelme_document
from mvad.exports.masks import mask_png
from mvad.exports.rows import ExportRows
from mvad.exports.yolo import FACTS, yolo_labels

ROWS_PER_CHUNK = 4 * storage.THREADS  # files of images that are written together

Drawing = Callable[[str, dict[str, Any], str], bytes]  # from category, score row and URI of the file to its content


def write_csv(rows: ExportRows, target: str) -> None:
    """Write ``regions.csv`` to the folder ``target`` (a URI), in the memory that one file of rows takes."""
    storage.write_stream(storage.join(target, "regions.csv"), csv_document(rows.tables()))


def write_coco(rows: ExportRows, target: str) -> None:
    """Write ``coco.json`` to the folder ``target`` (a URI), in the memory that one file of rows takes."""
    storage.write_stream(storage.join(target, "coco.json"), coco_document(rows.tables(), list(rows.files)))


def write_yolo(rows: ExportRows, target: str) -> None:
    """Write ``labels/<image id>.txt`` for each image to the folder ``target`` (a URI), and the list of classes."""
    for name, content in FACTS.items():
        storage.write(storage.join(target, name), content)
    write_per_image(rows, storage.join(target, "labels"), ".txt", lambda _, row, __: yolo_labels(row))


def write_labelme(rows: ExportRows, target: str) -> None:
    """Write ``labels/<image id>.json`` for each image to the folder ``target`` (a URI)."""
    write_per_image(rows, storage.join(target, "labels"), ".json", lambda _, row, uri: labelme_document(row, uri))


def write_masks(rows: ExportRows, target: str, facts: Mapping[str, Any], max_pixels: int) -> None:
    """Write ``masks/<image id>.png`` for each image to the folder ``target`` (a URI).

    ``facts`` is what ``run.json`` says of each category, with its ``size`` and ``pixel_threshold``.
    """
    sizes = {category: ImageSize(**facts[category]["size"]) for category in rows.files}

    def draw(category: str, row: dict[str, Any], _: str) -> bytes:
        return mask_png(row, sizes[category], facts[category]["pixel_threshold"], max_pixels)

    write_per_image(rows, storage.join(target, "masks"), ".png", draw)


def write_per_image(rows: ExportRows, folder: str, suffix: str, draw: Drawing) -> None:
    """Write a file per image to a folder (a URI), called as `folder.label_path` says; ImageErrors of drawing are noted.

    Contents are made one after the other and written together, `ROWS_PER_CHUNK` at a time.
    """
    repeated = repeated_stems(rows.image_ids())
    for category, table in rows.tables():
        for batch in table.to_batches(max_chunksize=ROWS_PER_CHUNK):
            files = []
            for row in batch.to_pylist():
                uri = storage.join(folder, label_path(row["image_id"], suffix, repeated))
                try:
                    files.append((uri, draw(category, row, uri)))
                except ImageError as error:
                    rows.refuse(row, category, one_line(error))
            storage.parallel_map(lambda file: storage.write(*file), files)
