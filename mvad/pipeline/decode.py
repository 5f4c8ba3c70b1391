"""The task that decodes images; apart, because its workers need no PyTorch."""

from mvad.data.image_size import ImageSize
from mvad.data.images import Batch, decode_batch
from mvad.runtime.stage_totals import StageTotals


def decode_images(batch: Batch, size: ImageSize, max_pixels: int, flips: str, totals: StageTotals) -> Batch:
    """Decode a block of images: `images.decode_batch`."""
    totals.add_retries()
    return decode_batch(batch, size, max_pixels, flips)
