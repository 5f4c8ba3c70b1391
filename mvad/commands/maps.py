"""Pictures of the anomaly maps in results, one file an image that kept its map, each as large as its image.

::

    DIR/<image id>.overlay.png     the upright image with its map in colours
    DIR/<image id>.map.png         16-bit grey: 1 to 65535 from the least to the greatest patch score, 0 where not seen
    DIR/<image id>.map.npy         float32, the values themselves; NaN where the model did not see the image
    DIR/maps.json                  how values become colours or grey, by category; and how many files there are
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray
from PIL import Image

from mvad import results, storage
from mvad.anomaly_maps.colours import Scale, overlay
from mvad.anomaly_maps.geometry import map_on_image, seen_part
from mvad.console import Reporter
from mvad.data.image_size import ImageSize
from mvad.data.images import read_image
from mvad.errors import ImageError, UsageError
from mvad.options import MapOptions
from mvad.results.run_record import Result, exit_code
from mvad.results.stored_maps import patch_score_range, read_scale, stored_map
from mvad.runtime.session import ray_session

RECORD = "maps.json"
SUFFIXES = {"overlay": ".overlay.png", "png16": ".map.png", "npy": ".map.npy"}
COLUMNS = ("image_id", "uri", "label", "is_anomaly", "width", "height", "patch_scores", "patch_grid")
LONGEST_NAME = 200  # bytes, well below what file systems allow
DEEPEST = 65535  # of 16-bit grey


@dataclass(frozen=True)
class Drawing:
    """How the maps of one category are drawn: the geometry, and the values that colours or grey begin and end at."""

    size: ImageSize
    scale: Scale
    format: str
    only: str
    max_pixels: int


@dataclass(frozen=True)
class Drawn:
    """What came of one file of score rows: pictures written, the last of them, and what could not be drawn."""

    written: int
    last: str | None
    errors: list[dict[str, str]]


def maps(out: str, to: str, **options: Any) -> Result:
    """Make pictures of the maps in OUT in the folder ``to``; options as in `options.MapOptions`.

    The colours of a category have one scale, made from its own maps and its threshold (`overlays.colour_scale`); it is
    written down in ``maps.json``. Pictures of the same names are replaced.

    Raises
    ------
    UsageError
        OUT holds no results of a run that has ended, or none with maps; or the folder holds other files.
    """
    chosen = MapOptions(**options)
    report = Reporter(chosen.quiet)
    source, target = storage.to_uri(out), storage.to_uri(to)
    run = results.read_finished_run(source)
    results.check_beside(source, target, ("maps",))
    _check_folder(target)
    parts = _parts(source, chosen.category_names)
    drawings = {}
    for category, files in parts.items():
        drawing = _drawing(source, category, files, run, chosen)
        if drawing is not None:
            drawings[category] = drawing
    if not drawings:
        raise UsageError(
            f"no image in {storage.readable(source)} kept its map; score with --maps all, by a method that has maps."
        )
    content: dict[str, Any] = {"results": storage.readable(source), "format": chosen.format, "only": chosen.only}
    content["categories"] = {name: _described(drawing) for name, drawing in drawings.items()}
    results.write_json(storage.join(target, RECORD), content)
    written, errors = 0, []
    with ray_session(chosen.address, say=report.line):
        task = ray.remote(draw_part).options(num_cpus=1)
        work = {
            task.remote(file, category, drawings[category], target): file
            for category, files in parts.items()
            for file in files
            if category in drawings
        }
        with report.stage("maps", len(work), unit="files of rows") as stage:
            while work:
                (done,), _ = ray.wait(list(work))
                drawn: Drawn = ray.get(done)
                del work[done]
                if drawn.last is not None and not storage.exists(drawn.last):
                    raise RuntimeError(
                        f"{storage.readable(drawn.last)} was written and is not there; {storage.readable(target)} must "
                        "be a place that all machines of the cluster share."
                    )
                written += drawn.written
                errors += drawn.errors
                stage.advance(1)
    errors.sort(key=lambda error: error["image_id"])
    content |= {"n_written": written, "n_errors": len(errors), "errors": errors[:1000]}
    results.write_json(storage.join(target, RECORD), content)
    report.errors(errors, RECORD)
    report.print(f"{written:,} maps in {storage.readable(target)}")
    return Result(exit_code(chosen, len(errors), written + len(errors)), errors=errors)


def _check_folder(target: str) -> None:
    present = storage.list_folder(target)
    if present and RECORD not in present:
        raise UsageError(
            f"{storage.readable(target)} holds other files ({present[0]}); give --to an empty or new folder."
        )


def _parts(out: str, wanted: list[str] | None) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = defaultdict(list)
    for category, file in results.parts(out):
        parts[category].append(file)
    unknown = [name for name in wanted or [] if name not in parts]
    if unknown:
        raise UsageError(f"unknown category {unknown[0]!r}; {storage.readable(out)} has: {', '.join(parts)}.")
    return {name: files for name, files in parts.items() if wanted is None or name in wanted}


def _drawing(out: str, category: str, files: list[str], run: dict[str, Any], options: MapOptions) -> Drawing | None:
    """How to draw a category; None if none of its images kept its map."""
    size = run["categories"].get(category, {}).get("size")
    if size is None:
        return None
    if options.format == "overlay":
        scale = read_scale(out, category, ImageSize(**size))
    else:
        ends = patch_score_range(files)
        scale = None if ends is None else Scale(*ends, judged=False)
    if scale is None:
        return None
    return Drawing(ImageSize(**size), scale, options.format, options.only, options.max_pixels)


def _described(drawing: Drawing) -> dict[str, Any]:
    facts: dict[str, Any] = {"low": drawing.scale.low, "high": drawing.scale.high}
    if drawing.format == "overlay":
        facts["colours"] = "begin at low and end at high" + (
            "; outlined and orange at the middle, where maps of flagged images begin" if drawing.scale.judged else ""
        )
    if drawing.format == "png16":
        facts["patch_score"] = f"low + (grey - 1) / {DEEPEST - 1} * (high - low); grey 0 was not seen by the model"
    return facts


def draw_part(file: str, category: str, drawing: Drawing, target: str) -> Drawn:
    """Draw the maps of one file of score rows (a URI) into the folder ``target``."""
    rows = results.read_part(file, COLUMNS)
    rows = rows.filter(pc.and_(pc.is_valid(rows["patch_scores"]), _chosen(rows, drawing.only)))
    errors, last = [], None
    for batch in rows.to_batches(max_chunksize=8):
        for row in batch.to_pylist():
            place = storage.join(target, safe_path(row["image_id"]) + SUFFIXES[drawing.format])
            try:
                data = DRAW[drawing.format](row, drawing)
            except ImageError as error:
                reason = " ".join(str(error).split())
                errors.append({"image_id": row["image_id"], "category": category, "split": "test", "error": reason})
                continue
            storage.write(place, data)
            last = place
    return Drawn(len(rows) - len(errors), last, errors)


def _chosen(rows: pa.Table, only: str) -> pa.ChunkedArray | pa.Scalar:
    if only == "anomalous":
        return pc.fill_null(rows["is_anomaly"], False)
    if only == "mistakes":
        return pc.fill_null(pc.not_equal(rows["is_anomaly"], rows["label"].cast(pa.bool_())), False)
    return pa.scalar(True)


def draw_overlay(row: dict[str, Any], drawing: Drawing) -> bytes:
    """The image of a score row with its map over it, as PNG."""
    image = read_image(row["uri"], drawing.max_pixels)
    if image.size != (row["width"], row["height"]):
        raise ImageError(
            f"has changed since it was scored: {image.width} x {image.height} pixels instead of "
            f"{row['width']} x {row['height']}"
        )
    return _png(overlay(image, _square(row, drawing), drawing.size, drawing.scale))


def draw_png16(row: dict[str, Any], drawing: Drawing) -> bytes:
    """The map of a score row as 16-bit grey PNG."""
    values = _whole(row, drawing)
    low, high = drawing.scale.low, drawing.scale.high
    share = np.clip((values - low) / (high - low), 0, 1) if high > low else np.where(np.isnan(values), np.nan, 0)
    grey = np.nan_to_num(1 + share * (DEEPEST - 1), nan=0).round().astype(np.uint16)
    return _png(Image.fromarray(grey))


def draw_npy(row: dict[str, Any], drawing: Drawing) -> bytes:
    """The map of a score row as float32."""
    buffer = io.BytesIO()
    np.save(buffer, _whole(row, drawing), allow_pickle=False)
    return buffer.getvalue()


DRAW: Mapping[str, Callable[[dict[str, Any], Drawing], bytes]] = {
    "overlay": draw_overlay,
    "png16": draw_png16,
    "npy": draw_npy,
}


def _square(row: dict[str, Any], drawing: Drawing) -> NDArray[np.float32]:
    square = stored_map(row, drawing.size)
    if square is None:
        raise ImageError("kept no map")
    return square


def _whole(row: dict[str, Any], drawing: Drawing) -> NDArray[np.float32]:
    """The map in the frame of the whole upright image, (height, width) float32, NaN where the model did not see it."""
    width, height = row["width"], row["height"]
    if width * height > drawing.max_pixels:
        raise ImageError(f"has {width} x {height} pixels, more than --max-pixels {drawing.max_pixels}")
    part = seen_part(drawing.size, width, height)
    whole = np.full((height, width), np.nan, np.float32)
    whole[part.top : part.bottom, part.left : part.right] = map_on_image(
        _square(row, drawing), drawing.size, width, height
    )
    return whole


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def safe_path(image_id: str) -> str:
    """A relative path for files made from an image: never outside its folder, and another for every id.

    Folders stay folders; what may not be in a name, or would lead elsewhere, is percent-encoded; a name too long for
    file systems is cut and ends in a part of its hash.
    """
    *folders, name = image_id.split("/")
    return "/".join([*(_folder(folder) for folder in folders), _safe(name)])


def _folder(name: str) -> str:
    safe = _safe(name)
    for suffix in SUFFIXES.values():
        if safe.endswith(suffix):  # it would take the place of a picture
            safe = safe.removesuffix(suffix) + suffix.replace(".", "%2E")
    return safe


def _safe(name: str) -> str:
    if not name.strip("."):
        return name.replace(".", "%2E") or "%"
    safe = re.sub(r'[\x00-\x1f\x7f%~\\:*?"<>|]', lambda match: f"%{ord(match[0]):02X}", name)
    if len(safe.encode()) <= LONGEST_NAME:
        return safe
    digest = hashlib.sha256(name.encode()).hexdigest()[:32]
    return safe.encode()[: LONGEST_NAME - len(digest) - 1].decode(errors="ignore") + "~" + digest
