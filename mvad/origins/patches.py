"""Where a patch lies on an image."""

from collections.abc import Sequence

from mvad.anomaly_maps.geometry import Box, on_image
from mvad.data.image_size import ImageSize


def patch_box(patch: int, grid: Sequence[int], size: ImageSize, width: int, height: int) -> Box:
    """The place of a patch, by its number in a grid of (rows, columns), on an upright image of so many pixels.

    ValueError if the grid has no such patch.
    """
    rows, columns = grid
    if not 0 <= patch < rows * columns:
        raise ValueError(f"a grid of {rows} x {columns} has no patch {patch}")
    row, column = divmod(patch, columns)
    (top, bottom), (left, right) = (
        (number * length // count, -(-(number + 1) * length // count))
        for number, count, length in ((row, rows, size.height), (column, columns, size.width))
    )
    return on_image(size, Box(left, top, right, bottom), width, height)
