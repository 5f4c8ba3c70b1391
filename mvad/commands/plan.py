import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mvad import storage
from mvad.console import Reporter
from mvad.data.image_size import ImageSize
from mvad.data.images import load_image
from mvad.data.manifest import read_manifest
from mvad.data.sampling import evenly_spaced
from mvad.data.synthetic import write_sample
from mvad.detectors import PatchCore
from mvad.features.kinds import PATCHES
from mvad.options import DataOptions, FitOptions, PlanOptions, build, takes

RESULT_ROW_BYTES = 200  # in Parquet, without a map
N_MEASURED_IMAGES = 24
MAX_PIXELS = 10**9


class Costs(NamedTuple):
    """What one image costs: seconds of a core, or of a GPU if there is one for what a GPU can do, and bytes."""

    decode: float  # to read, decode and resize, always on a core
    forward: float  # pass of the backbone
    search: float  # of the memory bank
    file_bytes: float  # read from storage
    moved_bytes: float  # decoded pixels, sent from the node that decodes to the one that infers


class Plan(NamedTuple):
    """What `predict` estimates for all images."""

    hours: float  # until the last image is scored, without the start
    bound_by: str  # "decoding" or "inference": the one of which the cluster needs more to be faster
    images_per_second: float
    storage_bytes: float  # read from storage
    network_bytes: float  # moved between processes as pixels
    result_bytes: float  # written as rows


@takes(PlanOptions)
def plan(options: PlanOptions) -> dict[str, Any]:
    """Measure what an image costs here, and estimate what a cluster needs.

    Raises
    ------
    UsageError
        The input is unusable, or the weights cannot be downloaded.
    """
    import torch

    costs = measure(options)
    assumed = bool(options.gpus) and not torch.cuda.is_available()
    speedup = options.gpu_speedup if assumed else 1.0
    estimate = predict(costs, options.images, options.gpus, options.cores, speedup)
    seconds = max(estimate.hours * 3600, 1e-9)
    report = Reporter(options.quiet)
    report.result(
        f"per image here: {costs.decode * 1e3:.1f} ms of a core to decode, {costs.forward * 1e3:.1f} ms of a "
        f"{'GPU' if torch.cuda.is_available() else 'core'} for the forward pass, {costs.search * 1e3:.1f} ms for the "
        f"search, {costs.file_bytes / 1e3:,.0f} kB read"
    )
    if assumed:
        report.warn(f"no GPU here to measure: assuming that one infers as fast as {speedup:g} cores (--gpu-speedup)")
    report.result(
        f"{options.images:,.0f} images on {options.gpus} GPUs and {options.cores} cores: {estimate.hours:,.2f} hours, "
        f"bound by {estimate.bound_by}, {estimate.images_per_second:,.0f} images/s"
    )
    report.result(
        f"traffic: {estimate.storage_bytes / 1e12:,.2f} TB read from storage "
        f"({estimate.storage_bytes / 1e6 / seconds:,.0f} MB/s), "
        f"{estimate.network_bytes / 1e12:,.2f} TB of pixels to the actors "
        f"({estimate.network_bytes / 1e6 / seconds:,.0f} MB/s), {estimate.result_bytes / 1e9:,.1f} GB of rows written"
    )
    return {"costs": costs._asdict(), **estimate._asdict(), "gpu_speedup": speedup, "assumed": assumed}


def predict(costs: Costs, images: float, gpus: int, cores: int, gpu_speedup: float = 1.0) -> Plan:
    """Estimate hours and bytes for a cluster of so many GPUs and cores.

    With GPUs, cores decode while GPUs infer, and the slower of the two decides. Without, the same cores do both.
    ``gpu_speedup`` is how many times faster a GPU infers than the core or GPU that the costs were measured on.
    """
    inference = costs.forward + costs.search
    if gpus:
        rates = {"decoding": cores / costs.decode, "inference": gpus * gpu_speedup / inference}
        bound_by = min(rates, key=lambda name: rates[name])
        rate = rates[bound_by]
    else:
        rate = cores / (costs.decode + inference)
        bound_by = "decoding" if costs.decode > inference else "inference"
    storage_bytes, network_bytes = images * costs.file_bytes, images * costs.moved_bytes
    return Plan(images / rate / 3600, bound_by, rate, storage_bytes, network_bytes, images * RESULT_ROW_BYTES)


def measure(options: PlanOptions) -> Costs:
    """Measure what an image costs on this machine: on its GPU if it has one, else on one core."""
    import torch

    from mvad.features.specs import prepare
    from mvad.fitting import load_network, with_recipe
    from mvad.runtime.threads import compute_device

    network_options = {name: getattr(options, name) for name in ("backbone", "weights", "image_size", "coreset_ratio")}
    chosen = with_recipe(build(FitOptions, network_options), say=lambda text: None)
    size, device = ImageSize.square(chosen.side), compute_device()
    with tempfile.TemporaryDirectory() as scratch:
        if options.data is None:
            write_sample(scratch)
        table = read_manifest(scratch if options.data is None else options.data, DataOptions()).table
        uris = table["uri"].take(evenly_spaced(len(table), N_MEASURED_IMAGES)).to_pylist()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            network = load_network(chosen)
            extract = prepare([PATCHES], network, size, options.engine, device == "cuda").load(device)
            decode, pixels = _timed(lambda: np.stack([load_image(uri, size, MAX_PIXELS)[0] for uri in uris]))
            extract(pixels[:2])
            forward, features = _timed(lambda: extract(pixels)[PATCHES])
            detector = PatchCore.from_options(chosen).fit(features)
            detector.image_scores(features[:2])
            search, _ = _timed(lambda: detector.image_scores(features))
        finally:
            torch.set_num_threads(threads)
        decode, forward, search = (seconds / len(uris) for seconds in (decode, forward, search))
        file_bytes = float(np.mean([len(storage.read_bytes(uri, limit=1 << 32)) for uri in uris]))
    return Costs(decode, forward, search, file_bytes, moved_bytes=3.0 * size.n_pixels)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Run some work; returns its seconds and its result."""
    import torch

    wait_for_gpu = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait_for_gpu()
    started = time.perf_counter()
    result = work()
    wait_for_gpu()
    return time.perf_counter() - started, result
