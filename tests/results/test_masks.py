"""Pixel metrics of a summary, and what it says of masks that are broken, inverted, empty or of another shape."""

from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score

from helpers import pixel_reference
from helpers.synthetic import write_category
from mvad.anomaly_maps.geometry import anomaly_map, map_on_image
from mvad.data.image_size import ImageSize
from mvad.data.images.ignoring import encode_ignore
from mvad.metrics import pixel
from mvad.results import store
from mvad.results.summary import evaluate
from mvad.storage import to_uri

SIDE = 96


@pytest.fixture
def summary(tmp_path):
    """A function from masks, arrays or bytes, to the row of a category whose maps find the defect in the corner."""

    def summarise(*masks):
        grid = np.zeros((8, 8))
        grid[:2, :2] = 1
        rows = [{"image_id": f"good{n}", "uri": "u", "label": 0, "score": 0.1, "grid": grid * 0} for n in range(4)]
        for number, mask in enumerate(masks):
            path = tmp_path / f"{number}_mask.png"
            path.write_bytes(mask) if isinstance(mask, bytes) else Image.fromarray(mask).save(path)
            row = {"image_id": f"bad{number}", "uri": "u", "label": 1, "score": 1.0, "grid": grid}
            rows.append({**row, "mask_uri": to_uri(path)})
        facts = {"plate": write_category(tmp_path / "out", "plate", rows)}
        return evaluate(to_uri(tmp_path / "out"), facts)[0][0]

    return summarise


