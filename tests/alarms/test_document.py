"""What programs get of a night: verdicts as they are printed, of bounded size."""

import json

import pytest

from helpers.nights import night, row
from mvad.alarms.document import MAX_ERRORS, MAX_TEXT, document
from mvad.console import as_document


def test_each_category_has_its_printed_state_and_its_numbers():
    verdicts = {verdict.pop("category"): verdict for verdict in document(night())["categories"]}
    nothing = {"flagged": 0, "uncertain": 0, "errors": 0, "drift": None, "note": None}
    unknown = dict.fromkeys(nothing)
    drift = {"drifted": True, "median_shift": 1.5, "p_value": 1e-6}
    note = "no test image could be scored; the first: cut off"
    assert verdicts == {
        "bracket": {"state": "OK", "images": 20} | nothing,
        "plate": {"state": "DRIFT", "images": 20} | nothing | {"drift": drift},
        "ring": {"state": "NOT SCORED", "images": 3} | unknown | {"uncertain": 0, "errors": 3, "note": note},
        "weave": {"state": "LOOK", "images": 20} | nothing | {"flagged": 2, "uncertain": 1},
        "cam4": {"state": "NO IMAGES", "images": 0} | unknown,
    }


def test_without_a_threshold_nothing_is_said_to_be_flagged():
    (verdict,) = document(night(rows=[row("a", threshold=None, n_uncertain=None)], missing=[]))["categories"]
    assert (verdict["state"], verdict["flagged"], verdict["uncertain"]) == ("NO VERDICT", None, None)


def test_of_many_categories_those_that_need_somebody_are_named(monkeypatch):
    monkeypatch.setattr("mvad.alarms.document.MAX_CATEGORIES", 3)
    content = document(night())
    assert content["n_categories"] == 5
    assert [verdict["state"] for verdict in content["categories"]] == ["NO IMAGES", "NOT SCORED", "DRIFT"]


def test_errors_are_counted_and_a_few_are_named_in_short():
    errors = [{"image_id": f"{n}.png", "category": "a", "split": "test", "error": "x" * 9999} for n in range(500)]
    content = document(night(errors=errors, rows=[row("a", n_scored=0, note="y" * 9999)]))
    assert content["n_errors"] == 500
    assert [error["image_id"] for error in content["errors"]] == [f"{n}.png" for n in range(MAX_ERRORS)]
    assert {len(error["error"]) for error in content["errors"]} == {MAX_TEXT}
    assert len(content["categories"][0]["note"]) == MAX_TEXT


def test_the_worst_image_comes_with_its_category_and_threshold():
    (worst,) = document(night())["worst"]
    assert worst == {
        "image_id": "weave/d2.png",
        "category": "weave",
        "score": 25.0,
        "p_value": 0.02,
        "threshold": 2.0,
        "verdict": "anomalous",
    }


@pytest.mark.parametrize("text", ["\ud800", "\x1b[31m", "\u202e", '"', "\n"])
def test_any_text_and_number_is_json(text):
    facts = {text: {"most_anomalous": [{"image_id": text, "score": 1.0, "p_value": float("nan"), "verdict": None}]}}
    sent = as_document(document(night(rows=[row(text)], facts=facts))).encode()
    content = json.loads(sent)
    assert content["categories"][0]["category"] == text
    assert content["worst"][0]["p_value"] is None
    assert b"\x1b" not in sent
