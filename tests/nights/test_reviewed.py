"""Models learn from what reviewers said: false alarms pass afterwards, and known defects are still flagged."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import mvad
from helpers.fault_injection import Killed, killed_at
from helpers.tiles import paint
from mvad.errors import UsageError
from mvad.model_store import read_model
from mvad.nights.labels import Judged, append_labels
from mvad.nights.reviewed import read_reviewed
from mvad.options import UpdateOptions
from mvad.results import read_scores
from mvad.storage import to_uri

SCORED = {"actors": 1, "quiet": True, "settle": 0, "category": "alpha"}


@pytest.fixture(scope="module")
def reviewed(base_run, tiles, ray_local, tmp_path_factory):
    """A night with good tiles with a bright label, which are flagged, and what reviewers said of all images."""
    root = tmp_path_factory.mktemp("reviewed")
    shutil.copytree(base_run[0] / "models", root / "models")
    shutil.copytree(tiles / "alpha/test/spot", root / "dump")
    random = np.random.default_rng(7)
    for number in range(3):
        pixels = paint(random)[0]
        pixels[32:64, 32:64] = 255
        Image.fromarray(pixels).save(root / f"dump/bright{number}.png")
    mvad.nightly(str(root / "dump"), str(root / "models"), str(root / "nights"), "2026-11-23", **SCORED)
    rows = scores(root, "2026-11-23")
    assert all(row["is_anomaly"] for row in rows)
    judged = [
        Judged(row, "date=2026-11-23", "good" if "bright" in row["image_id"] else "defect", "score") for row in rows
    ]
    append_labels(to_uri(root / "nights"), judged, "ann")
    return root


@pytest.fixture
def copied(reviewed, tmp_path):
    """The same in a folder of its own; the images themselves stay where they are."""
    shutil.copytree(reviewed / "models", tmp_path / "models")
    shutil.copytree(reviewed / "nights", tmp_path / "nights")
    return tmp_path


def scores(root, day):
    return read_scores(to_uri(root / f"nights/date={day}")).to_pylist()


def update(root, **options):
    return mvad.update(
        None, str(root / "models"), reviewed=str(root / "nights"), actors=1, folds=2, quiet=True, **options
    )


def in_use(root):
    return read_model(to_uri(root / "models/patchcore/alpha")).model_id


def test_a_false_alarm_passes_after_it_was_learnt_and_defects_do_not(reviewed, copied, capsys):
    before = in_use(copied)
    result = update(copied)
    (row,) = result.summary
    assert result.exit_code == 0
    assert (row["n_new"], row["n_reference"], row["missed"], row["n_learnt"]) == (3, 4, [], 0)
    dump = str(reviewed / "dump")
    mvad.nightly(dump, str(copied / "models"), str(copied / "nights"), "2026-11-24", **SCORED)
    flagged = {row["image_id"] for row in scores(copied, "2026-11-24") if row["is_anomaly"]}
    assert flagged == {f"{number:03}.png" for number in range(4)}
    (again,) = update(copied).summary
    assert (again["n_learnt"], again["note"]) == (3, "not updated: it has learnt from these images already")
    versions = mvad.models(str(copied / "models"), history=True, category="alpha", quiet=True)
    assert [
        (one["model_id"], one["made_by"], one["n_train"], one["n_reviewed"], one["in_use"]) for one in versions
    ] == [
        (before, "fit", 8, 0, False),
        (in_use(copied), "reviewed", 11, 3, True),
    ]


def test_an_update_that_would_miss_a_known_defect_is_refused(copied, monkeypatch):
    monkeypatch.setattr("mvad.fitting.update.threshold", fake_threshold := Thresholds())
    before = in_use(copied)
    result = update(copied)
    (row,) = result.summary
    assert result.exit_code == 3
    assert len(row["missed"]) == 4
    assert "would no longer flag 4 known defects (date=2026-11-23/000.png" in row["note"]
    assert in_use(copied) == before
    fake_threshold.calls = 0
    assert update(copied, allow_missed=4).exit_code == 0
    assert in_use(copied) != before


class Thresholds:
    """A threshold that is low for the model before, and above all scores for the new one."""

    calls = 0

    def __call__(self, calibration, rule, rate):
        self.calls += 1
        return 0.0 if self.calls == 1 else 1e9


def test_files_that_are_not_what_was_reviewed_are_left_out_and_named(reviewed, copied, tmp_path):
    dump = tmp_path / "dump"
    shutil.copytree(reviewed / "dump", dump)
    shutil.rmtree(copied / "nights")
    mvad.nightly(str(dump), str(copied / "models"), str(copied / "nights"), "2026-11-23", **SCORED)
    judged = [Judged(row, "date=2026-11-23", "good", "score") for row in scores(copied, "2026-11-23")]
    append_labels(to_uri(copied / "nights"), judged, "ann")
    append_labels(
        to_uri(copied / "nights"), [one._replace(judgement=None) for one in judged if "00" in one.row["image_id"]], "b"
    )
    (dump / "bright0.png").unlink()
    os.utime(dump / "bright1.png", (1, 1))
    (row,) = update(copied).summary
    assert row["n_new"] == 1
    assert {(one["image_id"], one["error"]) for one in row["left_out"]} == {
        ("date=2026-11-23/bright0.png", "its file has gone"),
        ("date=2026-11-23/bright1.png", "its file has changed since it was reviewed"),
    }


def test_either_data_or_reviews_are_needed(copied, tiles):
    for data, reviewed in ((None, None), (str(tiles), str(copied / "nights"))):
        with pytest.raises(UsageError, match="give either DATA or --reviewed NIGHTS"):
            mvad.update(data, str(copied / "models"), reviewed=reviewed, quiet=True)


def test_rolling_back_and_forward_uses_whole_versions(copied):
    models, first = str(copied / "models"), in_use(copied)
    with pytest.raises(UsageError, match="has no earlier version"):
        mvad.rollback(models, "alpha", quiet=True)
    update(copied)
    second = in_use(copied)
    assert mvad.rollback(models, "alpha", quiet=True) == ("alpha", second, first)
    assert in_use(copied) == first
    with pytest.raises(UsageError, match="in use already"):
        mvad.rollback(models, "alpha", to=first[:12], quiet=True)
    with pytest.raises(UsageError, match="has no version 'x'"):
        mvad.rollback(models, "alpha", to="x", quiet=True)
    with pytest.raises(UsageError, match="has no model of 'gamma'"):
        mvad.rollback(models, "gamma", quiet=True)
    for n in range(2):  # changes of the storage; there is one
        try:
            with killed_at(n):
                mvad.rollback(models, "alpha", to=second[:8], quiet=True)
        except Killed:
            assert n == 0
            assert in_use(copied) == first
    assert in_use(copied) == second
    bank = next((copied / f"models/patchcore/alpha/versions/{first[:12]}").glob("bank.npy"))
    bank.write_bytes(bank.read_bytes()[:-1])
    with pytest.raises(UsageError, match=r"bank\.npy is damaged"):
        mvad.rollback(models, "alpha", quiet=True)
    assert in_use(copied) == second
    assert [row["damage"] for row in mvad.models(models, quiet=True)] == [None, None]


def test_an_ambiguous_or_empty_id_is_refused(copied, monkeypatch):
    used = read_model(to_uri(copied / "models/patchcore/alpha"))
    versions = [replace(used, model_id=name) for name in ("ab1", "ab2")]
    monkeypatch.setattr("mvad.fitting.history.versions_of", lambda folder, used: versions)
    with pytest.raises(UsageError, match="2 versions of the model of 'alpha' begin with 'ab'; give more of: ab1, ab2"):
        mvad.rollback(str(copied / "models"), "alpha", to="ab", quiet=True)
    with pytest.raises(UsageError, match="no version ''"):
        mvad.rollback(str(copied / "models"), "alpha", to="", quiet=True)
    assert in_use(copied) == used.model_id


def test_only_labels_since_a_date_are_learnt_and_all_defects_checked(reviewed):
    found = read_reviewed(str(reviewed / "nights"), UpdateOptions(reviewed="n", reviewed_since="2999-01-01"))
    assert found.table["label"].to_pylist() == [1] * 4
    with pytest.raises(UsageError, match="--reviewed-since 'monday' is not a date"):
        read_reviewed(str(reviewed / "nights"), UpdateOptions(reviewed="n", reviewed_since="monday"))
