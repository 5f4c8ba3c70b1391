"""Fingerprints: small grey copies of images, by which near duplicates are found (`duplicates`)."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FINGERPRINT_SIDE = 24  # pixels
LARGE_SIDE = 512


def fingerprint(image: Image.Image) -> NDArray[np.uint8]:
    """The image in grey, stretched to a square and averaged over boxes: (24, 24) uint8."""
    side = (FINGERPRINT_SIDE, FINGERPRINT_SIDE)
    return np.asarray(image.convert("L").resize(side, Image.Resampling.BOX))


def fingerprints(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The fingerprints of (n, height, width, 3) uint8 RGB pixels: (n, 24, 24) uint8.

    Of large images, which would be copied several times, not all pixels are looked at.
    """
    step = max(1, min(pixels.shape[1:3]) // LARGE_SIDE)
    found = np.empty((len(pixels), FINGERPRINT_SIDE, FINGERPRINT_SIDE), np.uint8)
    for row, image in enumerate(pixels):
        found[row] = fingerprint(Image.fromarray(np.ascontiguousarray(image[::step, ::step])))
    return found
