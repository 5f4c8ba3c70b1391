"""The benchmark measures what it says, and its references agree with the algorithms they are references for."""

import json
import sys

import numpy as np
import pytest
import torch
from rich.console import Console

from benchmarks.floor import Workers, backbone_loader, spec_loader
from benchmarks.gpu.part import NO_GPU, run_stage
from benchmarks.gpu.tables import show_gpu
from benchmarks.main import benchmark, main
from benchmarks.options import BenchmarkOptions
from benchmarks.references import compare_coresets, compare_searches, compare_shards, plain_greedy
from mvad.data.image_size import ImageSize
from mvad.detectors import PatchCore, State
from mvad.errors import UsageError
from mvad.features.backbones import describe
from mvad.features.specs import prepare
from mvad.features.weights import Network
from mvad.model_store import find_models, read_arrays
from mvad.search.coreset import greedy_coreset


def test_references_agree_with_what_they_are_references_of():
    random = np.random.default_rng(0)
    features = torch.from_numpy(random.standard_normal((12, 4, 5, 16)).astype(np.float32))
    chosen, _ = plain_greedy(features.flatten(0, 2), 20)
    assert chosen == greedy_coreset(features.flatten(0, 2), 20)[0].tolist()
    assert compare_coresets(features, 0.1, 0)["same_choices"] == "24 of 24"
    bank = PatchCore(coreset_ratio=0.2, projection=0).fit(features[:6]).bank
    found = compare_searches(features[6:], bank, repeats=1)
    assert found["largest_difference"] < 1e-5
    assert (found["bank"], found["patches"]) == (24, 20)


def test_shards_cover_within_the_bound_they_record():
    random = np.random.default_rng(0)
    features = torch.from_numpy(random.standard_normal((16, 4, 5, 16)).astype(np.float32))
    test = torch.from_numpy(random.standard_normal((4, 4, 5, 16)).astype(np.float32))
    rows = compare_shards(features, test, [0, 1, 0, 1], 0.1)
    assert [row["shards"] for row in rows] == [1, 4, 16]
    assert all(row["vectors"] == 32 and 0 <= row["auroc"] <= 1 for row in rows)
    assert all(row["radius"] <= row["bound"] * (1 + 1e-5) for row in rows)
    assert rows[0]["radius"] == pytest.approx(rows[0]["bound"], rel=1e-5)


@pytest.fixture(scope="module")
def embedded():
    return Network.load(describe("efficientnet_lite0"), None)


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_the_floor_decodes_and_runs_the_backbone(tiles, embedded, engine):
    size = ImageSize.square(64)
    workers = Workers(backbone_loader(embedded, 64, engine), size, processes=1)
    uris = [f"file://{path}" for path in sorted(tiles.glob("alpha/test/*/*.png"))]
    seconds, stages = workers.measure(uris)
    workers.close()
    assert 0 < (stages.decode + stages.forward) * len(uris) <= seconds
    assert stages.search < stages.forward


def test_all_work_without_ray_scores_too(tiles, embedded, base_run):
    size = ImageSize.square(64)
    found = find_models(base_run[0].as_uri() + "/models")["alpha"]
    model = found.method, State(found.settings, read_arrays(found))
    workers = Workers(spec_loader(prepare(["patches"], embedded, size, "auto")), size, 1, model)
    _, stages = workers.measure([f"file://{path}" for path in sorted(tiles.glob("alpha/test/*/*.png"))])
    workers.close()
    assert all(value > 0 for value in stages)


def test_the_benchmark_measures_and_writes_all_numbers(tiles, ray_local, tmp_path, capsys):
    report = tmp_path / "report.json"
    options = {"data": str(tiles), "categories": "beta", "image_size": 64, "parts": "forward", "repeats": 1}
    benchmark(BenchmarkOptions(out=str(report), **options))
    assert "mvad --engine onnx" in capsys.readouterr().out
    numbers = json.loads(report.read_text())
    assert numbers["category"] == "beta"
    rows = numbers["backbones"]["efficientnet_lite0"]["forward"]
    differences = {row["way"]: row["difference"] for row in rows}
    assert differences["PyTorch"] == 0
    assert differences["mvad --engine torch: batch norms folded"] < 1e-4
    assert differences["mvad --engine onnx"] < 1e-4
    assert all(row["milliseconds"] > 0 for row in rows)


def test_parts_that_there_are_not():
    with pytest.raises(UsageError, match="--parts 'all' is unknown"):
        BenchmarkOptions(parts="jobs,all")


def test_wrong_use_of_the_command_is_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["jobs/benchmark.py", "--parts", "all"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--parts 'all' is unknown" in capsys.readouterr().err


def test_the_part_gpu_says_that_there_is_none_and_is_skipped(tiles, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    benchmark(BenchmarkOptions(data=str(tiles), parts="gpu", out=str(tmp_path / "report.json")))
    assert NO_GPU in capsys.readouterr().out
    assert "gpu" not in json.loads((tmp_path / "report.json").read_text())
    with pytest.raises(UsageError, match="--gpu 'all' is unknown"):
        BenchmarkOptions(gpu="search,all")


def test_a_stage_that_fails_says_why(tmp_path, capsys):
    measured = run_stage("unknown", {"folder": str(tmp_path)}, limit_s=60)
    assert measured["rows"] == []
    assert measured["error"] == "KeyError: 'unknown'"
    assert "Traceback" in measured["log"]
    show_gpu(Console(), "search", measured)
    assert "search did not end well: KeyError: 'unknown'" in capsys.readouterr().out


def test_growth_is_a_list_of_numbers():
    assert BenchmarkOptions(growth="10, 20").growth_sizes == [10, 20]
    with pytest.raises(UsageError, match="is not a list of numbers"):
        BenchmarkOptions(growth="many")
