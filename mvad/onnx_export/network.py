"""The part of an export whose shapes are fixed: from the model's input to a score and a map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import compose, helper
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn
from torch.nn import functional

from mvad.anomaly_maps.geometry import TRUNCATE
from mvad.data.image_size import ImageSize, grid_part
from mvad.detectors import Detector
from mvad.errors import UsageError
from mvad.features.extractor import export_onnx
from mvad.features.kinds import PIXELS, small_side
from mvad.features.specs import OnnxSpec, feature_shapes, prepare
from mvad.features.weights import Network
from mvad.onnx_export.scoring import PatchModule, scoring_module
from mvad.onnx_export.writer import GraphWriter, Value, output_info

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
        return self.with_map(self.scores(features if self.pixels is None else self.pixels(features)))

    def with_map(self, scored: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        score, *grids = scored
        return score, *(self._map(grid) for grid in grids)

    def _map(self, grid: Tensor) -> Tensor:
        """`anomaly_maps.geometry.anomaly_map` as two matrix products."""
        return (self.down @ grid.double() @ self.across.T).float()


class _Patches(nn.Module):
    """What is found of the patches of one window."""

    def __init__(self, scores: PatchModule) -> None:
        super().__init__()
        self.scores: Any = scores

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        return self.scores.patches(features[0].flatten(0, 1))


class _Stitched(nn.Module):
    """From what is found of the patches of all windows to the score and the map of the image."""

    def __init__(self, whole: _ScoreAndMap, shape: tuple[int, int]) -> None:
        super().__init__()
        self.whole: Any = whole
        self.shape = shape

    def forward(self, *found: Tensor) -> tuple[Tensor, ...]:
        return self.whole.with_map(self.whole.scores.image(found, self.shape))


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
    first = onnx.load_model_from_string(graph)
    if size.window is None:
        return _joined(first, export_onnx(scores, torch.zeros(1, *shape)))
    return _by_windows(first, scores, shape, size)


def _joined(backbone: onnx.ModelProto, scores: onnx.ModelProto) -> onnx.ModelProto:
    """One graph of a backbone and what takes its features."""
    first, second = compose.add_prefix(backbone, "backbone."), compose.add_prefix(scores, "scores.")
    second.ir_version = first.ir_version
    merged = compose.merge_models(first, second, [(first.graph.output[0].name, second.graph.input[0].name)])
    del merged.opset_import[len(first.opset_import) :]  # it lists those of both
    return merged


def _by_windows(
    backbone: onnx.ModelProto, scores: _ScoreAndMap, shape: tuple[int, ...], size: ImageSize
) -> onnx.ModelProto:
    """A graph that goes through an image window by window, and keeps of each what its own patches are scored from."""
    if not isinstance(scores.scores, PatchModule):
        raise UsageError(
            "the model looks at images through windows, and its method does not score patches one by one, which a file "
            "needs; fit it with --tile-size none to export it."
        )
    (*grid, channels), sides = shape, size.network_input
    stride = size.height // grid[0]
    rows, columns = (length // stride for length in sides)
    merged = _joined(backbone, export_onnx(_Patches(scores.scores), torch.zeros(1, rows, columns, channels)))
    writer = GraphWriter("windows.")
    pixels = Value(writer, writer.prefix + "pixels", np.uint8)

    def step(start: Value) -> list[Value]:
        axes = writer.constant([1, 2], np.int64)
        window = writer.op("Slice", pixels, start, start + np.array(sides), axes)
        writer.name(window, merged.graph.input[0].name)
        writer.nodes.extend(merged.graph.node)
        return [Value(writer, one.name, _dtype(one)) for one in merged.graph.output]

    starts = writer.constant([(one.top, one.left) for one in size.windows], np.int64)
    places = patch_places(size, (grid[0], grid[1]), stride)
    examples = _examples(merged.graph.output, math.prod(grid))
    last = compose.add_prefix(export_onnx(_Stitched(scores, (grid[0], grid[1])), *examples), "image.")
    for found, taker in zip(writer.scan(starts, step, merged.graph), last.graph.input, strict=True):
        lengths = [one.dim_value for one in taker.type.tensor_type.shape.dim][1:]
        writer.name(found.reshape(-1, *lengths).take(places), taker.name)
    nodes = [*writer.nodes, *last.graph.node]
    constants = [*writer.constants, *last.graph.initializer]
    inputs = [output_info(pixels.name, np.uint8, [1, size.height, size.width, 3])]
    graph = helper.make_graph(nodes, "windows", inputs, last.graph.output, constants)
    return helper.make_model(graph, opset_imports=merged.opset_import, ir_version=merged.ir_version)


def _dtype(output: onnx.ValueInfoProto) -> np.dtype:
    return helper.tensor_dtype_to_np_dtype(output.type.tensor_type.elem_type)


def _examples(outputs: Sequence[onnx.ValueInfoProto], count: int) -> list[Tensor]:
    """Tensors like some outputs, (n, ...), but for ``count`` patches."""
    lengths = [[dim.dim_value for dim in one.type.tensor_type.shape.dim][1:] for one in outputs]
    return [
        torch.from_numpy(np.zeros((count, *of_one), _dtype(one))) for of_one, one in zip(lengths, outputs, strict=True)
    ]


def patch_places(size: ImageSize, grid: tuple[int, int], stride: int) -> NDArray[np.int64]:
    """Where each patch of an image is found among those of all windows, one window after the other: (n,)."""
    rows, columns = (length // stride for length in size.network_input)
    places = np.empty(grid, np.int64)
    numbers = np.arange(rows * columns).reshape(rows, columns)
    for number, window in enumerate(size.windows):
        down, across = grid_part(window, stride)
        top, left = window.top // stride, window.left // stride
        inner = numbers[down.start - top : down.stop - top, across.start - left : across.stop - left]
        places[down, across] = number * rows * columns + inner
    return places.ravel()


def _backbone(kind: str, network: Network, size: ImageSize) -> bytes:
    try:
        spec = prepare([kind], network, size, "onnx")
    except UsageError as error:
        reason = str(error).partition(";")[0]
        raise UsageError(f"{network.spec.name} cannot be exported: {reason}; use another backbone.") from error
    assert isinstance(spec, OnnxSpec)
    return spec.graph
