"""Checks of the files of a model, which may be damaged or made by hand although their hashes are right."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from mvad.data.image_size import ImageSize
from mvad.data.images.ignoring import decode_ignore
from mvad.detectors import METHODS
from mvad.features.backbone_spec import MAX_NEIGHBOURHOOD, NO_BACKBONE, BackboneSpec

MAX_DOCUMENT_BYTES = 32 << 20  # of model.json, which names every training image that could not be used
MAX_SIDE = 1 << 16  # of a model's input, in pixels
MAX_WINDOWS = 1 << 17  # of an image
MAX_HEADER_BYTES = 1 << 14  # of an array file
MAGIC, VERSION = b"\x93NUMPY", b"\x01\x00"  # that an array file begins with
HEADER = re.compile(
    r"\{'descr': (.+), 'fortran_order': (True|False), 'shape': \(((?:-?[0-9]{1,20}, ?)*(?:-?[0-9]{1,20})?)\), \} *\n"
)
NUMBER = re.compile(r"'([<>|](?:b1|[iu][1248]|f[248]))'")  # types that arrays may have
SUFFIXES = (".npy", ".safetensors")

Count = Annotated[int, Field(ge=0)]


class _UnusableImage(BaseModel):
    image_id: str
    error: str


class _ReviewedImage(BaseModel):
    """An image that joined because a reviewer said that it is good."""

    image_id: str
    uri: str
    file_size: int | None
    file_mtime: int | None  # microseconds since 1970


class _StoredFile(BaseModel):
    """A file beside a model that is no part of its id."""

    sha256: str
    bytes: Count


class _Record(BaseModel):
    """What other code reads of a model's ``record``; there may be more."""

    n_train: Count
    errors: list[_UnusableImage]
    fit_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    bytes: Count
    training_sha256: str = ""
    updated_from: list[str] = []
    reviewed: list[_ReviewedImage] = []
    made_by: str | None = None  # update or reviewed; None: a fit, or an earlier mvad
    saved_at: str | None = None  # ISO 8601, UTC
    feature_shape: list[Annotated[int, Field(ge=1)]] | None = None
    origins: dict[str, _StoredFile] = {}  # the files of `origins.bank_origins`, if the model has them


class Document(BaseModel):
    """What ``model.json`` says, apart from its format and id."""

    method: str
    category: Annotated[str, Field(min_length=1)]
    settings: dict[str, Any]
    backbone: BackboneSpec
    weights_sha256: str
    size: ImageSize
    files: dict[str, str]
    record: _Record


def check_document(content: Mapping[str, Any]) -> Document:
    """The parsed content of ``model.json``; ValueError if a value is missing, or of a wrong type or range."""
    try:
        document = Document.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"])) or "it"
        raise ValueError(f"{place} is {reprlib.repr(problem['input'])}: {problem['msg']}") from None
    backbone, size = document.backbone, document.size
    if document.method not in METHODS:
        raise ValueError(f"method is {reprlib.repr(document.method)}, which this mvad does not know")
    check_size(size)
    if size.ignore is not None:
        decode_ignore(size.ignore)
    channels = 0 if backbone.name == NO_BACKBONE else 3
    lengths = {len(backbone.stages), len(backbone.mean), len(backbone.std)}
    numbers_fit = all(map(math.isfinite, backbone.mean + backbone.std)) and all(value > 0 for value in backbone.std)
    is_square = backbone.neighbourhood % 2 == 1 and 1 <= backbone.neighbourhood <= MAX_NEIGHBOURHOOD
    is_one = lengths == {channels} and numbers_fit and backbone.patch >= 1 and is_square
    if not is_one or len(set(backbone.layers)) < len(backbone.layers) or (backbone.norm and backbone.patch == 1):
        raise ValueError(f"backbone is not one: {reprlib.repr(asdict(backbone))}")
    for file in document.files:
        if not file.endswith(SUFFIXES) or not {"", ".", ".."}.isdisjoint(file.split("/")):
            raise ValueError(f"files names {reprlib.repr(file)}, which is no file of a model")
    return document


def check_size(size: ImageSize) -> None:
    """ValueError if an input is too large, or its windows do not lie within it on one grid of patches."""
    if not all(1 <= seen <= resized <= MAX_SIDE for seen, resized in zip(size.crop, size.resize, strict=True)):
        raise ValueError(f"size is {size.resize} cropped to {size.crop}, not 1 to {MAX_SIDE:,} pixels")
    if size.whole is not None and size.window is None:
        raise ValueError(f"size has {size.whole} for images as a whole, and no windows")
    if size.window is None:
        return
    if size.whole is not None and any(side > seen for side, seen in zip(size.whole, size.crop, strict=True)):
        raise ValueError(f"size has {size.whole} for images as a whole, larger than {size.crop}")
    sides = (*size.crop, *size.window)
    if size.resize != size.crop or any(side % size.cell for side in sides):
        raise ValueError(f"size has windows of {size.window} whose patches are on no grid with those of {size.crop}")
    if not all(window <= seen for window, seen in zip(size.window, size.crop, strict=True)):
        raise ValueError(f"size has windows of {size.window}, larger than {size.crop}")
    steps = [max(1, math.floor(window * (1 - size.overlap) / size.cell)) * size.cell for window in size.window]
    if math.prod(seen / step for seen, step in zip(size.crop, steps, strict=True)) > MAX_WINDOWS:
        raise ValueError(f"size has more than {MAX_WINDOWS:,} windows")


def parse_array(data: NDArray[np.uint8]) -> NDArray[Any]:
    """The array in the bytes of a ``.npy`` file, without a copy; ValueError if they are not one as mvad writes it.

    What the header declares is compared with the size of the file before anything is allocated. NumPy would read it by
    Python's parser. That of 3.11 fails now and then in a process of several threads, and then a sound model would be
    called damaged (https://github.com/python/cpython/issues/106905).
    """
    magic, version, head = data[:6].tobytes(), data[6:8].tobytes(), data[8:10].tobytes()
    if magic == MAGIC and version != VERSION:
        raise ValueError("it is no NumPy file (another version than 1.0)")
    start = len(MAGIC) + len(VERSION) + len(head) + int.from_bytes(head, "little")
    header = HEADER.fullmatch(data[10:start].tobytes()[:MAX_HEADER_BYTES].decode("latin-1"))
    if magic != MAGIC or header is None:
        raise ValueError("it is no NumPy file")
    kind, order, lengths = header.groups()
    number = NUMBER.fullmatch(kind)
    if number is None:
        raise ValueError(f"it holds {kind[:40]} values, not numbers")
    dtype, shape = np.dtype(number[1]), tuple(int(length) for length in lengths.split(",") if length.strip())
    if order == "True" and len(shape) > 1:
        raise ValueError("it is stored column by column")
    body = data[start:]
    if any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize != len(body):
        raise ValueError(f"it declares {' x '.join(map(str, shape))} values of {dtype}, and holds {len(body):,} bytes")
    return body.view(dtype).reshape(shape)
