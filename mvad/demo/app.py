"""The demo as a web application: a page, and the same for programs, described in ``/openapi.json``.

It knows no Ray: what scores a sample is given to it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from mvad import __version__
from mvad.data.image_size import ImageSize
from mvad.data.images import FORMATS, decode, resize_and_crop
from mvad.demo.answers import (
    Candidate,
    CategoriesAnswer,
    CategoryAnswer,
    ErrorAnswer,
    ImageAnswer,
    LimitsAnswer,
    ScoreAnswer,
)
from mvad.demo.bench import Finding, Sample, offer_sizes, ranking
from mvad.demo.catalogue import Catalogue, Offer
from mvad.demo.guard import Guard, TooLargeError, too_large
from mvad.demo.pictures import map_picture, picture
from mvad.demo.uploads import FIELDS, MULTIPART, Limits, Upload, UploadError, read_upload
from mvad.errors import ImageError

STATIC = files("mvad.demo") / "static"
PAGE = "index.html"
ASSETS = {"demo.css": "text/css", "demo.js": "text/javascript", "icon.svg": "image/svg+xml"}
DECODING = 2  # images at once: a decoded one may be many times larger than its file
CANDIDATES = 5  # that an answer names

Score = Callable[[Sample], Awaitable[Finding]]


class BusyError(Exception):
    """Nothing can be scored now; the message is a sentence."""


def demo_app(catalogue: Catalogue, limits: Limits, score: Score) -> FastAPI:
    """The application.

    Parameters
    ----------
    score
        Scores a sample; `BusyError` if it cannot now.
    """
    app = FastAPI(
        title="mvad",
        version=__version__,
        summary="Scores images by fitted models.",
        docs_url=None,  # its page would be loaded from elsewhere
        redoc_url=None,
    )
    app.add_middleware(Guard, limit=limits.upload_bytes)
    decoding = asyncio.Semaphore(DECODING)

    @app.exception_handler(UploadError)
    async def refused(request: Request, error: UploadError) -> Response:
        return _sentence(str(error), error.status)

    @app.exception_handler(TooLargeError)
    async def over_the_limit(request: Request, error: TooLargeError) -> Response:
        return too_large(limits.upload_bytes)

    @app.exception_handler(BusyError)
    async def busy(request: Request, error: BusyError) -> Response:
        return _sentence(str(error), 503, {"Retry-After": "5"})

    @app.exception_handler(HTTPException)
    async def no_such_page(request: Request, error: HTTPException) -> Response:
        return _sentence(f"{error.detail}; see /openapi.json for what there is.", error.status_code, error.headers)

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> Response:
        return FileResponse(str(STATIC / PAGE), media_type="text/html; charset=utf-8")

    @app.api_route("/static/{name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in ASSETS:
            raise HTTPException(404)
        return FileResponse(str(STATIC / name), media_type=ASSETS[name])

    @app.get("/categories", response_model=CategoriesAnswer, summary="The categories, and what an upload may be")
    async def categories() -> CategoriesAnswer:
        return CategoriesAnswer(
            categories=[_describe(name, offer) for name, offer in catalogue.items()],
            limits=LimitsAnswer(upload_bytes=limits.upload_bytes, files=limits.files, pixels=limits.pixels),
        )

    @app.post(
        "/score",
        response_model=ScoreAnswer,
        summary="Score images",
        description="Each image has its score or its error; if none can be used, the status is 422. The category is "
        "guessed where none is given. Scores do not depend on what else is uploaded.",
        openapi_extra={"requestBody": _request_body(catalogue, limits)},
        responses={code: {"model": ErrorAnswer} for code in (400, 413, 415, 422, 503)},
    )
    async def score_images(request: Request) -> Any:
        upload = await read_upload(request, limits, catalogue.keys())
        images = await asyncio.gather(
            *(answer_for(name, data, upload) for name, data in upload.files),
        )
        if any(image.status == "ok" for image in images):
            return ScoreAnswer(images=list(images))
        first = f"{images[0].name or 'the image'}: {images[0].error}"
        reason = first if len(images) == 1 else f"none of the {len(images)} images could be scored; {first}"
        at_fault = any(image.width is None for image in images)  # or else they were decoded, and the models failed
        return JSONResponse(ErrorAnswer(error=reason, images=list(images)).model_dump(), 422 if at_fault else 503)

    async def answer_for(name: str, data: bytes, upload: Upload) -> ImageAnswer:
        try:
            async with decoding:
                sample, width, height, shown = await asyncio.to_thread(prepare, data, upload)
        except ImageError as error:
            return ImageAnswer(name=name, status="error", error=" ".join(str(error).split()))
        finding = await score(sample)
        size: dict[str, Any] = {"width": width, "height": height}
        if finding.error is not None or finding.category is None:
            return ImageAnswer(name=name, status="error", error=finding.error, **size)
        over = None
        if finding.grid is not None:
            offer, value = catalogue[finding.category], finding.scores[finding.category]
            over = await asyncio.to_thread(map_picture, finding.grid, value, offer, width, height)
        return ImageAnswer(name=name, **size, picture=shown, map=over, **_verdict(finding, upload, catalogue))

    def prepare(data: bytes, upload: Upload) -> tuple[Sample, int, int, str | None]:
        image = decode(data, limits.pixels)
        pixels = {size: fit(image, size) for size in offer_sizes(catalogue, upload.category)}
        shown = picture(image) if upload.pictures else None
        return Sample(pixels, upload.category, upload.pictures), image.width, image.height, shown

    return app


def fit(image: Image.Image, size: ImageSize) -> NDArray[np.uint8]:
    """An image as a model sees it, (crop, crop, 3), like `images.load_image`."""
    return resize_and_crop(image, size)


def _verdict(finding: Finding, upload: Upload, catalogue: Catalogue) -> dict[str, Any]:
    category = str(finding.category)
    offer, score = catalogue[category], finding.scores[category]
    near = [] if upload.category else ranking(finding.scores, catalogue)[:CANDIDATES]
    return {
        "status": "ok",
        "category": category,
        "guessed": upload.category is None,
        "candidates": [Candidate(category=name, strangeness=value) for name, value in near] or None,
        "score": score,
        "threshold": _finite(offer.judge.threshold),
        "p_value": offer.p_value(score),
        "is_anomaly": offer.is_anomaly(score),
        "method": offer.model.method,
        "model_id": offer.model.model_id,
    }


def _describe(category: str, offer: Offer) -> CategoryAnswer:
    calibration = offer.judge.calibration
    return CategoryAnswer(
        category=category,
        method=offer.model.method,
        backbone=offer.model.backbone.name,
        image_size=offer.model.size.crop,
        n_train=offer.model.record.get("n_train"),
        n_calibration=0 if calibration is None else len(calibration),
        threshold=_finite(offer.judge.threshold),
        promise=offer.judge.guarantee,
        model_id=offer.model.model_id,
    )


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _sentence(reason: str, status: int, headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": reason}, status, headers)


def _request_body(catalogue: Catalogue, limits: Limits) -> dict[str, Any]:
    images, category, pictures = FIELDS
    properties = {
        images: {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "minItems": 1,
            "maxItems": limits.files,
            "description": f"Files of PNG, JPEG, BMP, TIFF or WebP; {limits.upload_bytes:,} bytes a request.",
        },
        category: {"type": "string", "enum": [*catalogue, ""], "description": "Empty: to be guessed."},
        pictures: {"type": "string", "enum": ["true", "false"], "description": "Whether to send pictures."},
    }
    schema = {"type": "object", "required": [images], "properties": properties, "additionalProperties": False}
    encoding = {images: {"contentType": ", ".join(f"image/{name.lower()}" for name in FORMATS)}}
    return {"required": True, "content": {MULTIPART: {"schema": schema, "encoding": encoding}}}
