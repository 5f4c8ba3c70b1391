"""Labels: nothing that a reviewer said is lost, and the last word counts."""

import datetime
from concurrent.futures import ThreadPoolExecutor

import pytest

from mvad.nights.labels import FOLDER, LABELS, Judged, append_labels, current_labels, read_labels
from mvad.storage import to_uri


def judged(name, judgement, **facts):
    row = {"image_id": name, "uri": f"file:///d/{name}", "category": "cap", "score": 1.5, "verdict": "anomalous"}
    row |= {"night": datetime.date(2026, 11, 23), "model_id": "m", "run_id": "r"}
    return Judged(row, "date=2026-11-23", judgement, **{"drawn": "score", **facts})


def current(root):
    return {row["image_id"]: row["judgement"] for row in current_labels(read_labels(root).table).to_pylist()}


def test_the_last_label_of_an_image_counts(tmp_path):
    root = to_uri(tmp_path)
    assert current(root) == {}
    append_labels(root, [judged("a", "good"), judged("b", "unsure")], "ann")
    append_labels(root, [judged("a", "defect", defect="scratch")], "bob")
    assert current(root) == {"a": "defect", "b": "unsure"}
    append_labels(root, [judged("a", None), judged("c", "good")], "ann")
    assert current(root) == {"b": "unsure", "c": "good"}
    table = read_labels(root).table
    assert table.schema == LABELS
    assert table["reviewer"].to_pylist() == ["ann", "ann", "bob", "ann", "ann"]
    assert table["defect"].to_pylist() == [None, None, "scratch", None, None]
    assert {*table["model_id"].to_pylist()} == {"m"}


def test_the_same_image_of_another_night_is_another(tmp_path):
    root = to_uri(tmp_path)
    append_labels(root, [judged("a", "good"), judged("a", "defect")._replace(folder="date=2026-11-24")], "ann")
    rows = current_labels(read_labels(root).table).to_pylist()
    assert [(row["folder"], row["judgement"]) for row in rows] == [
        ("date=2026-11-23", "good"),
        ("date=2026-11-24", "defect"),
    ]


def test_several_reviewers_at_once_lose_no_label(tmp_path):
    root = to_uri(tmp_path)
    names = [str(number) for number in range(60)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: append_labels(root, [judged(name, "good")], f"reviewer {name}"), names))
    assert current(root) == dict.fromkeys(names, "good")


def test_a_damaged_file_costs_its_labels_alone(tmp_path):
    root = to_uri(tmp_path)
    append_labels(root, [judged("a", "good")], "ann")
    (tmp_path / FOLDER / "x.parquet").write_bytes(b"PAR1")
    labels = read_labels(root)
    assert labels.table["image_id"].to_pylist() == ["a"]
    (problem,) = labels.problems
    assert str(tmp_path / FOLDER / "x.parquet") in problem
    assert "\n" not in problem


@pytest.mark.parametrize("facts", [{"judgement": "bad"}, {"drawn": "somehow"}])
def test_other_words_are_refused_and_nothing_is_written(tmp_path, facts):
    with pytest.raises(ValueError, match="no such judgement"):
        append_labels(to_uri(tmp_path), [judged("a", "good")._replace(**facts)], "ann")
    assert not (tmp_path / FOLDER).exists()
