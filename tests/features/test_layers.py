"""Which layers patch features are made of, how they are averaged, and whether the final norm is applied."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import timm
import torch

from helpers import reference
from mvad.data.image_size import ImageSize
from mvad.errors import UsageError
from mvad.features.backbone_spec import BackboneSpec
from mvad.features.backbones import build_network, describe, network_shapes, patch_features
from mvad.features.specs import prepare
from mvad.features.weights import Network
from mvad.model_checks import check_document

SIZE = ImageSize.square(64)
VIT = "timm:vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)


def random_network(spec, sha256="0"):
    torch.manual_seed(0)
    return Network(spec, {name: tensor.numpy() for name, tensor in build_network(spec).state_dict().items()}, sha256)


def extract(spec, images, kinds=("patches",), engine="torch"):
    size = ImageSize(resize=images.shape[1:3], crop=images.shape[1:3])
    return prepare(kinds, random_network(spec), size, engine).load()(images)


def full_network(spec):
    network = build_network(spec).eval()
    weights = random_network(spec).weights
    network.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return network


def normalised(spec, images):
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    return (pixels - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)


def test_layers_of_a_resnet_are_those_of_the_strides_asked_for(images):
    spec = describe("resnet18", layers=[16, 4])
    network = full_network(spec)
    with torch.inference_mode():
        x = network.maxpool(network.relu(network.bn1(network.conv1(normalised(spec, images)))))
        first = network.layer1(x)
        third = network.layer3(network.layer2(first))
    expected = reference.patch_features([first.double().numpy(), third.double().numpy()])
    actual = extract(spec, images)["patches"]
    assert actual.shape == (2, 16, 16, 64 + 256)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "layers", "shape"),
    [
        ("resnet18", (4,), (16, 16, 64)),
        ("resnet18", (32,), (2, 2, 512)),
        ("resnet18", (32, 8, 8), (8, 8, 128 + 512)),
        ("timm:resnet18", (4, 16), (16, 16, 64 + 256)),
        ("efficientnet_lite0", (4, 8, 16, 32), (8, 8, 24 + 40 + 112 + 320)),
        (VIT, (1, 12), (4, 4, 2 * 192)),
        ("vit_b_16", (2,), (4, 4, 768)),
    ],
)
def test_the_grid_is_that_of_stride_8_or_the_shallowest_layer(images, name, layers, shape):
    spec = describe(name, layers)
    assert network_shapes(["patches"], spec, 64, 64)["patches"] == shape
    assert extract(spec, images[:1])["patches"].shape == (1, *shape)


@pytest.mark.parametrize(("name", "layers"), [("resnet50", (8, 16)), ("efficientnet_lite0", (16, 8)), (VIT, (6, 9))])
def test_the_default_layers_by_number_are_the_default(name, layers):
    assert describe(name, layers) == describe(name)
    assert hash(describe(name, layers)) == hash(describe(name))


@pytest.mark.parametrize(
    ("name", "layers", "sentence"),
    [
        ("resnet50", (8, 64), r"'resnet50' has no layer of stride 64; its --layers are strides 4, 8, 16, 32\."),
        ("efficientnet_lite0", (2, 3), r"no layer of stride 2, 3; its --layers are strides 4, 8, 16, 32\."),
        (VIT, (12, 13), r"has no block 13; its --layers are blocks 1 to 12\."),
        ("vit_b_16", (16,), r"'vit_b_16' has no block 16; its --layers are blocks 1 to 12\."),
    ],
)
def test_layers_that_a_network_does_not_have(name, layers, sentence):
    with pytest.raises(UsageError, match=sentence):
        describe(name, layers)


def test_a_convolutional_network_has_no_final_norm():
    with pytest.raises(UsageError, match="'resnet18' has no final norm of tokens; leave --norm out"):
        describe("resnet18", norm=True)


@pytest.mark.parametrize("side", [1, 3, 5, 9])
def test_neighbourhoods_are_means_of_squares_with_zeros_beyond_the_border(side):
    maps = np.random.default_rng(0).standard_normal((2, 3, 6, 4))
    padded = np.pad(maps, ((0, 0), (0, 0), (side // 2, side // 2), (side // 2, side // 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(2, 3))
    expected = windows.mean(axis=(4, 5)).transpose(0, 2, 3, 1)
    features = patch_features([torch.from_numpy(maps)], neighbourhood=side)
    np.testing.assert_allclose(features, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_stages_and_pooled_features_do_not_depend_on_the_choice(images, engine):
    kinds = ("patches", "stages", "pooled")
    default = extract(describe(VIT), images, kinds, engine)
    chosen = extract(describe(VIT, (1, 7), neighbourhood=1, norm=True), images, kinds, engine)
    for kind in ("stages", "pooled"):
        torch.testing.assert_close(chosen[kind], default[kind], rtol=1e-4, atol=1e-5)
    assert chosen["patches"].shape == default["patches"].shape
    assert not torch.allclose(chosen["patches"], default["patches"])


@pytest.mark.parametrize("name", [VIT, "vit_b_16"])
def test_the_final_norm_is_applied_to_the_tokens_of_each_layer(images, name):
    spec = describe(name, (3, 7), neighbourhood=1)
    plain, normed = (extract(replace(spec, norm=norm), images[:1])["patches"] for norm in (False, True))
    network = full_network(spec)
    norm = network.encoder.ln if name == "vit_b_16" else network.norm
    with torch.inference_mode():
        expected = torch.cat([norm(half) for half in plain.chunk(2, dim=-1)], dim=-1)
    torch.testing.assert_close(normed, expected, rtol=1e-4, atol=1e-5)


def dino_tokens(name, images):
    """L2-normalised patch tokens of the last block after the norm, by hooks on timm's own forward pass."""
    spec = describe(name)
    height, width = images.shape[1:3]
    network = timm.create_model(name.removeprefix("timm:"), img_size=(height, width)).eval()
    # A network built for this very size needs no resizing of positions: they are resized here, once.
    state = {key: torch.from_numpy(array) for key, array in random_network(spec).weights.items()}
    if "pos_embed" in state:
        n_prefix = state["pos_embed"].shape[1] - round((state["pos_embed"].shape[1]) ** 0.5) ** 2
        state["pos_embed"] = timm.layers.resample_abs_pos_embed(
            state["pos_embed"], [height // spec.patch, width // spec.patch], num_prefix_tokens=n_prefix
        )
    network.load_state_dict(state)
    seen = []
    network.norm.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    with torch.inference_mode():
        network.forward_features(normalised(spec, images))
        ((before, after),) = seen
        mean, variance = before.mean(-1, keepdim=True), before.var(-1, keepdim=True, correction=0)
        by_formula = (before - mean) / (variance + network.norm.eps).sqrt() * network.norm.weight + network.norm.bias
    torch.testing.assert_close(after, by_formula, rtol=1e-4, atol=1e-5)
    tokens = after[:, network.num_prefix_tokens :].numpy().astype(np.float64)
    tokens /= np.linalg.norm(tokens, axis=2, keepdims=True)
    return tokens.reshape(len(images), height // spec.patch, width // spec.patch, -1)


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("timm:vit_small_patch14_dinov2", (70, 70)),
        ("timm:vit_small_patch14_reg4_dinov2", (56, 98)),
        ("timm:vit_tiny_patch16_dinov3_qkvb", (64, 64)),
        ("timm:vit_small_patch16_dinov3", (48, 96)),
    ],
)
def test_dino_patches_are_the_tokens_of_the_last_block_after_the_norm(name, sides):
    """As AnomalyDINO takes them (arXiv 2405.14529, section 3.1), without [CLS] and registers, row by row."""
    images = np.random.default_rng(1).integers(0, 256, (2, *sides, 3), np.uint8)
    spec = describe(name, [12], neighbourhood=1, norm=True)
    features = extract(spec, images, engine="torch")["patches"].numpy().astype(np.float64)
    features /= np.linalg.norm(features, axis=3, keepdims=True)
    expected = dino_tokens(name, images)
    assert features.shape == expected.shape
    np.testing.assert_allclose(features, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["timm:vit_small_patch14_reg4_dinov2", "timm:vit_tiny_patch16_dinov3_qkvb"])
