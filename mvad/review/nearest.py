"""The good image that a model finds most alike, at the worst place of an image under review."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool

from mvad import storage
from mvad.anomaly_maps.geometry import Box
from mvad.data.image_size import ImageSize
from mvad.data.images import load_pixels, measure_file, read_file
from mvad.detectors import find_method
from mvad.detectors.base import Nearest
from mvad.errors import ImageError, UsageError, one_line
from mvad.html.image_memory import MAX_BYTES, ImageMemory
from mvad.model_store import ModelInfo, read_origins
from mvad.origins.bank_origins import Image, Origins
from mvad.origins.patches import patch_box
from mvad.review.folder import Kept
from mvad.review.pictures import MAX_SIDE, image_picture

KEPT_ORIGINS = 8  # of models
EARLIER = "this model does not say which images it has learnt from; fit it again, with mvad fit"
OLDER_PART = "the model learnt this before it said which images it learns from"
DAMAGED = "what the model says of the images it has learnt from is damaged; fit it again"

Load = Callable[[], Mapping[ImageSize, NDArray[np.uint8]]]  # the pixels of a `demo.scorer.Sample`
Compare = Callable[[str, Load], Awaitable[Nearest | None]]  # with the model of a category


def unknown(why: str, **facts: Any) -> dict[str, Any]:
    """The answer if there is no image to show."""
    return {"image_id": None, "why": why, **facts}


class GoodImages:
    """What the models in use, by category, have learnt from.

    ``compare`` finds what is nearest to an image; images of at most ``max_pixels`` pixels are decoded in ``memory``.
    """

    def __init__(self, models: Mapping[str, ModelInfo], compare: Compare, memory: ImageMemory, max_pixels: int) -> None:
        self._models, self._compare, self._memory, self._max_pixels = models, compare, memory, max_pixels
        self._origins = Kept(KEPT_ORIGINS)

    async def of(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The good image most like that of a score row, or why it is not known.

        ``place`` and ``good_place`` are where the two are alike, as x, y, width and height in pixels of each upright
        image; None if that is all of it, or not known. ``good_size`` is the size of the good image, None if it has
        gone, and ``same_model`` says whether the model in use is the one that scored the row.
        """
        model = self._models.get(row["category"])
        if model is None:
            return unknown("there is no model of this category in use")
        if not find_method(model.method).has_bank:
            return unknown(f"a {model.method} model does not compare images with single good ones")
        same = {"same_model": row["model_id"] == model.model_id}
        try:
            origins = await run_in_threadpool(self._origins_of, model)
            if origins is None:
                return unknown(EARLIER, **same)
            nearest = await self._compare(row["category"], lambda: self._load(row, model))
            assert nearest is not None  # as the method has a bank
            good, patch = origins.image_of(nearest.vector)
            if good is None:
                return unknown(OLDER_PART, **same)
        except (ImageError, UsageError) as error:
            return unknown(one_line(error), **same)
        except IndexError:
            return unknown(DAMAGED, **same)
        place = good_place = None
        good_size = await run_in_threadpool(self._size_of, good)
        if nearest.patch is not None and nearest.grid is not None:
            place = _as_row(patch_box(nearest.patch, nearest.grid, model.size, row["width"], row["height"]))
            if patch is not None and good_size is not None:
                with contextlib.suppress(ValueError):  # no patch of this grid
                    good_place = _as_row(patch_box(patch, nearest.grid, model.size, *good_size))
        found = {"image_id": good.image_id, "uri": storage.readable(good.uri), "category": row["category"]}
        sides = None if good_size is None else {"width": good_size[0], "height": good_size[1]}
        return {**found, "why": None, "place": place, "good_place": good_place, "good_size": sides, **same}

    def picture(self, category: str, image_id: str) -> bytes | None:
        """A good image, by its name, as WebP; None if the model in use names none such.

        ImageError if it cannot be read, UsageError if what the model says of its images is damaged.
        """
        model = self._models.get(category)
        origins = None if model is None else self._origins_of(model)
        found = None if origins is None else next((one for one in origins.images if one.image_id == image_id), None)
        if model is None or found is None:
            return None
        width, height = measure_file(found.uri, self._max_pixels, first_page=True)
        row = {"uri": found.uri, "width": width, "height": height}
        return image_picture(row, self._memory, self._max_pixels, MAX_SIDE, None, model.bit_depth)

    def _origins_of(self, model: ModelInfo) -> Origins | None:
        return self._origins.get(model.uri, lambda: read_origins(model))

    def _load(self, row: Mapping[str, Any], model: ModelInfo) -> Mapping[ImageSize, NDArray[np.uint8]]:
        """What the model sees of an image; ImageError if it cannot be read, or has another size than when scored."""
        with self._memory.reserve((row["width"] or 0) * (row["height"] or 0) * MAX_BYTES):
            if measure_file(row["uri"], self._max_pixels) != (row["width"], row["height"]):
                raise ImageError("its size has changed since it was scored")
            data = read_file(row["uri"], self._max_pixels)
            return {model.size: load_pixels(data, model.size, self._max_pixels, bit_depth=model.bit_depth)[0]}

    def _size_of(self, good: Image) -> tuple[int, int] | None:
        """Width and height of a good image; None if that has gone, or cannot be read."""
        with contextlib.suppress(ImageError):
            return measure_file(good.uri, self._max_pixels, first_page=True)
        return None


def _as_row(box: Box) -> dict[str, int]:
    width, height = box.size
    return {"x": box.left, "y": box.top, "width": width, "height": height}
