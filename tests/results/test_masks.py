"""What a summary says of masks that are broken, inverted, empty or of another shape; its pixel metrics go on."""

import numpy as np
import pytest
from PIL import Image

from helpers.synthetic import write_category
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
