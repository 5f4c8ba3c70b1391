"""What a person should know of a folder before a model is fitted to it, in one sentence each."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mvad.data.manifest import Manifest
from mvad.inspection.outliers import LEAST, LEAST_SPREAD, UNSTEADY, robust_z
from mvad.inspection.table import KINDS, by_category, kinds

FEW_TRAINING = 20
MOVED = 1.5  # modified z of a median, more where there are few: light or focus of the test images is another
PLACES = {"train": "training", "good": "good test", "defect": "defective", "unlabelled": "unlabelled"}
REPEATED = {
    "train": "calibration takes the model for better than it is",
    "unlabelled": "scores and rates count the same thing again",
}


class Finding(NamedTuple):
    """One thing that was found.

    Attributes
    ----------
    level
        ``warning``: it spoils a model or its evaluation; ``note``: it is good to know.
    category
        "" if it is of several.
    """

    level: str
    category: str
    text: str


def find(manifest: Manifest, table: pa.Table) -> list[Finding]:
    """All findings, warnings first."""
    found: list[Finding] = list(_across(manifest, table))
    labelled = "train" in table["split"].to_pylist()
    for name, part in by_category(table):
        found += _missing(name, part, labelled)
        good = part.filter(pc.is_null(part["error"]))
        if len(good):
            for check in (_twins, _outliers, _files, _light):
                found += check(name, good)
    return sorted(found, key=lambda finding: finding.level != "warning")


def _images(count: int, kind: str = "") -> str:
    words = [f"{count:,}", PLACES.get(kind, kind), "image" if count == 1 else "images"]
    return " ".join(word for word in words if word)


def _across(manifest: Manifest, table: pa.Table) -> Iterator[Finding]:
    bad = len(table) - table["error"].null_count
    if bad:
        yield Finding("warning", "", f"{_images(bad)} cannot be read; a run counts and names them, and goes on.")
    if manifest.ignored:
        text = f"{manifest.ignored:,} files with an image's name lie where the layout has no place for images."
        yield Finding("note", "", text)
    homes: dict[int, set[str]] = defaultdict(set)
    repeated = table.filter(pc.is_valid(table["duplicate_group"]))
    for group, name in zip(repeated["duplicate_group"].to_pylist(), repeated["category"].to_pylist(), strict=True):
        homes[group].add(name)
    shared = [names for names in homes.values() if len(names) > 1]
    if shared:
        where = " and ".join(repr(name) for name in sorted(shared[0])[:2])
        yield Finding(
            "warning",
            "",
            f"{_images(len(shared))} {'lies' if len(shared) == 1 else 'lie'} in several categories, such as {where}.",
        )


def _missing(name: str, table: pa.Table, labelled: bool) -> Iterator[Finding]:
    counts = Counter(kinds(table))
    if labelled and not counts["train"]:
        yield Finding("warning", name, "there are no training images (train/good), so no model can be fitted.")
    elif 0 < counts["train"] < FEW_TRAINING:
        text = f"{_images(counts['train'], 'train')} {'is' if counts['train'] == 1 else 'are'} few; see --shots."
        yield Finding("note", name, text)
    if counts["good"] + counts["defect"] and not (counts["good"] and counts["defect"]):
        absent = "defective" if counts["good"] else "good"
        yield Finding("note", name, f"there are no {absent} test images, so there will be no AUROC.")
    defective = table.filter(pc.equal(table["label"], 1))
    without = defective["mask_uri"].null_count
    if without:
        text = f"{without:,} of {_images(len(defective), 'defect')} have no mask: they do not count for pixel metrics."
        yield Finding("note", name, text)


def _twins(name: str, table: pa.Table) -> Iterator[Finding]:
    kind = kinds(table)
    for column, near in (("duplicate_group", False), ("near_group", True)):
        groups = pc.fill_null(table[column], -1).to_numpy()
        own = {one: groups[(kind == one) & (groups >= 0)] for one in KINDS}
        counts = Counter(kind)
        for one in ("good", "unlabelled", "defect"):
            leaked = int(np.isin(own[one], own["train"]).sum())
            if leaked:
                yield _leak(name, one, leaked, counts[one], near)
        mislabelled = int(np.isin(own["good"], own["defect"]).sum())
        if mislabelled:
            verb = _verb(mislabelled, "nearly repeats" if near else "has the same pixels as", near)
            text = f"{_images(mislabelled, 'good')} {verb} a defective one: one of the labels may be wrong."
            yield Finding("note" if near else "warning", name, text)
        for one, why in REPEATED.items():
            surplus = len(own[one]) - len(np.unique(own[one]))
            if surplus:
                verb = _verb(surplus, "nearly repeats" if near else "has the same pixels as", near)
                yield Finding("note", name, f"{_images(surplus, one)} {verb} others: {why}.")


def _verb(count: int, singular: str, near: bool) -> str:
    return singular if count == 1 else "nearly repeat" if near else "have the same pixels as"


def _leak(name: str, kind: str, leaked: int, count: int, near: bool) -> Finding:
    """Test images that are among the training images too."""
    what = "a near duplicate among the training images" if near else "the same pixels as a training image"
    share = f"{leaked:,} of {_images(count, kind)} {'has' if leaked == 1 else 'have'} {what}"
    if kind != "defect":
        return Finding("warning", name, f"{share}: their scores say little about new images.")
    # Thumbnails do not show whether a small defect is there too.
    advice = "look whether those show the defect too" if near else "a defect is learnt as good, or it is none"
    return Finding("note" if near else "warning", name, f"{share}: {advice}.")


def _outliers(name: str, table: pa.Table) -> Iterator[Finding]:
    kind = kinds(table)
    for one, level in (("train", "warning"), ("good", "note"), ("unlabelled", "note")):
        rows = table.filter(pa.array(kind == one))
        rows = rows.filter(pc.is_valid(rows["outlier"]))
        if len(rows):
            first = f"{rows['image_id'][0].as_py()!r} ({rows['outlier'][0].as_py()})"
            such = first if len(rows) == 1 else f"the first is {first}"
            advice = "; look before fitting" if one == "train" else ""
            verb = "stands" if len(rows) == 1 else "stand"
            yield Finding(level, name, f"{_images(len(rows), one)} {verb} out: {such}{advice}.")


def _files(name: str, table: pa.Table) -> Iterator[Finding]:
    ratios = table["width"].to_numpy() / table["height"].to_numpy()
    if ratios.max() > 1.25 * ratios.min():
        text = (
            f"images are from {_ratio(ratios.min())} to {_ratio(ratios.max())} as wide as high; "
            "all are stretched to a square before a model sees them."
        )
        yield Finding("note", name, text)
    kind = kinds(table)
    made = np.array(
        [" ".join(pair) for pair in zip(table["format"].to_pylist(), table["mode"].to_pylist(), strict=True)]
    )
    for one, other in (("train", "good"), ("train", "defect"), ("good", "defect"), ("train", "unlabelled")):
        left, right = set(made[kind == one]), set(made[kind == other])
        if left and right and not left & right:
            text = (
                f"{PLACES[one]} images are {_listed(left)} and {PLACES[other]} ones {_listed(right)}: "
                "a model may tell them apart by that alone."
            )
            yield Finding("warning", name, text)
            return


def _ratio(value: float) -> str:
    return f"{value:.2f} times"


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3])


def _light(name: str, table: pa.Table) -> Iterator[Finding]:
    kind = kinds(table)
    train = kind == "train"
    brightness = table["brightness"].to_numpy()
    log_sharpness = np.log2(np.maximum(table["sharpness"].to_numpy(), 1e-3))
    for one in ("good", "unlabelled"):
        rows = kind == one
        if min(rows.sum(), train.sum()) < LEAST:
            continue
        for values, least, (below, above) in (
            (brightness, LEAST_SPREAD["brightness"], ("darker", "brighter")),
            (log_sharpness, LEAST_SPREAD["sharpness"], ("more blurred", "sharper")),
        ):
            shift = float(np.median(robust_z(values, train, least)[rows]))
            if abs(shift) > MOVED * (1 + UNSTEADY / min(rows.sum(), train.sum())):
                how = below if shift < 0 else above
                text = f"{PLACES[one]} images are {how} than the training images as a whole: false alarms are likely."
                yield Finding("warning", name, text)
