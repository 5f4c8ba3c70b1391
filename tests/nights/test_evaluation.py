"""`mvad evaluate` of many nights: what the labels tell, and which thresholds they are for."""

import datetime

import pytest

import mvad
from helpers.score_files import write_rows
from mvad.errors import UsageError
from mvad.nights.labels import Judged, append_labels
from mvad.nights.rows import NightRows
from mvad.storage import to_uri

DAY = datetime.date(2026, 11, 23)
TRUTH = {"a": (9.0, "defect"), "b": (8.0, "good"), "c": (3.0, "defect"), "d": (2.0, "good"), "e": (1.0, "good")}


@pytest.fixture
def nights(tmp_path):
    rows = [
        {"image_id": name, "score": score, "threshold": 6.0, "is_anomaly": score > 6}
        for name, (score, _) in TRUTH.items()
    ]
    write_rows(tmp_path / f"date={DAY}", "cap", rows)
    write_rows(tmp_path / f"date={DAY}", "lid", rows[:1])
    return tmp_path


def label(nights, **otherwise):
    """Label all images of a category with the truth, but for some."""
    found = NightRows.open(to_uri(nights)).query("SELECT * FROM rows WHERE category = 'cap'").to_pylist()
    truth = {name: judgement for name, (_, judgement) in TRUTH.items()} | otherwise
    judged = [Judged(row, f"date={DAY}", truth[row["image_id"]], "score") for row in found]
    append_labels(to_uri(nights), judged, "ann")


def test_precision_and_recall_of_nights(nights, capsys):
    label(nights)
    result = mvad.evaluate(str(nights))
    assert result.exit_code == 0
    week, total = (row for row in result.summary if row["category"] == "cap")
    assert (week["week"], week["precision"], week["recall"]) == ("2026-W48", 0.5, 0.5)
    assert total == week | {"week": None}
    printed = capsys.readouterr().out
    assert "2026-W48" in printed
    assert "50.0% (50.0% to 50.0%)" in printed
    assert "cheapest" not in printed


def test_thresholds_by_cost(nights, capsys):
    label(nights)
    rows = mvad.evaluate(str(nights), cost="missed=100,false-alarm=1").summary
    total = next(row for row in rows if row["category"] == "cap" and row["week"] is None)
    assert (total["threshold"], total["cheapest_threshold"]) == (6.0, 2.5)
    assert total["cost"] == pytest.approx(1000 * 101 / 5)
    assert total["cheapest_cost"] == pytest.approx(1000 * 1 / 5)
    captured = capsys.readouterr()
    assert "--threshold cap=2.5" in captured.out
    assert "lid: a threshold by cost needs labels of both kinds" in captured.err


def test_a_threshold_that_costs_least_is_left_alone(nights, capsys):
    label(nights, b="defect", c="good")
    mvad.evaluate(str(nights), cost={"missed": 1, "false_alarm": 1})
    assert "--threshold" not in capsys.readouterr().out


def test_nights_without_labels_say_how_to_get_some(nights):
    with pytest.raises(UsageError, match=r"no labels in .*; review images with: mvad serve --results"):
        mvad.evaluate(str(nights), quiet=True)


def test_images_are_decided_on_again_one_night_at_a_time(nights):
    with pytest.raises(UsageError, match="one night at a time"):
        mvad.evaluate(str(nights), false_alarm_rate=0.1)


@pytest.mark.parametrize("cost", ["missed=1", "missed=1,false-alarm=x", "missed=-1,false-alarm=1", "100"])
def test_costs_that_are_none(nights, cost):
    with pytest.raises(UsageError, match="missed=100,false-alarm=1"):
        mvad.evaluate(str(nights), cost=cost)
