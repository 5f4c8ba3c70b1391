"""Frames of one scene are one group; different images, however alike, are not."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, shift

from helpers.tiles import paint
from mvad.search import duplicates
from mvad.search.fingerprints import FINGERPRINT_SIDE, fingerprints


def textures(count, roughness, contrast, seed=0, side=96):
    """Random pictures without anything in common, (count, side, side) float."""
    random = np.random.default_rng(seed)
    noise = gaussian_filter(random.normal(size=(count, side, side)), (0, roughness, roughness))
    return 120 + contrast * noise / noise.std()


def units(count, seed=0):
    """Parts of one kind in the same place: what they share is three times what tells them apart."""
    return (textures(1, 6, 30) + textures(count, 3, 10, seed + 1)) - 120


def frames(scenes, n_frames, noise, brightness=0.0, jitter=0.0):
    """What a fixed camera delivers: noise, a light that varies, and a mount that gives a little."""
    random = np.random.default_rng(9)
    for scene in scenes:
        for _ in range(n_frames):
            moved = shift(scene, random.uniform(-jitter, jitter, 2), order=1, mode="nearest")
            yield moved * (1 + random.uniform(-brightness, brightness)) + random.normal(0, noise, scene.shape)


def group(pictures):
    grey = np.stack(list(pictures)).clip(0, 255).round().astype(np.uint8)
    return duplicates.group_near_duplicates(fingerprints(np.repeat(grey[..., None], 3, axis=3)))


SCENES = {
    "smooth": lambda n: textures(n, 5, 25),
    "fine": lambda n: textures(n, 1, 25),
    "parts of one kind": units,
}


@pytest.mark.parametrize("scenes", SCENES.values(), ids=SCENES)
@pytest.mark.parametrize(("n_scenes", "n_frames"), [(8, 25), (1, 40), (2, 40), (30, 3)])
@pytest.mark.parametrize("camera", [(2, 0, 0), (2, 0.05, 0), (2, 0.02, 0.25)], ids=["noise", "light", "jitter"])
def test_frames_of_one_scene_are_one_group(scenes, n_scenes, n_frames, camera):
    np.testing.assert_array_equal(
        group(frames(scenes(n_scenes), n_frames, *camera)), np.repeat(np.arange(n_scenes), n_frames)
    )


@pytest.mark.parametrize("scenes", SCENES.values(), ids=SCENES)
def test_different_images_are_groups_of_their_own(scenes):
    np.testing.assert_array_equal(group(frames(scenes(150), 1, 2)), np.arange(150))


def test_two_kinds_of_parts_are_not_two_scenes():
    kinds = [*units(60), *(units(60, seed=3) + 2 * (textures(1, 6, 30, seed=8) - 120))]
    np.testing.assert_array_equal(group(frames(kinds, 1, 2)), np.arange(120))


def test_tiles_that_differ_in_their_phase_alone():
    random = np.random.default_rng(1)
    assert len(set(group(paint(random)[0] for _ in range(8)))) == 8


def test_images_are_groups_by_themselves_but_for_copies():
    pictures = textures(12, 4, 20)
    pictures[5], pictures[11] = pictures[2], 0
    pictures[7:9] = 0  # nothing to correlate: the very same pixels are copies
    np.testing.assert_array_equal(group(pictures), [0, 1, 2, 3, 4, 2, 5, 6, 6, 7, 8, 6])
    assert group(pictures[:1]).tolist() == [0]
    none = np.empty((0, FINGERPRINT_SIDE, FINGERPRINT_SIDE), np.uint8)
    assert duplicates.group_near_duplicates(none).shape == (0,)


def test_very_many_images_are_compared_in_blocks(monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_GROUPED_IMAGES", 20)
    np.testing.assert_array_equal(group(frames(textures(6, 4, 20), 10, 2)), np.repeat(np.arange(6), 10))
