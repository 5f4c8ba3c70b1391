"""What is printed after a run: found, missed and false alarms, or a night's one table, and nothing that misleads."""

import numpy as np
import pytest

import mvad
from helpers.synthetic import finish, write_category
from mvad import results
from mvad.console import Reporter
from mvad.results.printed import MAX_LINES, print_night, print_summary, state
from mvad.results.schema import SUMMARY
from mvad.storage import to_uri

CALIBRATION = np.arange(200, dtype=np.float32)  # 198 is flagged at 1 %, 190 at 5 %, 180 at 10 %


def summary_row(category="cap", **values):
    counts = {"n_train": 250, "n_good": 20, "n_defect": 40, "n_error": 0, "n_scored": 60, "n_flagged": 11}
    found = {"n_found": 10, "n_false_alarms": 1, "n_uncertain": 0, "threshold": 1.0, "image_auroc": 0.9401}
    return dict.fromkeys(SUMMARY.names) | {"category": category, **counts, **found, **values}


def unlabelled_row(category="cap", **values):
    nothing = dict.fromkeys(("n_found", "n_false_alarms", "image_auroc"))
    return summary_row(category, n_good=0, n_defect=0, note="the images carry no labels", **nothing) | values


def printed(capsys, rows, categories=None, print_table=print_summary, **options):
    print_table(Reporter(), [*rows, rows[0] | {"category": "mean"}], categories or {}, "file:///results", **options)
    return capsys.readouterr().out


def lines_of(text):
    return [line.split() for line in text.splitlines()]


def test_labelled_images_show_what_is_found_and_what_is_missed(capsys):
    out = printed(capsys, [summary_row(note="no pixel metrics: why")])
    header, cells, note = out.splitlines()
    assert header.split("  ")[0] == "category"
    assert "learnt from  good  defective  found  missed  false alarms  errors  AUROC" in header
    assert cells.split() == ["cap", "250", "20", "40", "10", "30", "1", "0", "0.940"]
    assert note == "cap: no pixel metrics: why"
    assert "F1" not in out


def test_without_a_threshold_nothing_is_found_or_missed(capsys):
    out = printed(capsys, [summary_row(threshold=None, n_found=None, n_false_alarms=None)])
    assert lines_of(out)[1] == ["cap", "250", "20", "40", "-", "-", "-", "0", "0.940"]


def test_several_categories_have_their_sum(capsys):
    rows = [summary_row("cap"), summary_row("lid")]
    out = printed(capsys, rows)
    assert [line[0] for line in lines_of(out)] == ["category", "cap", "lid", "all"]


def outcome(rate, found, needed=0):
    return {"rate": rate, "n_flagged": found, "n_found": found, "n_false_alarms": 0, "n_needed": needed}


def test_a_line_says_what_other_rates_would_find(capsys):
    facts = {"false_alarm_rate": 0.01, "outcomes": [outcome(0.01, 10), outcome(0.05, 20), outcome(0.1, 30)]}
    out = printed(capsys, [summary_row()], {"cap": facts})
    assert "cap: at 1 % false alarms 10 of 40 defects are found; at 5 % 20; at 10 % 30\n" in out
    out = printed(capsys, [summary_row(n_found=12)], {"cap": facts})  # decided by another rule
    assert "cap: as decided 12 of 40 defects are found; at 1 % false alarms 10; at 5 % 20; at 10 % 30\n" in out


def test_categories_that_miss_most_come_first_and_the_rest_is_counted(capsys):
    names = [f"part{number:02}" for number in range(MAX_LINES + 3)]
    facts = {"false_alarm_rate": 0.01, "outcomes": [outcome(0.01, 10)]}
    rows = [summary_row(name, n_found=35 - number) for number, name in enumerate(names)]
    lines = [line for line in printed(capsys, rows, dict.fromkeys(names, facts)).splitlines() if "defects" in line]
    assert [line.split(":")[0] for line in lines] == names[: -MAX_LINES - 1 : -1]
    out = printed(capsys, rows, dict.fromkeys(names, facts))
    assert out.splitlines()[-1] == "and 3 categories that find more: see run.json"


def test_pixel_metrics_have_a_line(capsys):
    out = printed(capsys, [summary_row(pixel_auroc=0.983, pixel_ap=0.6, pixel_aupro=0.9)])
    assert out.splitlines()[2] == "pixel AUROC 0.983, AP 0.600, AUPRO 0.900"


def image(name, score, p_value, verdict="anomalous"):
    return {"image_id": name, "score": score, "p_value": p_value, "verdict": verdict}


def test_unlabelled_images_show_what_is_flagged_and_what_to_look_at(capsys):
    """P-values decide on the order over categories, then how far a score exceeds its threshold."""
    rows = [unlabelled_row("cap"), unlabelled_row("lid", threshold=100.0, drifted=True, drift_median_shift=-1.26)]
    categories = {
        "cap": {"most_anomalous": [image(f"cap/{n}.png", 3 - n / 10, 0.01 + 0.01 * (n > 2)) for n in range(5)]},
        "lid": {"most_anomalous": [image("lid/0.png", 250, 0.01), image("lid/1.png", 90, 0.2, "good")]},
    }
    out = printed(capsys, rows, categories)
    lines = lines_of(out)
    assert " ".join(lines[0]) == "category learnt from images flagged rate errors drift"
    assert lines[1] == ["cap", "250", "60", "11", "18.3%", "0", "-"]
    assert lines[2] == ["lid", "250", "60", "11", "18.3%", "0", "-1.3"]
    assert [line[0] for line in lines[4:9]] == ["cap/0.png", "cap/1.png", "cap/2.png", "lid/0.png", "cap/3.png"]
    assert lines[4][1:] == ["3", "0.0100", "anomalous"]
    assert out.splitlines()[-1] == "to see them: mvad report /results"
    assert "no labels" not in out


