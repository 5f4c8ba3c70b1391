"""The task that decodes images; apart, because its workers need no PyTorch."""

from collections.abc import Mapping

from mvad.data.augmentation import Augmentation
from mvad.data.image_size import ImageSize
from mvad.data.images import Batch, decode_batch
from mvad.process import end_in_time
from mvad.runtime.stage_totals import StageTotals


def decode_images(
    batch: Batch,
    size: ImageSize,
    max_pixels: int,
    augmentation: Augmentation,
    bit_depths: Mapping[str, int],
    first_page: bool,
    totals: StageTotals,
) -> Batch:
    """Decode a block of images: `images.decode_batch`."""
    end_in_time()
    totals.add_retries()
    return decode_batch(batch, size, max_pixels, augmentation, bit_depths=bit_depths, first_page=first_page)
