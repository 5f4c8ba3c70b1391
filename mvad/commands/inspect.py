import time
from typing import Annotated

from typer import Option

from mvad import inspection, pipeline, runtime, storage
from mvad.console import Reporter
from mvad.data.manifest import read_manifest
from mvad.options import Data, InspectOptions, takes
from mvad.results.result import Result


@takes(InspectOptions)
def inspect(
    data: Data,
    out: Annotated[
        str | None, Option(help="Page to write: FILE.html, with FILE.parquet and FILE.json next to it.")
    ] = None,
    *,
    options: InspectOptions,
) -> Result:
    """Show what is in DATA before any model: counts, unreadable files, duplicates, outliers.

    Ray tasks read each image once, and the backbone sees it in the actor pool. Nothing is written without an ``out``, a
    path or URI ending in ``.html``: it becomes the page, next to a table and a summary of the same name.

    Raises
    ------
    UsageError
        Unusable input, an unknown name, missing weights, or an ``out`` that exists or is not an ``.html``.

    Examples
    --------
    >>> [row["category"] for row in mvad.inspect("sample", features=False, limit=4, quiet=True).summary]
    ['bracket', 'perforated', 'weave']
    """
    started = time.monotonic()
    reporter = Reporter(options.quiet)
    uris = None if out is None else inspection.output_uris(out, replace=options.new_run)
    manifest = read_manifest(data, options)
    network = inspection.load_network(options) if options.features else None
    inspection.ensure_no_masks(manifest, options)
    reporter.image_count(manifest)
    pictures: dict[int, bytes] = {}

    with pipeline.job_session(options, reporter):
        pool = runtime.actor_pool(options.actors, len(manifest.table))
        bit_depths = pipeline.measure_bit_depths(manifest.table, options)
        with reporter.stage("inspect", len(manifest.table)) as stage:
            measurements = inspection.measure_images(manifest.table, network, options, pool, stage, bit_depths)
            stage.busy_with("comparing images")
            images = inspection.image_table(manifest, measurements)
            if network is not None:
                images = inspection.add_embedding(images, measurements["features"], options.embedding)
        inspection.write_starter_masks(manifest, options, bit_depths, reporter)
        if uris is not None:
            rows = inspection.pictured_rows(images)
            with reporter.stage("pictures", len(rows)) as stage:
                pictures = inspection.make_thumbnails(images, rows, options, pool, stage, bit_depths)

    result = inspection.Inspection.of(manifest, images, options)
    result.seconds["total"] = time.monotonic() - started
    inspection.print_inspection(result, manifest, options, reporter)
    if uris is not None:
        inspection.write_inspection(uris, result, manifest, pictures, options)
        reporter.result(f"page: {storage.readable(uris[0])}, with {' and '.join(inspection.SUFFIXES[1:])} next to it")
    return result
