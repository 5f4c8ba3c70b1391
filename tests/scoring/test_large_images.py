"""Images seen through windows: scores, maps and regions are those of all their patches together."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

import mvad
from helpers.tiles import EMBEDDED, paint
from mvad import results
from mvad.anomaly_maps.geometry import anomaly_map
from mvad.anomaly_maps.regions import find_regions
from mvad.calibration import fold_splits
from mvad.data.augmentation import Augmentation
from mvad.data.images import decode_batch, load_image
from mvad.data.sampling import variant_seeds
from mvad.detectors import PatchCore, State, Subspace
from mvad.errors import UsageError
from mvad.features.specs import prepare
from mvad.features.weights import Network
from mvad.model_store import find_models, read_arrays, read_calibration, read_map_peaks
from mvad.storage import to_uri

SIDES = 128, 192
OPTIONS = {**EMBEDDED, "image_size": 64, "tile_size": 64, "coreset_ratio": 0.05, "actors": 1}
SPOT = (slice(70, 82), slice(130, 142))


@pytest.fixture(scope="module")
def sheets(tmp_path_factory):
    """Category ``sheet``: images of 192 x 128 pixels, of which the defective ones have a small dark square."""
    root, random = tmp_path_factory.mktemp("sheets"), np.random.default_rng(0)
    for part, defects in (("train/good", [False] * 8), ("test/good", [False] * 3), ("test/spot", [True] * 3)):
        folder = root / "sheet" / part
        folder.mkdir(parents=True)
        for number, defect in enumerate(defects):
            rough = gaussian_filter(random.normal(size=SIDES), 16)
            pixels = (paint(random, side=192)[0][: SIDES[0]] + 25 * rough / rough.std()).clip(0, 255).astype(np.uint8)
            if defect:
                pixels[SPOT] = 10
                mask = np.zeros(SIDES, np.uint8)
                mask[SPOT] = 255
                truth = root / "sheet/ground_truth/spot"
                truth.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(truth / f"{number}_mask.png")
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def scored(sheets, ray_local, tmp_path_factory):
    """Scored without maps, and the models."""
    out = tmp_path_factory.mktemp("large") / "out"
    assert mvad.run(str(sheets), str(out), **OPTIONS).exit_code == 0
    return out


def rows_of(out, *names):
    columns = ["image_id", "score", "regions", "anomalous_area", *names]
    return {row["image_id"]: row for row in results.read_scores(to_uri(out), columns).to_pylist()}


@pytest.fixture(scope="module")
def reference(sheets, scored):
    """By image: the score and the grid of all patches at once."""
    model = find_models(to_uri(scored / "models"))["sheet"]
    extract = prepare(["patches"], Network.load(model.backbone, None), model.size, "auto").load()
    detector = PatchCore.from_state(State(model.settings, read_arrays(model)))
    found = {}
    for path in sorted(sheets.glob("sheet/test/*/*.png")):
        features = extract(load_image(to_uri(path), model.size, 10**6)[0][None])["patches"]
        scores = detector.score(features)
        found[path.relative_to(sheets).as_posix()] = scores.image[0], scores.grid[0]
    return model, found


def test_scores_are_those_of_all_patches_at_once(scored, reference):
    model, expected = reference
    rows = rows_of(scored)
    assert model.size.network_input == (64, 64)
    assert {name: row["score"] for name, row in rows.items()} == {name: score for name, (score, _) in expected.items()}


def test_regions_are_those_of_the_exact_map(scored, reference):
    model, expected = reference
    threshold = float(np.sort(read_map_peaks(model))[-1])  # 8 images: the largest
    for name, row in rows_of(scored).items():
        regions, area = find_regions(expected[name][1], model.size, threshold, SIDES[1], SIDES[0])
        assert [tuple(region.values())[:5] for region in row["regions"]] == [region[:5] for region in regions]
        assert row["anomalous_area"] == area
        assert bool(row["regions"]) == ("spot" in name)


def test_the_largest_region_is_the_defect(scored):
    for name, row in rows_of(scored).items():
        if "spot" in name:
            first = row["regions"][0]
            assert first["x"] <= SPOT[1].start < SPOT[1].stop <= first["x"] + first["width"]
            assert first["y"] <= SPOT[0].start < SPOT[0].stop <= first["y"] + first["height"]
            assert first["peak"] == max(region["peak"] for region in row["regions"])


def test_keeping_maps_changes_neither_scores_nor_regions(sheets, scored, reference, tmp_path):
    _, expected = reference
    for maps in ("all", "anomalous"):
        mvad.score(str(sheets), str(scored / "models"), str(tmp_path / maps), maps=maps, actors=2, quiet=True)
        kept = rows_of(tmp_path / maps, "patch_scores", "patch_grid", "is_anomaly")
        for name, row in kept.items():
            grid, shape, is_anomaly = row.pop("patch_scores"), row.pop("patch_grid"), row.pop("is_anomaly")
            if maps == "all" or is_anomaly:
                np.testing.assert_array_equal(np.reshape(np.float32(grid), shape), expected[name][1])
            else:
                assert grid is None
        assert kept == rows_of(scored)


def test_at_most_so_many_regions_are_kept(sheets, scored, tmp_path):
    mvad.score(
        str(sheets), str(scored / "models"), str(tmp_path / "out"), false_alarm_rate=0.9, max_regions=1, quiet=True
    )
    counts = [len(row["regions"]) for row in rows_of(tmp_path / "out").values()]
    assert max(counts) == 1


def test_an_image_of_another_size_is_brought_to_the_models(sheets, scored, tmp_path):
    source = Image.open(next(sheets.glob("sheet/test/spot/0.png")))
    path = tmp_path / "data/sheet/large.png"
    path.parent.mkdir(parents=True)
    source.resize((768, 512)).save(path)
    mvad.score(str(tmp_path / "data"), str(scored / "models"), str(tmp_path / "out"), layout="plain", quiet=True)
    (row,) = rows_of(tmp_path / "out").values()
    first = row["regions"][0]
    assert first["x"] <= 4 * SPOT[1].start < 4 * SPOT[1].stop <= first["x"] + first["width"]


def left_out_reference(model, sheets):
    """Scores and peaks of the training images, each by the bank without its own patches, which it holds exactly."""
    extract = prepare(["patches"], Network.load(model.backbone, None), model.size, "auto").load()
    bank = read_arrays(model)["bank"]
    scores, peaks = [], []
    for path in sorted(sheets.glob("sheet/train/good/*.png")):
        features = extract(load_image(to_uri(path), model.size, 10**6)[0][None])["patches"]
        own = {patch.tobytes() for patch in features.reshape(-1, features.shape[-1]).numpy()}
        others = bank[[vector.tobytes() not in own for vector in bank]]
        found = PatchCore.from_state(State(model.settings, {"bank": others})).score(features)
        scores.append(found.image[0])
        peaks.append(anomaly_map(found.grid[0], model.size).max())
    return np.array(scores), np.array(peaks)


@pytest.mark.parametrize("aggregate", ["max", "top-2%"])
def test_a_bank_of_shards_is_calibrated_by_leaving_each_image_out(sheets, ray_local, tmp_path, monkeypatch, aggregate):
    monkeypatch.setattr("mvad.fitting.fit.max_images", lambda *_: 2)
    result = mvad.fit(str(sheets), str(tmp_path / "models"), aggregate=aggregate, **OPTIONS)
    assert result.exit_code == 0
    model = find_models(to_uri(tmp_path / "models"))["sheet"]
    scores, peaks = left_out_reference(model, sheets)
    np.testing.assert_allclose(read_calibration(model), scores, rtol=1e-6)
    np.testing.assert_allclose(read_map_peaks(model), peaks, rtol=1e-6)
    assert len(read_arrays(model)["bank"]) == round(0.05 * 8 * 16 * 24)


def rows_for(extract, root, path, augmentation, n_variants):
    """Features of a training image and its variants, as a fit gets them."""
    seeds = [0, *variant_seeds(path.relative_to(root).as_posix(), 0, n_variants)]
    batch = {"uri": np.array([to_uri(path)] * len(seeds), object), "variant": np.array(seeds)}
    return extract(decode_batch(batch, extract.size, 10**6, augmentation)["pixels"])["patches"]


@pytest.mark.parametrize("varied", [{}, {"augmentations": "flips,brightness", "flips": "both", "variant_count": 2}])
def test_a_subspace_of_shards_is_calibrated_by_leaving_folds_out(sheets, ray_local, tmp_path, monkeypatch, varied):
    monkeypatch.setattr("mvad.fitting.fit.max_images", lambda *_: 2)
    out, options = tmp_path / "out", {"method": "subspace", "folds": 3, **varied, **OPTIONS}
    assert mvad.run(str(sheets), str(out), **options).exit_code == 0
    model = find_models(to_uri(out / "models"))["sheet"]
    extract = prepare(["patches"], Network.load(model.backbone, None), model.size, "auto").load()
    augmentation, n_variants = Augmentation(("brightness", "flips"), "both"), varied.get("variant_count", 0)
    paths = sorted(sheets.glob("sheet/train/*/*.png"))
    train = torch.stack([rows_for(extract, sheets, path, augmentation, n_variants) for path in paths])
    assert model.record["n_groups"] == len(train) == 8
    assert model.record["n_variants"] == 8 * n_variants
    calibration, peaks = np.empty(8, np.float32), np.empty(8, np.float32)
    for others, held_out in fold_splits(np.arange(8), 3, seed=0):
        found = Subspace().fit(train[others].flatten(0, 1)).score(train[held_out, 0])
        calibration[held_out] = found.image
        peaks[held_out] = [anomaly_map(grid, model.size).max() for grid in found.grid]
    np.testing.assert_allclose(read_calibration(model), calibration, rtol=1e-5)
    np.testing.assert_allclose(read_map_peaks(model), peaks, rtol=1e-5)
    pixels = [load_image(to_uri(path), model.size, 10**6)[0] for path in sorted(sheets.glob("sheet/test/*/*.png"))]
    expected = Subspace().fit(train.flatten(0, 1)).score(extract(np.stack(pixels))["patches"]).image
    np.testing.assert_allclose([row["score"] for row in rows_of(out).values()], expected, rtol=1e-5)
    mvad.score(str(sheets), str(out / "models"), str(tmp_path / "all"), maps="all", actors=2, quiet=True)
    assert rows_of(tmp_path / "all") == rows_of(out)


def test_a_suspect_among_large_images_is_left_out_of_the_bank(sheets, ray_local, tmp_path, monkeypatch):
    monkeypatch.setattr("mvad.fitting.fit.max_images", lambda *_: 2)
    monkeypatch.setattr("mvad.calibration.suspects.CUTOFF", 2.0)  # few images: 3.5 is then raised to 6.6
    shutil.copytree(sheets / "sheet/train", tmp_path / "data/sheet/train")
    shutil.copy(sheets / "sheet/test/spot/0.png", tmp_path / "data/sheet/train/good/5x.png")
    mvad.fit(str(sheets), str(tmp_path / "without"), **OPTIONS)
    mvad.fit(str(tmp_path / "data"), str(tmp_path / "dropped"), drop_suspects=True, **OPTIONS)
    without, dropped = (find_models(to_uri(tmp_path / name))["sheet"] for name in ("without", "dropped"))
    assert [one["image_id"] for one in dropped.record["suspects"] if one["dropped"]] == ["sheet/train/good/5x.png"]
    assert dropped.record["n_train"] == without.record["n_train"] == 8
    np.testing.assert_array_equal(read_calibration(dropped), read_calibration(without))
    assert dropped.model_id == without.model_id


def test_images_that_memory_does_not_hold_are_learnt_from_in_part(sheets, ray_local, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mvad.fitting.fit.patch_step", lambda *_: 2)
    result = mvad.fit(str(sheets), str(tmp_path / "models"), **(OPTIONS | {"quiet": False}))
    assert result.exit_code == 0
    assert "one patch in 2 x 2 is learnt from" in capsys.readouterr().err.replace("\n", " ")
    model = find_models(to_uri(tmp_path / "models"))["sheet"]
    scores, peaks = left_out_reference(model, sheets)
    assert len(read_arrays(model)["bank"]) == round(0.05 * 8 * 8 * 12)
    np.testing.assert_allclose(read_calibration(model), scores, rtol=1e-6)  # of all patches, not of the thinned ones
    np.testing.assert_allclose(read_map_peaks(model), peaks, rtol=1e-6)
    with pytest.raises(UsageError, match="does not hold the features of images of 192 x 128 pixels"):
        mvad.fit(str(sheets), str(tmp_path / "vae"), method="vae", epochs=1, **OPTIONS)


def test_an_update_that_memory_does_not_hold_is_refused(sheets, scored, tmp_path, monkeypatch):
    shutil.copytree(scored / "models", tmp_path / "models")
    monkeypatch.setattr("mvad.fitting.update.FEATURE_COPIES", 10**6)
    with pytest.raises(UsageError, match="holds 0 images of 192 x 128 pixels, and there are 14 of 'sheet'"):
        mvad.update(str(sheets), str(tmp_path / "models"), quiet=True)
    monkeypatch.undo()
    mvad.update(str(sheets), str(tmp_path / "models"), limit=3, quiet=True)
    before, after = (find_models(to_uri(place / "models"))["sheet"] for place in (scored, tmp_path))
    assert len(read_map_peaks(after)) == len(read_calibration(after)) > len(read_calibration(before))


def write_numbered(sheets, root, seed):
    """The good images with a number, other in each image, printed on those to be tested."""
    random = np.random.default_rng(seed)
    for path in sorted(sheets.glob("sheet/*/good/*.png")):
        pixels = np.asarray(Image.open(path)).copy()
        if "test" in path.as_posix():
            pixels[8:40, 8:72] = np.kron(random.integers(0, 2, (8, 16)), np.ones((4, 4))) * 255
        target = root / path.relative_to(sheets)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target)
    return root


def test_a_printed_number_changes_nothing_where_it_is_ignored(sheets, ray_local, tmp_path):
    data = write_numbered(sheets, tmp_path / "data", 1)
    mvad.run(str(data), str(tmp_path / "seen"), **OPTIONS)
    mask = np.zeros(SIDES, np.uint8)
    mask[4:44, 4:76] = 255
    Image.fromarray(mask).save(data / "sheet/ignore.png")
    mvad.run(str(data), str(tmp_path / "ignored"), **OPTIONS)
    seen, ignored = (rows_of(tmp_path / name) for name in ("seen", "ignored"))
    assert min(row["score"] for row in seen.values()) > max(row["score"] for row in ignored.values())
    others = write_numbered(sheets, tmp_path / "others", 2)
    mvad.score(str(others), str(tmp_path / "ignored/models"), str(tmp_path / "again"), actors=1, quiet=True)
    assert rows_of(tmp_path / "again") == ignored
    models = [find_models(to_uri(tmp_path / name / "models"))["sheet"] for name in ("seen", "ignored")]
    assert models[0].model_id != models[1].model_id
    assert models[0].size.ignore is None
    (listed,) = mvad.models(str(tmp_path / "ignored/models"), quiet=True)
    assert listed["ignored"] == pytest.approx(mask.mean() / 255)
    assert listed["windows"] == len(models[1].size.windows) > 1
