"""What ``tuning.json`` keeps, and when a choice is made again."""

import pytest

from mvad.errors import UsageError
from mvad.storage import to_uri
from mvad.tuning.record import candidate_rows, read_record, write_record
from mvad.tuning.tune import _is_kept

ENTRY = {
    "tuning_id": "abc",
    "budget": 60.0,
    "chosen": {"image_size": 320},
    "not_tried": [],
    "candidates": [{"changes": {}}, {"changes": {"image_size": 320}}],
}


def test_what_is_written_is_read(tmp_path):
    folder = to_uri(str(tmp_path))
    assert read_record(folder) == {}
    write_record(folder, {"cap": ENTRY})
    assert read_record(folder) == {"cap": ENTRY}
    assert [(row["category"], row["chosen"]) for row in candidate_rows(folder)] == [("cap", False), ("cap", True)]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format": 7}', '{"format": 1, "categories": {"cap": {"tuning_id": 1}}}']
)
def test_a_damaged_record_is_one_sentence(tmp_path, content):
    (tmp_path / "tuning.json").write_text(content)
    with pytest.raises(UsageError, match=r"tuning.json is damaged \(.*\); remove it, or add --new-run"):
        read_record(to_uri(str(tmp_path)))


def test_a_choice_is_kept_unless_time_ran_out_and_there_is_more_now():
    cut_short = {**ENTRY, "not_tried": [{"image_size": 384}]}
    assert _is_kept(ENTRY, "abc", 600.0)
    assert not _is_kept(ENTRY, "other", 60.0)
    assert not _is_kept(None, "abc", 60.0)
    assert _is_kept(cut_short, "abc", 60.0)
    assert not _is_kept(cut_short, "abc", 61.0)
