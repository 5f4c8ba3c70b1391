"""Which backbone, layers and recipe each method of a comparison gets."""

import numpy as np
import pytest

from mvad.commands.compare import _by_features
from mvad.comparison.variants import method_runs
from mvad.console import Reporter
from mvad.errors import UsageError
from mvad.features.backbones import describe
from mvad.features.weights import Network
from mvad.options import CompareOptions, build

DINO = "timm:vit_small_patch14_dinov2"


@pytest.fixture
def grouped(monkeypatch):
    """The runs of a comparison by the spec of their backbone, with reasons of methods that cannot run; no weights."""
    monkeypatch.setattr(Network, "load", lambda spec, path: Network(spec, {"w": np.zeros(1, np.float32)}, str(path)))

    def group(**values):
        options = build(CompareOptions, {"quiet": True, **values})
        groups, reasons = _by_features(method_runs(options, {}), {}, Reporter(quiet=True))
        return {network.spec: {run.options.method: run.options for run in runs} for network, runs in groups}, reasons

    return group


def test_layers_are_those_of_the_backbone_that_is_named(grouped):
    groups, reasons = grouped(
        methods="patchcore,knn,vit-knn,autoencoder", backbone="resnet18", layers="4,8", neighbourhood=5
    )
    assert reasons == {}
    assert {spec: [*methods] for spec, methods in groups.items()} == {
        describe("resnet18", (4, 8), neighbourhood=5): ["patchcore", "knn"],
        describe("vit_b_16"): ["vit-knn"],
        describe("none"): ["autoencoder"],
    }


def test_layers_without_a_backbone_are_those_of_the_default(grouped):
    groups, _ = grouped(methods="patchcore,vit-knn", layers="4,16")
    assert [*groups] == [describe("resnet50", (4, 16)), describe("vit_b_16")]


def test_methods_share_the_recipe_of_their_backbone(grouped):
    groups, reasons = grouped(methods="patchcore,knn,vit-knn", backbone=DINO, shots="2", shot_repeats=1)
    assert reasons == {}
    ((spec, methods),) = groups.items()
    assert spec == describe(DINO, [12], neighbourhood=1, norm=True)
    assert [*methods] == ["patchcore", "knn", "vit-knn"]
    assert {options.image_size for options in methods.values()} == {448}


def test_wrong_layers_are_no_methods_fault(grouped):
    with pytest.raises(UsageError, match="no layer of stride 64"):
        grouped(methods="patchcore", backbone="resnet18", layers="64")
