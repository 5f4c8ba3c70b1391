"""Feature extractors: on PyTorch, or on CPUs on ONNX Runtime, in about half the time: see `specs`.

Features of the two engines differ by rounding, about one part in a million.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from mvad.data.image_size import ImageSize, Window, grid_of, grid_part
from mvad.errors import UsageError
from mvad.features.kinds import PIXELS, network_kinds, put_whole, small_side
from mvad.process import without_warnings
from mvad.runtime.tensors import as_tensor

if TYPE_CHECKING:
    from mvad.features.weights import Network

CPU_CHUNK, GPU_CHUNK = 1, 32  # images per forward pass


class Part(NamedTuple):
    """Patches of a large image that one of its windows answers for."""

    rows: slice  # in the grid of the image's patches
    columns: slice
    features: Tensor  # (rows, columns, channels) float32
    stride: int  # pixels from one patch to the next


def _part(window: Window, features: Tensor, height: int) -> Part:
    """What a window answers for, of its features (rows, columns, channels); its height is in pixels."""
    stride = height // len(features)
    rows, columns = grid_part(window, stride)
    top, left = window.top // stride, window.left // stride
    inner = features[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return Part(rows, columns, inner, stride)


class FeatureExtractor(ABC):
    """Computes features of several of `kinds.KINDS` from pixels, on one device.

    Scores must not depend on how images were grouped into batches, but the rounding of a convolution may depend on the
    shape of its batch. Images therefore go through the network in chunks of one fixed size: single images on a CPU,
    where that is also the fastest, and 32 on a GPU, the last chunk filled up with black images. Several threads may
    share an extractor.

    ``squeezed`` extracts from images as a whole next to their windows, if the size asks for that.
    """

    squeezed: FeatureExtractor | None = None

    def __init__(self, kinds: Sequence[str], size: ImageSize, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.chunk = CPU_CHUNK if self.device.type == "cpu" else GPU_CHUNK
        self.kinds, self.size = tuple(kinds), size

    def __call__(self, pixels: NDArray[np.uint8]) -> dict[str, Tensor]:
        """Compute features by kind, (n, ...) float32 on the device, from (n, height, width, 3) uint8 RGB pixels.

        The patches of an input with windows are put together from those of its windows.
        """
        if self.size.window is None:
            return self.whole(pixels)
        images = [self._stitched(image) for image in pixels]
        return {kind: torch.stack([image[kind] for image in images]) for kind in self.kinds} if images else {}

    def parts(self, image: NDArray[np.uint8], windows: Sequence[Window]) -> Iterator[dict[str, Part]]:
        """Yield by kind, for each of some windows of a (height, width, 3) image, the patches that it answers for."""
        height, width = self.size.network_input
        for start in range(0, len(windows), self.chunk):
            chunk = windows[start : start + self.chunk]
            pixels = [image[one.top : one.top + height, one.left : one.left + width] for one in chunk]
            features = self.whole(np.stack(pixels))
            for number, window in enumerate(chunk):
                yield {kind: _part(window, values[number], height) for kind, values in features.items()}

    def _stitched(self, image: NDArray[np.uint8]) -> dict[str, Tensor]:
        """Features of one image, put together from those of its windows: (rows, columns, channels) by kind."""
        features: dict[str, Tensor] = {}
        for parts in self.parts(image, self.size.windows):
            for kind, part in parts.items():
                if kind not in features:
                    shape = grid_of(self.size, part.stride)
                    features[kind] = torch.empty((*shape, part.features.shape[-1]), device=self.device)
                features[kind][part.rows, part.columns] = part.features
        if self.squeezed is not None:
            seen = self.of_whole(image)
            features = {kind: _with_whole(values, seen[kind][0]) for kind, values in features.items()}
        return features

    def of_whole(self, image: NDArray[np.uint8]) -> dict[str, Tensor]:
        """Features of a (height, width, 3) image as a whole, squeezed: (1, rows, columns, channels) by kind."""
        assert self.squeezed is not None
        height, width = self.squeezed.size.resize
        small = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        return self.squeezed.whole(np.asarray(small)[None])

    @torch.inference_mode()
    def whole(self, pixels: NDArray[np.uint8]) -> dict[str, Tensor]:
        """Compute features of images, or windows, that go through the network at once."""
        features = {PIXELS: small_pixels(pixels, self.device)} if PIXELS in self.kinds else {}
        kinds = network_kinds(self.kinds)
        for start in range(0, len(pixels) if kinds else 0, self.chunk):
            chunk = pixels[start : start + self.chunk]
            if len(chunk) < self.chunk:
                chunk = np.concatenate([chunk, np.zeros((self.chunk - len(chunk), *chunk.shape[1:]), np.uint8)])
            for kind, values in zip(kinds, self.run(np.ascontiguousarray(chunk)), strict=True):
                if kind not in features:
                    features[kind] = torch.empty((len(pixels), *values.shape[1:]), device=self.device)
                features[kind][start : start + self.chunk] = values[: len(pixels) - start]
        return features

    @abstractmethod
    def run(self, pixels: NDArray[np.uint8]) -> Sequence[Tensor]:
        """Run the network on one chunk; returns features in the order of `network_kinds`."""


def small_pixels(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Convert (n, height, width, 3) uint8 pixels to float32 from 0 to 1, averaged to a square of at most 128 x 128."""
    images = torch.from_numpy(np.array(pixels)).to(device).permute(0, 3, 1, 2).float().div_(255)
    side = small_side(*images.shape[-2:])
    if images.shape[-2:] != (side, side):
        images = functional.adaptive_avg_pool2d(images, side)
    return images.permute(0, 2, 3, 1).contiguous()


