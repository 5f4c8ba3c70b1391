"""Results of many nights without models or Ray: with a night of other light, one of a dead camera, a new product."""

import datetime

import numpy as np
from PIL import Image

from helpers.score_files import write_rows
from helpers.tiles import paint
from mvad import results
from mvad.storage import join, to_uri

FIRST = datetime.date(2026, 10, 1)
THRESHOLD = 12.0
LIGHT, DEAD, NEW_PRODUCT = 12, 18, 24  # numbers of nights, from 0
GOOD, DEFECTIVE = 16, 4  # images of a night
SIDE = 96  # pixels
PATCHES = 12  # of a side


def date_of(number):
    return FIRST + datetime.timedelta(number)


def write_nights(root, images, count=30, categories=("cap", "plate")):
    """Write nights below ``root``; the image files of the last one go to ``images``."""
    random = np.random.default_rng(0)
    for number in range(count):
        out = root / f"date={date_of(number)}"
        for category in categories:
            rows = []
            for name in range(GOOD + DEFECTIVE):
                pixels, mask = paint(random, name >= GOOD, SIDE)
                rows.append(row(random, number, name, category, mask, images))
                if number == count - 1:
                    file = images / rows[-1]["image_id"]
                    file.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(file)
            if number == DEAD and category == "cap":
                rows = [one | UNREADABLE for one in rows]
            write_rows(out, category, rows)
        if number == NEW_PRODUCT:
            write_rows(out, "unknown product", [{"image_id": "unknown/0.png", "score": None, "strange_share": 1.0}])
        drifted = number == LIGHT
        facts = {"drifted": drifted, "drift_p_value": 1e-9 if drifted else 0.5, "drift_share_below": 0.05}
        summary = [{"category": category, **(facts if category == "cap" else {})} for category in categories]
        results.write_summary(to_uri(out), [*summary, {"category": "mean"}])
        facts = {name: {"size": {"resize": SIDE, "crop": SIDE}, "pixel_threshold": 1.0} for name in categories}
        run = {"command": "score", "status": "done", "exit_code": 0, "categories": facts}
        results.write_json(join(to_uri(out), "run.json"), run)


UNREADABLE = {"status": "error", "error": "not an image", "is_anomaly": None, "verdict": None}
UNREADABLE |= {"score": None, "p_value": None, "threshold": None}


def row(random, number, name, category, mask, images):
    is_defect = name >= GOOD
    score = random.normal(15 if is_defect else 9, 0.5) + (5 if number == LIGHT and category == "cap" else 0)
    image_id = f"{category}/{number:02}-{name:03}.png"
    flagged = score > THRESHOLD
    grid = 0.5 + 10 * mask.reshape(PATCHES, SIDE // PATCHES, PATCHES, SIDE // PATCHES).mean((1, 3))
    down, across = (np.flatnonzero(mask.any(axis)) if mask.any() else np.arange(8) for axis in (1, 0))
    region = {"x": across[0], "y": down[0], "width": len(across), "height": len(down)}
    region |= {"area": int(mask.sum()), "peak": grid.max(), "mean": grid.mean()}
    return {
        "image_id": image_id,
        "uri": (images / image_id).as_uri(),
        "score": score,
        "p_value": 0.01 if flagged else random.uniform(0.05, 1),
        "threshold": THRESHOLD,
        "is_anomaly": flagged,
        "verdict": "anomalous" if flagged else "good",
        "width": SIDE,
        "height": SIDE,
        "night": date_of(number),
        "model_id": "b" * 64 if number >= 20 else "a" * 64,
        "regions": [region] if flagged else [],
        "anomalous_area": 0.02 if flagged else 0.0,
        "patch_scores": grid.ravel().tolist() if flagged else None,
        "patch_grid": [PATCHES, PATCHES] if flagged else None,
    }
