"""Images that arrive while a folder is watched get the rows of `mvad score`, each once, in the folder of the night."""

import datetime
import json
import os
import shutil
import threading
from contextlib import contextmanager

import pytest
from ray.exceptions import RayActorError

import mvad
from helpers.waits import wait_until
from mvad import results
from mvad.calibration import Drift
from mvad.errors import UsageError
from mvad.options import WatchOptions
from mvad.results.result import EXIT_DONE, EXIT_TOO_MANY_ERRORS
from mvad.storage import to_uri
from mvad.watching import Watch
from mvad.watching.night import PROCESS_ENDED, Night
from mvad.watching.warm import WarmPool

ZONE = datetime.timezone(datetime.timedelta(hours=1), "CET")
NOW = datetime.datetime.now(ZONE)
DAY = NOW.date().isoformat()
NEXT_DAY = (NOW + datetime.timedelta(days=1)).date().isoformat()
OF_SCORE = {"actors": 1, "maps": "all", "max_errors": "50%", "quiet": True}
SCORING = OF_SCORE | {"expect": "none"}
WATCHING = SCORING | {"interval": 0.05, "settle": 0.02}


class Clock:
    """A clock that a test sets."""

    def __init__(self):
        self.time = NOW

    def __call__(self):
        return self.time


def rows_of(folder):
    """Rows by image id; none if there are no results yet."""
    try:
        rows = results.read_scores(to_uri(folder)).to_pylist()
    except UsageError:
        return {}
    assert len({row["image_id"] for row in rows}) == len(rows)
    return {row["image_id"]: row for row in rows}


PASSING = ("run_id", "uri", "scored_at", "night")


def outcomes(rows):
    """Rows without what may differ between runs of two copies of a folder."""
    return {
        name: {column: value for column, value in row.items() if column not in PASSING} for name, row in rows.items()
    }


def record(folder):
    return json.loads((folder / "run.json").read_text())


class Watching:
    """A watch in a thread of its own; its result and its night's folder."""

    def __init__(self, folder, models, options, clock):
        self.dump, self.night, self.stop = folder / "dump", folder / f"nights/date={DAY}", threading.Event()
        self.dump.mkdir(exist_ok=True)
        places = (str(self.dump), str(models), str(folder / "nights"))
        self.watch = Watch(*places, WatchOptions(**WATCHING | options), stop=self.stop, now=clock)
        self.result = self.error = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        try:
            self.result = self.watch.run()
        except Exception as error:
            self.error = error

    def wait(self, condition, what):
        wait_until(lambda: condition() or not self.thread.is_alive(), what, seconds=60)
        if self.error is not None:
            raise self.error
        assert condition()

    def wait_for_rows(self, *names, night=None):
        self.wait(lambda: {*names} <= rows_of(night or self.night).keys(), f"rows of {', '.join(names)}")

    def end(self):
        self.stop.set()
        self.thread.join()
        if self.error is not None:
            raise self.error


@contextmanager
def watching(folder, models, clock=None, **options):
    one = Watching(folder, models, options, clock or Clock())
    try:
        yield one
    finally:
        one.end()


def deliver(source, dump, *names):
    """Copy images as they arrive: under their names, with their time, each at once."""
    for name in names:
        put(source / name, dump / name)


def put(file, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}")  # hidden: no listing shows it
    shutil.copy2(file, beside)
    os.replace(beside, target)


@pytest.fixture(scope="module")
def models(base_run):
    return base_run[0] / "models"


