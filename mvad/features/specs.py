"""What the driver sends to actors, from which they load their feature extractors.

With ONNX Runtime it is the graph of the network, weights included; actors then import neither torchvision nor timm,
which saves them seconds at the start. A driver that finds the graph in the cache does not import PyTorch either.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from mvad.data.image_size import ImageSize, grid_of
from mvad.errors import UsageError
from mvad.features.backbone_spec import BackboneSpec
from mvad.features.cache import GRAPH, cached
from mvad.features.kinds import GRIDS, PIXELS, network_kinds, small_side
from mvad.features.known import network_shapes
from mvad.features.weights import Network

if TYPE_CHECKING:
    import torch

    from mvad.features.extractor import OnnxExtractor, TorchExtractor


@dataclass(frozen=True)
class TorchSpec:
    """Spec of a `TorchExtractor`."""

    kinds: tuple[str, ...]
    network: Network
    size: ImageSize

    def load(self, device: str | torch.device = "cpu") -> TorchExtractor:
        from mvad.features.extractor import TorchExtractor, feature_network

        network = feature_network(self.kinds, self.network) if network_kinds(self.kinds) else None
        extractor = TorchExtractor(self.kinds, network, self.size, device)
        if self.size.whole_level is not None:
            extractor.squeezed = TorchExtractor(self.kinds, network, self.size.whole_level, device)
        return extractor


@dataclass(frozen=True)
class OnnxSpec:
    """Spec of an `OnnxExtractor`: an ONNX graph with its weights, for one image, or window, of one size."""

    kinds: tuple[str, ...]
    graph: bytes
    size: ImageSize
    squeezed_graph: bytes | None = None  # for images as a whole, see `ImageSize.whole`

    def load(self, device: str | torch.device = "cpu") -> OnnxExtractor:
        from mvad.features.extractor import OnnxExtractor

        extractor = OnnxExtractor(self.kinds, self.graph, self.size)
        if self.size.whole_level is not None:
            assert self.squeezed_graph is not None
            extractor.squeezed = OnnxExtractor(self.kinds, self.squeezed_graph, self.size.whole_level)
        return extractor


ExtractorSpec = TorchSpec | OnnxSpec  # what another process needs to `load` a feature extractor


def prepare(
    kinds: Sequence[str], network: Network, size: ImageSize, engine: str = "torch", gpus: bool = False
) -> ExtractorSpec:
    """Make the spec from which the actors of this cluster, with GPUs or not, load their extractors.

    ``engine`` is the value of ``--engine``; raises UsageError if that is ``onnx`` and ONNX Runtime cannot be used.
    """
    if network_kinds(kinds) and resolve_engine(engine, gpus) == "onnx":
        try:
            return _onnx_spec(tuple(kinds), network, size)
        except UsageError:
            if engine == "onnx":
                raise
    return TorchSpec(tuple(kinds), network, size)


def resolve_engine(engine: str, gpus: bool = False) -> str:
    """Return ``torch`` or ``onnx`` for the value of ``--engine``; raises UsageError as `prepare` does."""
    if engine == "torch" or (engine == "auto" and gpus):
        return "torch"
    if gpus:
        raise UsageError("--engine onnx runs on CPUs only, and this cluster has GPUs; leave it out.")
    missing = [name for name in ("onnxruntime", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing and engine == "onnx":
        raise UsageError(f"--engine onnx needs {missing[0]}, which is not installed; install mvad again on all nodes.")
    return "torch" if missing else "onnx"


@functools.lru_cache(maxsize=4)  # a run exports the same graph to fit and to score
def _onnx_spec(kinds: tuple[str, ...], network: Network, size: ImageSize) -> OnnxSpec:
    whole = None if size.whole_level is None else _graph(kinds, network, size.whole_level)
    return OnnxSpec(kinds, _graph(kinds, network, size), size, whole)


def _graph(kinds: tuple[str, ...], network: Network, size: ImageSize) -> bytes:
    # Which graph it is: all that `feature_network` and `onnx_graph` are given.
    sides = size.network_input
    name = [network_kinds(kinds), asdict(network.spec), network.sha256, *sides]
    return cached(name, GRAPH, functools.partial(_export, kinds, network, size))


def _export(kinds: tuple[str, ...], network: Network, size: ImageSize) -> bytes:
    from mvad.features.extractor import feature_network, onnx_graph

    return onnx_graph(feature_network(kinds, network), *size.network_input)


def feature_shapes(
    kinds: Sequence[str], spec: BackboneSpec, size: ImageSize, step: int = 1
) -> dict[str, tuple[int, ...]]:
    """Return the shape of one image's features of each kind, without weights and without computing any.

    Of windows, every ``step``-th patch in both directions counts. For images seen as a whole, too, see
    `kinds.put_whole`.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    if PIXELS in kinds:
        side = small_side(size.height, size.width)
        shapes[PIXELS] = (side, side, 3)
    if network_kinds(kinds):
        shapes |= network_shapes(network_kinds(kinds), spec, *size.network_input)
    if size.window is None:
        return shapes
    if not set(GRIDS).issuperset(kinds):
        raise UsageError("windows need a method that scores patches, such as patchcore; leave --tile-size out.")
    strides = {kind: size.window[0] // shape[0] for kind, shape in shapes.items()}
    grids = {kind: [-(-length // step) for length in grid_of(size, stride)] for kind, stride in strides.items()}
    if size.whole is not None:
        of_whole = network_shapes(network_kinds(kinds), spec, *size.whole)
        grids = {kind: [rows + 1 + of_whole[kind][0], columns] for kind, (rows, columns) in grids.items()}
    return {kind: (*grids[kind], shape[-1]) for kind, shape in shapes.items()}