def corner(side=SIDE, height=None):
    mask = np.zeros((height or side, side), np.uint8)
    mask[: (height or side) // 4, : side // 4] = 255
    return mask


def test_good_masks_need_no_note(summary):
    row = summary(corner(), corner(48), corner(960))
    assert row["note"] is None
    assert row["pixel_auroc"] > 0.99


def test_a_broken_mask_costs_its_own_image_only(summary):
    row = summary(corner(), b"broken", corner())
    assert row["note"].startswith("pixel metrics without 1 mask that cannot be used: ")
    assert "1_mask.png: not an image of a known kind" in row["note"]
    assert row["pixel_auroc"] > 0.99


def test_without_any_usable_mask_the_note_says_why(summary):
    row = summary(b"broken", b"")
    assert "pixel_auroc" not in row
    assert row["note"].startswith("no pixel metrics: the masks mark no pixel, or all; pixel metrics without 2 masks")
    assert row["image_auroc"] == 1


@pytest.mark.parametrize(
    ("mask", "note"),
    [
        (255 - corner(), "3 of 3 masks mark most of the image: are they inverted? Black must be good"),
        (corner(96, 64), "3 of 3 masks have another aspect ratio than their image"),
    ],
)
def test_odd_masks_are_said(summary, mask, note):
    row = summary(mask, mask, mask)
    assert row["note"] == note
    assert row["pixel_auroc"] is not None


def test_empty_masks_of_defective_images_are_said(summary):
    assert summary(corner(), corner() * 0)["note"] == "1 of 2 masks of defective images mark nothing"


@pytest.fixture
def row_of(tmp_path):
    """A function from score rows, with ``mask`` an array in place of ``mask_uri``, to the category's summary row."""

    def summarise(rows, **facts):
        for number, row in enumerate(rows):
            row |= {"image_id": f"{number}", "uri": "u", "score": float(row["label"])}
            if (mask := row.pop("mask", None)) is not None:
                Image.fromarray(mask).save(tmp_path / f"{number}.png")
                row["mask_uri"] = to_uri(tmp_path / f"{number}.png")
        facts = {"plate": write_category(tmp_path / "out", "plate", rows, **facts)}
        return evaluate(to_uri(tmp_path / "out"), facts)[0][0]

    return summarise


def random_image(random, width, height, label):
    """A row of an image; the mask of a defective one is as large as the image."""
    row = {"label": label, "width": width, "height": height, "grid": random.random((6, 5)).astype(np.float32)}
    if label:
        row["mask"] = np.zeros((height, width), np.uint8)
        row["mask"][height // 4 : height // 2, : width // 2] = row["mask"][-2:] = 255
    return row


def test_pixel_metrics_are_those_of_the_seen_part_at_the_size_of_each_image(row_of, monkeypatch):
    monkeypatch.setattr(pixel, "AUPIMO_LIMITS", (1e-2, 3e-1))
    monkeypatch.setattr(store, "ROWS_AT_ONCE", 2)
    random = np.random.default_rng(0)
    shapes = [(40, 60, 0), (64, 32, 0), (96, 50, 1), (24, 24, 1), (20, 90, 1)]
    rows = [random_image(random, *shape) for shape in shapes]
    maps, masks = [], []
    for row, (width, height, _) in zip(rows, shapes, strict=True):
        model_map = anomaly_map(row["grid"], ImageSize.square(32))
        maps.append(map_on_image(model_map, ImageSize(resize=64, crop=32), width, height))
        (left, right), (top, bottom) = ((round(side / 4), round(side * 3 / 4)) for side in (width, height))
        assert maps[-1].shape == (bottom - top, right - left)
        mask = row.get("mask", np.zeros((height, width)))
        masks.append(mask[top:bottom, left:right] > 0)
    threshold = float(np.quantile(maps[0], 0.98))
    row = row_of(rows, size={"resize": 64, "crop": 32}, pixel_threshold=threshold)
    assert row["pixel_auroc"] == pytest.approx(pixel_reference.auroc(masks, maps), abs=1e-4)
    assert row["pixel_aupro"] == pytest.approx(pixel_reference.aupro(masks, maps), abs=1e-4)
    assert row["pixel_aupro_5"] == pytest.approx(pixel_reference.aupro(masks, maps, 0.05), abs=1e-4)
    assert row["pixel_aupimo"] == pytest.approx(pixel_reference.aupimo(masks, maps, 1e-2, 3e-1), abs=1e-4)
    assert row["defects_touched"] == pixel_reference.touched(masks, maps, threshold)
    assert row["pixel_ap"] == pytest.approx(average_precision_score(*pixel_reference.pixels(masks, maps)), abs=1e-4)
    assert row["pixel_ap"] < row["pixel_f1_max"] < 1


def test_a_defect_that_the_model_did_not_see_counts_nowhere(row_of):
    mask = np.zeros((96, 96), np.uint8)
    mask[:10, :10] = 255
    rows = [random_image(np.random.default_rng(0), 96, 96, label) for label in (0, 1)]
    row = row_of([rows[0], rows[1] | {"mask": mask}], size={"resize": 64, "crop": 32})
    assert row["note"] == "no pixel metrics: the masks mark no pixel, or all"
    assert "pixel_auroc" not in row


def test_what_is_ignored_counts_nowhere(row_of):
    random, ignored = np.random.default_rng(0), Image.new("L", (60, 40))
    ignored.paste(255, (0, 0, 30, 40))
    rows = [random_image(random, 60, 40, label) for label in (0, 1, 1)]
    size = asdict(ImageSize(resize=32, crop=32, ignore=encode_ignore(ignored)))
    masks = [one.get("mask", np.zeros((40, 60))) > 0 for one in rows]
    row = row_of(rows, size=size)
    maps = [map_on_image(anomaly_map(one["grid"], ImageSize.square(32)), ImageSize.square(32), 60, 40) for one in rows]
    looked_at = [[values[:, 30:] for values in arrays] for arrays in (masks, maps)]
    assert row["pixel_auroc"] == pytest.approx(pixel_reference.auroc(*looked_at), abs=1e-4)
    assert row["pixel_ap"] == pytest.approx(average_precision_score(*pixel_reference.pixels(*looked_at)), abs=1e-4)
    assert row["pixel_auroc"] != pytest.approx(pixel_reference.auroc(masks, maps), abs=1e-3)


def test_without_a_pixel_threshold_no_defect_is_called_touched(row_of):
    row = row_of([random_image(np.random.default_rng(0), 96, 96, label) for label in (0, 1)])
    assert "defects_touched" not in row
    assert row["pixel_aupimo"] is not None


@pytest.mark.parametrize("broken", [np.full((4, 4), np.nan), np.zeros(0)])
def test_a_damaged_map_costs_its_own_image_only(row_of, broken):
    rows = [random_image(np.random.default_rng(0), 40, 40, label) for label in (0, 1, 1)]
    row = row_of([*rows, {"label": 0, "grid": broken}])
    assert row["note"] == "pixel metrics without 1 image: 3: the grid of patch scores is damaged"
    assert row["pixel_auroc"] is not None


def test_a_good_image_with_an_empty_mask_is_a_good_image(row_of):
    rows = [random_image(np.random.default_rng(0), 40, 40, label) for label in (0, 1)]
    row = row_of([rows[0] | {"mask": np.zeros((40, 40), np.uint8)}, rows[1]])
    assert row["pixel_aupimo"] is not None
