"""The demo as a web application: a page, and an API for programs that ``/openapi.json`` describes.

It does not know Ray: the function that scores a sample is a parameter.
"""

# Annotations are evaluated at once, without "from __future__ import annotations": FastAPI could not resolve those that
# name variables of `demo_app`.

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, FastAPI, Form, UploadFile
from fastapi.exceptions import RequestValidationError
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mvad.anomaly_maps.colours import Scale, draw_boxes, layer
from mvad.anomaly_maps.geometry import anomaly_map
from mvad.data.image_size import FAST, ImageSize
from mvad.data.images import decode, load_pixels, resize_and_crop
from mvad.demo import answers
from mvad.demo.category_models import CategoryModel, CategoryModels, rank_categories
from mvad.demo.hosts import AllowedHosts
from mvad.demo.requests import MULTIPART, GuardedApp, UploadRoute, form_error, plain
from mvad.demo.scorer import Sample, SampleResult
from mvad.demo.waiting import ImageQueue
from mvad.errors import ImageError, UsageError, one_line
from mvad.html.image_memory import MAX_SIDE_PIXELS, ImageMemory, image_bytes, picture_bytes
from mvad.html.static_files import add_assets, add_page
from mvad.html.thumbnails import fit_within, webp_uri
from mvad.version import VERSION

STATIC = files("mvad.demo") / "static"
PAGE = "index.html"
ASSETS = {"demo.css": "text/css", "demo.js": "text/javascript", "icon.svg": "image/svg+xml"}
IMAGE_TYPES = ", ".join(["image/png", "image/jpeg", "image/bmp", "image/tiff", "image/webp", "image/jp2"])
IMAGE_THREADS = min(8, os.cpu_count() or 1)  # decode images and draw maps
MAX_CANDIDATES = 5
MAX_UPLOAD_S = 60.0
WEBP_QUALITY, WEBP_METHOD = 90, 2  # the method is a fast one
MESSAGES = {  # by status, around reasons that FastAPI gives
    400: "the form cannot be read: {}",
    404: "{}; see /openapi.json for what there is.",
    405: "{}; see /openapi.json for what there is.",
}

Prepared = tuple[Sample, int, int, str | None]  # with the width and height of the upright image, and a picture of it
ScoreFunction = Callable[[Sample], Awaitable[SampleResult]]


