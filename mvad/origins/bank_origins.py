"""The good images that the vectors of a model's banks come from: kept beside the model, and no part of its id."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mvad.model_checks import parse_array

VECTORS, IMAGES = "origins.npy", "images.json"
FILES = (VECTORS, IMAGES)
MAX_BYTES = 1 << 27  # of each file
UNKNOWN = -1


class Image(NamedTuple):
    """A training image."""

    image_id: str
    uri: str


class Origins(NamedTuple):
    """Where the vectors of all banks, one bank after the other, come from.

    ``vectors``, (m, 2) int32, are the number of each one's image, and of its patch in the grid of that image's patches,
    row by row; `UNKNOWN` where that is not known, as the patch is of a variant. ``images`` are those that they name.
    """

    vectors: NDArray[np.int32]
    images: Sequence[Image]

    def image_of(self, vector: int) -> tuple[Image | None, int | None]:
        """The image of a vector, and the patch in it, as far as they are known; IndexError if there is no such vector.

        A number below 0 is none of a vector.
        """
        if vector < 0:
            raise IndexError(vector)
        image, patch = self.vectors[vector].tolist()
        return (None if image == UNKNOWN else self.images[image]), (None if patch == UNKNOWN else patch)


def origins_of(
    chosen: NDArray[np.int64],
    images: Sequence[Image],
    grid: Sequence[int],
    copies: int = 1,
    *,
    step: int = 1,
    before: Origins | None = None,
) -> Origins:
    """The origins of vectors that a detector has chosen (`Detector.chosen`).

    Parameters
    ----------
    images
        Each has ``copies`` rows of features: itself, then its variants.
    grid
        Rows and columns of an image's patches; nothing if features are of whole images.
    step
        Every so many patches, in each direction, there is one in the features.
    before
        The origins of vectors that were there before, if they are known.
    """
    in_features = [-(-length // step) for length in grid]
    is_old, old_images = chosen < 0, () if before is None else before.images
    rows, patches = np.divmod(chosen, math.prod(in_features))
    is_marked = (rows % copies == 0) & (len(grid) > 0)
    if step > 1:
        down, across = np.divmod(patches, in_features[1])
        patches = step * (down * grid[1] + across)
    vectors = np.stack([rows // copies + len(old_images), np.where(is_marked, patches, UNKNOWN)], axis=1)
    vectors[is_old] = UNKNOWN if before is None else before.vectors[-1 - chosen[is_old]]
    used, numbers = np.unique(vectors[:, 0], return_inverse=True)
    everything = [*old_images, *images]
    shift = 1 if used[:1] == UNKNOWN else 0
    vectors[:, 0] = numbers.reshape(-1) - shift
    return Origins(vectors.astype(np.int32), [everything[number] for number in used[shift:].tolist()])


def to_files(origins: Origins) -> dict[str, bytes]:
    """The content of `FILES`."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(origins.vectors, np.int32), (1, 0), allow_pickle=False)
    return {VECTORS: file.getvalue(), IMAGES: json.dumps(origins.images).encode()}


def from_files(contents: Mapping[str, bytes]) -> Origins:
    """What `to_files` gave; ValueError if it is not."""
    vectors = parse_array(np.frombuffer(contents[VECTORS], np.uint8))
    images = json.loads(contents[IMAGES])
    if not isinstance(images, list) or not all(_is_image(image) for image in images):
        raise ValueError(f"{IMAGES} is no list of pairs of texts")
    if vectors.dtype != np.int32 or vectors.ndim != 2 or vectors.shape[1] != 2:
        raise ValueError(f"{VECTORS} holds no pairs of int32")
    if len(vectors) and (vectors.min() < UNKNOWN or vectors[:, 0].max() >= len(images)):
        raise ValueError(f"{VECTORS} names images that {IMAGES} does not have")
    return Origins(vectors, [Image(*image) for image in images])


def _is_image(image: object) -> bool:
    return isinstance(image, list) and len(image) == 2 and all(isinstance(text, str) for text in image)
