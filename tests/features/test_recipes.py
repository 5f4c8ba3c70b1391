"""Defaults that depend on the backbone."""

import pytest

from mvad.detectors import PatchCore
from mvad.errors import UsageError
from mvad.features.backbone_spec import PACKAGED
from mvad.features.backbones import describe
from mvad.features.recipes import recipe
from mvad.fitting.jobs import resolve_backbone, with_recipe
from mvad.options import FitOptions, RunOptions, as_json, build, fit_identity

DINO = "timm:vit_small_patch14_reg4_dinov2"
OPTIONS = ("image_size", "layers", "neighbourhood", "norm", "reweight")


def values(options):
    return tuple(getattr(options, name) for name in OPTIONS)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("timm:vit_small_patch14_dinov2", 448),
        (DINO, 448),
        ("timm:vit_small_patch16_dinov3", 448),
        ("timm:vit_small_patch14_dinov2.lvd142m", 448),
    ],
)
def test_dino_transformers_have_the_recipe_of_anomaly_dino(name, side):
    advised = recipe(describe(name)).values
    assert (advised["image_size"], advised["layers"], advised["norm"]) == (side, [12], True)
    assert (advised["neighbourhood"], advised["reweight"]) == (1, 0)
    assert (advised["distance"], advised["aggregate"]) == ("cosine", "top-1%")


@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "timm:vit_tiny_patch16_224", "timm:convnext_tiny", "none"])
def test_other_backbones_have_none(name):
    assert recipe(describe(name)) is None


@pytest.mark.parametrize("name", PACKAGED)
def test_a_small_network_sees_a_larger_image(name):
    said = []
    chosen = with_recipe(build(RunOptions, {"backbone": name}), said.append)
    assert values(chosen) == (320, None, 3, False, 9)
    given = build(RunOptions, {"backbone": name, "image_size": 256, "crop": 224})
    assert with_recipe(given, said.append).size_for(1, 1, 32).crop == (224, 224)
    assert said == []


def test_a_recipe_sets_what_is_not_given_and_says_so():
    said = []
    given = build(FitOptions, {"backbone": DINO, "neighbourhood": 3, "image_size": 256})
    chosen = with_recipe(given, said.append)
    assert values(chosen) == (256, [12], 3, True, 0)
    (line,) = said
    assert line.startswith(f"{DINO}: ")
    assert "layers 12" in line
    assert "norm on" in line
    assert "image-size" not in line
    assert "neighbourhood" not in line


def test_a_value_that_is_the_usual_default_counts_as_given():
    given = build(FitOptions, {"backbone": DINO, "norm": False, "reweight": 9, "neighbourhood": 3})
    assert values(with_recipe(given, print)) == (448, [12], 3, False, 9)


def test_without_a_recipe_the_defaults_are_those_of_always():
    said = []
    chosen = with_recipe(build(RunOptions, {"backbone": "resnet18"}), said.append)
    assert values(chosen) == (256, None, 3, False, 9)
    assert said == []
    unresolved = FitOptions(backbone="resnet18")
    assert resolve_backbone(chosen) == resolve_backbone(unresolved) == describe("resnet18")
    assert chosen.size_for(1, 1, 32) == unresolved.size_for(1, 1, 32)
    assert PatchCore.from_options(unresolved).params == PatchCore().params


def test_the_backbone_and_the_detector_follow_the_recipe():
    chosen = with_recipe(build(RunOptions, {"backbone": DINO}), print)
    spec = resolve_backbone(chosen)
    assert (spec.patch_layers, spec.neighbourhood, spec.norm) == ((11,), 1, True)
    assert chosen.size_for(1, 1, spec.cell).resize == (448, 448)
    assert PatchCore.from_options(chosen).params.reweight == 0
    assert as_json(chosen)["layers"] == [12]
    assert fit_identity(chosen)["image_size"] == 448
    assert build(RunOptions, as_json(chosen)) == chosen
    assert with_recipe(chosen, print) == chosen


def test_options_of_a_recipe_that_do_not_exist_are_skipped(monkeypatch):
    monkeypatch.setitem(recipe.__globals__["ANOMALY_DINO"], "no_such_option", 3)
    said = []
    chosen = with_recipe(build(FitOptions, {"backbone": DINO}), said.append)
    assert not hasattr(chosen, "no_such_option")
    assert "no-such-option" not in said[0]


def test_a_crop_is_compared_with_the_size_of_the_recipe():
    chosen = with_recipe(build(FitOptions, {"backbone": DINO, "crop": 392}), print)
    assert (chosen.image_size, chosen.crop) == (448, 392)
    with pytest.raises(UsageError, match="--crop 462 is larger than the image size 448"):
        with_recipe(build(FitOptions, {"backbone": DINO, "crop": 462}), print)


def test_a_preset_wins_over_a_recipe():
    chosen = with_recipe(build(FitOptions, {"backbone": DINO, "preset": "patchcore-paper"}), print)
    assert (chosen.image_size, chosen.crop, chosen.neighbourhood) == (256, 224, 1)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"layers": "8,64"}, "has no layer of stride 64"),
        ({"norm": True}, "has no final norm"),
    ],
)
def test_what_a_backbone_lacks_is_one_sentence(given, sentence):
    with pytest.raises(UsageError, match=sentence):
        resolve_backbone(build(FitOptions, {"backbone": "resnet18", **given}))