def demo_app(
    models: CategoryModels,
    limits: answers.LimitsAnswer,
    score: ScoreFunction,
    hosts: AllowedHosts,
    memory: ImageMemory,
    queue: ImageQueue,
    max_upload_s: float = MAX_UPLOAD_S,
    pages: APIRouter | None = None,
) -> GuardedApp:
    """Build the application; ``score`` scores a sample or raises `BusyError`, and ``pages`` are more routes.

    Images wait in ``queue``; those that are decoded, and their pictures, share ``memory``. An upload may take
    ``max_upload_s`` seconds.
    """
    app = FastAPI(
        title="mvad",
        version=VERSION,
        summary="Scores images with fitted models.",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
    )
    app.state.limits = limits
    app.state.queue = queue
    app.router.route_class = UploadRoute
    threads = ThreadPoolExecutor(IMAGE_THREADS)

    class UploadForm(BaseModel):
        """Images to score, with or without pictures."""

        model_config = ConfigDict(extra="forbid")

        images: Annotated[
            list[Annotated[UploadFile, WithJsonSchema({"type": "string", "format": "binary"})]],
            Field(
                min_length=1,
                max_length=limits.files,
                description=f"PNG, JPEG, BMP, TIFF, WebP, JPEG 2000, PGM: at most {limits.upload_bytes:,} bytes.",
            ),
        ]
        category: Annotated[
            str, Field(json_schema_extra={"enum": [*models, ""]}, description="Empty: detect automatically.")
        ] = ""
        pictures: Annotated[Literal["true", "false"], Field(description="Whether to return pictures.")] = "false"

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> Response:
        message = MESSAGES.get(error.status_code, "{}").format(error.detail)
        return JSONResponse({"error": message}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def refuse_form(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if request.url.path.endswith("/score"):
            return await refuse(request, form_error(request, first))
        place = ".".join(plain(str(part)) for part in first["loc"][1:])
        return await refuse(request, HTTPException(422, f"{place or 'the request'}: {first['msg']}."))

    @app.exception_handler(UsageError)
    async def name_damage(request: Request, error: UsageError) -> Response:
        return JSONResponse({"error": one_line(error)}, 500)

    @app.exception_handler(Exception)
    async def fail(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "the demo has failed at this request; its log says why."}, 500)

    add_page(app.router, "/", str(STATIC / PAGE))
    add_assets(app.router, "/static", str(STATIC), ASSETS)

    @app.get("/categories", summary="List the categories and the limits of an upload")
    async def categories() -> answers.CategoriesAnswer:
        return answers.CategoriesAnswer(
            categories=[
                answers.CategoryAnswer(
                    category=category,
                    method=model.model.method,
                    backbone=model.model.backbone.name,
                    input_width=model.model.size.width,
                    input_height=model.model.size.height,
                    n_train=model.model.record.get("n_train"),
                    n_calibration=0 if model.rule.calibration is None else len(model.rule.calibration),
                    threshold=model.finite_threshold,
                    promise=model.rule.guarantee,
                    model_id=model.model.model_id,
                )
                for category, model in models.items()
            ],
            limits=limits,
            has_nights=pages is not None,
        )

    @app.post(
        "/score",
        response_model=answers.ScoreAnswer,
        summary="Score images",
        description="Each image gets a score or an error; if no image can be used, the status is 422. Without a "
        "category, the closest one is used. The score of an image does not depend on the other images.",
        openapi_extra={"requestBody": {"content": {MULTIPART: {"encoding": {"images": {"contentType": IMAGE_TYPES}}}}}},
        responses={code: {"model": answers.ErrorAnswer} for code in (400, 403, 408, 413, 415, 421, 422, 503)},
    )
    async def score_images(request: Request, form: Annotated[UploadForm, Form(media_type=MULTIPART)]) -> Any:
        fields = await request.form()
        for name in ("category", "pictures"):
            if len(fields.getlist(name)) > 1:
                raise HTTPException(422, f"send the field {name} once, not several times.")
        if form.category and form.category not in models:
            known = ", ".join(sorted(models)[:20])
            raise HTTPException(
                422, f"there is no category {plain(form.category)!r}; choose one of: {known}; or leave it out."
            )
        queue.require_room()
        images = await asyncio.gather(
            *(score_file(request, file, form.category or None, form.pictures == "true") for file in form.images)
        )
        if any(image.status == "ok" for image in images):
            return answers.ScoreAnswer(images=images)
        reason = f"{images[0].name or 'the image'}: {images[0].error}"
        if len(images) > 1:
            reason = f"none of the {len(images)} images could be scored; {reason}"
        # Images without a width could not be decoded; if all were decoded, it was the models that failed.
        status = 422 if any(image.width is None for image in images) else 503
        return JSONResponse(answers.ErrorAnswer(error=reason, images=images).model_dump(), status)

    async def score_file(
        request: Request, file: UploadFile, category: str | None, pictures: bool
    ) -> answers.ImageAnswer:
        name = plain(file.filename or "")
        run = functools.partial(asyncio.get_running_loop().run_in_executor, threads)
        async with queue.place():
            if await request.is_disconnected():
                return answers.ImageAnswer(name=name, status="error", error="the client has gone")
            try:
                sample, width, height, picture = await run(prepare, await file.read(), category, pictures)
            except ImageError as error:
                return answers.ImageAnswer(name=name, status="error", error=one_line(error))
            result = await score(sample)
            if result.error is not None or result.category is None:
                return answers.ImageAnswer(name=name, status="error", error=result.error, width=width, height=height)
            model, image_score = models[result.category], result.scores[result.category]
            layer_uri, regions = None, None
            if result.patch_scores is not None:
                layer_uri, regions = await run(draw, result.patch_scores, image_score, model, width, height)
        candidates = [] if category else rank_categories(result.scores, models)[:MAX_CANDIDATES]
        return answers.ImageAnswer(
            name=name,
            status="ok",
            category=result.category,
            guessed=category is None,
            candidates=[answers.Candidate(category=name, strangeness=value) for name, value in candidates] or None,
            score=image_score,
            threshold=model.finite_threshold,
            p_value=model.p_value(image_score),
            is_anomaly=model.is_anomaly(image_score),
            verdict=model.verdict(image_score),
            width=width,
            height=height,
            method=model.model.method,
            model_id=model.model.model_id,
            picture=picture,
            regions=regions,
            map=layer_uri,
        )

    def prepare(data: bytes, category: str | None, pictures: bool) -> Prepared:
        with memory.reserve(image_bytes(data, limits.pixels, pictures)):
            try:
                return decode_sample(data, category, pictures)
            except ImageError as error:
                reason = one_line(error)  # and not the error, whose traceback holds the image
        raise ImageError(reason)

    def draw(
        patch_scores: NDArray[np.float32], score: float, model: CategoryModel, width: int, height: int
    ) -> tuple[str, list[answers.RegionAnswer] | None]:
        with memory.reserve(picture_bytes(width, height)):
            regions = model.regions(patch_scores, width, height)
            shown = None if regions is None else [answers.RegionAnswer(**region._asdict()) for region in regions]
            return map_layer(patch_scores, score, model, width, height), shown

    def decode_sample(data: bytes, category: str | None, pictures: bool) -> Prepared:
        compared = [model.model for name, model in models.items() if category in (None, name)]
        bit_depths = {model.bit_depth for model in compared}
        bit_depth = bit_depths.pop() if len(bit_depths) == 1 else None
        image = decode(data, limits.pixels, bit_depth=bit_depth)

        def model_input(size: ImageSize) -> NDArray[np.uint8]:
            if size.decode == FAST:
                return load_pixels(data, size, limits.pixels, bit_depth=bit_depth)[0]
            return resize_and_crop(image, size)

        pixels = {size: model_input(size) for size in {model.size for model in compared}}
        picture = display_image(image) if pictures else None
        return Sample(pixels, category, pictures), image.width, image.height, picture

    if pages is not None:
        app.include_router(pages)
    return GuardedApp(app, hosts, limits.upload_bytes, max_upload_s)


def display_image(image: Image.Image) -> str:
    """Encode an upright RGB image as a ``data:`` URI that any browser shows, whatever its file format was."""
    size = fit_within(*image.size, MAX_SIDE_PIXELS)
    return webp_uri(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0), WEBP_QUALITY, WEBP_METHOD)


def map_layer(patch_scores: NDArray[np.float32], score: float, model: CategoryModel, width: int, height: int) -> str:
    """Draw patch scores, (rows, columns) float32, as a transparent ``data:`` URI to lie over the `display_image`.

    The median pixel keeps its value, the peak becomes the image's score, and values in between are interpolated
    linearly. So the map exceeds the middle of the colours, which is the threshold, if and only if the image is flagged
    (apart from what is lost where a large image is shown smaller). Without a threshold the colours range from the map's
    own median to its peak. ``width`` and ``height`` are those of the upright image.
    """
    square = anomaly_map(patch_scores, model.model.size)
    median, peak = float(np.median(square)), float(square.max())
    scale = model.colour_scale()
    if scale is None:
        scale = Scale(median, peak, False)
    elif peak > median:
        square = median + (square - median) * np.float32(max(score - median, 0.0) / (peak - median))
    shown = layer(square, model.model.size, scale, *fit_within(width, height, MAX_SIDE_PIXELS))
    boxes = model.regions(patch_scores, width, height) or ()
    draw_boxes(shown, [box._asdict() for box in boxes], width, height)
    return webp_uri(shown, WEBP_QUALITY, WEBP_METHOD)
