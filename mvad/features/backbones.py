"""Pretrained networks as feature extractors, truncated after the deepest layer in use."""

import copy
import functools
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.feature_extraction import create_feature_extractor

from mvad.errors import UsageError
from mvad.features.backbone_spec import EMBEDDED, NEIGHBOURHOOD, NO_BACKBONE, PACKAGED, BackboneSpec, Layer
from mvad.features.kinds import PATCHES, POOLED, STAGES
from mvad.features.weights import Weights

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RESNET_LAYERS = {4: "layer1", 8: "layer2", 16: "layer3", 32: "layer4"}  # by stride in pixels
STRIDES = (8, 16, 32)  # of the three feature levels of a convolutional network
QUARTERS = (2, 3, 4)  # of a transformer's depth, where its three feature levels end
PROBE_SIDE = 64
PROBE_PATCHES = 4  # of a transformer, per side
FOLDING_TOLERANCE = 1e-3  # as a share of the largest output


class _Architecture(NamedTuple):
    """What there is to choose from in a network."""

    spec: BackboneSpec
    layers: Mapping[int, Layer]  # by stride in pixels, or of a transformer by number of the block, from 1
    has_norm: bool  # whether it ends with a norm of its tokens


def describe(
    name: str, layers: Iterable[int] | None = None, neighbourhood: int = NEIGHBOURHOOD, norm: bool = False
) -> BackboneSpec:
    """Look up a backbone by name.

    ``layers`` are those that its patch features are made of: strides in pixels among 4, 8, 16 and 32, or a
    transformer's blocks counted from 1; None: the first two of its feature levels. ``neighbourhood`` and ``norm`` are
    fields of the spec. UsageError if there is no such backbone, layer or final norm, or the architecture is not
    supported.
    """
    spec, known, has_norm = _look_up(name)
    if name == NO_BACKBONE:
        return spec
    numbers = sorted(set(layers or ()))
    missing = ", ".join(str(number) for number in numbers if number not in known)
    if missing and spec.patch > 1:
        raise UsageError(f"backbone {name!r} has no block {missing}; its --layers are blocks 1 to {len(known)}.")
    if missing:
        strides = ", ".join(map(str, known))
        raise UsageError(f"backbone {name!r} has no layer of stride {missing}; its --layers are strides {strides}.")
    if norm and not has_norm:
        raise UsageError(f"backbone {name!r} has no final norm of tokens; leave --norm out.")
    chosen = tuple(known[number] for number in numbers)
    if chosen == spec.stages[:2]:
        chosen = ()
    return replace(spec, layers=chosen, neighbourhood=neighbourhood, norm=norm)


@functools.cache
def _look_up(name: str) -> _Architecture:
    if name == NO_BACKBONE:
        return _Architecture(BackboneSpec(name, (), (), ()), {}, False)
    if name in PACKAGED:
        return _look_up_timm(name, (0.498,) * 3, (0.502,) * 3)
    if name.startswith("timm:"):
        import timm  # imported where it is used because it takes two seconds

        if timm.is_model(timm_name(name)):
            pretrained = timm.models.get_pretrained_cfg(timm_name(name))
            mean, std = (pretrained.mean, pretrained.std) if pretrained else (IMAGENET_MEAN, IMAGENET_STD)
            return _look_up_timm(name, tuple(mean), tuple(std))
    elif name in torchvision.models.list_models(torchvision.models):
        with torch.device("meta"):
            model: Any = torchvision.models.get_model(name, weights=None)
        if isinstance(model, torchvision.models.VisionTransformer):
            blocks = [f"encoder.layers.encoder_layer_{number}" for number in range(len(model.encoder.layers))]
            stages = tuple(blocks[number] for number in _level_blocks(len(blocks)))
            spec = BackboneSpec(name, stages, IMAGENET_MEAN, IMAGENET_STD, model.patch_size)
            return _Architecture(spec, dict(enumerate(blocks, 1)), has_norm=True)
        if all(hasattr(model, layer) for layer in RESNET_LAYERS.values()):
            stages = tuple(RESNET_LAYERS[stride] for stride in STRIDES)
            return _Architecture(BackboneSpec(name, stages, IMAGENET_MEAN, IMAGENET_STD), RESNET_LAYERS, has_norm=False)
        raise UsageError(
            f"backbone {name!r} is neither a ResNet nor a Vision Transformer; use one of those from torchvision, "
            f"{EMBEDDED}, or timm:NAME."
        )
    raise UsageError(
        f"unknown backbone {name!r}; use resnet50, wide_resnet50_2, vit_b_16, another ResNet or Vision Transformer "
        f"from torchvision, {EMBEDDED}, or timm:NAME with a name from timm.list_models()."
    )


