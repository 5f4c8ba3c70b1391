"""The pages Nights and Review as routes of a web application, and what they ask for."""

# Annotations are evaluated at once, without "from __future__ import annotations": FastAPI could not resolve those that
# name variables of `review_routes`.

import datetime
import math
from importlib.resources import files
from typing import Annotated, Any, Literal

import pyarrow.csv
from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from mvad.data.images import FULL_DEPTH
from mvad.errors import ImageError, UsageError, one_line
from mvad.exports.csv_rows import defused
from mvad.html.image_memory import ImageMemory
from mvad.html.static_files import add_assets, add_page
from mvad.nights.labels import Drawn, Judged, Judgement, append_labels
from mvad.nights.queues import Among, Question
from mvad.nights.rows import NightRows
from mvad.nights.trends import flagged_limits, median_limits
from mvad.review.coco import labels_document
from mvad.review.folder import NightsFolder, with_labels
from mvad.review.nearest import GoodImages, unknown
from mvad.review.pictures import MAX_SIDE, image_picture, map_picture

STATIC = files("mvad.review") / "static"
PAGES = ("nights", "review")
ASSETS = {
    "pages.css": "text/css",
    "pages.js": "text/javascript",
    "nights.js": "text/javascript",
    "review.js": "text/javascript",
    "uPlot.js": "text/javascript",
    "uPlot.css": "text/css",
    "uPlot.LICENSE": "text/plain",
}
MAX_ANSWER, MAX_LABELS = 200, 200  # images of a queue, labels of a request
Name = Annotated[str, Field(max_length=4096)]
Since = Annotated[datetime.date | None, Query(description="First night; without it, the first of all.")]
Until = Annotated[datetime.date | None, Query(description="Last night; without it, the last of all.")]
Categories = Annotated[list[str] | None, Query(max_length=1000, description="Without them, all.")]


class LabelRequest(BaseModel):
    """What a reviewer says of one image; without a judgement, that they take it back."""

    model_config = ConfigDict(extra="forbid")

    folder: Annotated[Name, Field(description="Of the night, such as date=2026-11-23; empty for a run alone.")]
    image_id: Name
    judgement: Judgement | None
    drawn: Drawn = "chosen"
    defect: Annotated[str, Field(max_length=200)] | None = None


class LabelsRequest(BaseModel):
    """Labels by one reviewer."""

    model_config = ConfigDict(extra="forbid")

    reviewer: Annotated[str, Field(min_length=1, max_length=200)]
    labels: Annotated[list[LabelRequest], Field(min_length=1, max_length=MAX_LABELS)]


