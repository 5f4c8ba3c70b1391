"""The columns of a manifest."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from mvad.storage import FileEntry

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),  # path below ROOT, POSIX slashes
        pa.field("uri", pa.string(), nullable=False),
        pa.field("category", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # train | test
        pa.field("label", pa.int8()),  # 0 good, 1 defective, null unknown
        pa.field("defect", pa.string()),
        pa.field("mask_uri", pa.string()),
    ]
)


def image_row(
    file: FileEntry,
    category: str,
    split: str,
    label: int | None = None,
    defect: str | None = None,
    mask_uri: str | None = None,
) -> dict[str, Any]:
    """Return the manifest's row of an image."""
    return {
        "image_id": file.path,
        "uri": file.uri,
        "category": category,
        "split": split,
        "label": label,
        "defect": defect,
        "mask_uri": mask_uri,
    }
