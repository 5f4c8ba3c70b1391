"""The command ``mvad inspect``: what is in a folder of images, before any model is fitted."""

from __future__ import annotations

import time
from typing import Any

from mvad import storage
from mvad.console import Reporter
from mvad.data.manifest import read_manifest
from mvad.features.backbones import describe
from mvad.features.weights import Network
from mvad.inspection.distributed import make_thumbnails, measure_images
from mvad.inspection.embedding import add_embedding
from mvad.inspection.page import pictured_rows
from mvad.inspection.result import SUFFIXES, Inspection, output_uris, write_inspection
from mvad.inspection.table import image_table
from mvad.inspection.terminal import print_inspection
from mvad.options import InspectOptions
from mvad.runtime.session import actor_pool, ray_session


def inspect(data: str, out: str | None = None, **kwargs: Any) -> Inspection:
    """Show what is in DATA before any model; options as in `options.InspectOptions`.

    Ray tasks read each image once, and the backbone sees it in the actor pool. Nothing is written without an ``out``, a
    path or URI ending in ``.html``: it becomes the page, next to a table and a summary of the same name.

    Raises
    ------
    UsageError
        Unusable input, an unknown name, missing weights, or an ``out`` that exists or is not an ``.html``.
    """
    started = time.monotonic()
    options = InspectOptions(**kwargs)
    reporter = Reporter(options.quiet)
    uris = None if out is None else output_uris(out, replace=options.new_run)
    spec = describe(options.backbone) if options.features else None
    if spec is not None:
        spec.check_size(options.size)
    manifest = read_manifest(data, options)
    network = None if spec is None else Network.load(spec, options.weights)
    pictures: dict[int, bytes] = {}

    with ray_session(options.address, options.actors, reporter.line):
        pool = actor_pool(options.actors, len(manifest.table))
        with reporter.stage("inspect", len(manifest.table)) as stage:
            measurements = measure_images(manifest.table, network, options, pool, stage)
            stage.busy_with("comparing images")
            images = image_table(manifest, measurements)
            if network is not None:
                images = add_embedding(images, measurements["features"], options.embedding)
        if uris is not None:
            rows = pictured_rows(images)
            with reporter.stage("pictures", len(rows)) as stage:
                pictures = make_thumbnails(images, rows, options, pool, stage)

    inspection = Inspection.of(manifest, images, options)
    inspection.seconds["total"] = time.monotonic() - started
    print_inspection(inspection, manifest, options, reporter)
    if uris is not None:
        write_inspection(uris, inspection, manifest, pictures, options)
        reporter.print(f"page: {storage.readable(uris[0])}, with {' and '.join(SUFFIXES[1:])} next to it")
    return inspection
