"""What a cluster would do: hours, what it is bound by, and bytes, from what the stages cost here."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from mvad import storage
from mvad.data.image_size import ImageSize
from mvad.data.images import load_image
from mvad.data.manifest import read_manifest
from mvad.data.sampling import evenly_spaced
from mvad.data.synthetic import sample
from mvad.detectors import PatchCore
from mvad.features.backbones import describe
from mvad.features.extractor import prepare
from mvad.features.kinds import PATCHES
from mvad.features.weights import Network
from mvad.options import CommonOptions, PlanOptions

ROW_BYTES = 200  # of a result row in Parquet, without a map
MEASURED = 24  # images


class Stages(NamedTuple):
    """Seconds that an image takes of one core: decoding, the forward pass, and the search of the bank."""

    decode: float
    forward: float
    search: float


@dataclass(frozen=True)
class Costs:
    """What one image costs: seconds of a core or of a GPU, and bytes.

    Attributes
    ----------
    decode
        Seconds of a core for reading, decoding and resizing.
    forward, search
        Seconds of a core, or of a GPU where there is one, for the forward pass and the search of the bank.
    file_bytes
        Read from storage.
    moved_bytes
        Decoded pixels, from the node that decodes to the one that infers.
    """

    decode: float
    forward: float
    search: float
    file_bytes: float
    moved_bytes: float

    @classmethod
    def of_stages(cls, stages: Stages, uris: Sequence[str], side: int) -> Costs:
        """For images like these, brought to squares of this side."""
        size = float(np.mean([len(storage.read_bytes(uri, limit=1 << 32)) for uri in uris]))
        return cls(*stages, file_bytes=size, moved_bytes=3.0 * side * side)


class Plan(NamedTuple):
    """What `predict` finds.

    Attributes
    ----------
    hours
        Until the last image is scored, start-up left out.
    bound_by
        "decoding" or "inference": what more of the other would not speed up.
    images_per_second
        Of the whole cluster.
    storage_bytes, network_bytes, result_bytes
        Read from storage, moved between processes as pixels, written as rows; of all images.
    """

    hours: float
    bound_by: str
    images_per_second: float
    storage_bytes: float
    network_bytes: float
    result_bytes: float


def predict(costs: Costs, images: float, gpus: int, cores: int, gpu_speedup: float = 1.0) -> Plan:
    """Hours and bytes for a cluster of so many GPUs and cores.

    With GPUs, cores decode while GPUs infer, and the slower of the two decides. Without, the same cores do both.

    Parameters
    ----------
    gpu_speedup
        How many times faster a GPU infers than the core or GPU that the costs were measured on.
    """
    inference = costs.forward + costs.search
    if gpus:
        rates = {"decoding": cores / costs.decode, "inference": gpus * gpu_speedup / inference}
        bound_by = min(rates, key=lambda name: rates[name])
        rate = rates[bound_by]
    else:
        rate = cores / (costs.decode + inference)
        bound_by = "decoding" if costs.decode > inference else "inference"
    read, moved, written = (images * size for size in (costs.file_bytes, costs.moved_bytes, ROW_BYTES))
    return Plan(images / rate / 3600, bound_by, rate, read, moved, written)


def measure(options: PlanOptions) -> Costs:
    """What an image costs on this machine: on its GPU if it has one, else on one core."""
    size = ImageSize(resize=options.image_size, crop=options.image_size)
    spec = describe(options.backbone)
    with tempfile.TemporaryDirectory() as scratch:
        data = options.data
        if data is None:
            data = os.path.join(scratch, "sample")
            sample(data)
        table = read_manifest(data, CommonOptions()).table
        uris = [table["uri"][int(row)].as_py() for row in evenly_spaced(len(table), MEASURED)]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            network = Network.load(spec, options.weights)
            extract = prepare([PATCHES], network, size, options.engine, device == "cuda").load(device)
            decoding, pixels = _timed(lambda: [load_image(uri, size, 10**9)[0] for uri in uris])
            extract(np.stack(pixels[:2]))
            forward, features = _timed(lambda: extract(np.stack(pixels))[PATCHES])
            detector = PatchCore(coreset_ratio=options.coreset_ratio).fit(features)
            detector.image_scores(features[:2])
            search, _ = _timed(lambda: detector.image_scores(features))
        finally:
            torch.set_num_threads(threads)
        stages = Stages(*(seconds / len(uris) for seconds in (decoding, forward, search)))
        return Costs.of_stages(stages, uris, size.crop)


def _timed(work: Any) -> tuple[float, Any]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    found = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, found


def plan(**options: Any) -> dict[str, Any]:
    """Measure what an image costs here, and say what a cluster would do; options as in `options.PlanOptions`.

    Raises
    ------
    UsageError
        Unusable input, or weights that cannot be had.
    """
    from mvad.console import Reporter

    chosen = PlanOptions(**options)
    costs = measure(chosen)
    assumed = bool(chosen.gpus) and not torch.cuda.is_available()
    speedup = chosen.gpu_speedup if assumed else 1.0
    found = predict(costs, chosen.images, chosen.gpus, chosen.cores, speedup)
    report = Reporter(chosen.quiet)
    where = "GPU" if torch.cuda.is_available() else "core"
    report.print(
        f"an image here: {costs.decode * 1e3:.1f} ms of a core to decode, {costs.forward * 1e3:.1f} ms of a {where} "
        f"for the forward pass, {costs.search * 1e3:.1f} ms for the search, {costs.file_bytes / 1e3:,.0f} kB read"
    )
    if assumed:
        report.warn(f"no GPU here to measure: one is assumed to infer as fast as {speedup:g} cores (--gpu-speedup)")
    report.print(
        f"{chosen.images:,.0f} images on {chosen.gpus} GPUs and {chosen.cores} cores: {found.hours:,.2f} hours, "
        f"bound by {found.bound_by}, {found.images_per_second:,.0f} images/s"
    )
    report.print(
        f"bytes: {found.storage_bytes / 1e12:,.2f} TB read from storage ({_rate(found.storage_bytes, found)}), "
        f"{found.network_bytes / 1e12:,.2f} TB of pixels to the actors ({_rate(found.network_bytes, found)}), "
        f"{found.result_bytes / 1e9:,.1f} GB of rows written"
    )
    return {"costs": asdict(costs), **found._asdict(), "gpu_speedup": speedup, "assumed": assumed}


def _rate(size: float, found: Plan) -> str:
    return f"{size / 1e6 / max(found.hours * 3600, 1e-9):,.0f} MB/s"