def _look_up_timm(name: str, mean: tuple[float, ...], std: tuple[float, ...]) -> _Architecture:
    import timm

    with torch.device("meta"):
        model: Any = timm.create_model(timm_name(name), pretrained=False)
    if _is_transformer(model):
        n_blocks, has_norm = len(model.blocks), not isinstance(_final_norm(model), nn.Identity | None)
        spec = BackboneSpec(name, _level_blocks(n_blocks), mean, std, model.patch_embed.patch_size[0])
        return _Architecture(spec, {number + 1: number for number in range(n_blocks)}, has_norm)
    info = model.feature_info
    strides = [layer["reduction"] for layer in getattr(info, "info", info)]
    if not set(STRIDES) <= set(strides) or not hasattr(model, "forward_intermediates"):
        raise UsageError(f"backbone {name!r} has no feature maps at strides 8, 16 and 32; choose another from timm.")
    layers = {stride: strides.index(stride) for stride in RESNET_LAYERS if stride in strides}
    return _Architecture(BackboneSpec(name, tuple(layers[stride] for stride in STRIDES), mean, std), layers, False)


def _level_blocks(n_blocks: int) -> tuple[int, ...]:
    return tuple(n_blocks * quarter // 4 - 1 for quarter in QUARTERS)


def _is_transformer(model: Any) -> bool:
    return hasattr(model, "patch_embed") and getattr(model, "num_prefix_tokens", 0) > 0


def _final_norm(transformer: Any) -> nn.Module | None:
    """The norm that follows the last block."""
    if isinstance(transformer, torchvision.models.VisionTransformer):
        return transformer.encoder.ln
    return getattr(transformer, "norm", None)


def _is_timm(name: str) -> bool:
    return name in PACKAGED or name.startswith("timm:")


def timm_name(name: str) -> str:
    """Return timm's name of a backbone that has a package or is named ``timm:NAME``."""
    return f"tf_{name}" if name in PACKAGED else name.removeprefix("timm:")


def build_network(spec: BackboneSpec) -> nn.Module:
    """Build the full network without weights."""
    if _is_timm(spec.name):
        import timm

        # The position embedding keeps its shape and is resized to the images as they come.
        sizing: dict[str, Any] = {"dynamic_img_size": True} if spec.patch > 1 else {}
        return timm.create_model(timm_name(spec.name), pretrained=False, **sizing)
    return torchvision.models.get_model(spec.name, weights=None)


class _TimmLayers(nn.Module):
    """Feature maps of some layers of a timm model, and its pooled features if asked for."""

    def __init__(self, model: Any, layers: Sequence[Any], pooled: bool) -> None:
        super().__init__()
        self.model, self.layers, self.pooled = model, list(layers), pooled
        if not pooled:
            model.prune_intermediate_layers(self.layers, prune_norm=True, prune_head=True)

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor | None]:
        if not self.pooled:
            maps = self.model.forward_intermediates(
                images, indices=self.layers, stop_early=True, intermediates_only=True, output_fmt="NCHW"
            )
            return maps, None
        last, maps = self.model.forward_intermediates(images, indices=self.layers, output_fmt="NCHW")
        return maps, last[:, 0] if _is_transformer(self.model) else self.model.forward_head(last, pre_logits=True)


class _ResNetLayers(nn.Module):
    """Feature maps of some layers of torchvision's ResNets, and their pooled features if asked for."""

    def __init__(self, model: nn.Module, layers: Sequence[Any], pooled: bool) -> None:
        super().__init__()
        self.layers = [str(layer) for layer in layers]
        self.pooled = pooled
        self.model = create_feature_extractor(model, [*self.layers, *(["flatten"] if pooled else [])])

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor | None]:
        outputs: Mapping[str, Tensor] = self.model(images)
        return [outputs[layer] for layer in self.layers], outputs["flatten"] if self.pooled else None


