"""What reviewers said of images, as the images that models learn from, and those that they must still flag."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from mvad import storage
from mvad.console import Reporter, plural
from mvad.data.manifest import SCHEMA, Manifest, read_manifest, require_categories, select_categories
from mvad.errors import UsageError
from mvad.model_store import ModelInfo
from mvad.nights.labels import full_name, read_labels
from mvad.nights.rows import NightRows
from mvad.options import UpdateOptions, as_json, build
from mvad.results.nights import read_day
from mvad.storage.text import shown_name

MAX_NAMED = 5  # images in a sentence
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
ROWS = (
    "SELECT folder, image_id, score, model_id, file_size, file_mtime FROM rows WHERE image_id IN (SELECT unnest($ids))"
)


@dataclass(frozen=True)
class Reviewed:
    """The images of a folder of nights that were said to be good, or defects.

    Attributes
    ----------
    table
        Rows of a manifest: ``train`` and good, or ``test`` and defective; an image is named by its night's folder and
        its own name.
    left_out
        Images whose file is not what was reviewed: image_id, category and error.
    problems
        What a person should know, a sentence each.
    """

    root: str
    table: pa.Table
    left_out: list[dict[str, str]]
    problems: list[str]

    def not_learnt(self, models: Mapping[str, ModelInfo]) -> tuple[Manifest, list[dict[str, Any]]]:
        """The images of categories that have good ones which their models have not learnt, with their defects.

        Also a row for each other category with good images, whose ``note`` says why it is not updated; and in the rows
        of all, ``n_learnt``, how many images its model has learnt from reviews already.
        """
        learnt = {name: {_file(one) for one in model.record.get("reviewed", [])} for name, model in models.items()}
        images, known = [], Counter[str]()
        for number, image in enumerate(_plain_times(self.table)):
            if image["split"] == "train" and _file(image) in learnt.get(image["category"], ()):
                known[image["category"]] += 1
            else:
                images.append(number)
        table = self.table.take(pa.array(images, pa.int64()))
        good = set(self.table.filter(pc.equal(self.table["split"], "train"))["category"].to_pylist())
        new = set(table.filter(pc.equal(table["split"], "train"))["category"].to_pylist()) & models.keys()
        rows: list[dict[str, Any]] = []
        for name in sorted(good - new):
            note = "it has learnt from these images already" if name in models else "it has no model that can be used"
            rows.append({"category": name, "n_learnt": known[name], "note": f"not updated: {note}"})
        rows += [{"category": name, "n_learnt": known[name]} for name in sorted(new)]
        return Manifest(self.root, select_categories(table, sorted(new))), rows

    @property
    def warnings(self) -> list[str]:
        """What to tell a person, one sentence each."""
        by_category: dict[str, list[dict[str, str]]] = {}
        for one in self.left_out:
            by_category.setdefault(one["category"], []).append(one)
        lines = list(self.problems)
        for category, found in sorted(by_category.items()):
            named = "; ".join(f"{one['image_id']!r}: {one['error']}" for one in found[:MAX_NAMED])
            more = f"; and {len(found) - MAX_NAMED:,} more" if len(found) > MAX_NAMED else ""
            lines.append(f"{shown_name(category)}: {plural(len(found), 'reviewed image')} left out: {named}{more}")
        return lines


class Lesson(NamedTuple):
    """What models learn: images, rows as of `Reviewed.not_learnt`, and options with which all defects are scored."""

    manifest: Manifest
    rows: list[dict[str, Any]]
    options: UpdateOptions

    def joined(self, updated: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows of categories that were updated, then of the others."""
        known = {row["category"]: row for row in self.rows}
        rows = [known.pop(row["category"], {}) | row for row in updated]
        return [*rows, *known.values()]


def read_lesson(data: str | None, models: Mapping[str, ModelInfo], options: UpdateOptions, report: Reporter) -> Lesson:
    """The images in DATA, or those that models have not learnt yet of ``--reviewed``; what is left out is said.

    UsageError if neither or both are given, and as from `read_manifest` or `read_reviewed`.
    """
    if data is not None and options.reviewed is None:
        return Lesson(read_manifest(data, options), [], options)
    if data is not None or options.reviewed is None:
        raise UsageError("give either DATA or --reviewed NIGHTS, the images to learn from, and not both.")
    reviewed = read_reviewed(options.reviewed, options)
    manifest, rows = reviewed.not_learnt(models)
    for line in reviewed.warnings:
        report.warn(line)
    for row in rows:
        row["left_out"] = [one for one in reviewed.left_out if one["category"] == row["category"]]
        if row["n_learnt"]:
            learnt = plural(row["n_learnt"], "image")
            report.info(f"{shown_name(row['category'])}: {learnt} left out, which the model has learnt from already")
    return Lesson(manifest, rows, build(UpdateOptions, as_json(options) | {"reference": len(manifest.table)}))


