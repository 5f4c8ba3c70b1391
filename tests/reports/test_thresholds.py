"""Counts at thresholds to try are those of the verdicts, however scores are spread."""

import shlex

import numpy as np
import pytest

from mvad.options import parse_thresholds
from mvad.reports.thresholds import MAX_STOPS, command, stops


@pytest.mark.parametrize("spread", ["few", "ties", "one", "close", "many", "negative"])
def test_counts_are_exact_at_every_stop(spread):
    random = np.random.default_rng(0)
    scores = {
        "few": random.gamma(4, 1, 60),
        "ties": random.integers(0, 5, 200),
        "one": np.full(3, 2.5),
        "close": 1 + np.arange(40) * 2.0**-23,  # neighbouring numbers of 32 bits
        "many": random.gamma(4, 1, 20_000),
        "negative": -random.gamma(4, 1, 50),
    }[spread].astype(np.float32)
    labels = random.integers(-1, 2, len(scores)).astype(np.int8)
    threshold = float(np.quantile(scores, 0.9))
    found = stops(scores, labels, threshold)
    assert len(found.values) <= MAX_STOPS
    assert (np.diff(found.values) > 0).all()
    assert found.values[found.present] == threshold
    for value, start, *counts in zip(
        found.values, found.starts, found.flagged, found.found, found.false_alarms, strict=True
    ):
        above = scores.astype(np.float64) > value
        assert counts == [above.sum(), (above & (labels == 1)).sum(), (above & (labels == 0)).sum()]
        assert start <= value
    assert (found.flagged[0], found.flagged[-1]) == (len(scores), 0)
    assert found.complete == (spread != "many")
    if found.complete:
        assert len(found.values) == len(np.unique(scores)) + 1
    else:  # dense where few are flagged
        assert set(range(20)) <= set(found.flagged.tolist())
        assert np.diff(found.flagged).min() > -400


def test_numbers_to_try_are_short():
    scores = np.random.default_rng(0).gamma(4, 1, 100).astype(np.float32)
    assert max(len(str(value)) for value in stops(scores, np.zeros(100, np.int8), None).values) <= 8
    assert stops(scores, np.zeros(100, np.int8), None).present is None
    assert stops(scores[:0], np.zeros(0, np.int8), 1.0) is None


@pytest.mark.parametrize("category", ["weave", "a b", "it's; rm", "a=b", "é"])
def test_the_command_names_the_category_as_a_shell_and_the_option_read_it(category):
    before, after = command("/data/my results", category)
    words = shlex.split(f"{before}2.5{after}")
    assert words[:4] == ["mvad", "evaluate", "/data/my results", "--threshold"]
    assert parse_thresholds(words[4]) == {category: 2.5}


@pytest.mark.parametrize("category", ["a,b", " a", "*", "a\u202eb", "a\nb"])
def test_there_is_no_command_for_a_category_that_the_option_or_a_line_cannot_name(category):
    assert command("results", category) is None
