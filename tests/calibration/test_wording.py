import numpy as np
import pytest

from mvad.calibration import (
    RULES,
    Drift,
    calibration_caveat,
    drift_warning,
    found_line,
    guarantee,
    too_few_warning,
)


@pytest.mark.parametrize(
    ("rule", "rate", "n", "sentence"),
    [
        (
            "conformal",
            0.01,
            209,
            "209 calibration images guarantee a false-alarm rate of 1 % on average (this set: 0.2 to 2.2 %)",
        ),
        (
            "conformal",
            0.01,
            40,
            "40 calibration images guarantee a false-alarm rate of 2.4 % on average (this set: 0.1 to 7.2 %); "
            "1 % needs 99",
        ),
        (
            "conformal",
            0.01,
            1,
            "1 calibration image guarantees a false-alarm rate of 50 % on average (this set: 5 to 95 %); 1 % needs 99",
        ),
        (
            "conformal",
            0.0001,
            20_000,
            "20,000 calibration images guarantee a false-alarm rate of 0.01 % on average (this set: 0.002 to 0.02 %)",
        ),
        (
            "tolerance",
            0.01,
            40,
            "40 calibration images guarantee a false-alarm rate of at most 1 % with 95 % confidence if scores are "
            "normally distributed, and nothing if not",
        ),
        (
            "sigma",
            0.01,
            40,
            "the sigma rule ignores the rate of 1 % and guarantees none: mean + 3 standard deviations, estimated from "
            "40 calibration images, flags 0.1 % of good images if scores are normally distributed, and up to 10 % if "
            "not",
        ),
        ("tolerance", 0.01, 1, "1 calibration image guarantees nothing"),
        *((rule, 0.01, 0, "0 calibration images guarantee nothing") for rule in RULES),
    ],
)
def test_guarantees(rule, rate, n, sentence):
    assert guarantee(rule, rate, n) == sentence


def test_enough_images_need_no_more():
    assert "needs" in guarantee("conformal", 0.01, 98)
    assert "needs" not in guarantee("conformal", 0.01, 99)


@pytest.mark.parametrize(
    ("categories", "n", "rate", "sentence"),
    [
        (
            ["bracket", "perforated", "weave"],
            48,
            0.01,
            "bracket, perforated, weave: 48 good images are too few for 1 % false alarms; expect about 2 % "
            "(0.1 to 6.1 %). 99 or more would give 1 %.",
        ),
        (
            ["bracket"],
            6,
            0.01,
            "bracket: 6 good images are too few for 1 % false alarms; expect about 14.3 % (0.9 to 39.3 %). "
            "99 or more would give 1 %.",
        ),
        (
            ["bracket", "perforated", *"abcdefg"],
            1,
            0.0005,
            "bracket, perforated and 7 other categories: 1 good image is too few for 0.05 % false alarms; expect about "
            "50 % (5 to 95 %). 1,999 or more would give 0.05 %.",
        ),
    ],
)
def test_too_few_images(categories, n, rate, sentence):
    assert too_few_warning(categories, n, rate) == sentence


def test_up_to_five_categories_are_named():
    assert too_few_warning([*"abcde"], 48, 0.01).startswith("a, b, c, d, e: 48 ")
    assert too_few_warning([*"abcdef"], 48, 0.01).startswith("a, b and 4 other categories: 48 ")


@pytest.mark.parametrize(("shift", "side"), [(1.26, "above"), (-1.26, "below")])
def test_drift(shift, side):
    assert drift_warning("bracket", Drift(1_200, 1e-9, 0.45, shift, True)) == (
        "bracket: DRIFT: the whole batch scores differently; check camera and light first. The median of 1,200 images "
        f"is 1.3 robust deviations {side} calibration, and 45 % have p < 0.05 (expected: 5 %); if camera and light are "
        "fine, run mvad update."
    )


@pytest.mark.parametrize(
    ("found", "decided", "sentence"),
    [
        (
            {0.01: (46, 0), 0.1: (122, 0), 0.05: (102, 0)},
            None,
            "weave: at 1 % false alarms 46 of 1,410 defects are found; at 5 % 102; at 10 % 122",
        ),
        (
            {0.01: (46, 51), 0.05: (102, 1)},
            None,
            "weave: at 1 % false alarms (needs 51 more good images) 46 of 1,410 defects are found; "
            "at 5 % (needs 1 more good image) 102",
        ),
        ({0.005: (4, 0)}, 80, "weave: as decided 80 of 1,410 defects are found; at 0.5 % false alarms 4"),
    ],
)
def test_defects_found_at_several_rates(found, decided, sentence):
    assert found_line("weave", 1_410, found, decided) == sentence


SPREAD = np.arange(403, dtype=np.float32)
FRAMES = "its 200 good images are frames of 8 scenes (frames of one scene count once)"


@pytest.mark.parametrize(
    ("n", "record", "rule", "caveat"),
    [
        (48, {"n_train": 48}, "conformal", None),  # too few is said elsewhere
        (48, {"n_train": 48, "n_groups": 48}, "conformal", None),
        (403, {"n_train": 761, "n_groups": 403}, "conformal", None),
        (
            8,
            {"n_train": 200, "n_groups": 8},
            "conformal",
            f"{FRAMES}; 1 % false alarms cannot be promised from 8 (99 needed): expect about 11.1 % (0.6 to 31.2 %)",
        ),
        (8, {"n_train": 200, "n_groups": 8}, "sigma", f"{FRAMES}: the threshold rests on 8 scores"),
        (
            0,
            {"n_train": 200, "n_groups": 1, "options": {"folds": 5}},
            "conformal",
            "no threshold, and so no verdicts: its 200 good images are frames of 1 scene (frames of one scene count "
            "once), too few to calibrate",
        ),
        (
            0,
            {"n_train": 3, "options": {"folds": 5}},
            "conformal",
            "no threshold, and so no verdicts: 3 good images are too few to calibrate",
        ),
        (
            1,
            {"n_train": 1, "options": {"folds": 5}},
            "sigma",
            "no threshold, and so no verdicts: 1 good image is too few to calibrate",
        ),
        (0, {"n_train": 48, "options": {"folds": 0}}, "conformal", None),
    ],
)
def test_what_to_know_of_a_threshold(n, record, rule, caveat):
    assert calibration_caveat(SPREAD[:n] if n else None, record, rule, 0.01) == caveat


def test_calibration_scores_without_spread():
    same = np.full(150, 2.5, np.float32)
    said = "all 150 calibration scores are the same: the threshold says nothing of how good images vary"
    assert calibration_caveat(same, {"n_train": 150, "n_groups": 150}, "conformal", 0.01) == said
    assert calibration_caveat(same, {"n_train": 200, "n_groups": 150}, "conformal", 0.01) == said


def test_a_guarantee_from_scenes_says_so():
    assert guarantee("conformal", 0.01, 8, "scene") == (
        "8 calibration scenes guarantee a false-alarm rate of 11.1 % on average (this set: 0.6 to 31.2 %); 1 % needs 99"
    )
    assert guarantee("conformal", 0.01, 1, "scene").startswith("1 calibration scene guarantees")
