"""Images divided into the blocks that travel together."""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvad.memory import BLOCK_BYTES
from mvad.pipeline.dataset import MAX_BLOCK_ROWS, MIN_BLOCK_ROWS, RAMP_FRACTION, split_into_blocks
from mvad.runtime.resources import ActorPool


def sizes_of(n_images, side, actors, threads):
    """The sizes of the blocks, after a check that they hold all images in order."""
    pool = ActorPool(actors, actor_resources={}, task_resources={}, threads=threads)
    blocks = split_into_blocks(pa.table({"row": range(n_images)}), side * side, pool)
    assert [row for block in blocks for row in block["row"].to_pylist()] == list(range(n_images))
    sizes = [len(block) for block in blocks]
    assert all(sizes)
    return sizes


@pytest.mark.parametrize("n_images", [0, 1, 7, 100, 2_000, 50_000])
@pytest.mark.parametrize(("actors", "threads"), [(1, 1), (1, 4), (6, 1), (64, 4)])
def test_blocks_hold_all_images_in_order_and_the_outer_ones_few(n_images, actors, threads):
    sizes = sizes_of(n_images, 224, actors, threads)
    if n_images:
        assert sizes[0] <= MIN_BLOCK_ROWS
        assert max(sizes) <= MAX_BLOCK_ROWS
    if n_images >= 2_000 and actors < 10:
        assert max(sizes) > sizes[-1] == MIN_BLOCK_ROWS
        assert sum(size == MIN_BLOCK_ROWS for size in sizes) < len(sizes) / 2


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20_000), st.integers(1, 8), st.integers(1, 4))
def test_the_first_and_last_blocks_are_small(n_images, actors, threads):
    sizes = sizes_of(n_images, 224, actors, threads)
    largest = max(sizes)
    ramp = sizes.index(largest)
    assert sizes[:ramp] == sorted(sizes[:ramp])
    assert sizes[len(sizes) - ramp :] == sizes[:ramp][::-1]
    assert ramp % actors == 0
    assert sum(sizes[:ramp]) < max(1, n_images * RAMP_FRACTION)
    middle = sizes[ramp : len(sizes) - ramp]
    assert all(size == largest for size in middle[:-1])


@pytest.mark.parametrize(
    ("n_images", "actors", "sizes"),
    [(5, 1, [5]), (20, 1, [8, 8, 4]), (128, 1, [8, *[16] * 7, 8]), (160, 2, [8, 8, *[10] * 12, 8, 8, 8])],
)
def test_sizes_of_blocks(n_images, actors, sizes):
    assert sizes_of(n_images, 224, actors, 1) == sizes


@pytest.mark.parametrize("side", [512, 1024, 8000])
def test_large_images_travel_in_smaller_blocks(side):
    largest = max(sizes_of(5_000, side, 1, 1))
    assert largest == max(1, BLOCK_BYTES // (3 * side * side))
