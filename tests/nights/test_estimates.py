"""Precision and recall from labels: right where all is known, and intervals that hold the truth where it is not."""

import datetime
import math

import numpy as np
import pytest

from helpers.score_files import write_rows
from mvad.nights.estimates import Stratum, defective_share, evaluate_labels, recall
from mvad.nights.labels import Judged, append_labels, read_labels
from mvad.nights.rows import NightRows
from mvad.storage import to_uri


def sampled(random, n_images, defective, drawn):
    """A stratum of which ``drawn`` of ``n_images`` images, the first ``defective`` of them defective, are labelled."""
    chosen = random.permutation(n_images)[:drawn]
    rows = [{"judgement": "defect" if image < defective else "good", "drawn": "random"} for image in chosen]
    return Stratum(n_images, rows)


@pytest.mark.parametrize("shares", [[0.0], [0.02], [0.3, 0.6], [1.0]])
def test_intervals_of_a_share_hold_the_truth_as_often_as_promised(shares):
    random = np.random.default_rng(0)
    truth, held = np.mean(shares), 0
    for _ in range(300):
        strata = [sampled(random, 1000, round(1000 * share), 60) for share in shares]
        estimate = defective_share(strata)
        assert estimate.low <= estimate.value <= estimate.high
        held += estimate.low <= truth <= estimate.high
    assert held >= 0.93 * 300


def test_intervals_of_recall_hold_the_truth_as_often_as_promised():
    random = np.random.default_rng(1)
    held, values = 0, []
    for _ in range(300):
        flagged, passed = sampled(random, 100, 80, 40), sampled(random, 4000, 20, 300)
        estimate = recall([flagged], [passed])
        values.append(estimate.value)
        held += estimate.low <= 0.8 <= estimate.high
    assert held >= 0.95 * 300
    assert np.median(values) == pytest.approx(0.8, abs=0.1)


def test_no_defect_among_few_images_that_passed_does_not_mean_that_none_is_missed():
    random = np.random.default_rng(2)
    estimate = recall([sampled(random, 10, 10, 10)], [sampled(random, 10_000, 0, 20)])
    assert estimate.value == 1.0
    assert estimate.low < 0.02


def test_the_most_abnormal_images_are_no_sample():
    rows = [{"judgement": "defect", "drawn": "score"}] * 5
    assert math.isnan(defective_share([Stratum(100, rows)]).value)
    assert defective_share([Stratum(5, rows)]) == (1.0, 1.0, 1.0)  # but all there are
    assert defective_share([Stratum(6, rows, n_unsure=1)]).low < 1.0


DAY = datetime.date(2026, 11, 23)
SCORES = {"a": 9.0, "b": 8.0, "c": 7.0, "d": 3.0, "e": 2.0, "f": 1.0}
TRUTH = {"a": "defect", "b": "good", "c": "defect", "d": "defect", "e": "good", "f": "good"}


@pytest.fixture
def nights(tmp_path):
    rows = [
        {"image_id": name, "score": score, "threshold": 6.0, "is_anomaly": score > 6, "verdict": "good"}
        for name, score in SCORES.items()
    ]
    write_rows(tmp_path / f"date={DAY}", "cap", rows)
    write_rows(tmp_path / f"date={DAY + datetime.timedelta(7)}", "cap", rows[:1])
    return tmp_path


def label(nights, names, drawn="score"):
    found = NightRows.open(to_uri(nights)).query("SELECT * FROM rows ORDER BY night").to_pylist()
    rows = {row["image_id"]: row for row in reversed(found)}
    judged = [Judged(rows[name], f"date={DAY}", TRUTH[name], drawn) for name in names]
    append_labels(to_uri(nights), judged, "ann")
    return evaluate_labels(NightRows.open(to_uri(nights)), read_labels(to_uri(nights)))


def test_a_week_that_is_labelled_entirely_is_known(nights):
    week, later, total = label(nights, SCORES).rows()
    assert (week["week"], later["week"], total["week"]) == ("2026-W48", "2026-W49", None)
    assert (week["n_confirmed"], week["n_false_alarms"], week["n_missed"], week["n_labelled"]) == (2, 1, 1, 6)
    assert [week[name] for name in ("precision", "precision_low", "precision_high")] == [pytest.approx(2 / 3)] * 3
    assert [week[name] for name in ("recall", "recall_low", "recall_high")] == [pytest.approx(2 / 3)] * 3
    assert (later["n_images"], later["n_labelled"], later["precision"]) == (1, 0, None)
    assert (total["n_images"], total["n_labelled"]) == (7, 6)


def test_images_that_passed_stand_for_others_by_how_many_were_drawn(nights):
    evaluation = label(nights, ["a", "b", "c"])
    assert evaluation.rows()[0]["recall"] is None
    week = label(nights, ["d", "f"], "random").rows()[0]
    assert week["recall"] == pytest.approx(2 / (2 + 3 / 2))  # each of the two stands for one and a half
    assert week["recall_low"] < week["recall"] < week["recall_high"]


def test_the_threshold_follows_from_what_mistakes_cost(nights):
    evaluation = label(nights, SCORES)
    assert evaluation.thresholds == {"cap": 6.0}
    assert evaluation.cost("cap", 6.0, missed=100, false_alarm=1) == pytest.approx(1000 * 101 / 7)
    assert 2 < evaluation.cheapest_threshold("cap", missed=100, false_alarm=1) < 3
    assert 8 < evaluation.cheapest_threshold("cap", missed=1, false_alarm=100) < 9
    assert label(nights, ["a"]).cheapest_threshold("other", 1, 1) is None