class _TransformerLayers(nn.Module):
    """Patch tokens of some layers of torchvision's Vision Transformers as grids, and the [CLS] token if asked for."""

    def __init__(self, model: Any, layers: Sequence[Any], pooled: bool) -> None:
        super().__init__()
        self.model, self.pooled = model, pooled
        self.layers = [str(layer).removeprefix("encoder.layers.") for layer in layers]

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor | None]:
        projected = self.model.conv_proj(images)
        rows, columns = projected.shape[-2:]
        patches = projected.flatten(2).transpose(1, 2)
        tokens = torch.cat([self.model.class_token.expand(len(images), -1, -1), patches], dim=1)
        tokens = tokens + resize_positions(self.model.encoder.pos_embedding, rows, columns)
        outputs: dict[str, Tensor] = {}
        for name, block in self.model.encoder.layers.named_children():
            if not self.pooled and len(outputs) == len(self.layers):
                break
            tokens = block(tokens)
            if name in self.layers:
                outputs[name] = tokens
        grids = [outputs[name][:, 1:].transpose(1, 2).unflatten(2, (rows, columns)) for name in self.layers]
        return grids, self.model.encoder.ln(tokens)[:, 0] if self.pooled else None


def resize_positions(embedding: Tensor, rows: int, columns: int) -> Tensor:
    """Interpolate a transformer's position embedding of a square grid, (1, 1 + n * n, d), to another grid of patches.

    Bicubic, as in torchvision's `interpolate_embeddings`; the first token, [CLS], keeps its own.
    """
    first, square = embedding[:, :1], embedding[:, 1:]
    side = math.isqrt(square.shape[1])
    if (rows, columns) == (side, side):
        return embedding
    grid = square.transpose(1, 2).unflatten(2, (side, side))
    grid = functional.interpolate(grid, (rows, columns), mode="bicubic", align_corners=True)
    return torch.cat([first, grid.flatten(2).transpose(1, 2)], dim=1)


def truncate_network(model: nn.Module, spec: BackboneSpec, layers: Sequence[Layer], pooled: bool) -> nn.Module:
    """Wrap a network so that it returns the feature maps of some layers and its pooled features, None if not asked."""
    wrapper: Any = _TransformerLayers if spec.patch > 1 else _ResNetLayers
    if _is_timm(spec.name):
        wrapper = _TimmLayers
    return wrapper(model, layers, pooled)


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Fold each batch norm into the convolution before it: the same function up to rounding, but faster.

    A batch norm is assumed to follow the convolution that is defined just before it. In a network where it does not,
    the outputs would differ; they are compared once, and then the network is returned unchanged.
    """
    folded = copy.deepcopy(model)
    for parent in list(folded.modules()):
        children = list(parent.named_children())
        for (name, conv), (norm_name, norm) in itertools.pairwise(children):
            if (
                isinstance(conv, nn.Conv2d)
                and isinstance(norm, nn.BatchNorm2d)
                and conv.out_channels == norm.num_features
            ):
                setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                # timm's batch norms contain the activation that follows.
                activation = [getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)]
                setattr(parent, norm_name, nn.Sequential(*activation))
    probe = torch.linspace(-2, 2, 3 * PROBE_SIDE**2).view(1, 3, PROBE_SIDE, PROBE_SIDE)
    with torch.inference_mode():
        expected, actual = model(probe), folded(probe)
    return folded if (actual - expected).abs().max() <= FOLDING_TOLERANCE * expected.abs().max() else model


class Backbone(nn.Module):
    """A network truncated after the deepest layer in use, with the weights of the full network.

    ``layers`` are those to return, shallow to deep; None: those of the patch features. ``pooled`` says whether to
    return the pooled features of the full network too. ``norm`` is the network's final norm if the spec asks for it; it
    is not applied here.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, spec: BackboneSpec, weights: Weights, layers: Sequence[Layer] | None = None, pooled: bool = False
    ) -> None:
        super().__init__()
        model = build_network(spec)
        model.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
        model = model.eval() if spec.patch > 1 else fold_batch_norm(model.eval())
        self.norm = _final_norm(model) if spec.norm else None
        self.layers = truncate_network(model, spec, spec.patch_layers if layers is None else layers, pooled)
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Compute feature maps and pooled features of (n, height, width, 3) uint8 RGB pixels.

        The maps are (n, channels, height, width) each, shallow to deep; for a transformer, its patch tokens as a grid.
        The pooled features are (n, channels): the average-pooled last map, or the [CLS] token.
        """
        images = (pixels.permute(0, 3, 1, 2).float() / 255 - self.mean) / self.std
        return self.layers(images.contiguous(memory_format=torch.channels_last))


class FeatureNetwork(nn.Module):
    """Compute features of several kinds from pixels, in one graph; ``kinds`` are those that need a backbone."""

    def __init__(self, kinds: Sequence[str], spec: BackboneSpec, weights: Weights) -> None:
        super().__init__()
        self.kinds, self.spec = tuple(kinds), spec
        self.backbone = Backbone(spec, weights, _layers_of(kinds, spec), pooled=POOLED in kinds)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return the features of each kind, in the order of ``kinds``, of (n, height, width, 3) uint8 pixels."""
        maps, pooled = self.backbone(pixels)
        features = _features(self.kinds, self.spec, maps, pooled, self.backbone.norm)
        return tuple(features[kind] for kind in self.kinds)


