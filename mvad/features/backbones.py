"""Pretrained networks as feature extractors: a few stages, and nothing computed beyond the deepest one in use."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.vision_transformer import interpolate_embeddings

from mvad.errors import UsageError
from mvad.features.backbone_spec import EMBEDDED, NO_BACKBONE, BackboneSpec
from mvad.features.kinds import PATCHES, POOLED, STAGES
from mvad.features.patches import patch_features

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESNET_STAGES = ("layer2", "layer3", "layer4")
REDUCTIONS = (8, 16, 32)  # strides of the stages of a convolutional network
QUARTERS = (2, 3, 4)  # of the depth of a transformer: its stages end there

PROBE = 64  # side of the image that two forms of a network are compared on
FOLDED_WITHIN = 1e-3  # of the largest output


def describe(name: str) -> BackboneSpec:
    """Look a backbone up by name.

    Raises
    ------
    UsageError
        No such backbone, or one of a kind that is not understood here.
    """
    if name == NO_BACKBONE:
        return BackboneSpec(name, (), (), ())
    if name == EMBEDDED:
        return _describe_timm(name, (0.498,) * 3, (0.502,) * 3)
    if name.startswith("timm:"):
        import timm  # where it is used, here and below: it takes two seconds

        if timm.is_model(timm_name(name)):
            pretrained = timm.models.get_pretrained_cfg(timm_name(name))
            mean, std = (pretrained.mean, pretrained.std) if pretrained else (IMAGENET_MEAN, IMAGENET_STD)
            return _describe_timm(name, tuple(mean), tuple(std))
    elif name in torchvision.models.list_models(torchvision.models):
        with torch.device("meta"):
            model: Any = torchvision.models.get_model(name, weights=None)
        if isinstance(model, torchvision.models.VisionTransformer):
            stages = _quarters(len(model.encoder.layers))
            modules = tuple(f"encoder.layers.encoder_layer_{stage}" for stage in stages)
            return BackboneSpec(name, modules, IMAGENET_MEAN, IMAGENET_STD, model.patch_size)
        if all(hasattr(model, stage) for stage in RESNET_STAGES):
            return BackboneSpec(name, RESNET_STAGES, IMAGENET_MEAN, IMAGENET_STD)
        raise UsageError(
            f"backbone {name!r} is neither a ResNet nor a Vision Transformer; use one of those of torchvision, "
            f"{EMBEDDED}, or timm:NAME."
        )
    raise UsageError(
        f"unknown backbone {name!r}; use resnet50, wide_resnet50_2, vit_b_16, another ResNet or Vision Transformer of "
        f"torchvision, {EMBEDDED}, or timm:NAME with a name from timm.list_models()."
    )


def _describe_timm(name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> BackboneSpec:
    import timm

    with torch.device("meta"):
        model: Any = timm.create_model(timm_name(name), pretrained=False)
    if _is_transformer(model):
        patch = model.patch_embed.patch_size[0]
        return BackboneSpec(name, _quarters(len(model.blocks)), mean, std, patch)
    info = model.feature_info
    reductions = [stage["reduction"] for stage in getattr(info, "info", info)]
    if not set(REDUCTIONS) <= set(reductions) or not hasattr(model, "forward_intermediates"):
        raise UsageError(f"backbone {name!r} has no feature maps at strides 8, 16 and 32; choose another of timm.")
    return BackboneSpec(name, tuple(reductions.index(reduction) for reduction in REDUCTIONS), mean, std)


def _quarters(depth: int) -> tuple[int, ...]:
    return tuple(depth * quarter // 4 - 1 for quarter in QUARTERS)


def _is_transformer(model: Any) -> bool:
    return hasattr(model, "patch_embed") and getattr(model, "num_prefix_tokens", 0) > 0


def _is_timm(name: str) -> bool:
    return name == EMBEDDED or name.startswith("timm:")


def timm_name(name: str) -> str:
    return "tf_efficientnet_lite0" if name == EMBEDDED else name.removeprefix("timm:")


def network(spec: BackboneSpec, side: int | None = None) -> nn.Module:
    """The whole network, without weights; a transformer for images of ``side`` pixels, or of its own size."""
    if _is_timm(spec.name):
        import timm

        # The position embedding keeps its shape and is brought to the size of the images as they come.
        free: dict[str, Any] = {"dynamic_img_size": True} if spec.patch > 1 else {}
        return timm.create_model(timm_name(spec.name), pretrained=False, **free)
    fixed = {"image_size": side} if spec.patch > 1 and side else {}
    return torchvision.models.get_model(spec.name, weights=None, **fixed)


class _TimmStages(nn.Module):
    """Stages of a timm model, and its pooled features if asked for."""

    def __init__(self, model: Any, stages: Sequence[Any], pooled: bool) -> None:
        super().__init__()
        self.model, self.stages, self.pooled = model, list(stages), pooled
        if not pooled:
            model.prune_intermediate_layers(self.stages, prune_norm=True, prune_head=True)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor | None]:
        if not self.pooled:
            maps = self.model.forward_intermediates(
                images, indices=self.stages, stop_early=True, intermediates_only=True, output_fmt="NCHW"
            )
            return maps, None
        last, maps = self.model.forward_intermediates(images, indices=self.stages, output_fmt="NCHW")
        return maps, last[:, 0] if _is_transformer(self.model) else self.model.forward_head(last, pre_logits=True)


class _TorchvisionStages(nn.Module):
    """Stages of a torchvision ResNet or Vision Transformer, and its pooled features if asked for."""

    def __init__(self, model: nn.Module, stages: Sequence[Any], pooled: bool) -> None:
        super().__init__()
        self.transformer = isinstance(model, torchvision.models.VisionTransformer)
        self.last = ("encoder.ln" if self.transformer else "flatten") if pooled else None
        nodes = [str(stage) for stage in stages] + ([self.last] if self.last else [])
        self.model = create_feature_extractor(model, nodes)
        self.stages = nodes[: len(stages)]

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor | None]:
        found: Mapping[str, Tensor] = self.model(images)
        maps, last = [found[stage] for stage in self.stages], found[self.last] if self.last else None
        if not self.transformer:
            return maps, last
        side = round((maps[0].shape[1] - 1) ** 0.5) if maps else 0
        grids = [tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side)) for tokens in maps]
        return grids, None if last is None else last[:, 0]


def cut_network(whole: nn.Module, spec: BackboneSpec, depths: Sequence[int], pooled: bool) -> nn.Module:
    """A network that gives the stages at some depths and, or else None, its pooled features."""
    wrapper: Any = _TimmStages if _is_timm(spec.name) else _TorchvisionStages
    return wrapper(whole, [spec.stages[depth] for depth in depths], pooled)


def fold_batch_norm(whole: nn.Module) -> nn.Module:
    """A network with each batch norm folded into the convolution before it: the same function up to rounding, sooner.

    A batch norm is taken to follow the convolution that is defined just before it. Where that is not so the outputs
    would differ, so they are compared once, and then the network is given back as it was.
    """
    folded = copy.deepcopy(whole)
    for parent in list(folded.modules()):
        children = list(parent.named_children())
        for (name, conv), (norm_name, norm) in itertools.pairwise(children):
            if (
                isinstance(conv, nn.Conv2d)
                and isinstance(norm, nn.BatchNorm2d)
                and conv.out_channels == norm.num_features
            ):
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                # timm's batch norms hold the activation that follows.
                rest = [getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)]
                setattr(parent, norm_name, nn.Sequential(*rest))
    probe = torch.linspace(-2, 2, 3 * PROBE**2).view(1, 3, PROBE, PROBE)
    with torch.inference_mode():
        expected, found = whole(probe), folded(probe)
    return folded if (found - expected).abs().max() <= FOLDED_WITHIN * expected.abs().max() else whole


class Backbone(nn.Module):
    """A network cut after the deepest stage in use.

    Parameters
    ----------
    weights
        All arrays of the network, from `weights.load_weights`.
    side
        Side of the images in pixels.
    depths
        Which of the three stages are wanted: numbers from 0, shallow to deep.
    pooled
        Whether the pooled features of the whole network are wanted too.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        spec: BackboneSpec,
        weights: Mapping[str, NDArray[Any]],
        side: int,
        depths: Sequence[int] = (0, 1),
        pooled: bool = False,
    ) -> None:
        super().__init__()
        state = {name: torch.tensor(array) for name, array in weights.items()}
        if spec.patch > 1 and not _is_timm(spec.name):
            state = dict(interpolate_embeddings(side, spec.patch, state))
        whole = network(spec, side)
        whole.load_state_dict(state)
        whole = whole.eval() if spec.patch > 1 else fold_batch_norm(whole.eval())
        self.stages = cut_network(whole, spec, depths, pooled)
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Features of images.

        Parameters
        ----------
        pixels : (n, side, side, 3) uint8 RGB

        Returns
        -------
        stages : list of (n, channels, height, width)
            Shallow to deep; patch tokens of a transformer, as a grid.
        pooled : (n, channels) or None
            The average-pooled last map, or the [CLS] token.
        """
        images = (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        return self.stages(images.contiguous(memory_format=torch.channels_last))


class FeatureNetwork(nn.Module):
    """From pixels to features of some kinds, in one graph.

    Parameters
    ----------
    kinds
        Of those in `features.KINDS` that need a backbone.
    weights, side
        As for `Backbone`.
    """

    def __init__(
        self, kinds: Sequence[str], spec: BackboneSpec, weights: Mapping[str, NDArray[Any]], side: int
    ) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        self.backbone = Backbone(spec, weights, side, _depths(kinds), pooled=POOLED in kinds)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """The features of each kind, in the order they were asked for, of (n, side, side, 3) uint8 pixels."""
        found = _from_stages(self.kinds, *self.backbone(pixels))
        return tuple(found[kind] for kind in self.kinds)


def _depths(kinds: Sequence[str]) -> tuple[int, ...]:
    return (0, 1, 2) if STAGES in kinds else (0, 1)


def _from_stages(kinds: Sequence[str], stages: Sequence[Tensor], pooled: Tensor | None) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    if PATCHES in kinds:
        found[PATCHES] = patch_features(stages[:2])
    if STAGES in kinds:
        found[STAGES] = patch_features(stages, reference=1)
    if POOLED in kinds and pooled is not None:
        found[POOLED] = pooled
    return found


def network_shapes(kinds: Sequence[str], spec: BackboneSpec, side: int) -> dict[str, tuple[int, ...]]:
    """Shape of each kind's features of one image; found without weights and without computing any."""
    with torch.device("meta"), torch.inference_mode():
        stages = cut_network(network(spec, side), spec, _depths(kinds), pooled=POOLED in kinds)
        found = _from_stages(kinds, *stages.eval()(torch.empty(1, 3, side, side)))
    return {kind: tuple(features.shape[1:]) for kind, features in found.items()}
