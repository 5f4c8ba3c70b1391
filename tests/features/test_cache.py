"""An exported network is kept, and nothing that is wrong with the file or its folder is ever used or said."""

import os
from dataclasses import replace

import pytest

from helpers.fault_injection import Killed, killed_at
from mvad.data.image_size import ImageSize
from mvad.features import cache, extractor, specs
from mvad.features.backbones import describe
from mvad.features.cache import GRAPH, cached
from mvad.features.specs import prepare
from mvad.features.weights import Network

SIZE = ImageSize.square(64)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "mvad"


def unexpected():
    pytest.fail("exported again")


def test_a_graph_is_exported_once(folder):
    assert cached(["a", 1], GRAPH, lambda: b"graph") == b"graph"
    assert cached(["a", 1], GRAPH, unexpected) == b"graph"
    assert cached(["a", 2], GRAPH, lambda: b"other") == b"other"
    assert [file.suffix for file in folder.iterdir()] == [".graph"] * 2
    assert folder.stat().st_mode & 0o077 == 0


def test_a_new_version_of_the_software_has_its_own(folder, monkeypatch):
    cached(["a"], GRAPH, lambda: b"old")
    monkeypatch.setattr(cache.importlib.metadata, "version", lambda name: "99")
    assert cached(["a"], GRAPH, lambda: b"new") == b"new"


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:-1] + b"?",
        lambda content: b"?" + content[1:],
        lambda content: b"",
    ],
)
def test_a_damaged_file_is_replaced(folder, damage):
    cached(["a"], GRAPH, lambda: b"graph")
    (file,) = folder.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert cached(["a"], GRAPH, lambda: b"graph") == b"graph"
    assert cached(["a"], GRAPH, unexpected) == b"graph"


def test_a_file_of_another_user_is_not_used(folder, monkeypatch):
    cached(["a"], GRAPH, lambda: b"theirs")
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    assert cached(["a"], GRAPH, lambda: b"mine") == b"mine"


@pytest.mark.parametrize("home", ["/proc/missing", "/dev/null"])
def test_without_a_folder_nothing_is_kept(monkeypatch, home):
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    assert cached(["a"], GRAPH, lambda: b"graph") == b"graph"


def test_what_a_killed_process_left_is_cleared(folder):
    with pytest.raises(Killed), killed_at(0):
        cached(["a"], GRAPH, lambda: b"graph")
    assert [file.suffix for file in folder.iterdir()] == [".unfinished"]
    assert cached(["a"], GRAPH, lambda: b"graph") == b"graph"
    assert [file.suffix for file in folder.iterdir()] == [".graph"]


def test_those_used_last_are_kept(folder, monkeypatch):
    monkeypatch.setattr(cache, "MAX_FILES", 3)
    for number in range(3):
        earlier = set(folder.glob("*"))
        cached([number], GRAPH, lambda: b"graph")
        (file,) = set(folder.iterdir()) - earlier
        os.utime(file, (number, number))
    cached([0], GRAPH, unexpected)
    cached([3], GRAPH, lambda: b"graph")
    for number in (0, 2, 3):
        cached([number], GRAPH, unexpected)
    assert cached([1], GRAPH, lambda: b"again") == b"again"


def test_each_network_kind_and_size_has_its_own(folder, monkeypatch):
    network = Network.load(describe("efficientnet_lite0"), None)
    exported = []
    monkeypatch.setattr(extractor, "onnx_graph", lambda network, *sides: exported.append(sides) or b"graph")
    for kinds, weights, side in (
        (["patches"], network, 64),
        (["pooled"], network, 64),
        (["patches"], replace(network, sha256="0" * 64), 64),
        (["patches"], network, 96),
    ):
        for _ in range(2):
            specs._onnx_spec.cache_clear()
            prepare(kinds, weights, ImageSize.square(side), "onnx")
    specs._onnx_spec.cache_clear()
    assert exported == [(64, 64), (64, 64), (64, 64), (96, 96)]