def review_routes(
    folder: NightsFolder, memory: ImageMemory, max_pixels: int, good_images: GoodImages | None = None
) -> APIRouter:
    """The routes; images of at most ``max_pixels`` pixels are decoded in ``memory``."""
    routes = APIRouter()

    for name in PAGES:
        add_page(routes, f"/{name}", str(STATIC / f"{name}.html"))
    add_assets(routes, "/review-static", str(STATIC), ASSETS)

    @routes.get("/api/nights", summary="Numbers of each night and category, with control limits")
    def nights(since: Since = None, until: Until = None, category: Categories = None) -> Response:
        found = rows_between(since, until)
        rows = folder.trends.of(found)
        known = sorted({row["category"] for row in rows})
        series = []
        for name in known if category is None else [name for name in known if name in category]:
            of_category = [row for row in rows if row["category"] == name]
            limits = zip(of_category, flagged_limits(of_category), strict=True)
            shown = [{**row, "folder": found.name_of(row["folder"]), "flagged_limits": limit} for row, limit in limits]
            series.append({"category": name, "nights": shown, "median_limits": median_limits(of_category)})
        dates = sorted({date for date in found.dates.values() if date is not None})
        return answer({"categories": known, "nights": dates, "series": series})

    @routes.get("/api/categories", summary="The categories of all nights")
    def categories() -> Response:
        try:
            return answer({"categories": folder.categories()})
        except UsageError as error:
            raise HTTPException(404, str(error)) from error

    @routes.get("/api/queue", summary="Images to review, those to look at first at the front")
    def queue(
        drawn: Drawn = "score",
        among: Among = "flagged",
        since: Since = None,
        until: Until = None,
        category: Categories = None,
        search: Annotated[str, Query(max_length=200)] = "",
        labelled: Literal["no", "too"] = "no",
        limit: Annotated[int, Query(ge=1, le=MAX_ANSWER)] = 50,
        offset: Annotated[int, Query(ge=0)] = 0,
    ) -> Response:
        labels = folder.labels()
        categories = None if category is None else tuple(sorted(category))
        question = Question(drawn, among, categories, search)
        found = folder.queue(rows_between(since, until), question, limit, offset, labelled == "too")
        images = with_labels(found.rows, labels.current)
        return answer({"images": images, "n_images": found.n_images, "problems": labels.problems})

    @routes.get("/api/picture", summary="An image as WebP, or a part of it in its own pixels")
    def picture(
        folder_name: Annotated[str, Query(alias="folder")],
        image_id: str,
        side: Annotated[int, Query(ge=16, le=MAX_SIDE)] = MAX_SIDE,
        left: int | None = None,
        top: int | None = None,
        width: Annotated[int | None, Query(ge=1)] = None,
        height: Annotated[int | None, Query(ge=1)] = None,
    ) -> Response:
        row = image(folder_name, image_id)
        part = None
        if left is not None and top is not None and width is not None and height is not None:
            part = left, top, width, height
        try:
            bit_depth = folder.facts(row).get("bit_depth", FULL_DEPTH)
            shown = image_picture(row, memory, max_pixels, side, part, bit_depth)
        except ImageError as error:
            raise HTTPException(404, f"{row['image_id']}: {one_line(error)}") from error
        return Response(shown, media_type="image/webp")

    @routes.get("/api/map", summary="The map of an image as WebP to lie over it; 204 if none was kept")
    def map_of(folder_name: Annotated[str, Query(alias="folder")], image_id: str) -> Response:
        row = image(folder_name, image_id)
        try:
            shown = map_picture(folder, row, memory)
        except ImageError as error:
            raise HTTPException(404, f"{row['image_id']}: {one_line(error)}") from error
        return Response(status_code=204) if shown is None else Response(shown, media_type="image/webp")

    @routes.get("/api/nearest", summary="The good image that the model in use finds most alike where this one is worst")
    async def nearest(folder_name: Annotated[str, Query(alias="folder")], image_id: str) -> Response:
        row = await run_in_threadpool(image, folder_name, image_id)
        if good_images is None:
            return answer(unknown("no models are in use here"))
        return answer(await good_images.of(row))

    @routes.get("/api/nearest/picture", summary="A good image that a model in use has learnt from, as WebP")
    def nearest_picture(
        category: Annotated[str, Query(max_length=4096)], image_id: Annotated[str, Query(max_length=4096)]
    ) -> Response:
        try:
            shown = None if good_images is None else good_images.picture(category, image_id)
        except (ImageError, UsageError) as error:
            raise HTTPException(404, f"{image_id}: {one_line(error)}") from error
        if shown is None:
            raise HTTPException(404, "the model in use names no such image")
        return Response(shown, media_type="image/webp")

    @routes.post("/api/labels", summary="Say what images show; appended, never changed", status_code=201)
    def label(request: LabelsRequest) -> Response:
        judged = []
        for one in request.labels:
            row = image(one.folder, one.image_id)
            judged.append(Judged(row, one.folder, one.judgement, one.drawn, one.defect or None))
        try:
            written = append_labels(folder.root, judged, request.reviewer)
        except OSError as error:
            raise HTTPException(507, f"the labels cannot be written ({one_line(error)}); none is kept.") from error
        return answer({"labels": written["label_id"].to_pylist()}, 201)

    @routes.get("/api/evaluation", summary="Precision and recall that labels tell, by category and week")
    def evaluation(since: Since = None, until: Until = None) -> Response:
        rows = folder.evaluation(rows_between(since, until))
        return answer({"rows": rows, "problems": folder.labels().problems})

    @routes.get("/labels.csv", summary="The current labels as CSV")
    def labels_csv() -> Response:
        sink = pyarrow.BufferOutputStream()
        pyarrow.csv.write_csv(defused(folder.labels().current), sink)
        headers = {"Content-Disposition": 'attachment; filename="labels.csv"'}
        return Response(sink.getvalue().to_pybytes(), media_type="text/csv; charset=utf-8", headers=headers)

    @routes.get("/labels.json", summary="The current labels as a COCO file, with the regions of defective images")
    def labels_coco() -> Response:
        labels = folder.labels().current
        headers = {"Content-Disposition": 'attachment; filename="labels.json"'}
        content = labels_document(rows_between(None, None), labels)
        return Response(content, media_type="application/json", headers=headers)

    def rows_between(since: datetime.date | None, until: datetime.date | None) -> NightRows:
        try:
            return folder.between(since, until)
        except UsageError as error:
            raise HTTPException(404, str(error)) from error

    def image(name: str, image_id: str) -> dict[str, Any]:
        try:
            row = folder.image(name, image_id)
        except UsageError as error:
            raise HTTPException(404, str(error)) from error
        if row is None:
            raise HTTPException(404, "there is no such image in these nights")
        return row

    return routes


def answer(content: Any, status: int = 200) -> Response:
    """JSON in which dates are text, and numbers that are none null."""
    return JSONResponse(_plain(content), status)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, datetime.date):
        return value.isoformat()
    return None if isinstance(value, float) and not math.isfinite(value) else value
