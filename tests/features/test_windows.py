"""Features of windows are those of the image's patches, on one grid."""

import numpy as np
import pytest
import torch

from mvad.data.image_size import ImageSize, grid_part, tiled_size
from mvad.errors import UsageError
from mvad.features.backbones import describe
from mvad.features.specs import feature_shapes, prepare
from mvad.features.weights import Network
from mvad.pipeline.dataset import thinned


@pytest.fixture(scope="module")
def network():
    return Network.load(describe("efficientnet_lite0"), None)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (160, 224, 3), np.uint8)


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_patches_are_those_of_the_window_that_answers_for_them(network, image, engine):
    size = tiled_size(160, 224, 96, 0.25)
    extract = prepare(["patches", "stages"], network, size, engine).load()
    alone = prepare(["patches", "stages"], network, ImageSize.square(96), engine).load()
    features = extract(image[None])
    shapes = feature_shapes(["patches", "stages"], network.spec, size)
    assert {kind: tuple(values.shape[1:]) for kind, values in features.items()} == shapes
    assert shapes["patches"][:2] == (20, 28)
    for window in size.windows:
        of_window = alone(image[None, window.top : window.top + 96, window.left : window.left + 96])
        for kind, stride in (("patches", 8), ("stages", 16)):
            rows, columns = grid_part(window, stride)
            top, left = window.top // stride, window.left // stride
            inner = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
            expected = of_window[kind][0][inner]
            torch.testing.assert_close(features[kind][0, rows, columns], expected, rtol=0, atol=0)


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_parts_of_thinned_patches_fit_together(step):
    whole, found = np.arange(40), np.full(-(-40 // step), -1)
    for part in (slice(0, 13), slice(13, 14), slice(14, 30), slice(30, 40)):
        place, inner = thinned(part, step)
        found[place] = whole[part][inner]
    np.testing.assert_array_equal(found, whole[::step])


def test_moving_an_image_by_a_cell_moves_the_interior_of_its_features(network):
    """There are no seams: a patch looks the same wherever its window lies, but for what the window does not see."""
    wide = np.random.default_rng(1).integers(0, 256, (96, 512, 3), np.uint8)
    size = tiled_size(96, 384, 192, 0.5)
    extract = prepare(["patches"], network, size).load()
    first, moved = (extract(wide[None, :, start : start + 384])["patches"][0] for start in (0, 96))
    difference = torch.linalg.vector_norm(first[:, 12:] - moved[:, :-12], dim=-1)
    assert difference.mean() < 0.12 * torch.linalg.vector_norm(first[:, 12:], dim=-1).mean()


def test_what_is_no_grid_of_patches_has_no_windows(network):
    with pytest.raises(UsageError, match="windows need a method that scores patches"):
        feature_shapes(["pooled"], network.spec, tiled_size(512, 512, 64, 0.125))
