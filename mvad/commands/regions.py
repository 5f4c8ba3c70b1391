"""Export where the defects are, as boxes or masks in the image's own pixels, for other programs.

::

    DIR/regions.csv                           csv: one row per region
    DIR/coco.json                             coco: all images and their boxes
    DIR/labels/<image id>.txt, data.yaml      yolo: a file per image, and the classes
    DIR/labels/<image id>.json                labelme: a file per image
    DIR/masks/<image id>.png                  mask-png: 255 where the map is above the pixel threshold, else 0
    DIR/regions.json                          what was exported, and the errors
"""

from collections.abc import Mapping
from typing import Annotated, Any

from typer import Option

from mvad import results, storage
from mvad.console import Reporter, plural
from mvad.errors import UsageError
from mvad.exports.folder import prepare_folder
from mvad.exports.rows import ExportRows, files_by_category
from mvad.exports.write import write_coco, write_csv, write_labelme, write_masks, write_yolo
from mvad.options import RegionsOptions, Results, takes
from mvad.results.result import MAX_LISTED_ERRORS, Result, exit_code

RECORD = "regions.json"
WRITERS = {"csv": write_csv, "coco": write_coco, "yolo": write_yolo, "labelme": write_labelme}


@takes(RegionsOptions)
def regions(
    out: Results, to: Annotated[str, Option(help="Folder for the files; a path or a URI.")], options: RegionsOptions
) -> Result:
    """Export the regions in results, where the defects are: as boxes for other programs, or as masks.

    Images without regions because nothing in them is above the pixel threshold are exported as such; those that were
    scored without a pixel threshold are left out, and counted. Files of the same names are replaced. No images are
    read.

    Raises
    ------
    UsageError
        OUT holds no results of a finished run, or none with regions, or with maps for masks; or the folder holds other
        files.

    Examples
    --------
    >>> mvad.regions("results", "regions", format="coco", quiet=True).errors
    []
    """
    report, source, target = Reporter(options.quiet), storage.to_uri(out), storage.to_uri(to)
    run = results.read_finished_run(source)
    prepare_folder(source, target, "regions")
    rows = _rows(source, run["categories"], options)
    record: dict[str, Any] = {"results": storage.readable(source), "format": options.format, "only": options.only}
    record["pixel_thresholds"] = {name: run["categories"].get(name, {}).get("pixel_threshold") for name in rows.files}
    results.write_json(storage.join(target, RECORD), record)
    with report.stage("regions", rows.n_files, unit="files of rows") as stage:
        rows.advance = stage.advance
        if options.format == "mask-png":
            write_masks(rows, target, run["categories"], options.max_pixels)
        else:
            WRITERS[options.format](rows, target)
    n_errors = len(rows.errors)
    record |= {"n_images": rows.n_images, "n_regions": rows.n_regions, "n_left_out": rows.n_left_out}
    record |= {"n_errors": n_errors, "errors": rows.errors[:MAX_LISTED_ERRORS]}
    results.write_json(storage.join(target, RECORD), record)
    report.errors(rows.errors, RECORD)
    if rows.n_left_out:
        kept = "no map" if options.format == "mask-png" else "no regions"
        report.info(f"{plural(rows.n_left_out, 'image')} left out, with {kept} in the results")
    counts = f"{plural(rows.n_regions, 'region')} of {plural(rows.n_images, 'image')}"
    report.result(f"{counts} in {storage.readable(target)}")
    return Result(exit_code(options, n_errors, rows.n_images + n_errors), errors=rows.errors)


def _rows(out: str, facts: Mapping[str, Any], options: RegionsOptions) -> ExportRows:
    """The rows to export from OUT (a URI), of whose categories ``run.json`` says ``facts``; UsageError if none."""
    files, needed = files_by_category(out, options.categories), "regions"
    if options.format == "mask-png":
        files = {name: files[name] for name in files if facts.get(name, {}).get("pixel_threshold") is not None}
        needed = "patch_scores"
    rows = ExportRows(files, options.only, needed)
    if not rows.are_there():
        if files and options.format == "mask-png":
            raise UsageError(
                f"no image in {storage.readable(out)} kept its map, from which masks are drawn; score with --maps "
                "anomalous or --maps all."
            )
        raise UsageError(
            f"no image in {storage.readable(out)} has regions, which need a pixel threshold; fit with a method that "
            "has maps, in this version, and score again."
        )
    return rows
