"""Nights in object storage: read, labelled, joined and reported where they lie, as on a disk."""

import pytest

import mvad
from helpers.many_nights import date_of, write_nights
from helpers.score_files import write_rows
from mvad import storage
from mvad.nights.labels import Judged, append_labels, read_labels
from mvad.nights.rows import NightRows
from mvad.nights.trends import Trends
from mvad.review.folder import NightsFolder

COUNT = 4
QUIET = {"quiet": True}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """The same nights on a disk and in a bucket: (path, URI)."""
    import pyarrow.fs as pafs
    from moto.server import ThreadedMotoServer

    root = tmp_path_factory.mktemp("stored")
    write_nights(root / "nights", root / "images", count=COUNT)
    write_rows(root / f"nights/date={date_of(1)}", "cap", [{"image_id": "cap/late.png", "is_anomaly": True}])
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
    remote = f"s3://key:secret@plant/nights?{options}"
    pafs.FileSystem.from_uri(remote)[0].create_dir("plant")
    for file in (root / "nights").rglob("*"):
        if file.is_file():
            storage.write(storage.join(remote, file.relative_to(root / "nights").as_posix()), file.read_bytes())
    yield root / "nights", remote
    server.stop()


def exported(nights, place, **options):
    mvad.export_results(str(nights), out=str(place), **options, **QUIET)
    return place.read_bytes()


def test_rows_are_those_on_the_disk(places, tmp_path):
    local, remote = places
    for options in ({"where": "is_anomaly", "format": "csv"}, {"since": date_of(2).isoformat(), "format": "jsonl"}):
        ours, theirs = (
            exported(nights, tmp_path / f"rows.{options['format']}", columns=["image_id", "score", "night"], **options)
            for nights in (local, remote)
        )
        assert ours == theirs
        assert ours.count(b"\n") > 10


def test_numbers_of_nights_are_those_on_the_disk(places):
    numbers = [
        [{name: value for name, value in row.items() if name != "folder"} for row in Trends().of(NightRows.open(root))]
        for root in (storage.to_uri(str(places[0])), places[1])
    ]
    assert numbers[0] == numbers[1]
    assert len(numbers[0]) == 2 * COUNT


def test_labels_are_kept_there_and_evaluated(places):
    found = []
    for nights in map(str, places):
        root = storage.to_uri(nights)
        rows = NightRows.open(root).query("SELECT * FROM rows ORDER BY night, image_id").to_pylist()
        judged = [
            Judged(row, f"date={row['night']}", "defect" if row["is_anomaly"] else "good", "random")
            for row in rows[:40]
        ]
        append_labels(root, judged, "ann")
        assert len(read_labels(root).table) == 40
        assert len(NightsFolder(root).labels().current) == 40
        found.append(mvad.evaluate(nights, **QUIET).summary)
    assert found[0] == found[1]
    assert found[0]


def test_files_are_joined_there(places, tmp_path):
    before = exported(places[1], tmp_path / "before.csv", columns=["all"])
    result = mvad.compact(places[1], **QUIET)
    assert (result.n_joined, result.files_before - result.files_after) == (1, 1)
    assert exported(places[1], tmp_path / "after.csv", columns=["all"]).splitlines() == before.splitlines()
    assert mvad.compact(places[1], **QUIET).n_joined == 0


def test_a_report_is_written_there_without_keys(places):
    mvad.report(places[1], since=date_of(2).isoformat(), max_errors="100%", **QUIET)
    page = storage.read(storage.join(places[1], "report.html"))
    assert date_of(3).isoformat().encode() in page
    assert date_of(1).isoformat().encode() not in page
    for file in storage.list_files(places[1]):
        assert b"secret" not in storage.read(file.uri), file.path
