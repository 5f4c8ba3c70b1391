import numpy as np
import pytest

from mvad.search.aggregation import check_aggregate, top_count, top_mean


@pytest.mark.parametrize(
    ("aggregate", "n_patches", "count"),
    [
        ("max", 1024, None),
        ("top-1%", 1024, 10),
        ("top-0.5%", 1024, 5),
        ("top-1%", 30, 1),
        ("top-0.001%", 1024, 1),
        ("top-100%", 30, 30),
        ("top-12.5%", 64, 8),
    ],
)
def test_how_many_patches_decide(aggregate, n_patches, count):
    assert top_count(check_aggregate(aggregate), n_patches) == count


@pytest.mark.parametrize(
    "text", ["", "mean", "top", "top-%", "top-1", "top-0%", "top-100.1%", "top--1%", "TOP-1%", " max"]
)
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="give max, or a share of the patches such as top-1%"):
        check_aggregate(text)


def test_the_mean_does_not_depend_on_the_order():
    random = np.random.default_rng(0)
    scores = (random.standard_normal(1000) * 10.0 ** random.integers(-6, 6, 1000)).astype(np.float32)
    expected = np.float32(np.sort(scores.astype(np.longdouble))[-300:].mean())
    for _ in range(5):
        assert top_mean(random.permutation(scores).reshape(10, 100), 300) == expected
