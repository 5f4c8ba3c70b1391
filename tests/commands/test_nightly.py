"""The date of a night: a retry after midnight, or in another zone, goes on with the night that was begun."""

import datetime
import json

import pytest

import mvad
from mvad import results
from mvad.commands.nightly import choose_date
from mvad.errors import UsageError
from mvad.storage import readable, to_uri

CET = datetime.timezone(datetime.timedelta(hours=1), "CET")
NOW = datetime.datetime(2026, 11, 24, 0, 20, tzinfo=CET)
TODAY = NOW.date()


def begin(out, date, started, dump="/dump", status="running", **content):
    folder = out / f"date={date}"
    folder.mkdir(parents=True)
    run = {"data": dump, "status": status, "started": started.isoformat(timespec="seconds"), **content}
    (folder / "run.json").write_text(json.dumps(run))


def hours_ago(hours):
    return (NOW - datetime.timedelta(hours=hours)).astimezone(datetime.timezone.utc)


def chosen(out, now=NOW, dump="/dump"):
    return choose_date(to_uri(out), dump, now)


def test_without_an_unfinished_night_it_is_today(tmp_path):
    assert chosen(tmp_path) == (TODAY, " (today in the time zone of this machine, CET)")


@pytest.mark.parametrize(
    ("date", "content"),
    [
        ("2026-11-23", {}),
        ("2026-11-22", {}),  # begun by a machine far to the west
        ("2026-11-25", {}),  # and far to the east
        ("2026-11-23", {"status": "done", "exit_code": 3}),
        ("2026-11-23", {"status": "done", "exit_code": 4}),  # a camera may still deliver
    ],
)
def test_a_night_that_has_not_ended_goes_on(tmp_path, date, content):
    begin(tmp_path, date, hours_ago(2), **content)
    day, reason = chosen(tmp_path)
    assert day.isoformat() == date
    assert reason == " (begun at 2026-11-23 22:20 and not done)"


@pytest.mark.parametrize(
    ("hours", "content"),
    [
        (2, {"status": "done", "exit_code": 0}),
        (2, {"status": "deciding", "exit_code": 3}),
        (2, {"dump": "/another"}),
        (23.9, {}),  # this is the next night
        (23.9, {"started_again": 1}),
    ],
)
def test_any_other_night_has_ended(tmp_path, hours, content):
    started, again = hours_ago(hours), content.pop("started_again", None)
    if again is not None:
        content = {"earlier_runs": [{"started": started.isoformat()}]}
        started = hours_ago(again)
    begin(tmp_path, "2026-11-23", started, **content)
    assert chosen(tmp_path)[0] == TODAY


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"data": "/dump", "status": "running", "started": "yesterday"}', "7"]
)
def test_a_damaged_night_is_none(tmp_path, content):
    (tmp_path / "date=2026-11-23").mkdir()
    (tmp_path / "date=2026-11-23/run.json").write_text(content)
    assert chosen(tmp_path)[0] == TODAY


def test_the_last_of_two_goes_on(tmp_path):
    begin(tmp_path, "2026-11-22", hours_ago(15))
    begin(tmp_path, "2026-11-23", hours_ago(2))
    assert chosen(tmp_path)[0].isoformat() == "2026-11-23"


@pytest.mark.parametrize("date", [None, "2026-11-20"])
def test_a_date_that_is_given_always_wins(tmp_path, monkeypatch, date):
    started = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=1)
    today = datetime.datetime.now().astimezone().date()
    begin(tmp_path, today - datetime.timedelta(days=1), started, readable(to_uri(tmp_path / "dump")))
    asked = []
    monkeypatch.setattr("mvad.commands.score.score_missing", lambda dump, models, out, *_, **__: asked.append(out))
    mvad.nightly(str(tmp_path / "dump"), "models", str(tmp_path), date, quiet=True)
    expected = date or (today - datetime.timedelta(days=1)).isoformat()
    assert [readable(out) for out in asked] == [str(tmp_path / f"date={expected}")]


def test_what_is_no_date_is_refused(tmp_path):
    with pytest.raises(UsageError, match="'tomorrow' is not a date"):
        mvad.nightly(str(tmp_path), "models", str(tmp_path), "tomorrow")


def test_rows_say_their_night_when_they_were_written_and_by_which_model(base_run, tiles, ray_local, tmp_path):
    """Also where a night goes on whose files have been joined in the meantime."""
    models, dump = str(base_run[0] / "models"), str(tiles / "alpha/test")
    nights, day = tmp_path / "nights", datetime.date(2026, 11, 23)
    options = {"category": "alpha", "actors": 1, "batch_size": 3, "expect": "none", "max_errors": "100%", "quiet": True}
    before = datetime.datetime.now(datetime.timezone.utc)

    def night():
        mvad.nightly(dump, models, str(nights), day.isoformat(), **options)
        return results.read_scores(to_uri(nights / f"date={day}"))

    rows = night()
    after = datetime.datetime.now(datetime.timezone.utc)
    assert {*rows["night"].to_pylist()} == {day}
    assert {*rows["method"].to_pylist()} == {"patchcore"}
    assert {*rows["backbone"].to_pylist()} == {"efficientnet_lite0"}
    assert all(before <= time <= after for time in rows["scored_at"].to_pylist())
    assert mvad.compact(str(nights), quiet=True).left_alone == []
    assert len(list(nights.rglob("*.parquet"))) == 2  # with the summary
    assert night().equals(rows)
    results.store.drop_rows(to_uri(nights / f"date={day}"), rows["image_id"].to_pylist()[:1])
    again = night()
    assert again["image_id"].equals(rows["image_id"])
    assert again.slice(1).equals(rows.slice(1))
    assert again["scored_at"][0].as_py() >= after
    del options["expect"]
    mvad.score(dump, models, str(tmp_path / "scored"), **options)
    scored = results.read_scores(to_uri(tmp_path / "scored"))
    assert scored["night"].null_count == len(scored) == len(rows)
    assert scored["method"].equals(rows["method"])
