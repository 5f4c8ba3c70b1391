"""Export the anomaly maps in results as files, one per image that kept its map and as large as the image.

::

    DIR/<image id>.overlay.png     the upright image with its map in colours
    DIR/<image id>.map.png         16-bit grey: 1 to 65535 from the lowest to the highest patch score, 0 where not seen
    DIR/<image id>.map.npy         float32, the values themselves; NaN where the model did not see the image
    DIR/maps.json                  how values become colours or grey, by category; and the number of files
"""

from typing import Annotated, Any, NamedTuple

import pyarrow.compute as pc
from typer import Option

from mvad import results, runtime, storage
from mvad.anomaly_maps.colours import Scale
from mvad.anomaly_maps.export import MapStyle, draw, map_path
from mvad.console import Reporter
from mvad.data.image_size import ImageSize
from mvad.data.images import FULL_DEPTH
from mvad.errors import ImageError, ResultsError, UsageError, one_line
from mvad.exports.folder import prepare_folder
from mvad.exports.rows import files_by_category, is_selected
from mvad.options import MapOptions, Results, takes
from mvad.results.result import Result, exit_code
from mvad.results.stored_maps import patch_score_range, read_scale, stored_map

RECORD = "maps.json"
MAX_RECORDED_ERRORS = 1000
ROWS_PER_CHUNK = 8
COLUMNS = ("image_id", "uri", "label", "is_anomaly", "width", "height", "patch_scores", "patch_grid")


@takes(MapOptions)
def maps(
    out: Results, to: Annotated[str, Option(help="Folder for the files; a path or a URI.")], options: MapOptions
) -> Result:
    """Export the anomaly maps in results as pictures or arrays, each as large as its image.

    The maps of a category share one colour scale, computed from its own maps and its threshold
    (`anomaly_maps.colours.colour_scale`) and recorded in ``maps.json``. Files of the same names are replaced.

    Raises
    ------
    UsageError
        OUT holds no results of a finished run, or none with maps; or the folder holds other files.

    Examples
    --------
    >>> mvad.maps("results", "maps", quiet=True).errors
    []
    """
    import ray

    report, source, target = Reporter(options.quiet), storage.to_uri(out), storage.to_uri(to)
    run = results.read_finished_run(source)
    prepare_folder(source, target, "maps")
    files = files_by_category(source, options.categories)
    styles, errors = _styles(source, files, run, options)
    record: dict[str, Any] = {"results": storage.readable(source), "format": options.format, "only": options.only}
    record["categories"] = {category: style.describe() for category, style in styles.items()}
    results.write_json(storage.join(target, RECORD), record)
    n_written = 0
    tasks = [(file, category, style) for category, style in styles.items() for file in files[category]]
    with runtime.ray_session(options.address, say=report.info):
        export, keys = ray.remote(num_cpus=1)(export_file), storage.Keys()
        with report.stage("maps", len(tasks), unit="files of rows") as stage:
            for exported in runtime.as_completed([export.remote(*task, options.only, target, keys) for task in tasks]):
                _ensure_shared(exported.last_uri, target)
                n_written += exported.n_written
                errors += exported.errors
                stage.advance(1)
    errors.sort(key=lambda error: error["image_id"])
    record |= {"n_written": n_written, "n_errors": len(errors), "errors": errors[:MAX_RECORDED_ERRORS]}
    results.write_json(storage.join(target, RECORD), record)
    report.errors(errors, RECORD)
    report.result(f"{n_written:,} maps in {storage.readable(target)}")
    return Result(exit_code(options, len(errors), n_written + len(errors)), errors=errors)


def _styles(
    out: str, files: dict[str, list[str]], run: dict[str, Any], options: MapOptions
) -> tuple[dict[str, MapStyle], list[dict[str, str]]]:
    """Choose how to draw each category of which at least one image kept its map; errors of those with damaged files."""
    styles, errors = {}, []
    for category in files:
        facts = run["categories"].get(category, {})
        if facts.get("size") is None:
            continue
        size, bit_depth = ImageSize(**facts["size"]), facts.get("bit_depth", FULL_DEPTH)
        try:
            if options.format == "overlay":
                scale = read_scale(out, category, size)
            else:
                ends = patch_score_range(files[category])
                scale = None if ends is None else Scale(*ends, has_threshold=False)
        except ResultsError as error:
            errors.append({"image_id": category, "category": category, "split": "test", "error": str(error)})
            continue
        if scale is not None:
            styles[category] = MapStyle(options.format, size, scale, options.max_pixels, bit_depth)
    if not styles and errors:
        raise UsageError(errors[0]["error"])
    if not styles:
        raise UsageError(
            f"no image in {storage.readable(out)} kept its map; score with --maps all and a method that has maps."
        )
    return styles, errors


class Exported(NamedTuple):
    """What became of one file of score rows; ``last_uri`` is the last file written."""

    n_written: int
    last_uri: str | None
    errors: list[dict[str, str]]


def export_file(file: str, category: str, style: MapStyle, only: str, target: str, keys: storage.Keys) -> Exported:
    """Export the maps of one file of score rows (a URI) to the folder ``target``, with the ``keys`` of both."""
    try:
        rows = results.read_part(file, COLUMNS)
    except ResultsError as error:
        return Exported(0, None, [{"image_id": category, "category": category, "split": "test", "error": str(error)}])
    rows = rows.filter(pc.and_(pc.is_valid(rows["patch_scores"]), is_selected(rows, only)))
    errors, last_uri = [], None
    for batch in rows.to_batches(max_chunksize=ROWS_PER_CHUNK):
        for row in batch.to_pylist():
            try:
                model_map = stored_map(row, style.size)
                if model_map is None:
                    raise ImageError("kept no map")
                content = draw(row, model_map, style)
            except ImageError as error:
                failed = {"image_id": row["image_id"], "category": category, "split": "test", "error": one_line(error)}
                errors.append(failed)
                continue
            last_uri = storage.join(target, map_path(row["image_id"], style.format))
            storage.write(last_uri, content)
    return Exported(len(rows) - len(errors), last_uri, errors)


def _ensure_shared(uri: str | None, target: str) -> None:
    if uri is not None and not storage.exists(uri):
        raise RuntimeError(
            f"{storage.readable(uri)} was written on another machine and cannot be read here; --to "
            f"{storage.readable(target)} must be a folder that all machines of the cluster share."
        )
