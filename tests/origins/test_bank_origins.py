"""Where the vectors of a bank come from: right for every way of learning, kept beside the model, no part of its id."""

import json

import numpy as np
import pytest
import torch

from mvad.anomaly_maps.geometry import Box
from mvad.data.image_size import ImageSize
from mvad.detectors import KNN, PatchCore
from mvad.errors import ModelError
from mvad.features.backbones import describe
from mvad.model_store import (
    FittedModel,
    ensure_whole,
    kept_versions,
    read_arrays,
    read_model,
    read_origins,
    save_model,
    use_version,
)
from mvad.origins.bank_origins import IMAGES, VECTORS, Image, Origins, from_files, origins_of, to_files
from mvad.origins.patches import patch_box
from mvad.storage import join, to_uri

GRID = (3, 4)
N_PATCHES = 12


def features(count, seed=0, channels=6):
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.standard_normal((count, *GRID, channels)).astype(np.float32))


def named(count, folder="/data", prefix="good"):
    return [Image(f"{prefix}/{number}.png", f"file://{folder}/{prefix}/{number}.png") for number in range(count)]


def ensure_right(origins, vectors, by_image):
    """Each vector is the patch of the image that it is said to come from."""
    for number, vector in enumerate(vectors):
        image, patch = origins.image_of(number)
        np.testing.assert_allclose(by_image[image.image_id].reshape(N_PATCHES, -1)[patch], vector, rtol=1e-5, atol=1e-6)


def test_each_vector_of_a_coreset_is_the_patch_it_is_said_to_be():
    images, good = features(5), named(5)
    detector = PatchCore(coreset_ratio=0.3).fit(images)
    origins = origins_of(detector.chosen, good, GRID)
    assert len(origins.vectors) == len(detector.bank)
    ensure_right(origins, detector.bank.vectors, {one.image_id: image for one, image in zip(good, images, strict=True)})


def test_vectors_of_several_banks_follow_each_other():
    images, good = features(4), named(4)
    detector = PatchCore(coreset_ratio=0.3, banks="layers", channels=(2, 4)).fit(images)
    origins = origins_of(detector.chosen, good, GRID)
    first, second = (one.bank.vectors for one in detector.layer_banks)
    for vectors, part, start in ((first, images[..., :2], 0), (second, images[..., 2:], len(first))):
        of_bank = Origins(origins.vectors[start : start + len(vectors)], origins.images)
        ensure_right(of_bank, vectors, {one.image_id: image for one, image in zip(good, part, strict=True)})


@pytest.mark.parametrize("banks", [{}, {"banks": "layers", "channels": (2, 4)}])
def test_the_origins_of_an_extended_bank_go_on(banks):
    old, new, later = features(4), features(3, 1), named(3, prefix="later")
    fitted = PatchCore(coreset_ratio=0.5, **banks).fit(old)
    before = origins_of(fitted.chosen, named(4), GRID)
    extended = PatchCore.from_state(fitted.state).extend(new)
    origins = origins_of(extended.chosen, later, GRID, before=before)
    names = {one.image_id for one in origins.images}
    assert names & {one.image_id for one in later}
    assert names & {one.image_id for one in before.images}
    by_image = {one.image_id: image for one, image in zip([*named(4), *later], [*old, *new], strict=True)}
    start = 0
    for one, part in zip(extended.layer_banks, (slice(0, 2), slice(2, 6)) if banks else (slice(0, 6),), strict=True):
        of_bank = Origins(origins.vectors[start : start + len(one.bank)], origins.images)
        ensure_right(of_bank, one.bank.vectors, {name: image[..., part] for name, image in by_image.items()})
        start += len(one.bank)
    unknown = origins_of(extended.chosen, later, GRID)
    assert {one.image_id for one in unknown.images} <= {one.image_id for one in later}
    assert unknown.image_of(int(np.flatnonzero(extended.chosen < 0)[0])) == (None, None)


