"""A fit that ends with numbers that no score can be computed from says so, and saves no model."""

import pytest

import mvad
from helpers.tiles import EMBEDDED
from mvad.errors import UsageError

pytestmark = pytest.mark.usefixtures("ray_local")
DIVERGING = {**EMBEDDED, "image_size": 64, "learning_rate": 1e30, "epochs": 2, "actors": 1}


def test_training_that_diverges_saves_no_model(tiles, tmp_path):
    options = {"method": "vae", "categories": "alpha", "folds": 0}
    with pytest.raises(UsageError, match=r"alpha: vae: no model: what was learnt is not usable \(.* holds NaN"):
        mvad.fit(str(tiles), str(tmp_path / "models"), **DIVERGING, **options)
    assert not list(tmp_path.rglob("model.json"))


def test_other_methods_go_on(tiles, tmp_path):
    options = {"methods": "vae,knn", "categories": "alpha"}
    result = mvad.compare(str(tiles), str(tmp_path / "out"), **DIVERGING, **options)
    rows = {(row["method"], row["category"]): row for row in result.summary}
    assert rows["knn", "alpha"]["image_auroc"] is not None
    assert rows["vae", "alpha"]["image_auroc"] is None
    assert "what was learnt is not usable" in rows["vae", "alpha"]["note"]
