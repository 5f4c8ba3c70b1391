import pytest

from mvad.calibration import RULES, Drift, drift_warning, found_line, guarantee, too_few_warning


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