@pytest.mark.parametrize("banks", [{}, {"banks": "layers", "channels": (2, 4)}, {"whitening": 0.1}])
def test_shards_count_their_patches_one_after_the_other(banks):
    images, good = features(6), named(6)
    detector = PatchCore(coreset_ratio=0.4, **banks)
    parts = [images[:1], images[1:4], images[4:]]
    detector.fit_shards([detector.summarise(part, 0.9) for part in parts], 6 * N_PATCHES)
    origins = origins_of(detector.chosen, good, GRID)
    start = 0
    for one, part in zip(
        detector.layer_banks, (slice(0, 2), slice(2, 6)) if len(banks) > 1 else [slice(0, 6)], strict=True
    ):
        of_bank = Origins(origins.vectors[start : start + len(one.bank)], origins.images)
        by_image = {name.image_id: one.space(image[..., part]) for name, image in zip(good, images, strict=True)}
        ensure_right(of_bank, one.bank.vectors, by_image)
        start += len(one.bank)
    assert start == len(detector.chosen)


def test_patches_that_were_thinned_out_count():
    images = features(2)
    detector = PatchCore(coreset_ratio=1.0).fit(images[:, ::2, ::2].contiguous())
    origins = origins_of(detector.chosen, named(2), GRID, step=2)
    by_image = {one.image_id: image for one, image in zip(named(2), images, strict=True)}
    ensure_right(origins, detector.bank.vectors, by_image)


def test_variants_are_their_image_and_their_patch_is_not_marked():
    images = features(6)  # two images with two variants each
    detector = PatchCore(coreset_ratio=1.0, copies=3).fit(images)
    origins = origins_of(detector.chosen, named(2), GRID, copies=3)
    for number, chosen in enumerate(detector.chosen.tolist()):
        row, patch = divmod(chosen, N_PATCHES)
        image, marked = origins.image_of(number)
        assert image.image_id == f"good/{row // 3}.png"
        assert marked == (patch if row % 3 == 0 else None)


def test_whole_images_have_no_patch():
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32))
    detector = KNN(neighbours=2).fit(rows)
    before = origins_of(detector.chosen, named(5), ())
    assert [before.image_of(number) for number in range(5)] == [(image, None) for image in named(5)]
    extended = KNN.from_state(detector.state).extend(rows[:2] + 1)
    origins = origins_of(extended.chosen, named(2, prefix="later"), (), before=before)
    assert [image.image_id for image in origins.images] == [
        *(f"good/{n}.png" for n in range(5)),
        "later/0.png",
        "later/1.png",
    ]
    nearest = extended.nearest(rows[:1] + 1)
    assert origins.image_of(nearest.vector)[0].image_id == "later/0.png"
    assert nearest.grid is None


@pytest.mark.parametrize("banks", [{}, {"banks": "layers", "channels": (2, 4)}, {"distance": "cosine"}])
def test_the_nearest_vector_is_that_of_the_worst_patch(banks):
    images = features(5)
    detector = PatchCore(coreset_ratio=1.0, reweight=0, **banks).fit(images)
    odd = images[2:3].clone()
    odd[0, 1, 3] += 9 * torch.ones(6)
    nearest = detector.nearest(odd)
    assert (nearest.patch, nearest.grid) == (1 * 4 + 3, GRID)
    scores = detector.score(odd)
    assert scores.grid[0].reshape(-1)[nearest.patch] == scores.image[0]
    if not banks:
        distances = np.linalg.norm(detector.bank.vectors - odd[0, 1, 3].numpy(), axis=1)
        assert nearest.vector == distances.argmin()
    assert 0 <= nearest.vector < len(detector.chosen)


def save(folder, origins, seed=0, **options):
    state = PatchCore().fit(features(3, seed)).state
    record = {"n_train": 3, "errors": [], "fit_seconds": 1.0}
    parts = ("cap", PatchCore, state, describe("efficientnet_lite0"), "abc", ImageSize.square(64), record)
    return save_model(to_uri(folder), FittedModel(*parts, origins=origins), **options)


def some_origins(folder="/data", seed=0):
    return origins_of(PatchCore().fit(features(3, seed)).chosen, named(3, folder), GRID)


