"""What computes features: PyTorch, or on CPUs ONNX Runtime where it is installed, in about half the time.

The driver packs a network once, and every actor opens the package. With ONNX Runtime the package is the graph of the
network, with its weights; actors need neither torchvision nor timm then, which saves them seconds of starting. Features
of the two differ by rounding, about one part in a million.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mvad.data.image_size import ImageSize
from mvad.errors import UsageError
from mvad.features.backbone_spec import BackboneSpec
from mvad.features.kinds import PIXELS, PIXELS_SIDE, small_pixels
from mvad.runtime.tensors import as_tensor

if TYPE_CHECKING:
    from mvad.features.weights import Network

CPU_CHUNK, GPU_CHUNK = 1, 32


class FeatureExtractor(ABC):
    """Pixels to features of the kinds asked for.

    Scores must not depend on how images were grouped into batches, but the rounding of a convolution may depend on the
    shape of its batch. So images go through the network in chunks of one fixed size: single images on a CPU, where that
    is also the fastest, and 32 on a GPU, the last chunk filled up with black. Several threads may share an extractor.

    Parameters
    ----------
    kinds
        Of `features.KINDS`.
    device
        Where the features are.
    """

    def __init__(self, kinds: Sequence[str], device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.chunk = CPU_CHUNK if self.device.type == "cpu" else GPU_CHUNK
        self.of_network = [kind for kind in kinds if kind != PIXELS]
        self.of_pixels = PIXELS in kinds

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.uint8]) -> dict[str, Tensor]:
        """Features by kind, (n, ...) float32 on the device, of (n, side, side, 3) uint8 RGB pixels."""
        found: dict[str, Tensor] = {PIXELS: small_pixels(pixels, self.device)} if self.of_pixels else {}
        for start in range(0, len(pixels) if self.of_network else 0, self.chunk):
            part = pixels[start : start + self.chunk]
            if len(part) < self.chunk:
                part = np.concatenate([part, np.zeros((self.chunk - len(part), *part.shape[1:]), np.uint8)])
            for kind, values in zip(self.of_network, self.run(np.ascontiguousarray(part)), strict=True):
                if kind not in found:
                    found[kind] = torch.empty((len(pixels), *values.shape[1:]), device=self.device)
                found[kind][start : start + self.chunk] = values[: len(pixels) - start]
        return found

    @abstractmethod
    def run(self, pixels: NDArray[np.uint8]) -> Sequence[Tensor]:
        """What the network makes of one chunk, of each kind in ``of_network``."""


class TorchExtractor(FeatureExtractor):
    """By PyTorch; ``network`` takes pixels and gives a tensor for each kind that needs one."""

    def __init__(self, kinds: Sequence[str], network: nn.Module | None, device: str | torch.device = "cpu") -> None:
        super().__init__(kinds, device)
        self.network = network and network.eval().to(self.device).to(memory_format=torch.channels_last)

    def run(self, pixels: NDArray[np.uint8]) -> Sequence[Tensor]:
        assert self.network is not None
        images = as_tensor(pixels)
        if self.device.type == "cuda":
            images = images.pin_memory().to(self.device, non_blocking=True)
        return self.network(images)


class OnnxExtractor(FeatureExtractor):
    """By ONNX Runtime, one thread an image."""

    def __init__(self, kinds: Sequence[str], graph: bytes) -> None:
        super().__init__(kinds)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        (self._input,) = (one.name for one in self._session.get_inputs())

    def run(self, pixels: NDArray[np.uint8]) -> Sequence[Tensor]:
        return [torch.from_numpy(values) for values in self._session.run(None, {self._input: pixels})]


class ExtractorSpec(ABC):
    """A feature extractor on its way to other processes."""

    @abstractmethod
    def load(self, device: str | torch.device = "cpu") -> FeatureExtractor: ...


@dataclass(frozen=True)
class TorchSpec(ExtractorSpec):
    """What `TorchExtractor` is made of."""

    kinds: tuple[str, ...]
    network: Network
    side: int

    def load(self, device: str | torch.device = "cpu") -> TorchExtractor:
        of_network = [kind for kind in self.kinds if kind != PIXELS]
        if not of_network:
            return TorchExtractor(self.kinds, None, device)
        # Here, for actors that do without: torchvision and timm take seconds to import.
        from mvad.features.backbones import FeatureNetwork

        network = FeatureNetwork(of_network, self.network.spec, self.network.weights, self.side)
        return TorchExtractor(self.kinds, network, device)


@dataclass(frozen=True)
class OnnxSpec(ExtractorSpec):
    """What `OnnxExtractor` is made of: an ONNX graph with its weights, for one image of one size."""

    kinds: tuple[str, ...]
    graph: bytes

    def load(self, device: str | torch.device = "cpu") -> OnnxExtractor:
        return OnnxExtractor(self.kinds, self.graph)


def prepare(
    kinds: Sequence[str], network: Network, size: ImageSize, engine: str = "torch", gpus: bool = False
) -> ExtractorSpec:
    """A package for actors of this cluster.

    Parameters
    ----------
    engine
        As given to ``--engine``.
    gpus
        Whether the actors have GPUs.

    Raises
    ------
    UsageError
        ONNX Runtime is asked for, and cannot be used.
    """
    if not set(kinds) <= {PIXELS} and resolve_engine(engine, gpus) == "onnx":
        try:
            return _onnx_spec(tuple(kinds), network, size.crop)
        except UsageError:
            if engine == "onnx":
                raise
    return TorchSpec(tuple(kinds), network, size.crop)


def resolve_engine(engine: str, gpus: bool = False) -> str:
    """``torch`` or ``onnx``; UsageError as for `pack`."""
    missing = [name for name in ("onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if engine == "onnx" and gpus:
        raise UsageError("--engine onnx is for actors on CPUs, and this cluster has GPUs; leave it out.")
    if engine == "onnx" and missing:
        raise UsageError(f"--engine onnx needs {missing[0]}; install it on all nodes with: pip install 'mvad[onnx]'.")
    return "torch" if engine == "torch" or gpus or missing else "onnx"


@functools.lru_cache(maxsize=4)  # a run asks twice, to fit and to score
def _onnx_spec(kinds: tuple[str, ...], network: Network, side: int) -> OnnxSpec:
    from mvad.features.backbones import FeatureNetwork

    of_network = [kind for kind in kinds if kind != PIXELS]
    return OnnxSpec(kinds, onnx_graph(FeatureNetwork(of_network, network.spec, network.weights, side), side))


def onnx_graph(network: nn.Module, side: int) -> bytes:
    """The graph of a network that takes (1, side, side, 3) uint8 pixels, as an ONNX file.

    Raises
    ------
    UsageError
        The network uses what the exporter does not know.
    """
    example: Any = (torch.zeros(CPU_CHUNK, side, side, 3, dtype=torch.uint8),)
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own code
            program = torch.onnx.export(network.eval(), example, dynamo=True, verbose=False)
        assert program is not None
        return program.model_proto.SerializeToString()
    except Exception as error:  # whatever an exporter raises
        reason = str(error).strip().split("\n")[0][:200]
        raise UsageError(f"this backbone cannot run on ONNX Runtime ({reason}); add --engine torch.") from error
    finally:
        log.setLevel(level)


def feature_shapes(kinds: Sequence[str], spec: BackboneSpec, size: ImageSize) -> dict[str, tuple[int, ...]]:
    """Shape of each kind's features of one image; found without weights and without computing any."""
    shapes: dict[str, tuple[int, ...]] = {}
    if PIXELS in kinds:
        side = min(size.crop, PIXELS_SIDE)
        shapes[PIXELS] = (side, side, 3)
    of_network = [kind for kind in kinds if kind != PIXELS]
    if of_network:
        from mvad.features.backbones import network_shapes

        shapes |= network_shapes(of_network, spec, size.crop)
    return shapes
