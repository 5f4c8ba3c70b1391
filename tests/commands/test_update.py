"""Models over time: calibration, listing, learning more without the old images."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import mvad
from helpers.tiles import paint
from mvad.calibration import p_values
from mvad.data.image_size import ImageSize
from mvad.data.images import load_image
from mvad.detectors import KNN, METHODS, VAE, Extendable, PatchCore
from mvad.errors import UsageError
from mvad.features.backbones import describe
from mvad.features.specs import prepare
from mvad.features.weights import Network
from mvad.options import FitOptions
from mvad.results import read_scores
from mvad.storage import to_uri

SIZE = ImageSize.square(64)


def test_each_calibration_score_is_of_a_bank_without_the_image(base_run, tiles):
    extract = prepare(["patches"], Network.load(describe("efficientnet_lite0"), None), SIZE).load()
    images = sorted((tiles / "beta/train/good").iterdir())
    features = extract(np.stack([load_image(path.as_uri(), SIZE, 10**6)[0] for path in images]))["patches"]
    detector = PatchCore.from_options(FitOptions()).fit(features)
    expected = np.empty(8, np.float32)
    for image in range(8):
        expected[image] = detector.without(detector.origins, [image]).score(features[image : image + 1]).image[0]
    found = np.load(base_run[0] / "models/patchcore/beta/calibration.npy")
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    rows = read_scores(to_uri(base_run[0]), ["score", "p_value", "threshold", "is_anomaly"], "beta").to_pylist()
    scores = np.float32([row["score"] for row in rows])
    np.testing.assert_array_equal([row["p_value"] for row in rows], p_values(scores, found))
    assert all(row["threshold"] == found.max() for row in rows)  # 8 images can promise 1/9 at best
    assert all(row["is_anomaly"] == (row["p_value"] == 1 / 9) for row in rows)


def test_models_are_listed_and_damage_is_named(base_run, tmp_path, capsys):
    shutil.copytree(base_run[0] / "models", tmp_path / "models")
    rows = mvad.models(str(tmp_path / "models"))
    assert [(row["category"], row["n_train"], row["n_calibration"]) for row in rows] == [
        ("alpha", 8, 8),
        ("beta", 8, 8),
    ]
    out = capsys.readouterr().out
    assert rows[0]["model_id"][:12] in out
    bank = tmp_path / "models/patchcore/alpha/bank.npy"
    bank.write_bytes(bank.read_bytes()[:-1])
    assert "bank.npy is damaged" in mvad.models(str(tmp_path / "models"), quiet=True)[0]["damage"]
    with pytest.raises(UsageError, match="no models in"):
        mvad.models(str(tmp_path))


def test_a_bank_that_has_learnt_more_covers_old_and_new():
    random = np.random.default_rng(0)
    old, new = (torch.from_numpy(random.standard_normal((5, 4, 4, 6)).astype(np.float32)) for _ in range(2))
    detector = PatchCore(coreset_ratio=0.25, projection=0).fit(old)
    first = detector.bank.vectors.copy()
    assert len(first) == 20
    detector.extend(new + 3)
    assert len(detector.bank) == 40
    union = np.concatenate([first, (new + 3).reshape(-1, 6).numpy()])
    distances = np.linalg.norm(union[:, None] - detector.bank.vectors[None], axis=2)
    assert distances.min(axis=1).max() == pytest.approx(detector.coverage, rel=1e-4)
    not_extended = PatchCore(coreset_ratio=0.25, projection=0).fit(old)
    assert detector.score(new + 3).image.max() < not_extended.score(new + 3).image.min()


def test_an_extended_bank_gives_the_scores_of_all_images():
    random = np.random.default_rng(1)
    images = torch.from_numpy(random.standard_normal((20, 7)).astype(np.float32))
    whole = KNN(neighbours=3, top_features=0).fit(images)
    grown = KNN(neighbours=3, top_features=0).fit(images[:12]).extend(images[12:])
    np.testing.assert_array_equal(grown.loo_scores, whole.loo_scores)
    np.testing.assert_array_equal(grown.score(images + 1).image, whole.score(images + 1).image)
    assert not issubclass(VAE, Extendable)


def test_update(base_run, tiles, tmp_path, ray_local, monkeypatch):
    shutil.copytree(base_run[0] / "models", tmp_path / "models")
    data = tmp_path / "data"
    (data / "alpha/train/good").mkdir(parents=True)
    random = np.random.default_rng(5)
    for number in range(6):
        Image.fromarray(paint(random)[0]).save(data / f"alpha/train/good/new{number}.png")
    (data / "alpha/train/good/broken.png").write_bytes(b"")
    shutil.copytree(tiles / "alpha/test", data / "alpha/test")
    place = tmp_path / "models/patchcore/alpha"
    before = json.loads((place / "model.json").read_text())
    old_scores = np.load(place / "calibration.npy")
    result = mvad.update(str(data), str(tmp_path / "models"), actors=1, folds=2, quiet=True)
    (row,) = result.summary
    assert (row["n_before"], row["n_new"], row["n_after"], row["n_reference"]) == (8, 6, 14, 8)
    assert row["image_auroc_before"] == row["image_auroc_after"] == 1.0
    assert row["largest_change"] > 0
    assert [error["image_id"] for error in result.errors] == ["alpha/train/good/broken.png"]
    after = json.loads((place / "model.json").read_text())
    assert after["model_id"] == row["model_id"] != before["model_id"]
    assert after["record"]["updated_from"] == [before["model_id"]]
    assert after["record"]["training_sha256"] != before["record"]["training_sha256"]
    version = place / "versions" / after["version"]
    scores = np.load(version / "calibration.npy")
    np.testing.assert_array_equal(scores[:8], old_scores)
    assert len(scores) == 14
    assert len(np.load(version / "bank.npy")) == round(8 * 64 * 0.1) + round(6 * 64 * 0.1)
    kept = place / "versions" / before["model_id"][:12]
    assert json.loads((kept / "model.json").read_text()) == before
    assert [row["updates"] for row in mvad.models(str(tmp_path / "models"), quiet=True)] == [1, 0]
    (again,) = mvad.update(str(data), str(tmp_path / "models"), actors=1, quiet=True).summary  # as after a kill
    assert again["note"] == "not updated: it has learnt from these images already"
    assert json.loads((place / "model.json").read_text()) == after
    monkeypatch.setitem(METHODS.known, "patchcore", VAE)  # a method that is not Extendable
    with pytest.raises(UsageError, match="cannot learn more without its old images"):
        mvad.update(str(data), str(tmp_path / "models"), quiet=True)