def test_origins_are_kept_and_no_part_of_the_id(tmp_path):
    model = save(tmp_path / "a", some_origins())
    origins = read_origins(model)
    np.testing.assert_array_equal(origins.vectors, some_origins().vectors)
    assert list(origins.images) == list(some_origins().images)
    assert save(tmp_path / "b", some_origins("/elsewhere")).model_id == model.model_id
    without = save(tmp_path / "c", None)
    assert (without.model_id, without.files) == (model.model_id, model.files)
    assert (read_origins(without), without.has_origins) == (None, False)


def test_a_new_version_and_the_one_that_is_taken_back_have_their_own_origins(tmp_path):
    first = save(tmp_path, some_origins())
    second = save(tmp_path, some_origins("/new", seed=1), seed=1, keep_earlier=True)
    assert read_origins(second).images[0].uri.startswith("file:///new/")
    versions = {version.model_id: version for version in kept_versions(to_uri(tmp_path), "patchcore", "cap")}
    back = use_version(to_uri(tmp_path), versions[first.model_id])
    assert read_origins(back).images[0].uri.startswith("file:///data/")
    save(tmp_path, None, seed=2)
    assert not list(tmp_path.rglob(IMAGES))


@pytest.mark.parametrize("file", [VECTORS, IMAGES])
def test_damaged_origins_are_said_and_the_model_stays_usable(tmp_path, file):
    model = save(tmp_path, some_origins())
    (tmp_path / "patchcore/cap" / file).write_bytes(b"x")
    with pytest.raises(ModelError, match=f"{file} is damaged: its hash"):
        read_origins(model)
    (tmp_path / "patchcore/cap" / file).unlink()
    with pytest.raises(ModelError, match=file):
        read_origins(model)
    ensure_whole(read_model(model.uri))
    assert read_arrays(model)["bank"].size


@pytest.mark.parametrize(
    ("vectors", "images"),
    [
        ([[0, 0]], []),
        ([[-2, 0]], [["a", "b"]]),
        ([[0, 0]], [["a"]]),
        ([[0, 0]], {"a": "b"}),
        ([[0, 0]], [["a", 3]]),
        ([0, 0], [["a", "b"]]),
    ],
)
def test_what_is_no_origins_is_refused(vectors, images):
    contents = to_files(Origins(np.array(vectors, np.int32), []))
    with pytest.raises(ValueError, match=r"origins\.npy|images\.json"):
        from_files({**contents, IMAGES: json.dumps(images).encode()})


def test_a_record_that_names_other_files_reads_none_of_them(tmp_path):
    model = save(tmp_path, some_origins())
    path = tmp_path / "patchcore/cap/model.json"
    document = json.loads(path.read_text())
    document["record"]["origins"] = {"../../secret": document["record"]["origins"][IMAGES]}
    path.write_text(json.dumps(document))
    assert read_origins(read_model(model.uri)) is None
    document["record"]["origins"] = {VECTORS: {"sha256": 1, "bytes": -1}}
    path.write_text(json.dumps(document))
    with pytest.raises(ModelError, match=r"record\.origins"):
        read_model(model.uri)


def test_the_place_of_a_patch_on_an_image():
    assert patch_box(5, (3, 4), ImageSize.square(12), 120, 60) == Box(30, 20, 60, 40)
    cropped = ImageSize(resize=(16, 16), crop=(8, 8))
    assert patch_box(0, (2, 2), cropped, 160, 160) == Box(40, 40, 80, 80)
    with pytest.raises(ValueError, match="no patch 12"):
        patch_box(12, (3, 4), ImageSize.square(12), 120, 60)


def test_files_of_origins_lie_beside_the_arrays(tmp_path):
    model = save(tmp_path, some_origins())
    assert sorted(path.name for path in (tmp_path / "patchcore/cap").iterdir()) == [
        "bank.npy",
        IMAGES,
        "model.json",
        VECTORS,
    ]
    assert join(model.uri, VECTORS) == to_uri(tmp_path / "patchcore/cap" / VECTORS)
