"""A graph is exported once for the same network and software; whatever is wrong with the cache, there is a graph."""

import os

import pytest

from mvad import graph_cache
from mvad.graph_cache import cached_graph


@pytest.fixture
def export(tmp_path, monkeypatch):
    """An export that counts its calls in ``export.calls`` and gives so many bytes of that number."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def make():
        make.calls += 1
        return bytes([make.calls]) * 100

    make.calls = 0
    return make


def files(folder):
    return sorted((folder / "mvad/graphs").glob("*"), key=os.path.getmtime)


def test_the_same_network_is_exported_once(export, tmp_path):
    assert [cached_graph({"side": side}, export) for side in (64, 64, 96, 64)] == [
        bytes([number]) * 100 for number in (1, 1, 2, 1)
    ]
    assert len(files(tmp_path)) == 2
    assert (tmp_path / "mvad/graphs").stat().st_mode & 0o777 == 0o700


def test_other_software_has_graphs_of_its_own(export, monkeypatch):
    cached_graph({}, export)
    versions = {**graph_cache.versions_here("onnxscript"), "mvad": "another"}
    monkeypatch.setattr(graph_cache, "versions_here", lambda *others: versions)
    cached_graph({}, export)
    assert export.calls == 2


@pytest.mark.parametrize("content", [b"", b"short", bytes(132)])
def test_a_damaged_file_is_replaced(export, tmp_path, content):
    cached_graph({}, export)
    (file,) = files(tmp_path)
    file.write_bytes(content)
    assert cached_graph({}, export) == bytes([2]) * 100
    assert cached_graph({}, export) == bytes([2]) * 100


def test_no_cache_is_no_harm(export, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # not a folder
    assert [cached_graph({}, export)[0], cached_graph({}, export)[0]] == [1, 2]


def test_graphs_that_were_used_last_stay(export, tmp_path, monkeypatch):
    monkeypatch.setattr(graph_cache, "MOST_BYTES", 300)  # two graphs of 132 bytes
    cached_graph({"side": 1}, export)
    cached_graph({"side": 2}, export)
    for age, file in enumerate(reversed(files(tmp_path)), start=1):
        os.utime(file, ns=(0, 10**18 - age))
    assert cached_graph({"side": 1}, export)[0] == 1  # and is now the newest
    cached_graph({"side": 3}, export)
    assert len(files(tmp_path)) == 2
    assert [cached_graph({"side": side}, export)[0] for side in (1, 3)] == [1, 3]