def read_reviewed(nights: str, options: UpdateOptions) -> Reviewed:
    """The images below the folder ``nights`` that were said to be good or defects, whose files are as they were then.

    Of several labels of an image or a file, the last one counts. UsageError if there are no results, no such images,
    or none of a category of ``--categories``.
    """
    root, since = storage.to_uri(nights), read_day("reviewed-since", options.reviewed_since)
    found = read_labels(root)
    labels = [row for row in found.current.to_pylist() if row["judgement"] in ("good", "defect")]
    require_categories(options.categories, {row["category"] for row in labels}, root)
    labels = [row for row in labels if options.categories is None or row["category"] in options.categories]
    if not any(row["judgement"] == "good" for row in labels):
        raise UsageError(
            f"no image in {storage.readable(root)} was said to be good; review some with mvad serve --results."
        )
    scored = _rows_of(root, labels)
    uris = sorted({row["uri"] for row in labels})
    states = dict(zip(uris, storage.parallel_map(storage.file_state, uris), strict=True))
    images: dict[str, dict[str, Any]] = {}
    left_out: dict[str, dict[str, str]] = {}
    for label in labels:
        name = full_name(label)
        row = scored.get((label["folder"], label["image_id"]))
        error = _trouble(label, row, states[label["uri"]])
        if error is not None:
            left_out[label["uri"]] = {"image_id": name, "category": label["category"], "error": error}
        elif since is None or label["judgement"] == "defect" or label["labelled_at"].date() >= since:
            left_out.pop(label["uri"], None)
            assert row is not None
            images[label["uri"]] = _image(name, label, row)
        else:
            images.pop(label["uri"], None)
    table = pa.Table.from_pylist(list(images.values()), SCHEMA)
    gone = [one for uri, one in left_out.items() if uri not in images]
    return Reviewed(root, select_categories(table, None), gone, found.problems)


def _rows_of(root: str, labels: Iterable[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """The score rows of labelled images, by the folder and the name of the image."""
    nights = NightRows.open(root)
    ids = sorted({row["image_id"] for row in labels})
    return {
        (nights.name_of(row["folder"]), row["image_id"]): row for row in nights.query(ROWS, {"ids": ids}).to_pylist()
    }


def _trouble(label: dict[str, Any], row: dict[str, Any] | None, now: storage.FileState) -> str | None:
    """Why the file of an image is not what was reviewed; None if it is."""
    if row is None:
        return "its score row has gone"
    if now.size is None:
        return "its file has gone"
    if row["file_size"] is None or row["file_mtime"] is None:
        return "its score row does not say the size and time of its file"
    scored_again = row["model_id"] == label["model_id"] and row["score"] != label["score"]
    if (
        now != (row["file_size"], _micros(row["file_mtime"]))
        or row["file_mtime"] > label["labelled_at"]
        or scored_again
    ):
        return "its file has changed since it was reviewed"
    return None


def _image(name: str, label: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    good = label["judgement"] == "good"
    facts = {
        "split": "train" if good else "test",
        "label": 0 if good else 1,
        "defect": None if good else label["defect"],
    }
    facts |= {name: row[name] for name in ("file_size", "file_mtime")}
    return {"image_id": name, "uri": label["uri"], "category": label["category"], "mask_uri": None, **facts}


def _micros(time: datetime.datetime) -> int:
    return (time - EPOCH) // datetime.timedelta(microseconds=1)


def _plain_times(images: pa.Table) -> list[dict[str, Any]]:
    """Rows of images whose times are microseconds since 1970, as in the records of models."""
    times = images["file_mtime"].cast(pa.int64())
    return images.drop_columns("file_mtime").append_column("file_mtime", times).to_pylist()


def _file(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["uri"], row["file_size"], row["file_mtime"]
