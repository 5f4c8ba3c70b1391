import importlib.util
import pickle

import numpy as np
import pytest
import torch

from mvad.data.image_size import ImageSize
from mvad.errors import UsageError
from mvad.features import specs
from mvad.features.backbones import build_network, describe
from mvad.features.kinds import KINDS
from mvad.features.specs import OnnxSpec, TorchSpec, feature_shapes, prepare, resolve_engine
from mvad.features.weights import Network

SIZE = ImageSize.square(64)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def embedded():
    return Network.load(describe("efficientnet_lite0"), None)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["torch", "onnx"])
def extract(request, embedded, one_thread):
    return prepare(KINDS, embedded, SIZE, request.param).load()


def random_network(name):
    spec = describe(name)
    torch.manual_seed(0)
    return Network(spec, {key: value.numpy() for key, value in build_network(spec).state_dict().items()}, "0")


def test_kinds_and_their_shapes(extract, embedded, images):
    features = extract(images)
    assert set(features) == set(KINDS)
    shapes = feature_shapes(KINDS, embedded.spec, SIZE)
    assert {kind: tuple(values.shape[1:]) for kind, values in features.items()} == shapes
    assert all(values.dtype == torch.float32 and len(values) == 5 for values in features.values())
    assert shapes["pixels"] == (64, 64, 3)
    assert shapes["patches"] == (8, 8, 152)


@pytest.mark.parametrize("chunk", [1, 3, 32])
def test_company_in_a_batch_changes_nothing(embedded, images, one_thread, chunk):
    """On a CPU exactly: the last chunk is filled up, so all images go through the network in one shape."""
    extract = prepare(["patches"], embedded, SIZE).load()
    extract.chunk = chunk
    together = extract(images)["patches"]
    for number in range(len(images)):
        assert torch.equal(extract(images[number : number + 1])["patches"][0], together[number])


def test_company_changes_nothing_with_onnx(embedded, images):
    extract = prepare(["patches"], embedded, SIZE, "onnx").load()
    together = extract(images)["patches"]
    for number in range(len(images)):
        assert torch.equal(extract(images[number : number + 1])["patches"][0], together[number])


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "timm:vit_tiny_patch16_224"])
def test_engines_agree(name, embedded, images, one_thread):
    backbone = embedded if name == "efficientnet_lite0" else random_network(name)
    kinds = ["patches", "pooled"]
    expected, actual = (prepare(kinds, backbone, SIZE, engine).load()(images) for engine in ("torch", "onnx"))
    for kind in kinds:
        scale = expected[kind].abs().max().item()
        torch.testing.assert_close(actual[kind], expected[kind], rtol=0, atol=1e-5 * scale)


def test_specs_travel(embedded, images, one_thread):
    for engine, type_ in (("torch", TorchSpec), ("onnx", OnnxSpec)):
        spec = prepare(["pooled"], embedded, SIZE, engine)
        assert isinstance(spec, type_)
        sent = pickle.loads(pickle.dumps(spec)).load()
        assert torch.equal(sent(images)["pooled"], spec.load()(images)["pooled"])


def test_methods_that_look_at_pixels_need_no_engine(images):
    no_backbone = Network(describe("none"), {}, "")
    spec = prepare(["pixels"], no_backbone, SIZE, "onnx")
    assert isinstance(spec, TorchSpec)
    np.testing.assert_allclose(spec.load()(images)["pixels"], images / 255, rtol=1e-6)


def test_which_engine(monkeypatch):
    assert [resolve_engine(engine) for engine in ("auto", "torch", "onnx")] == ["onnx", "torch", "onnx"]
    assert resolve_engine("auto", gpus=True) == "torch"
    with pytest.raises(UsageError, match="this cluster has GPUs"):
        resolve_engine("onnx", gpus=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert resolve_engine("auto") == "torch"
    with pytest.raises(UsageError, match="needs onnxruntime, which is not installed; install mvad again on all nodes"):
        resolve_engine("onnx")


def test_a_network_that_cannot_be_exported(embedded, monkeypatch, tmp_path):
    specs._onnx_spec.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.onnx, "export", lambda *arguments, **keywords: 1 / 0)
    with pytest.raises(UsageError, match=r"cannot run on ONNX Runtime \(division by zero\); add --engine torch"):
        prepare(["patches"], embedded, SIZE, "onnx")
    assert isinstance(prepare(["patches"], embedded, SIZE, "auto"), TorchSpec)