def patch_features(maps: Sequence[Tensor], reference: int = 0, neighbourhood: int = NEIGHBOURHOOD) -> Tensor:
    """Join feature maps of several levels into locally aware patch features: PatchCore, arXiv 2106.08265, section 3.1.

    Each map is averaged over square neighbourhoods, 3x3 by default. All are brought to the grid of one of them, smaller
    maps by bilinear interpolation and larger ones by averaging over its cells, and their channels are concatenated.
    Zeros beyond the border are averaged in, which makes patches there shorter and so less able to be far from the
    memory bank. Networks see the border of an image less well than its interior; averaging over the existing neighbours
    alone would make good borders the most abnormal patches of an image.

    ``maps`` are (n, channels, height, width) each, shallow to deep; ``reference`` is the index of the map whose grid is
    used; ``neighbourhood`` is the side of the squares, odd, 1 for no averaging. Returns (n, height, width, sum of
    channels) float32, contiguous, on the device of the maps.
    """
    grid = height, width = maps[reference].shape[-2:]
    levels = []
    for level in maps:
        smooth = level
        if neighbourhood > 1:
            smooth = functional.avg_pool2d(level, neighbourhood, stride=1, padding=neighbourhood // 2)
        if smooth.shape[-2] > height:
            smooth = functional.adaptive_avg_pool2d(smooth, (height, width))
        elif smooth.shape[-2:] != grid:
            smooth = functional.interpolate(smooth, grid, mode="bilinear", align_corners=False)
        levels.append(smooth)
    return torch.cat(levels, dim=1).permute(0, 2, 3, 1).contiguous()


def _layers_of(kinds: Sequence[str], spec: BackboneSpec) -> tuple[Layer, ...]:
    """The layers that features of some kinds are made of, shallow to deep."""
    of_kinds = {PATCHES: spec.patch_layers, STAGES: spec.stages}
    layers = {layer for kind in kinds for layer in of_kinds.get(kind, ())}
    return tuple(sorted(layers, key=_depth)) or spec.stages[:2]


def _depth(layer: Layer) -> int:
    """The number of a layer, at the end of its name if it has one."""
    return int(re.findall(r"\d+", str(layer))[-1])


def _features(
    kinds: Sequence[str],
    spec: BackboneSpec,
    maps: Sequence[Tensor],
    pooled: Tensor | None,
    norm: nn.Module | None = None,
) -> dict[str, Tensor]:
    """Features by kind of the maps of `_layers_of`; ``norm`` is applied to the tokens of `PATCHES`."""
    of_layer = dict(zip(_layers_of(kinds, spec), maps, strict=True))
    features: dict[str, Tensor] = {}
    if PATCHES in kinds:
        of_patches = [of_layer[layer] for layer in spec.patch_layers]
        if norm is not None:
            of_patches = [norm(level.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for level in of_patches]
        features[PATCHES] = patch_features(of_patches, spec.grid_layer, spec.neighbourhood)
    if STAGES in kinds:
        features[STAGES] = patch_features([of_layer[layer] for layer in spec.stages], reference=1)
    if POOLED in kinds and pooled is not None:
        features[POOLED] = pooled
    return features


@functools.cache
def layer_channels(spec: BackboneSpec) -> tuple[int, ...]:
    """The channels of each layer that patch features are made of, shallow to deep, which lie side by side in them."""
    side = PROBE_SIDE if spec.patch == 1 else PROBE_PATCHES * spec.patch
    maps, _ = _without_weights(spec, spec.patch_layers, False, side, side)
    return tuple(level.shape[1] for level in maps)


def network_shapes(kinds: Sequence[str], spec: BackboneSpec, height: int, width: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of one image's features of each kind, without weights and without computing any."""
    outputs = _without_weights(spec, _layers_of(kinds, spec), POOLED in kinds, height, width)
    return {kind: tuple(values.shape[1:]) for kind, values in _features(kinds, spec, *outputs).items()}


def _without_weights(
    spec: BackboneSpec, layers: Sequence[Layer], pooled: bool, height: int, width: int
) -> tuple[list[Tensor], Tensor | None]:
    """Maps and pooled features of one image, of which only the shapes are known."""
    with torch.device("meta"), torch.inference_mode():
        network = truncate_network(build_network(spec), spec, layers, pooled)
        return network.eval()(torch.empty(1, 3, height, width))
