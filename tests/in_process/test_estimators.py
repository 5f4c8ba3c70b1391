"""Estimators: the manners of scikit-learn, and what they say of images that they cannot learn from."""

import inspect

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone

import mvad
from mvad.errors import UsageError

OPTIONS = {"backbone": "efficientnet_lite0", "image_size": 64}


@pytest.fixture(scope="module")
def good(tiles):
    return sorted((tiles / "alpha" / "train" / "good").iterdir())


def test_options_can_be_read_changed_and_cloned():
    estimator = mvad.PatchCore(coreset_ratio=0.5, threads=2, layers=[8])
    assert estimator.get_params()["coreset_ratio"] == 0.5
    assert estimator.get_params()["false_alarm_rate"] == 0.01
    assert clone(estimator).get_params() == estimator.get_params()
    assert estimator.set_params(coreset_ratio=0.25, category="weave") is estimator
    assert repr(estimator) == "PatchCore(category='weave', coreset_ratio=0.25, layers=[8])"
    assert "coreset_ratio" in inspect.signature(mvad.PatchCore).parameters
    assert "neighbours" not in inspect.signature(mvad.PatchCore).parameters


@pytest.mark.parametrize("name", ["neighbours", "actors", "quiet", "coreset"])
def test_options_of_others_are_refused(name):
    with pytest.raises(TypeError, match=f"PatchCore has no option '{name}'"):
        mvad.PatchCore(**{name: 1})
    with pytest.raises(TypeError, match=name):
        mvad.PatchCore().set_params(**{name: 1})


def test_wrong_values_are_said_when_it_learns(good):
    with pytest.raises(UsageError, match="coreset-ratio"):
        mvad.PatchCore(coreset_ratio=7, **OPTIONS).fit(good)
    with pytest.raises(UsageError, match="nosuchnet"):
        mvad.PatchCore(backbone="nosuchnet").fit(good)


def test_it_learns_from_arrays_as_from_their_files(good):
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in good]
    from_files, from_arrays = (mvad.KNN(**OPTIONS).fit(images) for images in (good, arrays))
    assert from_files.model_.model_id == from_arrays.model_.model_id
    assert mvad.KNN(**OPTIONS).fit(np.stack(arrays)).model_.model_id == from_files.model_.model_id


def test_scores_of_many_are_an_array_with_gaps(tiles, good):
    estimator = mvad.KNN(**OPTIONS)
    assert estimator.fit(good) is estimator
    scores = estimator.decision_function([tiles / "alpha/test/good/000.png", b"", tiles / "alpha/test/spot/000.png"])
    assert scores.shape == (3,)
    assert np.isnan(scores[1])
    assert scores[0] < scores[2]


def test_nothing_is_predicted_before_it_has_learnt():
    estimator = mvad.KNN()
    for use in (estimator.predict, estimator.save, estimator.decision_function):
        with pytest.raises(UsageError, match="call fit first"):
            use("x.png")


def test_images_that_cannot_be_used_are_named(good, tmp_path):
    (tmp_path / "broken.png").write_text("no image")
    with pytest.warns(UserWarning, match=r"1 of 9 images cannot be used; the first: .*broken\.png not an image"):
        estimator = mvad.KNN(**OPTIONS).fit([tmp_path / "broken.png", *good])
    assert list(estimator.errors_) == [str(tmp_path / "broken.png")]
    assert estimator.model_.record["n_train"] == 8
    for nothing in ([tmp_path / "broken.png"], [b"", b"x"]):
        with pytest.raises(UsageError, match=r"none of the .* images is usable; the first: "):
            mvad.KNN(**OPTIONS).fit(nothing)
    with pytest.raises(UsageError, match="there are no images to learn from"):
        mvad.KNN(**OPTIONS).fit([])
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="no images in"):
        mvad.KNN(**OPTIONS).fit(tmp_path / "folder")


def test_images_that_may_not_be_good_are_named(tiles, good):
    spots = sorted((tiles / "alpha" / "test" / "spot").iterdir())[:1]
    more = sorted((tiles / "beta" / "train" / "good").iterdir())
    with pytest.warns(UserWarning, match="spot/000.png"):
        mvad.PatchCore(**OPTIONS, coreset_ratio=0.2).fit([*good, *more, *spots])


def test_variants_of_images_are_learnt_from(good):
    options = {**OPTIONS, "coreset_ratio": 1.0, "calibration": "none"}
    plain = mvad.PatchCore(**options).fit(good[:2]).model_
    varied = mvad.PatchCore(**options, augmentations=["brightness"], variant_count=2).fit(good[:2]).model_
    assert (plain.record["n_variants"], varied.record["n_variants"]) == (0, 4)
    darker = Image.open(good[0]).point(lambda value: value * 0.85)
    assert varied.predict(darker).score < plain.predict(darker).score


def test_what_memory_does_not_hold_is_refused_before_it_begins(good):
    with pytest.raises(UsageError, match=r"memory_limit, which holds .* raise it, or use mvad fit"):
        mvad.PatchCore(backbone="efficientnet_lite0", image_size=2048, memory_limit="1200MiB").fit(good * 40)


def test_a_method_that_learns_from_other_products_needs_them(good):
    with pytest.raises(UsageError, match="give good images of some with others"):
        mvad.VAEFewShot(**OPTIONS).fit(good)
