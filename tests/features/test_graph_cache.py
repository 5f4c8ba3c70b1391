"""An exported network is kept, and nothing that is wrong with the file or its folder is ever used or said."""

import os
from dataclasses import replace

import pytest

from helpers.fault_injection import Killed, killed_at
from mvad.data.image_size import ImageSize
from mvad.features import extractor, graph_cache
from mvad.features.backbones import describe
from mvad.features.extractor import prepare
from mvad.features.graph_cache import cached_graph
from mvad.features.weights import Network

SIZE = ImageSize.square(64)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "mvad"


def unexpected():
    pytest.fail("exported again")


def test_a_graph_is_exported_once(cache):
    assert cached_graph(["a", 1], lambda: b"graph") == b"graph"
    assert cached_graph(["a", 1], unexpected) == b"graph"
    assert cached_graph(["a", 2], lambda: b"other") == b"other"
    assert [file.suffix for file in cache.iterdir()] == [".graph"] * 2
    assert cache.stat().st_mode & 0o077 == 0


def test_a_new_version_of_the_software_has_its_own(cache, monkeypatch):
    cached_graph(["a"], lambda: b"old")
    monkeypatch.setattr(graph_cache.importlib.metadata, "version", lambda name: "99")
    assert cached_graph(["a"], lambda: b"new") == b"new"


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:-1] + b"?",
        lambda content: b"?" + content[1:],
        lambda content: b"",
    ],
)
def test_a_damaged_file_is_replaced(cache, damage):
    cached_graph(["a"], lambda: b"graph")
    (file,) = cache.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert cached_graph(["a"], lambda: b"graph") == b"graph"
    assert cached_graph(["a"], unexpected) == b"graph"


def test_a_file_of_another_user_is_not_used(cache, monkeypatch):
    cached_graph(["a"], lambda: b"theirs")
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    assert cached_graph(["a"], lambda: b"mine") == b"mine"


@pytest.mark.parametrize("home", ["/proc/missing", "/dev/null"])
def test_without_a_folder_nothing_is_kept(monkeypatch, home):
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    assert cached_graph(["a"], lambda: b"graph") == b"graph"


def test_what_a_killed_process_left_is_cleared(cache):
    with pytest.raises(Killed), killed_at(0):
        cached_graph(["a"], lambda: b"graph")
    assert [file.suffix for file in cache.iterdir()] == [".unfinished"]
    assert cached_graph(["a"], lambda: b"graph") == b"graph"
    assert [file.suffix for file in cache.iterdir()] == [".graph"]


def test_those_used_last_are_kept(cache, monkeypatch):
    monkeypatch.setattr(graph_cache, "MAX_GRAPHS", 3)
    for number in range(3):
        earlier = set(cache.glob("*"))
        cached_graph([number], lambda: b"graph")
        (file,) = set(cache.iterdir()) - earlier
        os.utime(file, (number, number))
    cached_graph([0], unexpected)
    cached_graph([3], lambda: b"graph")
    for number in (0, 2, 3):
        cached_graph([number], unexpected)
    assert cached_graph([1], lambda: b"again") == b"again"


def test_each_network_kind_and_size_has_its_own(cache, monkeypatch):
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
            extractor._onnx_spec.cache_clear()
            prepare(kinds, weights, ImageSize.square(side), "onnx")
    extractor._onnx_spec.cache_clear()
    assert exported == [(64, 64), (64, 64), (64, 64), (96, 96)]
