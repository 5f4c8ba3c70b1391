"""The list of flagged images is bounded, in a fair order, and says what it leaves out."""

import re

import numpy as np
import pyarrow as pa
import pytest

import mvad
from helpers.synthetic import finish, write_category
from mvad.calibration import DecisionRule
from mvad.reports import flagged


def write(out, name, scores, threshold, **row):
    rows = [
        {"image_id": f"{name}/{number}.png", "uri": f"file:///d/{name}/{number}.png", **row}
        for number in range(len(scores))
    ]
    for one, score in zip(rows, scores, strict=True):
        one["score"] = score
    rule = DecisionRule("0" * 64, np.arange(99, dtype=np.float32), "conformal", threshold, uncertain_threshold=1.0)
    return write_category(out, name, rows, rule=rule)


def test_categories_are_compared_by_their_scores_in_thresholds(tmp_path):
    write(tmp_path, "a", [0.5, 1.5, 30.0], 10.0)
    write(tmp_path, "b", [2.0, 8.0], 2.0)
    write(tmp_path, "c", [7.0], -1.0)
    parts = [flagged.read_flagged(tmp_path.as_uri(), name) for name in "abc"]
    assert [part.n_images for part in parts] == [2, 2, 1]
    rows = flagged.merge(parts).rows
    assert rows["image_id"].to_pylist() == ["b/1.png", "a/2.png", "b/0.png", "a/1.png", "c/0.png"]
    assert rows["excess"].to_pylist() == [4.0, 3.0, 1.0, 0.15, None]  # no comparison with a negative threshold
    assert rows["verdict"].to_pylist() == ["anomalous", "anomalous", "uncertain", "uncertain", "anomalous"]


def test_folders_categories_and_defects_are_embedded_once(tmp_path):
    write(tmp_path, "a", [11.0, 12.0], 10.0, label=1, defect="dent")
    part = flagged.read_flagged(tmp_path.as_uri(), "a")
    uris = pa.array(["file:///d/a/1.png", "s3://key:secret@bucket/elsewhere.png"])
    rows = part.rows.set_column(part.rows.schema.get_field_index("uri"), "uri", uris)
    data = flagged.as_data(part._replace(rows=rows.set_column(0, "image_id", pa.array(["1.png", "2.png"]))))
    assert data["folders"] == ["/d/a"]
    assert [row[:6] for row in data["rows"]] == [
        ["1.png", 0, 0, 0, 1, 0],
        ["2.png", "s3://bucket/elsewhere.png", 0, 0, 1, 0],
    ]
    assert (data["categories"], data["defects"]) == (["a"], ["dent"])


@pytest.mark.parametrize(
    ("limit", "value"), [("MAX_LISTED", 4), ("MAX_LISTED_BYTES", 4 * len("a/1.pngfile:///d/a/1.png"))]
)
def test_what_a_page_cannot_hold_is_left_out_and_counted(tmp_path, monkeypatch, limit, value):
    monkeypatch.setattr(flagged, limit, value)
    finish(tmp_path, {"a": write(tmp_path, "a", np.arange(11.0, 19.0), 10.0)})
    mvad.report(str(tmp_path), quiet=True)
    text = (tmp_path / "report.html").read_text()
    assert "4 of 8 are left out" in text
    section = re.search('<section class="flagged".*?</section>', text, re.S)[0]
    assert re.findall(r'class="id">([^<]*)<', section) == ["a/7.png", "a/6.png", "a/5.png", "a/4.png"]


def test_results_without_flagged_images_or_without_a_threshold(tmp_path):
    finish(tmp_path, {"a": write(tmp_path, "a", [0.1, 0.2], 10.0)})
    mvad.report(str(tmp_path), quiet=True)
    assert "No image is flagged." in (tmp_path / "report.html").read_text()
    rows = [{"image_id": "x", "uri": "file:///x", "score": 1.0}]
    finish(tmp_path / "other", {"a": write_category(tmp_path / "other", "a", rows)})
    mvad.report(str(tmp_path / "other"), quiet=True)
    assert "Flagged images" not in (tmp_path / "other/report.html").read_text()
