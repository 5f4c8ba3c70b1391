"""A form that was uploaded: what may be in it, and what is wrong with it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from mvad.demo.guard import TooLargeError

FIELDS = ("images", "category", "pictures")
FIELD_BYTES = 4096  # of one that is no file
MULTIPART = "multipart/form-data"
LONGEST_NAME = 255


@dataclass(frozen=True)
class Limits:
    """What an upload may be: bytes and files of a request, decoded pixels of an image."""

    upload_bytes: int
    files: int
    pixels: int


@dataclass(frozen=True)
class Upload:
    """Images to score as a category (None: to be guessed), with pictures or without."""

    files: list[tuple[str, bytes]]
    category: str | None
    pictures: bool


class UploadError(Exception):
    """A form that cannot be served: a status from 400 to 499, and a sentence."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@asynccontextmanager
async def _form(request: Request, limits: Limits) -> AsyncIterator[FormData]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != MULTIPART:
        raise UploadError(415, f"send the images as {MULTIPART}, in fields called images.")
    try:
        form = await request.form(max_files=limits.files, max_fields=len(FIELDS), max_part_size=FIELD_BYTES)
    except TooLargeError:
        raise
    except HTTPException as error:
        raise UploadError(400, f"the form cannot be read: {error.detail}") from error
    except Exception as error:  # an odd charset raises what its codec likes
        raise UploadError(400, f"the form cannot be read ({type(error).__name__}).") from error
    try:
        yield form
    finally:
        await form.close()


async def read_upload(request: Request, limits: Limits, categories: Collection[str]) -> Upload:
    """Read the form of a request.

    Raises
    ------
    UploadError
        It is none, or its fields are not those that are asked for.
    TooLargeError
        It is larger than allowed.
    """
    async with _form(request, limits) as form:
        for name in form:
            if name not in FIELDS:
                raise UploadError(422, f"there is no field {plain(name)!r}; the fields are {', '.join(FIELDS)}.")
        files = form.getlist("images")
        if not files:
            raise UploadError(422, "no image was sent; put one or more files into fields called images.")
        contents = []
        for file in files:
            if not isinstance(file, UploadFile):
                raise UploadError(422, "a field called images holds text; send a file, with a file name.")
            contents.append((plain(file.filename or ""), await file.read()))
        category = _text(form, "category") or None
        if category is not None and category not in categories:
            known = ", ".join(sorted(categories)[:20])
            raise UploadError(422, f"there is no category {plain(category)!r}; choose one of: {known}; or none.")
        pictures = _text(form, "pictures") or "false"
        if pictures not in ("true", "false"):
            raise UploadError(422, f"the field pictures is true or false, not {plain(pictures)!r}.")
        return Upload(contents, category, pictures == "true")


def _text(form: FormData, name: str) -> str:
    values: list[Any] = form.getlist(name)
    if len(values) > 1 or not all(isinstance(value, str) for value in values):
        raise UploadError(422, f"the field {name} is one text, no file and not several.")
    return values[0] if values else ""


def plain(text: str) -> str:
    """A text from outside as one that can be sent back: valid Unicode, not longer than a file name."""
    return text.encode("utf-8", "replace").decode()[:LONGEST_NAME]
