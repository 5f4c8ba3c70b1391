"""Variants on the generated sample: shared extraction, files, intervals against the runs, and taking up again."""

import json
import zlib

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import mvad
from helpers.tiles import EMBEDDED
from mvad import results
from mvad.errors import UsageError
from mvad.metrics.bootstrap import resamples
from mvad.storage import to_uri

pytestmark = pytest.mark.usefixtures("ray_local")

VARIANTS = """
[plain]

[larger]
image-size = 96

[dense]
coreset_ratio = 0.5
"""
OPTIONS = {"categories": "weave", "limit": 12, "image_size": 64, "coreset_ratio": 0.05, "actors": 1, **EMBEDDED}


@pytest.fixture(scope="module")
def compared(sample, tmp_path_factory):
    """Folder of the comparison, the file, what `compare` returned, and how many images each extraction took."""
    place = tmp_path_factory.mktemp("variants")
    file = place / "variants.toml"
    file.write_text(VARIANTS)
    with pytest.MonkeyPatch.context() as patch:
        extracted = counted_extractions(patch)
        result = mvad.compare(str(sample), str(place / "out"), variants=str(file), methods="knn", **OPTIONS)
    return place / "out", file, result, extracted


def counted_extractions(patch):
    from mvad.fitting import fit

    extract, sizes = fit.extract_features, []

    def counting(images, shapes, network, size, *others):
        sizes.append((size.height, len(images)))
        return extract(images, shapes, network, size, *others)

    patch.setattr(fit, "extract_features", counting)
    return sizes


def rows_of(result):
    return {(row["variant"] or row["method"], row["category"]): row for row in result.summary}


def test_variants_and_methods_have_their_rows(compared):
    out, _, result, _ = compared
    assert result.exit_code == 0
    rows = rows_of(result)
    assert [*rows] == [(name, part) for name in ("plain", "larger", "dense", "knn") for part in ("weave", "mean")]
    assert {row["method"] for row in result.summary} == {"patchcore", "knn"}
    assert sorted(path.name for path in (out / "runs").iterdir()) == ["dense", "knn", "larger", "plain"]
    assert json.loads((out / "compare.json").read_text()) == result.summary
    sides = {
        name: json.loads((out / f"runs/{name}/run.json").read_text())["categories"]["weave"]["size"]["crop"][0]
        for name in ("plain", "larger")
    }
    assert sides == {"plain": 64, "larger": 96}


def test_variants_of_one_input_size_share_an_extraction(compared):
    """The plain variant, the dense one and the method; the larger one has a pass of its own."""
    assert sorted(compared[3]) == [(64, 12), (96, 12)]


def test_a_variant_scores_as_a_run_with_its_options(compared, sample, tmp_path):
    mvad.run(str(sample), str(tmp_path / "out"), **{**OPTIONS, "image_size": 96, "folds": 0, "maps": "all"})
    expected, found = (
        results.read_scores(to_uri(place), ["image_id", "score"]).to_pylist()
        for place in (tmp_path / "out", compared[0] / "runs/larger")
    )
    assert found == expected


def test_intervals_are_those_of_the_scores_on_common_resamples(compared):
    out, _, result, _ = compared
    rows, values = rows_of(result), {}
    for name in ("plain", "larger"):
        table = results.read_scores(to_uri(out / "runs" / name), ["image_id", "label", "score"])
        labels, scores = table["label"].to_numpy(), table["score"].to_numpy()
        values[name] = np.array(
            [
                roc_auc_score(labels, scores, sample_weight=row)
                for counts in resamples(labels, [0, zlib.crc32(b"weave")])
                for row in counts
            ]
        )
        low, high = np.quantile(values[name], [0.025, 0.975])
        assert (rows[name, "weave"]["image_auroc_low"], rows[name, "weave"]["image_auroc_high"]) == pytest.approx(
            (low, high)
        )
    ends = [rows["larger", "weave"][f"image_auroc_difference_{end}"] for end in ("low", "high")]
    assert ends == pytest.approx(np.quantile(values["larger"] - values["plain"], [0.025, 0.975]).tolist())


def test_pixel_metrics_have_intervals_around_them(compared):
    rows = rows_of(compared[2])
    for name in ("plain", "larger", "dense"):
        for metric in ("pixel_ap", "pixel_aupro"):
            row = rows[name, "weave"]
            assert row[f"{metric}_low"] < row[f"{metric}_high"]
            assert row[f"{metric}_low"] - 0.01 < row[metric] < row[f"{metric}_high"] + 0.01
    assert rows["knn", "weave"]["pixel_ap_low"] is rows["knn", "weave"]["pixel_ap_difference"] is None
    assert rows["knn", "weave"]["image_auroc_conclusion"] in ("better", "worse", "no difference shown")
    assert rows["plain", "weave"]["image_auroc_difference"] is None


def test_a_comparison_is_taken_up_again_with_the_same_variants_only(compared, sample):
    out, file, result, _ = compared
    with pytest.MonkeyPatch.context() as patch:
        extracted = counted_extractions(patch)
        again = mvad.compare(str(sample), str(out), variants=str(file), methods="knn", **OPTIONS)
    assert extracted == []
    assert [row["image_auroc_low"] for row in again.summary] == [row["image_auroc_low"] for row in result.summary]
    file.write_text(VARIANTS.replace("96", "128"))
    with pytest.raises(UsageError, match="was begun with --variants"):
        mvad.compare(str(sample), str(out), variants=str(file), methods="knn", **OPTIONS)
    moved = file.with_name("moved.toml")
    moved.write_text(VARIANTS.replace("image-size", "image_size"))
    again = mvad.compare(str(sample), str(out), variants=str(moved), methods="knn", **OPTIONS)
    assert len(again.summary) == len(result.summary)


def test_what_a_variant_cannot_use_is_said(sample, tmp_path):
    file = tmp_path / "variants.toml"
    file.write_text("[plain]\n[other]\nbackbone = 'resnet5000'\n")
    with pytest.raises(UsageError, match="variant 'other': unknown backbone"):
        mvad.compare(str(sample), str(tmp_path / "out"), variants=str(file), **OPTIONS)
    assert not (tmp_path / "out").exists()
    file.write_text("[plain]\n[other]\nmethod = 'vit-knn'\nbackbone = 'efficientnet_lite0'\n")
    result = mvad.compare(str(sample), str(tmp_path / "out"), variants=str(file), **OPTIONS)
    rows = rows_of(result)
    assert "needs a Vision Transformer" in rows["other", "weave"]["note"]
    assert rows["plain", "weave"]["image_auroc"] is not None