@pytest.fixture(scope="module")
def source(tiles, tmp_path_factory):
    """The test images of both categories, as they arrive."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("alpha", "beta"):
        shutil.copytree(tiles / name / "test", folder / name)
    return folder


@pytest.fixture(scope="module")
def expected(source, models, tmp_path_factory):
    """Rows of these images by `mvad score`."""
    out = tmp_path_factory.mktemp("expected") / "out"
    mvad.score(str(source), str(models), str(out), layout="plain", **OF_SCORE)
    return rows_of(out)


def test_what_arrives_gets_the_rows_of_score_and_nightly_has_nothing_to_do(source, expected, models, tmp_path, capsys):
    with watching(tmp_path, models, quiet=False) as watch:
        for name in ("alpha/good/000.png", "beta/spot/001.png"):
            deliver(source, watch.dump, name)
            watch.wait_for_rows(name)
        assert record(watch.night)["status"] == "running"
        assert not (watch.night / "_SUCCESS").exists()
        deliver(source, watch.dump, *expected)
        watch.wait_for_rows(*expected)
    assert outcomes(rows_of(watch.night)) == outcomes(expected)
    content = record(watch.night)
    assert (content["status"], content["command"], content["n_rows"]) == ("done", "score", len(expected))
    assert (watch.night / "_SUCCESS").exists()
    assert watch.result.exit_code == EXIT_DONE
    assert [row["category"] for row in watch.result.summary] == ["alpha", "beta", "mean"]
    printed = capsys.readouterr().out
    assert "  1 image, " in printed
    assert " flagged, 0 errors, slowest " in printed
    before = (watch.night / "run.json").read_text()
    mvad.nightly(str(watch.dump), str(models), str(tmp_path / "nights"), DAY, **SCORING)
    assert (watch.night / "run.json").read_text() == before
    with watching(tmp_path, models) as watch:
        deliver(source, watch.dump, "beta/good/000.png")
    assert (watch.night / "run.json").read_text() == before


def test_a_watch_goes_on_with_what_is_missing(source, expected, models, tmp_path):
    """As after a kill: the record says that it runs, and rows are missing; nightly has written some of the others."""
    first, *others = expected
    deliver(source, tmp_path / "dump", first)
    mvad.nightly(str(tmp_path / "dump"), str(models), str(tmp_path / "nights"), DAY, **SCORING)
    night = tmp_path / f"nights/date={DAY}"
    for name in ("_SUCCESS", "summary.json", "summary.parquet"):
        (night / name).unlink()
    (night / "run.json").write_text(json.dumps({**record(night), "status": "running"}))
    deliver(source, tmp_path / "dump", *others[:3])
    with watching(tmp_path, models) as watch:
        watch.wait_for_rows(first, *others[:3])
    with watching(tmp_path, models) as watch:
        deliver(source, watch.dump, *others)
        watch.wait_for_rows(*expected)
    rows = rows_of(night)
    assert outcomes(rows) == outcomes(expected)
    assert len({row["run_id"] for row in rows.values()}) == len(record(night)["earlier_runs"]) + 1 == 3
    assert record(night)["status"] == "done"


def test_a_broken_file_is_an_error_row_until_it_is_mended(source, expected, models, tmp_path, monkeypatch):
    whole, broken = "alpha/good/000.png", "alpha/spot/001.png"
    tries = []
    original = Night.score

    def score(night, images, *, again):
        tries.extend(images["image_id"].to_pylist())
        return original(night, images, again=again)

    monkeypatch.setattr(Night, "score", score)
    with watching(tmp_path, models) as watch:
        (watch.dump / broken).parent.mkdir(parents=True)
        (watch.dump / broken).write_bytes((source / broken).read_bytes()[:300])
        watch.wait_for_rows(broken)
        assert rows_of(watch.night)[broken]["status"] == "error"
        deliver(source, watch.dump, whole)
        watch.wait_for_rows(whole)
        assert tries == [broken, whole]
        deliver(source, watch.dump, broken)
        watch.wait(lambda: rows_of(watch.night).get(broken, {}).get("status") == "ok", "the row of the mended file")
        put(source / "beta/good/001.png", watch.dump / whole)
        score_before = expected[whole]["score"]
        watch.wait(lambda: rows_of(watch.night).get(whole, {}).get("score", score_before) != score_before, "a new row")
    assert tries == [broken, whole, broken, whole]
    rows = rows_of(watch.night)
    assert rows.keys() == {whole, broken}
    assert outcomes(rows)[broken] == outcomes(expected)[broken]
    assert record(watch.night)["n_rows"] == 2
    assert not watch.result.errors


def test_at_midnight_a_night_ends_and_another_begins(source, expected, models, tmp_path):
    clock, (first, second, *_) = Clock(), expected
    next_night = tmp_path / f"nights/date={NEXT_DAY}"
    with watching(tmp_path, models, clock) as watch:
        deliver(source, watch.dump, first)
        watch.wait_for_rows(first)
        clock.time += datetime.timedelta(days=1)
        watch.wait(lambda: record(watch.night)["status"] == "done", "the end of the night")
        deliver(source, watch.dump, second)
        watch.wait_for_rows(second, night=next_night)
        assert record(next_night)["status"] == "running"
    assert (watch.night / "_SUCCESS").exists()
    assert rows_of(watch.night).keys() == {first}
    assert rows_of(next_night).keys() == {second}
    assert record(next_night)["status"] == "done"


def test_a_night_that_was_killed_is_finished_the_next_day_and_not_scored_again(source, expected, models, tmp_path):
    clock, (first, second, *_) = Clock(), expected
    with watching(tmp_path, models) as watch:
        deliver(source, watch.dump, first)
        watch.wait_for_rows(first)
    (watch.night / "run.json").write_text(json.dumps({**record(watch.night), "status": "running"}))
    (watch.night / "_SUCCESS").unlink()
    clock.time += datetime.timedelta(days=1)
    next_night = tmp_path / f"nights/date={NEXT_DAY}"
    with watching(tmp_path, models, clock) as again:
        deliver(source, again.dump, second)
        again.wait_for_rows(second, night=next_night)
    assert record(watch.night)["status"] == "done"
    assert (watch.night / "_SUCCESS").exists()
    assert rows_of(next_night).keys() == {second}


def test_who_watches_is_told_of_drift_and_of_a_category_without_a_model(source, models, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mvad.calibration.measure_drift", lambda *_: Drift(9, 1e-9, 0.5, 2.0, True))
    said = []

    def has_said(*texts):
        said.append(capsys.readouterr().err)
        return all(text in "".join(said) for text in texts)

    with watching(tmp_path, models) as watch:
        for name in ("000.png", "001.png"):
            deliver(source, watch.dump, f"alpha/good/{name}")
            shutil.copytree(source / "beta/good", watch.dump / "gamma", dirs_exist_ok=True)
            watch.wait_for_rows(f"alpha/good/{name}", "gamma/000.png")
        watch.wait(lambda: has_said("alpha: DRIFT", "gamma: no model in "), "both warnings")
        assert "".join(said).count("DRIFT") == "".join(said).count("no model in ") == 1
    assert rows_of(watch.night)["gamma/000.png"]["error"] == "no model of category 'gamma'"
    assert watch.result.exit_code == EXIT_TOO_MANY_ERRORS


def test_a_folder_that_cannot_be_read_for_a_while_is_waited_for(source, models, tmp_path, capsys):
    with watching(tmp_path, models) as watch:
        watch.dump.rename(tmp_path / "away")
        said = []
        watch.wait(lambda: said.append(capsys.readouterr().err) or "no such folder" in "".join(said), "a warning")
        (tmp_path / "away").rename(watch.dump)
        deliver(source, watch.dump, "alpha/good/000.png")
        watch.wait_for_rows("alpha/good/000.png")
    assert "".join([*said, capsys.readouterr().err]).count("no such folder") == 1


def test_an_image_that_ends_the_process_that_scores_it_costs_no_other_image(source, models, tmp_path, monkeypatch):
    call = WarmPool._call

    def failing(pool, columns, rows):
        if any(uri.endswith("spot/001.png") for some in rows for uri in columns["uri"][some]):
            raise RayActorError
        return call(pool, columns, rows)

    monkeypatch.setattr(WarmPool, "_call", failing)
    deliver(source, tmp_path / "dump", "alpha/good/000.png", "alpha/spot/001.png")
    with watching(tmp_path, models) as watch:
        watch.wait_for_rows("alpha/good/000.png", "alpha/spot/001.png")
    rows = rows_of(watch.night)
    assert rows["alpha/good/000.png"]["status"] == "ok"
    assert rows["alpha/spot/001.png"]["error"] == PROCESS_ENDED


def test_ctrl_c_finishes_the_night(source, expected, models, tmp_path, monkeypatch):
    first = next(iter(expected))
    deliver(source, tmp_path / "dump", first)

    class Interrupted(threading.Event):
        def wait(self, timeout=None):
            raise KeyboardInterrupt

    places = (str(tmp_path / "dump"), str(models), str(tmp_path / "nights"))
    with pytest.raises(KeyboardInterrupt):
        Watch(*places, WatchOptions(**WATCHING), stop=Interrupted()).run()
    (night,) = (tmp_path / "nights").iterdir()
    assert outcomes(rows_of(night))[first] == outcomes(expected)[first]
    assert record(night)["status"] == "done"
