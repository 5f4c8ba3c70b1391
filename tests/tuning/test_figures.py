"""The figure against scikit-learn, and the rule of choice on made-up figures."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from mvad.tuning.evaluate import pixel_counts
from mvad.tuning.figures import MAX_AUROC_LOSS, MIN_GAIN, Evidence, Figures, bootstrap_weights, choose, figures

HELD_OUT, KINDS = 6, 3  # images, and kinds of defects, of which each image has all


def evidence(seed=0, pixels=50):
    """Scores and maps of held-out images, each followed by itself with every kind of defect."""
    random = np.random.default_rng(seed)
    held_out = np.repeat(np.arange(HELD_OUT), 1 + KINDS)
    kinds = np.tile(np.arange(-1, KINDS), HELD_OUT)
    masks = (random.random((len(kinds), pixels)) < 0.3) & (kinds >= 0)[:, None]
    maps = (random.normal(0, 1, masks.shape) + masks).astype(np.float32)
    scores = (random.normal(0, 1, len(kinds)) + (kinds >= 0)).astype(np.float32).round(1)  # with ties
    return held_out, kinds, scores, maps, masks


def reference(rows_of_sample, held_out, kinds, scores, maps, masks):
    """Image AUROC and pixel average precision per kind, by scikit-learn, of images drawn so often; and their means."""
    rows = np.concatenate([np.flatnonzero(held_out == image) for image in rows_of_sample])
    values = []
    for kind in range(KINDS):
        chosen = rows[np.isin(kinds[rows], (-1, kind))]
        auroc = roc_auc_score(kinds[chosen] >= 0, scores[chosen])
        values.append((auroc, average_precision_score(masks[chosen].ravel(), maps[chosen].ravel())))
    return np.mean(values, axis=0)


def test_figures_are_means_over_kinds_of_what_scikit_learn_computes():
    held_out, kinds, scores, maps, masks = evidence()
    good, defective = pixel_counts(maps, masks, np.ones(maps.shape[1], bool))
    samples = [np.arange(HELD_OUT), np.array([0, 0, 0, 2, 2, 5]), np.array([1, 1, 1, 1, 1, 1])]
    weights = np.array([np.bincount(sample, minlength=HELD_OUT) for sample in samples], float)
    found = figures(Evidence(scores, good, defective), held_out, kinds, weights)
    for number, sample in enumerate(samples):
        auroc, precision = reference(sample, held_out, kinds, scores, maps, masks)
        assert found.image_auroc[number] == pytest.approx(auroc)
        assert found.pixel_ap[number] == pytest.approx(precision, abs=1e-6)
        assert found.figure[number] == pytest.approx((auroc + precision) / 2, abs=1e-6)


def test_pixels_that_are_ignored_do_not_count():
    _, _, _, maps, masks = evidence()
    seen = np.arange(maps.shape[1]) >= 20
    for count, other in zip(
        pixel_counts(maps, masks, seen), pixel_counts(maps[:, 20:], masks[:, 20:], np.ones(30, bool)), strict=True
    ):
        np.testing.assert_array_equal(count, other)
    good, defective = pixel_counts(maps, masks, seen)
    np.testing.assert_array_equal(good.sum(axis=1) + defective.sum(axis=1), np.full(len(maps), 30))


def test_without_a_marked_pixel_the_figure_is_the_image_auroc():
    held_out, kinds, scores, maps, masks = evidence()
    counts = pixel_counts(maps, masks & False, np.ones(maps.shape[1], bool))
    found = figures(Evidence(scores, *counts), held_out, kinds, bootstrap_weights(HELD_OUT, 0))
    np.testing.assert_array_equal(found.figure, found.image_auroc)


def test_samples_draw_as_many_images_as_there_are_and_depend_on_the_seed_alone():
    weights = bootstrap_weights(7, 3)
    np.testing.assert_array_equal(weights[0], np.ones(7))
    np.testing.assert_array_equal(weights.sum(axis=1), np.full(len(weights), 7))
    np.testing.assert_array_equal(weights, bootstrap_weights(7, 3))
    assert (weights != bootstrap_weights(7, 4)).any()


def made_up(auroc, precision, noise=0.0, own=0.0, seed=0):
    """Figures of which samples vary together with those of other candidates, and by themselves."""
    together = np.random.default_rng(99).normal(0, noise, 1000)
    alone = np.random.default_rng(seed).normal(0, own, 1000)
    deviation = np.concatenate([[0], together + alone])
    aurocs, precisions = np.full(1001, auroc), precision + 2 * deviation
    return Figures((aurocs + precisions) / 2, aurocs, precisions)


GIVEN = (256, 10_000)


def test_the_options_as_given_stay_unless_another_candidate_is_better_beyond_the_interval():
    given = made_up(0.95, 0.60)
    assert choose([given], [GIVEN]) == 0
    assert choose([given, made_up(0.95, 0.64, own=0.001)], [GIVEN, (320, 1)]) == 1
    assert choose([given, made_up(0.95, 0.64, own=0.05)], [GIVEN, (320, 1)]) == 0
    assert choose([given, made_up(0.95, 0.56)], [GIVEN, (1, 1)]) == 0


def test_a_tie_with_the_options_as_given_changes_nothing_even_if_it_is_cheaper():
    assert choose([made_up(0.95, 0.60), made_up(0.95, 0.60)], [GIVEN, (128, 10)]) == 0


def test_the_comparison_is_paired():
    # Both vary by far more than they differ, but together.
    given, other = made_up(0.95, 0.60, noise=0.1), made_up(0.95, 0.63, noise=0.1, own=0.001)
    assert other.interval()[0] < given.figure[0]
    assert choose([given, other], [GIVEN, GIVEN]) == 1


def test_of_candidates_that_tie_the_cheaper_one_is_used():
    given, good, better = made_up(0.9, 0.5), made_up(0.9, 0.600), made_up(0.9, 0.604, own=0.01, seed=1)
    assert choose([given, good, better], [GIVEN, (320, 5), (384, 5)]) == 1
    assert choose([given, better, good], [GIVEN, (320, 5), (320, 4)]) == 2
    assert choose([given, good, better], [GIVEN, (384, 5), (320, 9)]) == 2  # pixels count before vectors
    surely_better = made_up(0.9, 0.604, own=0.0001, seed=1)
    assert choose([given, good, surely_better], [GIVEN, (320, 5), (384, 5)]) == 2


def test_a_small_gain_is_not_worth_a_change():
    given = made_up(0.95, 0.60)
    assert choose([given, made_up(0.95, 0.60 + 1.8 * MIN_GAIN)], [GIVEN, GIVEN]) == 0
    assert choose([given, made_up(0.95, 0.60 + 2.2 * MIN_GAIN)], [GIVEN, GIVEN]) == 1


def test_a_better_map_does_not_make_up_for_defective_images_that_are_missed():
    given = made_up(0.95, 0.60)
    assert choose([given, made_up(0.95 - 1.5 * MAX_AUROC_LOSS, 0.80)], [GIVEN, GIVEN]) == 0
    assert choose([given, made_up(0.95 - 0.5 * MAX_AUROC_LOSS, 0.80)], [GIVEN, GIVEN]) == 1
