"""Models of other layers than the default, from images to scores."""

import json

import pyarrow.parquet as pq
import pytest

import mvad
from helpers.tiles import EMBEDDED
from mvad.features.backbones import describe
from mvad.model_store import find_models
from mvad.storage import to_uri

pytestmark = pytest.mark.usefixtures("ray_local")
OPTIONS = {**EMBEDDED, "image_size": 64, "folds": 0, "categories": "alpha", "coreset_ratio": 0.05, "quiet": True}


def scores(out):
    table = pq.read_table(out / "scores").sort_by("image_id")
    return dict(zip(table["image_id"].to_pylist(), table["score"].to_pylist(), strict=True))


def test_a_model_scores_with_the_layers_that_it_was_fitted_with(tiles, tmp_path):
    chosen = {"layers": "4,8", "neighbourhood": 1}
    mvad.run(str(tiles), str(tmp_path / "run"), actors=2, batch_size=3, **chosen, **OPTIONS)
    recorded = json.loads((tmp_path / "run/run.json").read_text())["options"]
    assert (recorded["layers"], recorded["neighbourhood"], recorded["norm"]) == ([4, 8], 1, False)
    assert (recorded["image_size"], recorded["reweight"]) == (64, 9)
    (model,) = find_models(to_uri(tmp_path / "run/models")).values()
    assert model.backbone == describe("efficientnet_lite0", (4, 8), neighbourhood=1)
    assert model.record["feature_shape"] == [16, 16, 24 + 40]
    mvad.run(str(tiles), str(tmp_path / "again"), actors=1, batch_size=32, **chosen, **OPTIONS)
    mvad.run(str(tiles), str(tmp_path / "default"), actors=1, **OPTIONS)
    assert scores(tmp_path / "again") == scores(tmp_path / "run")
    assert scores(tmp_path / "default") != scores(tmp_path / "run")


def test_a_bank_of_each_layer_knows_the_channels_of_the_network(tiles, tmp_path):
    """Also fitted in shards, and with leave-one-out calibration of few images."""
    chosen = {"layers": "4,8,16", "banks": "layers"}
    mvad.run(str(tiles), str(tmp_path / "run"), actors=2, batch_size=3, **chosen, **OPTIONS)
    (model,) = find_models(to_uri(tmp_path / "run/models")).values()
    assert model.settings["channels"] == [24, 40, 112]
    mvad.run(str(tiles), str(tmp_path / "again"), actors=1, batch_size=32, **chosen, **OPTIONS)
    assert scores(tmp_path / "again") == scores(tmp_path / "run")
    mvad.run(
        str(tiles), str(tmp_path / "shards"), actors=1, memory_limit="48MiB", **chosen, **(OPTIONS | {"folds": 3})
    )
    (in_shards,) = find_models(to_uri(tmp_path / "shards/models")).values()
    assert in_shards.settings["channels"] == [24, 40, 112]
    assert in_shards.record["calibration"]["n"] > 0
