"""The generated sample data set."""

import json

import numpy as np
from PIL import Image
from sklearn.metrics import roc_auc_score

import mvad
from helpers.tiles import EMBEDDED
from mvad.data.manifest import read_manifest
from mvad.data.synthetic import CATEGORIES, SIDE, write_sample
from mvad.options import DataOptions


def test_layout(sample):
    manifest = read_manifest(str(sample), DataOptions())
    assert manifest.categories == sorted(CATEGORIES)
    assert not manifest.errors
    table = manifest.table.to_pylist()
    for category in CATEGORIES:
        rows = [row for row in table if row["category"] == category]
        assert sum(row["split"] == "train" for row in rows) >= 40
        defects = {row["defect"] for row in rows if row["label"] == 1}
        assert defects == set(CATEGORIES[category][1])
        assert len(defects) >= 4
        assert all(row["mask_uri"] for row in rows if row["label"] == 1)


def test_masks_mark_a_small_part_inside_the_image(sample):
    for path in sample.glob("*/ground_truth/*/*_mask.png"):
        mask = np.asarray(Image.open(path))
        assert mask.shape == (SIDE, SIDE)
        assert set(np.unique(mask)) <= {0, 255}
        assert 0 < (mask > 0).mean() < 0.1, path


def test_the_seed_gives_the_pixels(tmp_path):
    for folder, seed in (("first", 0), ("same", 0), ("other", 1)):
        write_sample(str(tmp_path / folder), seed, n_train=1, n_test_good=1, n_test_per_defect=1)
    for path in ("weave/test/cut/000.png", "bracket/train/good/000.png", "perforated/ground_truth/stain/000_mask.png"):
        assert (tmp_path / "same" / path).read_bytes() == (tmp_path / "first" / path).read_bytes()
        assert (tmp_path / "other" / path).read_bytes() != (tmp_path / "first" / path).read_bytes()


def test_hard_enough_to_tell_methods_apart(sample, ray_local, tmp_path):
    """PatchCore does well; the distance to the nearest training image, in pixels, does not."""
    result = mvad.run(str(sample), str(tmp_path / "out"), folds=0, coreset_ratio=0.02, **EMBEDDED)
    auroc = {row["category"]: row["image_auroc"] for row in result.summary}
    for category in CATEGORIES:
        train = pixels(sample.glob(f"{category}/train/good/*.png"))
        paths = sorted(sample.glob(f"{category}/test/*/*.png"))
        labels = [path.parent.name != "good" for path in paths]
        scores = [np.linalg.norm(train - image, axis=1).min() for image in pixels(paths)]
        pixel_knn = roc_auc_score(labels, scores)
        assert auroc[category] > 0.9, json.dumps(auroc)
        assert pixel_knn < auroc[category] - 0.15, (category, pixel_knn)
    assert auroc["mean"] < 0.999  # hard enough that good methods differ


def pixels(paths):
    return np.stack(
        [np.asarray(Image.open(path).convert("L").resize((64, 64)), float).ravel() for path in sorted(paths)]
    )
