"""What was understood of a data set, in one line per category, to be read before any work begins."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from mvad.storage.text import shown_name, visible

MAX_LINES = 20  # categories that have a line of their own
MAX_DEFECTS = 8  # kinds of defects that are named
MAX_SUFFIXES = 8

Group = tuple[str, int | None, str | None]  # split, label and defect


class Tally:
    """Counts images by category, split, label and defect, one table after the other."""

    def __init__(self) -> None:
        self._images: dict[str, Counter[Group]] = defaultdict(Counter)
        self._masks: Counter[str] = Counter()

    def add(self, images: pa.Table) -> Tally:
        """Count the rows of a manifest, or of a part of it; returns the tally."""
        keys = ["category", "split", "label", "defect"]
        for row in images.group_by(keys).aggregate([([], "count_all"), ("mask_uri", "count")]).to_pylist():
            self._images[row["category"]][row["split"], row["label"], row["defect"]] += row["count_all"]
            self._masks[row["category"]] += row["mask_uri_count"]
        return self

    def lines(self, remarks: Mapping[str, Sequence[str]]) -> Iterator[str]:
        """Say what each category has; of many categories, the last line says how many have no line."""
        names = sorted(self._images)
        for name in names[:MAX_LINES]:
            yield "; ".join([f"{shown_name(name)}: {self._describe(name)}", *remarks.get(name, ())])
        if len(names) > MAX_LINES:
            yield f"and {len(names) - MAX_LINES:,} more categories"

    def _describe(self, category: str) -> str:
        counts = self._images[category]
        training: Counter[int | None] = Counter()
        test: Counter[int | None] = Counter()
        defects: Counter[str] = Counter()
        for (split, label, defect), count in counts.items():
            (training if split == "train" else test)[label] += count
            if split != "train" and label == 1:
                defects[defect or "of no name"] += count
        if not training and set(test) == {None}:
            return f"{test[None]:,} {'image' if test[None] == 1 else 'images'}"
        learnt = ", ".join(
            f"{training[label]:,} {kind}"
            for label, kind in ((0, "good"), (None, "unlabelled"), (1, "defective"))
            if training[label]
        )
        parts = [f"{learnt} to learn from"] if learnt else []
        if test:
            parts.append(f"test {', '.join(self._describe_test(category, test, defects))}")
        return "; ".join(parts)

    def _describe_test(self, category: str, test: Counter[int | None], defects: Counter[str]) -> Iterator[str]:
        if test[0]:
            yield f"{test[0]:,} good"
        if test[1]:
            named = [f"{shown_name(name)} {count:,}" for name, count in sorted(defects.items())[:MAX_DEFECTS]]
            if len(defects) > MAX_DEFECTS:
                named.append(f"{len(defects) - MAX_DEFECTS:,} more kinds")
            yield f"{test[1]:,} defective ({', '.join(named)})"
        if test[None]:
            yield f"{test[None]:,} unlabelled"
        n_masks = self._masks[category]
        if n_masks:
            yield f"{n_masks:,} {'mask' if n_masks == 1 else 'masks'}"
        if 0 < n_masks < test[1]:
            yield f"{test[1] - n_masks:,} defective without a mask"


def describe_others(suffixes: Mapping[str, int]) -> str:
    """Say how many files are not images, by suffix: ``13 files are not images: 12 .txt, 1 without a suffix``."""
    count = sum(suffixes.values())
    most = sorted(suffixes.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{number:,} {visible(suffix) or 'without a suffix'}" for suffix, number in most[:MAX_SUFFIXES]]
    if len(most) > MAX_SUFFIXES:
        named.append(f"{sum(number for _, number in most[MAX_SUFFIXES:]):,} of other kinds")
    return f"{count:,} {'file is not an image' if count == 1 else 'files are not images'}: {', '.join(named)}"


def describe_left_out(left_out: pa.Table) -> Iterator[str]:
    """Say how many images are left out for each reason, the most frequent first, with one of them as an example."""
    for reason in left_out["error"].value_counts().to_pylist() if len(left_out) else ():
        first = left_out.filter(pc.equal(left_out["error"], reason["values"]))["image_id"][0].as_py()
        yield f"{reason['counts']:,} such as {first!r}: {reason['values']}"
