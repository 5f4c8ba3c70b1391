"""Metrics of the runs of a comparison on resamples of their test images, the same ones for all runs."""

import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from numpy.typing import NDArray

from mvad import results, storage
from mvad.comparison.table import Samples
from mvad.console import Stage
from mvad.data.image_size import ImageSize
from mvad.data.images import MaskRemarks
from mvad.data.sampling import evenly_spaced
from mvad.errors import ImageError, ResultsError
from mvad.metrics.bootstrap import PixelHistograms, ResampledAuroc, resampled_pixel_metrics, resamples
from mvad.metrics.pixel import PixelMetrics
from mvad.results.summary import add_image, map_range, rows_with_truth

PRECISION_BITS = 13  # of the bins that histograms of images are made from: see `PixelMetrics`
MAX_BINS = 512  # of an image
MAX_NUMBERS = 1 << 23  # of the histograms of a category: images times bins
MIN_BINS = 64  # with fewer there are no intervals of pixel metrics
MAX_EDGE_IMAGES = 100  # good ones, and defective ones, that the edges of bins are chosen by

ImageHistograms = tuple[list[str], PixelHistograms]  # image ids, and the histograms of each


def resample_runs(
    folders: Mapping[str, str],
    cells: Mapping[tuple[str, str], Mapping[str, Any]],
    categories: Sequence[str],
    seed: int,
    stage: Stage,
) -> dict[tuple[str, str], Samples]:
    """Metrics on resamples, by name of the run and category.

    Resampled are the labelled test images that all runs of the category have scored. ``folders`` has the URI of each
    run's results, and ``cells`` its summary: runs without an image AUROC of a category have no samples of it.
    """
    samples: dict[tuple[str, str], Samples] = {}
    task: Any = ray.remote(num_cpus=1)(image_histograms)
    for category in categories:
        names = [name for name in folders if cells.get((name, category), {}).get("image_auroc") is not None]
        tasks = {
            name: task.remote(folders[name], category, cells[name, category]["size"], storage.Keys())
            for name in names
            if cells[name, category]["pixel_ap"] is not None
        }
        tables = {name: _labelled(folders[name], category) for name in names}
        scored = [set(table["image_id"].to_pylist()) for table in tables.values()]
        ids = sorted(set.intersection(*scored)) if scored else []
        for name in names:
            table = tables[name].filter(pc.is_in(tables[name]["image_id"], pa.array(ids, pa.string())))
            histograms = of_images(ray.get(tasks.pop(name)), ids) if name in tasks else None
            seeds = [seed, zlib.crc32(category.encode())]
            samples[name, category] = _resampled(table, histograms, seeds)
            stage.advance(1)
    return samples


def _labelled(folder: str, category: str) -> pa.Table:
    """Image id, label and score of the test images with a label and a score, sorted by image id."""
    try:
        rows = results.read_scores(folder, ["image_id", "split", "label", "status", "score"], category)
    except ResultsError:
        return results.SCORES.empty_table()
    is_test = pc.and_(pc.equal(rows["split"], "test"), pc.equal(rows["status"], "ok"))
    return rows.filter(pc.and_(is_test, pc.is_valid(rows["label"])))


def _resampled(table: pa.Table, histograms: PixelHistograms | None, seed: list[int]) -> Samples:
    labels = table["label"].to_numpy()
    if len(np.unique(labels)) < 2:
        return {}
    auroc, parts = ResampledAuroc(labels, table["score"].to_numpy()), []
    for counts in resamples(labels, seed):
        of_pixels = {} if histograms is None else resampled_pixel_metrics(histograms, counts)
        parts.append({"image_auroc": auroc(counts)} | of_pixels)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def image_histograms(
    out: str, category: str, size: Mapping[str, Any], keys: storage.Keys | None = None
) -> ImageHistograms | None:
    """The histograms of the maps of a category's test images in OUT (a URI), for those whose truth is known per pixel.

    ``size`` is that of the model's input, as in ``run.json``. There are at most `MAX_BINS` bins, and at most
    `MAX_NUMBERS` numbers; None if that leaves fewer than `MIN_BINS`, or no image, or the pixels are all good or all
    defective.
    """
    ends, of_model = map_range(out, category), ImageSize(**size)

    def metrics_of(row: dict[str, Any], metrics: PixelMetrics | None = None) -> PixelMetrics:
        metrics = metrics or PixelMetrics(*ends, precision_bits=PRECISION_BITS)
        with suppress(ImageError):  # named in the run's own summary
            add_image(metrics, row, of_model, MaskRemarks())
        return metrics

    labels = {row["image_id"]: row["label"] for row in rows_with_truth(out, category)}
    n_bins = min(MAX_BINS, MAX_NUMBERS // max(1, len(labels)))
    if not labels or n_bins < MIN_BINS:
        return None
    chosen = {
        names[number]
        for names in ([name for name in sorted(labels) if (labels[name] == 1) == defective] for defective in (0, 1))
        for number in evenly_spaced(len(names), MAX_EDGE_IMAGES)
    }
    sample = PixelMetrics(*ends, precision_bits=PRECISION_BITS)
    for row in rows_with_truth(out, category):
        if row["image_id"] in chosen:
            metrics_of(row, sample)
    if not all(histogram.any() for histogram in sample.histograms()):
        return None
    bin_of = _merged_bins(*sample.histograms(), n_bins)
    ids, histograms = [], np.zeros((3, len(labels), n_bins), np.float32)
    for number, row in enumerate(rows_with_truth(out, category)):
        ids.append(row["image_id"])
        for kind, counted in enumerate(metrics_of(row).histograms()):
            (bins,) = np.nonzero(counted)
            histograms[kind, number] = np.bincount(bin_of[bins], counted[bins], minlength=n_bins)
    return ids, PixelHistograms(*histograms)


def _merged_bins(
    good: NDArray[np.int64], defective: NDArray[np.int64], regions: NDArray[np.float64], n_bins: int
) -> NDArray[np.int64]:
    """The bin, of so many, that each bin of some histograms goes to: (bins,).

    Along the merged bins, recall, region overlap and the square root of the false-positive rate rise together by equal
    steps: bins are narrow where good pixels end and defective ones begin, wherever that is in the range of values.
    """
    false, recall, overlap = (one[::-1].cumsum()[::-1] / one.sum() for one in (good, defective, regions))
    position = 1 - (np.sqrt(false) + recall + overlap) / 3
    return np.clip((position * n_bins).astype(np.int64), 0, n_bins - 1)


def of_images(found: ImageHistograms | None, ids: Sequence[str]) -> PixelHistograms | None:
    """The histograms of some images, in their order; empty for images that have none."""
    if found is None:
        return None
    known, histograms = found
    rows = {name: number for number, name in enumerate(known)}
    places = np.array([rows.get(name, -1) for name in ids], np.int64)
    return PixelHistograms(*(_rows(one, places) for one in histograms))


def _rows(histogram: NDArray[np.float32], places: NDArray[np.int64]) -> NDArray[np.float32]:
    taken = histogram[places]
    taken[places < 0] = 0
    return taken
