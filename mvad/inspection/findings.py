"""What to know of a folder before a model is fitted to it, in one sentence each."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mvad.data.manifest import Manifest
from mvad.inspection.outliers import MIN_IMAGES, MIN_MAD, SMALL_SAMPLE_FACTOR, log_sharpness, modified_z_scores
from mvad.inspection.table import SUBSETS, by_category, subsets

MIN_TRAINING_IMAGES = 20  # fewer deserve a note
MAX_MEDIAN_Z = 1.5  # of test images; raised for small samples. Beyond, lighting or focus has changed
MAX_ASPECT_SPREAD = 1.25  # of the largest aspect ratio to the smallest
SUBSET_NAMES = {"train": "training", "good": "good test", "defect": "defective", "unlabelled": "unlabelled"}
WHY_NOT_REPEATED = {
    "train": "calibration will overestimate the model",
    "unlabelled": "scores and rates count the same thing more than once",
}


class Finding(NamedTuple):
    """One finding.

    Attributes
    ----------
    level
        ``warning``: it spoils a model or its evaluation; ``note``: it is good to know.
    category
        "" if it concerns several.
    """

    level: str
    category: str
    text: str


def find_all(manifest: Manifest, images: pa.Table) -> list[Finding]:
    """All findings, warnings first."""
    findings = list(_across_categories(manifest, images))
    has_training = "train" in images["split"].to_pylist()
    for category, rows in by_category(images):
        findings += _missing(category, rows, has_training)
        readable = rows.filter(pc.is_null(rows["error"]))
        if len(readable):
            for check in (_duplicates, _outliers, _files, _lighting):
                findings += check(category, readable)
    return sorted(findings, key=lambda finding: finding.level != "warning")


def _images(count: int, subset: str = "") -> str:
    words = (f"{count:,}", SUBSET_NAMES.get(subset, subset), "image" if count == 1 else "images")
    return " ".join(word for word in words if word)


def _across_categories(manifest: Manifest, images: pa.Table) -> Iterator[Finding]:
    n_errors = len(images) - images["error"].null_count
    if n_errors:
        text = f"{_images(n_errors)} cannot be read; a run names such images and continues."
        yield Finding("warning", "", text)
    if manifest.ignored:
        files = "1 image file is" if manifest.ignored == 1 else f"{manifest.ignored:,} image files are"
        yield Finding("note", "", f"{files} ignored, in folders that this layout does not use.")
    categories: dict[int, set[str]] = defaultdict(set)
    repeated = images.filter(pc.is_valid(images["duplicate_group"]))
    for group, name in zip(repeated["duplicate_group"].to_pylist(), repeated["category"].to_pylist(), strict=True):
        categories[group].add(name)
    shared = [names for names in categories.values() if len(names) > 1]
    if shared:
        example = " and ".join(repr(name) for name in sorted(shared[0])[:2])
        verb = "occurs" if len(shared) == 1 else "occur"
        yield Finding("warning", "", f"{_images(len(shared))} {verb} in several categories, such as {example}.")


def _missing(category: str, images: pa.Table, has_training: bool) -> Iterator[Finding]:
    counts = Counter(subsets(images))
    if has_training and not counts["train"]:
        yield Finding("warning", category, "there are no training images (train/good), so no model can be fitted.")
    elif 0 < counts["train"] < MIN_TRAINING_IMAGES:
        verb = "is" if counts["train"] == 1 else "are"
        yield Finding("note", category, f"there {verb} only {_images(counts['train'], 'train')}; see --shots.")
    if counts["good"] + counts["defect"] and not (counts["good"] and counts["defect"]):
        absent = "defective" if counts["good"] else "good"
        yield Finding("note", category, f"there are no {absent} test images, so there will be no AUROC.")
    defective = images.filter(pc.equal(images["label"], 1))
    without = defective["mask_uri"].null_count
    if without:
        have = "has no mask and is" if without == 1 else "have no mask and are"
        text = f"{without:,} of {_images(len(defective), 'defect')} {have} left out of pixel metrics."
        yield Finding("note", category, text)


def _duplicates(category: str, images: pa.Table) -> Iterator[Finding]:
    subset = subsets(images)
    counts = Counter(subset)
    for column, near in (("duplicate_group", False), ("near_group", True)):
        groups = pc.fill_null(images[column], -1).to_numpy()
        members = {name: groups[(subset == name) & (groups >= 0)] for name in SUBSETS}
        for name in ("good", "unlabelled", "defect"):
            n_leaked = int(np.isin(members[name], members["train"]).sum())
            if n_leaked:
                yield _leak(category, name, n_leaked, counts[name], near)
        n_contradictory = int(np.isin(members["good"], members["defect"]).sum())
        if n_contradictory:
            repeat = _repeat(n_contradictory, near, "a defective one", "defective ones")
            text = f"{_images(n_contradictory, 'good')} {repeat}: a label may be wrong."
            yield Finding("note" if near else "warning", category, text)
        for name, reason in WHY_NOT_REPEATED.items():
            surplus = len(members[name]) - len(np.unique(members[name]))
            if surplus:
                text = f"{_images(surplus, name)} {_repeat(surplus, near, 'another', 'others')}: {reason}."
                yield Finding("note", category, text)


def _repeat(count: int, near: bool, other: str, others: str) -> str:
    if count == 1:
        return f"is {'a near' if near else 'an exact'} duplicate of {other}"
    return f"are {'near' if near else 'exact'} duplicates of {others}"


def _leak(category: str, subset: str, n_leaked: int, count: int, near: bool) -> Finding:
    """Test images that are training images too."""
    repeat = _repeat(n_leaked, near, "a training image", "training images")
    text = f"{n_leaked:,} of {_images(count, subset)} {repeat}"
    if subset != "defect":
        return Finding("warning", category, f"{text}: such scores say little about new images.")
    # A fingerprint does not show whether a small defect is in the training image too.
    advice = "check whether the training image shows the defect too" if near else "the model learns the defect as good"
    return Finding("note" if near else "warning", category, f"{text}: {advice}.")


def _outliers(category: str, images: pa.Table) -> Iterator[Finding]:
    subset = subsets(images)
    for name, level in (("train", "warning"), ("good", "note"), ("unlabelled", "note")):
        rows = images.filter(pa.array(subset == name))
        rows = rows.filter(pc.is_valid(rows["outlier"]))
        if len(rows):
            example = f"{rows['image_id'][0].as_py()!r} ({rows['outlier'][0].as_py()})"
            outliers = f"is an outlier: {example}" if len(rows) == 1 else f"are outliers, such as {example}"
            advice = "; check before fitting" if name == "train" else ""
            yield Finding(level, category, f"{_images(len(rows), name)} {outliers}{advice}.")


def _files(category: str, images: pa.Table) -> Iterator[Finding]:
    ratios = images["width"].to_numpy() / images["height"].to_numpy()
    if ratios.max() > MAX_ASPECT_SPREAD * ratios.min():
        text = (
            f"aspect ratios (width / height) range from {ratios.min():.2f} to {ratios.max():.2f}; "
            "a model sees every image stretched to a square."
        )
        yield Finding("note", category, text)
    subset = subsets(images)
    pairs = zip(images["format"].to_pylist(), images["mode"].to_pylist(), strict=True)
    formats = np.array([" ".join(pair) for pair in pairs])
    for name, other in (("train", "good"), ("train", "defect"), ("good", "defect"), ("train", "unlabelled")):
        left, right = set(formats[subset == name]), set(formats[subset == other])
        if left and right and not left & right:
            text = (
                f"{SUBSET_NAMES[name]} images are {_first_three(left)}, but {SUBSET_NAMES[other]} images are "
                f"{_first_three(right)}: a model may tell them apart by format alone."
            )
            yield Finding("warning", category, text)
            return


def _first_three(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3])


def _lighting(category: str, images: pa.Table) -> Iterator[Finding]:
    subset = subsets(images)
    train = subset == "train"
    brightness, sharpness = images["brightness"].to_numpy(), log_sharpness(images["sharpness"].to_numpy())
    for name in ("good", "unlabelled"):
        rows = subset == name
        n_images = min(rows.sum(), train.sum())
        if n_images < MIN_IMAGES:
            continue
        for values, min_mad, (below, above) in (
            (brightness, MIN_MAD["brightness"], ("darker", "brighter")),
            (sharpness, MIN_MAD["sharpness"], ("more blurred", "sharper")),
        ):
            shift = float(np.median(modified_z_scores(values, train, min_mad)[rows]))
            if abs(shift) > MAX_MEDIAN_Z * (1 + SMALL_SAMPLE_FACTOR / n_images):
                how = below if shift < 0 else above
                text = f"{SUBSET_NAMES[name]} images are {how} than the training images overall: expect false alarms."
                yield Finding("warning", category, text)
