"""Windows of large images: spread evenly, flush with the borders, each pixel answered for once."""

import numpy as np
import pytest

from mvad.data.image_size import CELL, ImageSize, tiled_size


@pytest.mark.parametrize("overlap", [0.0, 0.125, 0.5])
@pytest.mark.parametrize("sides", [(3072, 4096, 256), (1024, 8192, 320), (256, 2000, 256), (640, 96, 224)])
def test_windows_cover_each_pixel_once_and_lie_within_the_image(sides, overlap):
    size = tiled_size(*sides, overlap)
    counts = np.zeros(size.crop, int)
    window_height, window_width = size.network_input
    for window in size.windows:
        counts[window.rows, window.columns] += 1
        for start, length, whole, part in (
            (window.top, window_height, size.height, window.rows),
            (window.left, window_width, size.width, window.columns),
        ):
            assert 0 <= start <= part.start < part.stop <= start + length <= whole
            assert start % CELL == part.start % CELL == 0
    assert (counts == 1).all()


@pytest.mark.parametrize("overlap", [0.125, 0.25, 0.5])
def test_neighbours_overlap_as_asked_and_spacings_differ_by_one_cell_at_most(overlap):
    size = tiled_size(256, 5000, 256, overlap)
    starts = [window.left for window in size.windows]
    spacings = np.diff(starts)
    assert starts[0] == 0
    assert starts[-1] + 256 == size.width
    assert spacings.max() <= 256 * (1 - overlap)
    assert np.ptp(spacings) <= CELL


def test_a_pixel_is_answered_for_by_the_window_that_it_is_most_central_in():
    size = tiled_size(512, 1024, 256, 0.5)
    centres = np.array([(window.top + 128, window.left + 128) for window in size.windows])
    for number, window in enumerate(size.windows):
        for row in (window.rows.start + CELL, window.rows.stop - CELL):
            for column in (window.columns.start + CELL, window.columns.stop - CELL):
                distances = np.abs(centres - (row, column)).max(axis=1)
                assert distances[number] <= distances.min() + CELL


def test_images_smaller_than_a_window_have_none():
    assert tiled_size(200, 250, 256, 0.125) == ImageSize(resize=(192, 256), crop=(192, 256), overlap=0.125)
    assert len(tiled_size(200, 250, 256, 0.125).windows) == 1
    assert tiled_size(200, 1000, 256, 0.125).network_input == (192, 256)
    assert ImageSize.square(64).windows == [(0, 0, slice(0, 64), slice(0, 64))]


def test_windows_of_a_transformer_start_at_its_patches():
    size = tiled_size(1000, 1000, 224, 0.125, cell=14)
    assert size.network_input == (224, 224)
    assert all(window.left % 14 == window.top % 14 == 0 for window in size.windows)