def _with_whole(features: Tensor, whole: Tensor) -> Tensor:
    rows, columns, channels = features.shape
    both = features.new_empty((rows + 1 + len(whole), columns, channels))
    both[:rows] = features
    put_whole(both, whole)
    return both


class TorchExtractor(FeatureExtractor):
    """Runs on PyTorch; ``network`` takes pixels and returns one tensor per kind that needs it."""

    def __init__(
        self, kinds: Sequence[str], network: nn.Module | None, size: ImageSize, device: str | torch.device = "cpu"
    ) -> None:
        super().__init__(kinds, size, device)
        self.network = network and network.eval().to(self.device).to(memory_format=torch.channels_last)

    def run(self, pixels: NDArray[np.uint8]) -> Sequence[Tensor]:
        assert self.network is not None
        images = as_tensor(pixels)
        if self.device.type == "cuda":
            images = images.pin_memory().to(self.device, non_blocking=True)
        return self.network(images)


class OnnxExtractor(FeatureExtractor):
    """Runs on ONNX Runtime, with one thread per image."""

    def __init__(self, kinds: Sequence[str], graph: bytes, size: ImageSize) -> None:
        super().__init__(kinds, size)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def run(self, pixels: NDArray[np.uint8]) -> Sequence[Tensor]:
        return [torch.from_numpy(values) for values in self._session.run(None, {self._input: pixels})]


def feature_network(kinds: Sequence[str], network: Network) -> nn.Module:
    """The part of a network that computes features of some kinds."""
    # Imported here because torchvision and timm take seconds, which actors with ONNX Runtime save.
    from mvad.features.backbones import FeatureNetwork

    return FeatureNetwork(network_kinds(kinds), network.spec, network.weights)


def onnx_graph(network: nn.Module, height: int, width: int) -> bytes:
    """Export a network of (1, height, width, 3) uint8 pixels to ONNX; UsageError if an operation is not supported."""
    try:
        return export_onnx(network, torch.zeros(CPU_CHUNK, height, width, 3, dtype=torch.uint8)).SerializeToString()
    except Exception as error:  # exporters raise exceptions of many types
        reason = str(error).strip().split("\n")[0][:200]
        raise UsageError(f"this backbone cannot run on ONNX Runtime ({reason}); add --engine torch.") from error


def export_onnx(network: nn.Module, *examples: Tensor) -> Any:
    """Export a network to an ``onnx.ModelProto`` for inputs like the examples, without a word of the exporter."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with without_warnings():  # of the exporter's own code
            program = torch.onnx.export(network.eval(), examples, dynamo=True, verbose=False)
        assert program is not None
        return program.model_proto
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
