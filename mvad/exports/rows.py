"""The score rows that an export takes: of some categories, some images, file by file."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mvad import results
from mvad.data.manifest import require_categories
from mvad.errors import ResultsError
from mvad.results.schema import plain_rows

COLUMNS = (
    *("image_id", "uri", "label", "score", "p_value", "threshold", "is_anomaly", "verdict"),
    *("width", "height", "regions"),
)
MAP_COLUMNS = ("patch_scores", "patch_grid")


def files_by_category(out: str, selected: Sequence[str] | None) -> dict[str, list[str]]:
    """List the files of score rows (URIs) in results (a URI) by category; UsageError if a selected one is unknown."""
    files: dict[str, list[str]] = defaultdict(list)
    for category, file in results.list_parts(out):
        files[category].append(file)
    require_categories(selected, files, out)
    return {category: files[category] for category in files if selected is None or category in selected}


def is_selected(rows: pa.Table, only: str) -> pa.ChunkedArray | pa.Scalar:
    """Whether each row is one that ``--only`` names: all, anomalous, or mistakes, where verdict and label differ."""
    if only == "anomalous":
        return pc.fill_null(rows["is_anomaly"], False)
    if only == "mistakes":
        return pc.fill_null(pc.not_equal(rows["is_anomaly"], rows["label"].cast(pa.bool_())), False)
    return pa.scalar(True)


def json_items(batches: Iterable[pa.RecordBatch], item: Callable[[dict[str, Any]], Any]) -> Iterator[bytes]:
    """The items of a JSON list, one per row, a batch at a time: each on a line of its own, commas in between."""
    between = "\n"
    for batch in batches:
        lines = [json.dumps(item(row), allow_nan=False) for row in plain_rows(batch)]
        if lines:
            yield (between + ",\n".join(lines)).encode()
            between = ",\n"


@dataclass
class ExportRows:
    """The rows of images that an export takes, read one file after the other, and what became of them.

    Attributes
    ----------
    files
        Files of score rows (URIs) by category.
    only
        Which images are asked for: see `is_selected`.
    needed
        ``regions`` or ``patch_scores``: images without are left out.
    n_images, n_regions, n_left_out
        Images that were exported, their regions, and scored images that were left out.
    advance
        Called with 1 after each file.
    errors
        Damaged files and images that could not be exported: image_id, category, split and error.
    """

    files: Mapping[str, Sequence[str]]
    only: str
    needed: str
    n_images: int = 0
    n_regions: int = 0
    n_left_out: int = 0
    errors: list[dict[str, str]] = field(default_factory=list)
    advance: Callable[[int], None] = lambda _: None

    @property
    def n_files(self) -> int:
        return sum(map(len, self.files.values()))

    def are_there(self) -> bool:
        """Whether any row, asked for or not, has what is needed; the first damaged file is raised if none has."""
        column, first_error = "patch_grid" if self.needed == "patch_scores" else self.needed, None
        for _, file in self._places():
            try:
                values = results.read_part(file, [column])[column]
            except ResultsError as error:
                first_error = first_error or error
                continue
            if values.null_count < len(values):
                return True
        if first_error is not None:
            raise first_error
        return False

    def image_ids(self) -> Iterator[str]:
        """Give the ids of all images, asked for or not, so that names do not depend on what is asked for."""
        for _, file in self._places():
            try:
                yield from results.read_part(file, ["image_id"])["image_id"].to_pylist()
            except ResultsError:
                continue  # its images are not exported

    def tables(self) -> Iterator[tuple[str, pa.Table]]:
        """Give the category and the rows of each file, with the columns `COLUMNS` and, for maps, `MAP_COLUMNS`."""
        columns = [*COLUMNS, *(MAP_COLUMNS if self.needed == "patch_scores" else ())]
        for category, file in self._places():
            try:
                rows = results.read_part(file, columns)
            except ResultsError as error:
                self._add_error(category, category, str(error))
                rows = results.SCORES.empty_table().select(columns)
            rows = rows.filter(pc.and_(pc.is_valid(rows["score"]), is_selected(rows, self.only)))
            usable = rows.filter(pc.is_valid(rows[self.needed]))
            self.n_left_out += len(rows) - len(usable)
            self.n_images += len(usable)
            self.n_regions += pc.sum(pc.list_value_length(usable["regions"])).as_py() or 0
            yield category, usable
            self.advance(1)

    def refuse(self, row: Mapping[str, Any], category: str, reason: str) -> None:
        """Note that an image which was given could not be exported, and why."""
        self.n_images -= 1
        self.n_regions -= len(row["regions"] or ())
        self._add_error(row["image_id"], category, reason)

    def _add_error(self, image_id: str, category: str, reason: str) -> None:
        self.errors.append({"image_id": image_id, "category": category, "split": "test", "error": reason})

    def _places(self) -> Iterator[tuple[str, str]]:
        return ((category, file) for category, files in self.files.items() for file in files)
