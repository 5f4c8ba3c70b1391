"""Images that an INT8 file is made from, and those that it is checked with."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from mvad import storage
from mvad.data.layouts import folders
from mvad.data.layouts.files import Found, find_images
from mvad.data.manifest import Manifest, read_manifest
from mvad.data.names import meaning
from mvad.data.tables import is_table
from mvad.errors import UsageError
from mvad.model_store import ModelInfo
from mvad.options import DataOptions, build


class LabelledImage(NamedTuple):
    """An image, and whether it is known to be defective."""

    image_id: str
    uri: str
    is_defective: bool


def good_images(data: str, model: ModelInfo) -> dict[str, str]:
    """URIs of good images of a model's category by name: training images, or all images of a folder without labels.

    Of those, as many as the fit of the model was limited to. UsageError if there are none.
    """
    limit = model.record.get("options", {}).get("limit")
    options = build(DataOptions, {"category": model.category, "limit": limit})
    manifest = read_manifest(data, options, to_learn=True)
    table = manifest.split("train")
    if not len(table) and pc.all(pc.is_null(manifest.table["label"])).as_py():
        table = _below_category(manifest.table, model.category)
    table = _of_category(table, model, manifest, "no good images to learn from")
    return dict(zip(table["image_id"].to_pylist(), table["uri"].to_pylist(), strict=True))


def labelled_images(data: str, model: ModelInfo) -> list[LabelledImage]:
    """Test images of a model's category whose labels are known.

    ``data`` is laid out like the data of a fit, or it is a test folder with folders of good and of defective images.
    UsageError if there are not both.
    """
    manifest = _test_folder(data)
    if manifest is None:
        manifest = read_manifest(data, build(DataOptions, {"category": model.category}))
        table = _of_category(manifest.split("test"), model, manifest, "no labelled test images")
    else:
        table = manifest.split("test")
    rows = table.filter(pc.is_valid(table["label"])).select(["image_id", "uri", "label"]).to_pylist()
    images = [LabelledImage(row["image_id"], row["uri"], row["label"] == 1) for row in rows]
    if len({one.is_defective for one in images}) < 2:
        raise UsageError(
            f"{storage.readable(manifest.root)} does not have both good and defective images of {model.category!r}, in "
            "folders that say so, which the check of an INT8 file needs; give another folder with --check."
        )
    return images


def _test_folder(data: str) -> Manifest | None:
    """The images of a folder with folders of good and of defective images, all of them test images; or None."""
    root = storage.to_uri(data)
    if is_table(root):
        return None
    files = find_images(storage.list_files(root)).images
    meanings = [meaning(name) for name in {file.path.split("/")[0] for file in files if "/" in file.path}]
    if any(one.split for one in meanings) or not any(one.is_good for one in meanings):
        return None
    placed = [file._replace(path=f"test/{file.path}") for file in files]
    table = folders.read(root, Found(placed)).table
    names = [name.removeprefix("test/") for name in table["image_id"].to_pylist()]
    table = table.set_column(table.column_names.index("image_id"), "image_id", pa.array(names, pa.string()))
    return Manifest(root, table.sort_by("image_id"))


def _below_category(table: pa.Table, category: str) -> pa.Table:
    """Of images without labels, those in the folder of a category if there is one."""
    below = table.filter(pc.starts_with(table["image_id"], f"{category}/"))
    return below if len(below) else table


def _of_category(table: pa.Table, model: ModelInfo, manifest: Manifest, what: str) -> pa.Table:
    found = table.filter(pc.equal(table["category"], model.category))
    if not len(found):
        others = ", ".join(manifest.categories[:10])
        raise UsageError(
            f"{storage.readable(manifest.root)} has {what} of {model.category!r}; its images are of {others}."
        )
    return found
