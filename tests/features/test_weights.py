"""What weights a file holds is remembered, and the file is read only where they are needed."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from helpers.weights import random_weights
from mvad.data.image_size import ImageSize
from mvad.errors import UsageError
from mvad.features import specs, weights
from mvad.features.backbones import describe
from mvad.features.specs import OnnxSpec, TorchSpec, prepare
from mvad.features.weights import Network, StoredWeights

SPEC = describe("resnet18")


@pytest.fixture
def path(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    random_weights("resnet18", tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


@pytest.fixture
def forbid_reading(monkeypatch):
    return lambda: monkeypatch.setattr(weights, "load_weights", lambda *_: pytest.fail("the weights were read"))


def test_known_weights_are_not_read_again(path, forbid_reading):
    first = Network.load(SPEC, path)
    forbid_reading()
    again = Network.load(SPEC, path)
    assert again == first
    assert isinstance(again.weights, StoredWeights)
    assert again.nbytes == first.nbytes == sum(array.nbytes for array in first.weights.values())


def test_known_weights_are_read_where_they_are_needed(path):
    first, again = Network.load(SPEC, path), Network.load(SPEC, path)
    assert list(again.weights) == list(first.weights)
    assert len(again.weights) == len(first.weights)
    for name, array in first.weights.items():
        np.testing.assert_array_equal(again.weights[name], array)


def test_other_processes_get_the_weights_themselves(path, forbid_reading):
    Network.load(SPEC, path)
    sent = pickle.dumps(Network.load(SPEC, path))
    forbid_reading()
    received = pickle.loads(sent)
    assert type(received.weights) is dict
    assert len(received.weights) > 50


def test_a_file_that_has_changed_is_read_again(path):
    first = Network.load(SPEC, path)
    random_weights("resnet18", Path(path), seed=1)
    assert Network.load(SPEC, path) != first


def test_weights_that_change_while_they_are_in_use_are_refused(path):
    Network.load(SPEC, path)
    known = Network.load(SPEC, path)
    random_weights("resnet18", Path(path), seed=1)
    with pytest.raises(UsageError, match="the weights of resnet18 have changed while they were in use; start again"):
        known.weights["conv1.weight"]


def test_weights_of_another_network_are_an_error_each_time(path):
    for _ in range(2):
        with pytest.raises(UsageError, match="are not those of resnet50"):
            Network.load(describe("resnet50"), path)


def test_a_known_network_with_a_known_graph_needs_no_weights(path, forbid_reading):
    size = ImageSize.square(32)
    expected = prepare(["patches"], Network.load(SPEC, path), size, "onnx")
    specs._onnx_spec.cache_clear()
    forbid_reading()
    found = prepare(["patches"], Network.load(SPEC, path), size, "onnx")
    assert isinstance(found, OnnxSpec)
    assert found == expected


def test_a_known_network_is_loaded_for_pytorch(path):
    Network.load(SPEC, path)
    spec = prepare(["patches"], Network.load(SPEC, path), ImageSize.square(32), "torch")
    assert isinstance(spec, TorchSpec)
    pixels = np.zeros((1, 32, 32, 3), np.uint8)
    assert spec.load()(pixels)["patches"].shape[0] == 1


def test_packaged_weights_are_remembered_too(path, forbid_reading):
    Network.load(describe("efficientnet_lite0"), None)
    forbid_reading()
    assert Network.load(describe("efficientnet_lite0"), None).nbytes > 10_000_000
