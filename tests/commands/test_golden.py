"""Scores, grids, thresholds and p-values of the generated sample are those that were once recorded."""

import numpy as np
import pytest

import mvad
from helpers import golden

pytestmark = pytest.mark.usefixtures("ray_local")


def test_scores_and_grids_of_all_methods(sample, tmp_path):
    options = {**golden.OPTIONS, "methods": ",".join(set(golden.METHODS) - {"vit-knn"})}
    for name in ("calibration", "folds", "maps"):
        del options[name]
    mvad.compare(str(sample), str(tmp_path / "out"), backbone="efficientnet_lite0", actors=2, **options)
    for method in set(golden.METHODS) - {"vit-knn"}:
        found = golden.columns_of(method, str(tmp_path / "out/runs" / method), ["image_id", "score"])
        assert golden.differences(found) == []


def test_thresholds_and_p_values(sample, tmp_path):
    mvad.run(str(sample), str(tmp_path / "out"), backbone="efficientnet_lite0", actors=1, **golden.OPTIONS)
    found = golden.columns_of("patchcore", str(tmp_path / "out"))
    assert golden.differences(found) == []
    found["patchcore/p_value"] = found["patchcore/p_value"] * np.float64(1.01)
    assert golden.differences(found) == ["patchcore/p_value differs"]