def test_labelled_and_unlabelled_categories_have_a_table_each(capsys):
    out = printed(capsys, [summary_row("cap"), unlabelled_row("lid")])
    assert [line[0] for line in lines_of(out)] == ["category", "cap", "category", "lid"]
    out = printed(capsys, [unlabelled_row(n_scored=0, n_flagged=0, note="no test images")])
    assert out.splitlines()[-1] == "cap: no test images"


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({}, "LOOK"),
        ({"n_flagged": 0}, "OK"),
        ({"n_flagged": 0, "n_uncertain": 3}, "LOOK"),
        ({"drifted": True, "drift_median_shift": 2.0}, "DRIFT"),
        ({"threshold": None, "n_uncertain": None}, "NO VERDICT"),
        ({"n_scored": 0, "n_flagged": 0, "drifted": True}, "NOT SCORED"),
    ],
)
def test_the_state_of_a_category_at_night(values, word):
    assert state(unlabelled_row(**values)) == word


def test_a_night_is_one_table(capsys):
    rows = [
        unlabelled_row("cam1", n_flagged=3, n_scored=200, n_uncertain=3),
        unlabelled_row("cam2", n_flagged=0, drifted=False),
        unlabelled_row(
            "cam3", n_scored=0, n_flagged=0, n_error=4, note="no test image could be scored; the first: why"
        ),
    ]
    categories = {"cam1": {"uncertain_threshold": 0.5}}
    out = printed(capsys, rows, categories, print_night, missing=["cam4"])
    lines = lines_of(out)
    assert lines[0] == ["category", "state", "images", "flagged", "rate", "uncertain", "errors", "drift", "note"]
    assert lines[1] == ["cam1", "LOOK", "200", "3", "1.5%", "3", "0", "-"]
    assert lines[2] == ["cam2", "OK", "60", "0", "0.0%", "0", "0", "no"]
    assert lines[3][:9] == ["cam3", "NOT", "SCORED", "4", "-", "-", "0", "4", "-"]
    assert "no test image could be scored; the first: why" in " ".join(out.split())
    assert ["cam4", "NO", "IMAGES", "0", *"-----"] in lines
    for word in ("AUROC", "train", "img/s"):
        assert word not in out


def test_what_is_printed_is_read_from_the_results(tmp_path, capsys):
    """At 5 %, 11 of 30 defects are above 190; the table and the line agree, and evaluating costs no scoring."""
    rows = [{"image_id": f"cap/{n}.png", "uri": "file:///x", "label": 0, "score": n - 0.5} for n in range(20)]
    rows += [{"image_id": f"cap/d{n}.png", "uri": "file:///x", "label": 1, "score": 171.5 + n} for n in range(30)]
    finish(tmp_path, {"cap": write_category(tmp_path, "cap", rows, calibration=CALIBRATION, threshold=198.0)})
    mvad.evaluate(str(tmp_path), false_alarm_rate=0.05)
    out = capsys.readouterr().out
    assert lines_of(out)[1] == ["cap", "8", "20", "30", "11", "19", "0", "0", "1.000"]
    assert "cap: at 1 % false alarms 3 of 30 defects are found; at 5 % 11; at 10 % 21\n" in out
    mvad.evaluate(str(tmp_path), threshold="185")
    out = capsys.readouterr().out
    assert "cap: as decided 16 of 30 defects are found; at 1 % false alarms 3; at 5 % 11; at 10 % 21\n" in out
    assert results.read_finished_run(to_uri(tmp_path))["categories"]["cap"]["threshold_rule"] == "fixed"


def test_the_widest_tables_fit_in_a_hundred_columns(capsys):
    big = dict.fromkeys(
        ("n_train", "n_good", "n_defect", "n_error", "n_found", "n_false_alarms", "n_uncertain"), 99_999
    )
    big |= {"n_scored": 999_999, "n_flagged": 99_999, "drifted": True, "drift_median_shift": -12.5, "threshold": 1.0}
    name = "a_rather_long_name_of_a_part"
    categories = {name: {"uncertain_threshold": 1.0}}
    for print_table, row in (
        (print_summary, summary_row),
        (print_summary, unlabelled_row),
        (print_night, unlabelled_row),
    ):
        values = big if row is summary_row else big | {"n_good": 0, "n_defect": 0}
        out = printed(capsys, [row(name, **values)], categories, print_table)
        assert max(map(len, out.splitlines())) <= 100
        assert "…" not in out
        assert "99,999" in out
        assert "".join(line.split("  ")[0].strip() for line in out.splitlines()[1:]).startswith(name[:9])
