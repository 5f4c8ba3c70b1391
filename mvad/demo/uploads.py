"""The form of an upload: its limits, and one sentence for anything that is wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

FIELDS = ("images", "category", "pictures")
MULTIPART = "multipart/form-data"
MAX_FIELD_BYTES = 4096  # limit for fields that are not files
MAX_NAME_LENGTH = 255


@dataclass(frozen=True)
class UploadLimits:
    """Limits of an upload: bytes and files per request, decoded pixels per image."""

    max_bytes: int
    max_files: int
    max_pixels: int


class UploadRequest(Request):
    """Request whose form is read within the `UploadLimits` in the application's state."""

    def form(self, **_: Any) -> Any:
        max_files = self.app.state.limits.max_files
        return super().form(max_files=max_files, max_fields=len(FIELDS), max_part_size=MAX_FIELD_BYTES)


class UploadRoute(APIRoute):
    """Route that gets an `UploadRequest`: FastAPI itself reads up to 1,000 files and fields of 1 MB."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(UploadRequest(request.scope, request.receive))

        return handle


def form_error(request: Request, error: Mapping[str, Any]) -> HTTPException:
    """Describe a form that pydantic refuses; ``error`` is the first of its errors."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != MULTIPART:
        return HTTPException(415, f"send the images as {MULTIPART}, in fields called images.")
    field, value = error["loc"][1], error["input"]
    if field not in FIELDS:
        reason = f"there is no field {plain(field)!r}; the fields are {', '.join(FIELDS)}."
    elif error["type"] == "missing":
        reason = "no image was sent; put one or more files into fields called images."
    elif field == "images":
        reason = "a field called images holds text; send a file, with a file name."
    elif isinstance(value, str):
        reason = f"the field {field} must be true or false, not {plain(value)!r}."
    else:
        reason = f"the field {field} must be a single text, not a file."
    return HTTPException(422, reason)


def plain(text: str) -> str:
    """Make a text from outside safe to send back: valid Unicode, not longer than a file name."""
    return text.encode("utf-8", "replace").decode()[:MAX_NAME_LENGTH]
