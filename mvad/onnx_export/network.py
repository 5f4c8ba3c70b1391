"""The part of an export whose shapes are fixed: from the model's input to a score and a map."""

from __future__ import annotations

import math

import onnx
import torch
from onnx import compose
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn
from torch.nn import functional

from mvad.anomaly_maps.geometry import TRUNCATE
from mvad.data.image_size import ImageSize
from mvad.detectors import Detector
from mvad.errors import UsageError
from mvad.features.extractor import export_onnx
from mvad.features.kinds import PIXELS, small_side
from mvad.features.specs import OnnxSpec, feature_shapes, prepare
from mvad.features.weights import Network
from mvad.onnx_export.scoring import scoring_module

MAX_BYTES = 2_000_000_000  # of constants: a file of Protocol Buffers ends at 2 GiB


class _ScoreAndMap(nn.Module):
    """From the features of one image to its score and, if the method localises, a map as large as the model's input."""

    down: Tensor
    across: Tensor

    def __init__(self, detector: Detector, shape: tuple[int, ...], size: ImageSize) -> None:
        super().__init__()
        self.pixels = _SmallPixels(size) if detector.feature == PIXELS else None
        self.scores = scoring_module(detector)
        if len(shape) == 3:
            for name, count, length in zip(("down", "across"), shape, size.crop, strict=False):
                self.register_buffer(name, map_matrix(count, length, size.smoothing))

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        score, *grids = self.scores(features if self.pixels is None else self.pixels(features))
        return score, *(self._map(grid) for grid in grids)

    def _map(self, grid: Tensor) -> Tensor:
        """`anomaly_maps.geometry.anomaly_map` as two matrix products."""
        return (self.down @ grid.double() @ self.across.T).float()


class _SmallPixels(nn.Module):
    """`features.extractor.small_pixels`, with sums in double precision."""

    down: Tensor
    across: Tensor

    def __init__(self, size: ImageSize) -> None:
        super().__init__()
        side = small_side(size.height, size.width)
        self.register_buffer("down", pooling_matrix(size.height, side))
        self.register_buffer("across", pooling_matrix(size.width, side))

    def forward(self, pixels: Tensor) -> Tensor:
        images = (pixels.permute(0, 3, 1, 2).float() / 255).double()
        return (self.down @ images @ self.across.T).float().permute(0, 2, 3, 1)


def pooling_matrix(length: int, target: int) -> Tensor:
    """What averages ``length`` pixels to ``target``, as ``adaptive_avg_pool2d`` does: (target, length) float64."""
    matrix = torch.zeros(target, length, dtype=torch.float64)
    for row in range(target):
        begin, end = row * length // target, math.ceil((row + 1) * length / target)
        matrix[row, begin:end] = 1 / (end - begin)
    return matrix


def map_matrix(count: int, length: int, smoothing: float) -> Tensor:
    """What brings ``count`` patches to ``length`` pixels, bilinearly, and smooths these: (length, count) float64."""
    unit = torch.eye(count, dtype=torch.float64)[None]
    matrix = functional.interpolate(unit, length, mode="linear", align_corners=False)[0].T
    if smoothing:
        matrix = torch.from_numpy(gaussian_filter1d(matrix.numpy(), smoothing, axis=0, truncate=TRUNCATE))
    return matrix


def export_network(
    detector: Detector, network: Network, size: ImageSize, backbone: bytes | None = None
) -> onnx.ModelProto:
    """One graph from (1, height, width, 3) uint8 pixels to the score and, if the method localises, the map.

    The backbone is the graph that mvad itself runs with ``--engine onnx``, unless another is given. UsageError if the
    backbone or the method cannot be exported, or that takes more than one file can hold.
    """
    shape = feature_shapes([detector.feature], network.spec, size)[detector.feature]
    scores = _ScoreAndMap(detector, shape, size)
    n_bytes = network.nbytes + sum(tensor.nbytes for tensor in (*scores.parameters(), *scores.buffers()))
    if n_bytes > MAX_BYTES:
        raise UsageError(
            f"the model takes {n_bytes / 1e9:.1f} GB, and an ONNX file at most {MAX_BYTES / 1e9:.0f} GB; fit it with a "
            "smaller --coreset-ratio or --max-vectors, or another backbone."
        )
    if detector.feature == PIXELS:
        return export_onnx(scores, torch.zeros(1, size.height, size.width, 3, dtype=torch.uint8))
    graph = _backbone(detector.feature, network, size) if backbone is None else backbone
    first = compose.add_prefix(onnx.load_model_from_string(graph), "backbone.")
    second = compose.add_prefix(export_onnx(scores, torch.zeros(1, *shape)), "scores.")
    second.ir_version = first.ir_version
    merged = compose.merge_models(first, second, [(first.graph.output[0].name, second.graph.input[0].name)])
    del merged.opset_import[len(first.opset_import) :]  # it lists those of both
    return merged


def _backbone(kind: str, network: Network, size: ImageSize) -> bytes:
    try:
        spec = prepare([kind], network, size, "onnx")
    except UsageError as error:
        reason = str(error).partition(";")[0]
        raise UsageError(f"{network.spec.name} cannot be exported: {reason}; use another backbone.") from error
    assert isinstance(spec, OnnxSpec)
    return spec.graph
