"""Which patches tell what product an image shows."""

import numpy as np
import pytest
from PIL import Image

from mvad.anomaly_maps.sampled import sampled_patches
from mvad.data.image_size import ImageSize, tiled_size
from mvad.data.images.ignoring import encode_ignore


def places(mask):
    return [np.flatnonzero(mask.any(axis=axis)).tolist() for axis in (1, 0)]


def test_eight_rows_and_columns_in_the_middles_of_equal_parts():
    mask = sampled_patches(ImageSize.square(256), (32, 16))
    assert mask.sum() == 64
    assert places(mask) == [[2, 6, 10, 14, 18, 22, 26, 30], [1, 3, 5, 7, 9, 11, 13, 15]]


def test_all_patches_of_a_small_grid():
    assert sampled_patches(ImageSize.square(64), (8, 5)).all()


def test_few_windows_of_a_large_image_hold_all_of_them():
    size = tiled_size(2048, 1024, 256, 0.125)
    mask = sampled_patches(size, (256, 128))
    assert mask.sum() == 64
    holding = [
        window
        for window in size.windows
        if mask[
            window.rows.start // 8 : window.rows.stop // 8, window.columns.start // 8 : window.columns.stop // 8
        ].any()
    ]
    assert len(holding) == 4 < len(size.windows)


def test_patches_whose_middle_is_ignored_are_left_out():
    pixels = np.zeros((64, 64), np.uint8)
    pixels[:, :32] = 255
    size = ImageSize(resize=(64, 64), crop=(64, 64), ignore=encode_ignore(Image.fromarray(pixels)))
    mask = sampled_patches(size, (8, 8))
    assert not mask[:, :4].any()
    assert mask[:, 4:].all()


@pytest.mark.parametrize("grid", [(1, 1), (3, 40), (28, 28)])
def test_there_is_always_a_patch(grid):
    assert 1 <= sampled_patches(ImageSize.square(224), grid).sum() <= 64
