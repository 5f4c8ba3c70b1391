"""Image files to pixels: what a file is allowed to be, its sample values, RGB of the model's size, and masks."""

from mvad.data.images.ignoring import decode_ignore, ignored_on_image, ignored_pixels, ignored_share, is_same_mask
from mvad.data.images.loading import (
    Batch,
    crop_centre,
    decode,
    decode_batch,
    decode_resized,
    file_may_be_deep,
    load_image,
    load_pixels,
    measure_file,
    read_file,
    read_image,
    resize,
    resize_and_crop,
    vary_resized,
)
from mvad.data.images.masks import MaskRemarks, load_mask, read_ignore, read_mask
from mvad.data.images.opening import FORMATS
from mvad.data.images.samples import BIT_DEPTHS, FULL_DEPTH, largest_value, may_be_deep

__all__ = [
    "BIT_DEPTHS",
    "FORMATS",
    "FULL_DEPTH",
    "Batch",
    "MaskRemarks",
    "crop_centre",
    "decode",
    "decode_batch",
    "decode_ignore",
    "decode_resized",
    "file_may_be_deep",
    "ignored_on_image",
    "ignored_pixels",
    "ignored_share",
    "is_same_mask",
    "largest_value",
    "load_image",
    "load_mask",
    "load_pixels",
    "may_be_deep",
    "measure_file",
    "read_file",
    "read_ignore",
    "read_image",
    "read_mask",
    "resize",
    "resize_and_crop",
    "vary_resized",
]
