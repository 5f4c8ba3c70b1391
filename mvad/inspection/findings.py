"""What to know of a folder before a model is fitted to it, in one sentence each."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mvad.calibration.suspects import MIN_REFERENCE, SMALL_SAMPLE_FACTOR, modified_z_scores
from mvad.console import plural
from mvad.data.manifest import Manifest
from mvad.inspection.outliers import MIN_MAD, log_sharpness
from mvad.inspection.table import SUBSETS, by_category, subsets
from mvad.storage.text import shown_name

MIN_TRAINING_IMAGES = 20  # fewer deserve a note
MAX_MEDIAN_Z = 1.5  # of test images; raised for small samples. Beyond, lighting or focus has changed
MAX_ASPECT_SPREAD = 1.25  # of the largest aspect ratio to the smallest
NOUNS = {
    "train": "training image",
    "good": "good test image",
    "defect": "defective image",
    "unlabelled": "unlabelled image",
}
MAX_NAMED = 3  # categories that share a finding
NUMBER = re.compile(r"(?<![\w.,;'\"])\d[\d,]*(?:\.\d+)?(?!\w)")
WHY_NOT_REPEATED = {
    "train": "calibration will overestimate the model",
    "unlabelled": "scores and rates count the same thing more than once",
}


class Finding(NamedTuple):
    """One thing to know."""

    level: str  # warning: it spoils a model or its evaluation; note: it is good to know
    category: str  # "" if it concerns several
    text: str
    example: str = ""  # the part of ``text`` that names an image of the category


class SharedFinding(NamedTuple):
    """One sentence, and the findings that say it of their categories, except for numbers and examples."""

    level: str
    text: str
    findings: list[Finding]

    @property
    def named(self) -> str:
        """The categories: all, or the first few and a count; empty if the finding names none."""
        names = [shown_name(finding.category) for finding in self.findings if finding.category]
        if len(names) <= MAX_NAMED + 1:  # the count would be no shorter than the name
            return ", ".join(names)
        return f"{', '.join(names[:MAX_NAMED])} and {len(names) - MAX_NAMED:,} more categories"

    def __str__(self) -> str:
        return f"{self.named}: {self.text}" if self.named else self.text


def shared(findings: Iterable[Finding]) -> list[SharedFinding]:
    """Findings that say the same of several categories as one, in their order; numbers that differ become ranges."""
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in findings:
        sentence = NUMBER.sub("0", finding.text.replace(finding.example, "", 1)) if finding.category else finding.text
        groups[finding.level, sentence].append(finding)
    return [SharedFinding(level, _common_text(members), members) for (level, _), members in groups.items()]


def _common_text(findings: list[Finding]) -> str:
    texts = [finding.text for finding in findings]
    if len(set(texts)) == 1:
        return texts[0]
    texts = [finding.text.replace(finding.example, "", 1) for finding in findings]
    ranges = iter([_number_range(numbers) for numbers in zip(*map(NUMBER.findall, texts), strict=True)])
    return NUMBER.sub(lambda _: next(ranges), texts[0])


def _number_range(numbers: Iterable[str]) -> str:
    ordered = sorted(numbers, key=lambda number: float(number.replace(",", "")))
    return ordered[0] if ordered[0] == ordered[-1] else f"{ordered[0]}-{ordered[-1]}"


def find_all(manifest: Manifest, images: pa.Table) -> list[Finding]:
    """All findings, warnings first."""
    findings = [Finding(level, "", *statement) for level, *statement in _across_categories(manifest, images)]
    has_training = "train" in images["split"].to_pylist()
    for category, _, rows in by_category(images):
        statements = [*_missing(rows, has_training)]
        readable = rows.filter(pc.is_null(rows["error"]))
        if len(readable):
            for check in (_duplicates, _outliers, _files, _lighting):
                statements += check(readable, subsets(readable))
        findings += [Finding(level, category, *statement) for level, *statement in statements]
    return sorted(findings, key=lambda finding: finding.level != "warning")


Statements = Iterator[tuple[str, ...]]  # level and text of each finding, and perhaps its example


def _across_categories(manifest: Manifest, images: pa.Table) -> Statements:
    n_errors = len(images) - images["error"].null_count
    if n_errors:
        yield "warning", f"{plural(n_errors, 'image')} cannot be read; a run names such images and continues."
    n_left_out = len(manifest.left_out)
    if n_left_out:
        verb = "is" if n_left_out == 1 else "are"
        yield "warning", f"{plural(n_left_out, 'file')} {verb} left out; a run names such files and continues."
    categories: dict[int, set[str]] = defaultdict(set)
    repeated = images.filter(pc.is_valid(images["duplicate_group"]))
    for group, name in zip(repeated["duplicate_group"].to_pylist(), repeated["category"].to_pylist(), strict=True):
        categories[group].add(name)
    shared = [names for names in categories.values() if len(names) > 1]
    if shared:
        example = " and ".join(repr(name) for name in sorted(shared[0])[:2])
        verb = "occurs" if len(shared) == 1 else "occur"
        yield "warning", f"{plural(len(shared), 'image')} {verb} in several categories, such as {example}."


def _missing(images: pa.Table, has_training: bool) -> Statements:
    counts = Counter(subsets(images))
    if has_training and not counts["train"]:
        yield "warning", "there are no training images (train/good), so no model can be fitted."
    elif 0 < counts["train"] < MIN_TRAINING_IMAGES:
        verb = "is" if counts["train"] == 1 else "are"
        yield "note", f"there {verb} only {plural(counts['train'], NOUNS['train'])}; see --shots."
    if counts["good"] + counts["defect"] and not (counts["good"] and counts["defect"]):
        absent = "defective" if counts["good"] else "good"
        yield "note", f"there are no {absent} test images, so there will be no AUROC."
    defective = images.filter(pc.equal(images["label"], 1))
    without = defective["mask_uri"].null_count
    if without:
        have = "has no mask and is" if without == 1 else "have no mask and are"
        yield "note", f"{without:,} of {plural(len(defective), NOUNS['defect'])} {have} left out of pixel metrics."


def _duplicates(images: pa.Table, subset: NDArray[np.object_]) -> Statements:
    counts = Counter(subset)
    for column, near in (("duplicate_group", False), ("near_group", True)):
        groups = pc.fill_null(images[column], -1).to_numpy()
        members = {name: groups[(subset == name) & (groups >= 0)] for name in SUBSETS}
        for name in ("good", "unlabelled", "defect"):
            n_leaked = int(np.isin(members[name], members["train"]).sum())
            if n_leaked:
                repeat = _repeat(n_leaked, near, "a training image", "training images")
                level, advice = _leak(name, near)
                yield level, f"{n_leaked:,} of {plural(counts[name], NOUNS[name])} {repeat}: {advice}."
        n_contradictory = int(np.isin(members["good"], members["defect"]).sum())
        if n_contradictory:
            repeat = _repeat(n_contradictory, near, "a defective one", "defective ones")
            level = "note" if near else "warning"
            yield level, f"{plural(n_contradictory, NOUNS['good'])} {repeat}: a label may be wrong."
        for name, reason in WHY_NOT_REPEATED.items():
            surplus = len(members[name]) - len(np.unique(members[name]))
            if surplus:
                repeat = _repeat(surplus, near, "another", "others")
                yield "note", f"{plural(surplus, NOUNS[name])} {repeat}: {reason}."


def _repeat(count: int, near: bool, other: str, others: str) -> str:
    if count == 1:
        return f"is {'a near' if near else 'an exact'} duplicate of {other}"
    return f"are {'near' if near else 'exact'} duplicates of {others}"


def _leak(subset: str, near: bool) -> tuple[str, str]:
    """Level of the finding that test images are training images too, and what it means."""
    if subset != "defect":
        return "warning", "such scores say little about new images"
    if near:  # a fingerprint does not show whether a small defect is in the training image too
        return "note", "check whether the training image shows the defect too"
    return "warning", "the model learns the defect as good"


def _outliers(images: pa.Table, subset: NDArray[np.object_]) -> Statements:
    for name, level in (("train", "warning"), ("good", "note"), ("unlabelled", "note")):
        rows = images.filter(pa.array(subset == name))
        rows = rows.filter(pc.is_valid(rows["outlier"]))
        if len(rows):
            example = f"{rows['image_id'][0].as_py()!r} ({rows['outlier'][0].as_py()})"
            example = f": {example}" if len(rows) == 1 else f", such as {example}"
            outliers = f"is an outlier{example}" if len(rows) == 1 else f"are outliers{example}"
            advice = "; check before fitting" if name == "train" else ""
            yield level, f"{plural(len(rows), NOUNS[name])} {outliers}{advice}.", example


def _files(images: pa.Table, subset: NDArray[np.object_]) -> Statements:
    ratios = images["width"].to_numpy() / images["height"].to_numpy()
    if ratios.max() > MAX_ASPECT_SPREAD * ratios.min():
        ends = f"from {ratios.min():.2f} to {ratios.max():.2f}"
        yield "note", f"aspect ratios (width / height) range {ends}; a model sees every image stretched to a square."
    pairs = zip(images["format"].to_pylist(), images["mode"].to_pylist(), strict=True)
    formats = np.array([" ".join(pair) for pair in pairs])
    for name, other in (("train", "good"), ("train", "defect"), ("good", "defect"), ("train", "unlabelled")):
        left, right = set(formats[subset == name]), set(formats[subset == other])
        if left and right and not left & right:
            first, second = (", ".join(sorted(names)[:3]) for names in (left, right))
            contrast = f"{NOUNS[name]}s are {first}, but {NOUNS[other]}s are {second}"
            yield "warning", f"{contrast}: a model may tell them apart by format alone."
            return


def _lighting(images: pa.Table, subset: NDArray[np.object_]) -> Statements:
    train = subset == "train"
    brightness, sharpness = images["brightness"].to_numpy(), log_sharpness(images["sharpness"].to_numpy())
    for name in ("good", "unlabelled"):
        rows = subset == name
        n_images = min(rows.sum(), train.sum())
        if n_images < MIN_REFERENCE:
            continue
        for values, min_mad, (below, above) in (
            (brightness, MIN_MAD["brightness"], ("darker", "brighter")),
            (sharpness, MIN_MAD["sharpness"], ("more blurred", "sharper")),
        ):
            shift = float(np.median(modified_z_scores(values, values[train], min_mad)[rows]))
            if abs(shift) > MAX_MEDIAN_Z * (1 + SMALL_SAMPLE_FACTOR / n_images):
                how = below if shift < 0 else above
                yield "warning", f"{NOUNS[name]}s are {how} than the training images overall: expect false alarms."
