"""The file for node_exporter is what Prometheus's own parser reads."""

import datetime
import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from helpers.nights import night, row
from mvad.alarms.prometheus import checked_file, metrics, write_metrics
from mvad.errors import UsageError
from mvad.results.printed import STATES
from mvad.storage import to_uri


def samples(content):
    """The values by name and labels; each metric must be a gauge, and named once."""
    families = list(text_string_to_metric_families(content.decode()))
    assert {family.type for family in families} == {"gauge"}
    assert len({family.name for family in families}) == len(families)
    found = {}
    for family in families:
        for sample in family.samples:
            key = (sample.name, *sample.labels.values())
            assert key not in found
            found[key] = sample.value
    return found


def test_each_category_has_its_gauges():
    values = samples(metrics(night()))
    date = datetime.datetime.fromtimestamp(values["mvad_night_date_timestamp_seconds",], datetime.timezone.utc)
    assert date.isoformat() == "2026-11-23T00:00:00+00:00"
    assert values["mvad_night_exit_code",] == 3
    assert values["mvad_night_errors",] == 3
    of_weave = {key[0]: value for key, value in values.items() if key[1:] == ("weave",)}
    assert of_weave == {
        "mvad_category_images": 20,
        "mvad_category_flagged": 2,
        "mvad_category_uncertain": 1,
        "mvad_category_errors": 0,
    }
    assert values["mvad_category_drifted", "plate"] == 1
    assert values["mvad_category_errors", "ring"] == 3
    assert ("mvad_category_flagged", "ring") not in values
    assert values["mvad_category_images", "cam4"] == 0
    expected = {"bracket": "OK", "plate": "DRIFT", "ring": "NOT SCORED", "weave": "LOOK", "cam4": "NO IMAGES"}
    for category, state in expected.items():
        assert {word: values["mvad_category_state", category, word] for word in STATES} == {
            word: float(word == state) for word in STATES
        }
    assert not any(map(math.isnan, values.values()))


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "a\\nb", '{x="y"} 1', "# HELP x", "größe 7", "", " "])
def test_any_name_of_a_category_comes_back(name):
    values = samples(metrics(night(rows=[row(name)], missing=[])))
    assert values["mvad_category_images", name] == 20


def test_more_categories_than_a_document_holds_have_gauges(monkeypatch):
    monkeypatch.setattr("mvad.alarms.document.MAX_CATEGORIES", 3)
    values = samples(metrics(night()))
    assert sum(key[0] == "mvad_category_images" for key in values) == 5


def test_a_night_that_failed_has_an_exit_code_and_no_category():
    values = samples(metrics(night(exit_code=1, failure="disk full", rows=[], missing=[], errors=[])))
    assert values.keys() == {("mvad_night_date_timestamp_seconds",), ("mvad_night_exit_code",)}


def test_the_file_is_replaced_whole(tmp_path):
    file = tmp_path / "mvad.prom"
    file.write_text("old")
    before = file.stat().st_ino
    write_metrics(checked_file(str(file), to_uri(tmp_path / "out")), night())
    assert file.stat().st_ino != before
    assert samples(file.read_bytes()) == samples(metrics(night()))
    assert [one.name for one in tmp_path.iterdir()] == ["mvad.prom"]


def test_a_file_that_nobody_would_read_or_that_would_spoil_the_results_is_refused(tmp_path):
    out = to_uri(tmp_path / "out")
    with pytest.raises(UsageError, match=r"must end in \.prom"):
        checked_file(str(tmp_path / "mvad.txt"), out)
    with pytest.raises(UsageError, match="lies in the folder of the results"):
        checked_file(str(tmp_path / "out/mvad.prom"), out)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written to"):
        checked_file(str(tmp_path / "file/mvad.prom"), out)