def test_dino_patches_are_the_same_on_the_engine_that_is_chosen(name):
    spec = describe(name, [2], neighbourhood=1, norm=True)
    images = np.random.default_rng(1).integers(0, 256, (1, 2 * spec.patch, 3 * spec.patch, 3), np.uint8)
    expected, actual = (extract(spec, images, engine=engine)["patches"] for engine in ("torch", "auto"))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def document(backbone):
    return {
        "method": "patchcore",
        "category": "cap",
        "settings": {},
        "backbone": backbone,
        "weights_sha256": "abc",
        "size": {"resize": [64, 64], "crop": [64, 64]},
        "files": {},
        "record": {"n_train": 1, "errors": [], "fit_seconds": 1.0, "bytes": 1},
    }


@pytest.mark.parametrize("name", ["resnet50", VIT])
def test_specs_of_earlier_versions_mean_what_they_did(name):
    """They have five fields; two layers of the default, averaged over 3 x 3, without the final norm."""
    spec = describe(name)
    earlier = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(spec).items()}
    for key in ("layers", "neighbourhood", "norm"):
        del earlier[key]
    read = check_document(document(earlier)).backbone
    assert read == spec
    assert (read.patch_layers, read.neighbourhood, read.norm) == (spec.stages[:2], 3, False)


@pytest.mark.parametrize("layers", [(), (4, 8)])
def test_specs_are_read_as_they_are_written(layers):
    spec = describe("resnet50", layers, neighbourhood=5)
    written = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(spec).items()}
    assert check_document(document(written)).backbone == spec


@pytest.mark.parametrize(
    "wrong",
    [
        {"layers": ["layer2", "layer2"]},
        {"layers": "layer2"},
        {"neighbourhood": 2},
        {"neighbourhood": -1},
        {"neighbourhood": 10**9 + 1},
        {"neighbourhood": "3"},
        {"norm": True},
        {"norm": 1},
    ],
)
def test_specs_that_say_nonsense_are_refused(wrong):
    backbone = {"name": "resnet50", "stages": ["layer2", "layer3", "layer4"], "mean": [0.5] * 3, "std": [0.5] * 3}
    check_document(document(backbone))
    with pytest.raises(ValueError, match="backbone"):
        check_document(document({**backbone, **wrong}))


def test_specs_that_differ_in_layers_share_no_extractor():
    default, other = describe("resnet50"), describe("resnet50", (4, 8))
    assert len({default, other, replace(default), describe("resnet50", neighbourhood=1)}) == 3
    assert isinstance(default, BackboneSpec)
