"""DATA, models and OUT in object storage: S3 and Google Cloud Storage servers on the loopback interface."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import torch
from gcp_storage_emulator.server import create_server
from moto.server import ThreadedMotoServer

import mvad
from helpers.nodes import free_port
from helpers.score_files import write_rows, write_run
from helpers.tiles import EMBEDDED
from mvad import results, storage
from mvad.data.image_size import ImageSize
from mvad.data.listing import Listing
from mvad.data.manifest import read_manifest
from mvad.detectors import PatchCore
from mvad.errors import ImageError, UsageError
from mvad.features.backbones import describe
from mvad.model_store import (
    FittedModel,
    find_models,
    kept_versions,
    map_arrays,
    read_arrays,
    save_model,
    use_version,
)
from mvad.options import DataOptions


@pytest.fixture(scope="module", params=["s3", "gs"])
def bucket(request, tiles):
    """A bucket that holds ``tiles``: a function from a path in it to its URI."""
    if request.param == "s3":
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        prefix, options = "s3://key:secret@plant", "region=us-east-1&allow_bucket_creation=true"
    else:
        host, port = "127.0.0.1", free_port()
        server = create_server(host, port, in_memory=True, default_bucket="plant")
        server.start()
        prefix, options = "gs://anonymous@plant", "retry_limit_seconds=20"

    def uri(path):
        return f"{prefix}/{path}?endpoint_override={host}:{port}&scheme=http&{options}"

    if request.param == "s3":
        pafs.FileSystem.from_uri(uri("tiles"))[0].create_dir("plant")
    for file in tiles.rglob("*.png"):  # no objects for folders: other programs do not create them either
        storage.write(storage.join(uri("tiles"), file.relative_to(tiles).as_posix()), file.read_bytes())
    yield uri
    server.stop()


def test_the_manifest_is_that_of_the_local_folder(bucket, tiles):
    manifest = read_manifest(bucket("tiles"), DataOptions()).table
    expected = read_manifest(str(tiles), DataOptions()).table
    columns = ["image_id", "category", "split", "label", "defect"]
    assert manifest.select(columns).equals(expected.select(columns))


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_a_table_skips_the_listing(bucket, tiles, suffix, monkeypatch):
    monkeypatch.setattr(storage, "list_pages", lambda root: pytest.fail("it was listed"))
    names = sorted(file.relative_to(tiles).as_posix() for file in tiles.rglob("alpha/test/*/*.png"))
    table, sink = pa.table({"uri": names}), pa.BufferOutputStream()
    (pq.write_table if suffix == "parquet" else pyarrow.csv.write_csv)(table, sink)
    uri = storage.join(bucket("tiles"), f"images.{suffix}")
    storage.write(uri, sink.getvalue())
    listing = Listing(uri, DataOptions())
    (images,) = listing
    assert images["image_id"].to_pylist() == names
    assert listing.categories == ["alpha"]
    for row in images.to_pylist():
        assert storage.read_bytes(row["uri"], 10**6) == (tiles / row["image_id"]).read_bytes()
    storage.remove(uri)


def test_any_name_can_be_written_and_listed(bucket):
    uri = storage.join(storage.to_uri(bucket("odd")), "a b#1%20?é", "x.txt")
    storage.write(uri, b"hello")
    assert storage.read(uri) == b"hello"
    assert [file.path for file in storage.list_files(bucket("odd"))] == ["a b#1%20?é/x.txt"]
    assert storage.read_bytes(next(storage.list_files(bucket("odd"))).uri, 10) == b"hello"
    assert storage.readable(uri) == f"{uri[:2]}://plant/odd/a b#1%20?é/x.txt"
    with pytest.raises(ImageError, match="larger than 3 bytes"):
        storage.read_bytes(uri, 3)
    with pytest.raises(ImageError, match="does not exist"):
        storage.read_bytes(storage.join(storage.to_uri(bucket("odd")), "gone.png"), 10)
    storage.remove(storage.to_uri(bucket("odd")))
    assert not storage.exists(uri)


def test_versions_of_a_model_can_be_used_again(bucket):
    folder, versions = storage.to_uri(bucket("versions")), []
    for seed in range(2):
        features = torch.from_numpy(np.random.default_rng(seed).standard_normal((4, 2, 2, 6)).astype(np.float32))
        state, record = (
            PatchCore(coreset_ratio=1.0).fit(features).state,
            {"n_train": 4, "errors": [], "fit_seconds": 1.0},
        )
        facts = (describe("efficientnet_lite0"), "abc", ImageSize.square(64), record)
        versions.append(save_model(folder, FittedModel("cap", PatchCore, state, *facts), keep_earlier=True))
    first, second = (model.model_id for model in versions)
    kept = {model.model_id: model for model in kept_versions(folder, "patchcore", "cap")}
    assert {*kept} == {first, second}
    for model_id in (first, second):
        assert use_version(folder, kept[model_id]).model_id == model_id
        (found,) = find_models(folder).values()
        assert (found.model_id, read_arrays(found)["bank"].shape) == (model_id, (16, 6))


def test_the_error_of_a_missing_folder_hides_keys(bucket):
    with pytest.raises(UsageError, match=r"(s3|gs)://plant/nowhere cannot be listed") as caught:
        read_manifest(bucket("nowhere"), DataOptions())
    assert "secret" not in str(caught.value)


def assert_no_keys(folder):
    """No file in a folder holds the keys that it was written with, not even in compressed columns."""
    for file in storage.list_files(folder):
        content = storage.read(file.uri)
        if file.path.endswith(".parquet"):
            content += str(pq.read_table(pa.py_buffer(content)).to_pylist()).encode()
        assert b"secret" not in content, file.path
        assert b"key:" not in content, file.path


def test_a_table_on_a_store_chooses_no_other(bucket, base_run, capsys):
    """Its rows that do are error rows, as are those of unknown kinds; the others are scored."""
    prefix, _, options = bucket("").partition("/?")
    if not prefix.startswith("s3://"):
        pytest.skip("Arrow retries on Google's storage for longer than a test may take")
    gone = f"{prefix.replace('anonymous@', '')}/gone.png?{options}"
    readable = ["alpha/test/good/000.png", "alpha/test/good/001.png"]
    evil = [f"s3://key:secret@plant/x.png?endpoint_override=evil:{port}&scheme=http" for port in range(2)]
    names = [*readable, *evil, "http://key:secret@host/x.png", gone]
    uri = storage.join(storage.to_uri(bucket("tiles")), "list.csv")
    storage.write(uri, ("uri;category\n" + "".join(f"{name};alpha\n" for name in names)).encode())
    out, models = bucket("results/table"), str(base_run[0] / "models")
    result = mvad.score(bucket("tiles/list.csv"), models, out, actors=1, max_errors="90%")
    storage.remove(uri)
    rows = results.read_scores(storage.to_uri(out)).to_pylist()
    assert len(rows) == len(names)
    assert [row["image_id"] for row in rows if row["status"] == "ok"] == readable
    reasons = [error["error"] for error in result.errors]
    assert sum("it names an endpoint of its own, or keys" in reason for reason in reasons) == len(evil)
    assert sum("http:// is not supported" in reason for reason in reasons) == 1
    assert sum("the file does not exist" in reason for reason in reasons) == 1
    assert_no_keys(storage.to_uri(out))
    assert "secret" not in "".join(capsys.readouterr())


def test_the_job_from_bucket_to_bucket(bucket, base_run):
    options = {"image_size": 64, "actors": 1, "folds": 0, **EMBEDDED}
    result = mvad.run(bucket("tiles"), bucket("results/one"), maps="all", **options)
    assert result.exit_code == 0
    scores = results.read_scores(bucket("results/one"), ["image_id", "score"])
    expected = results.read_scores(storage.to_uri(base_run[0]), ["image_id", "score"])
    assert scores.equals(expected)
    assert storage.exists(storage.join(bucket("results/one"), "_SUCCESS"))
    summary = json.loads(storage.read(storage.join(bucket("results/one"), "summary.json")))
    assert summary[-1]["pixel_auroc"] == base_run[1].summary[-1]["pixel_auroc"]
    assert np.isfinite(summary[-1]["images_per_second"])
    with pytest.raises(UsageError, match="another run's results"):
        mvad.run(bucket("tiles"), bucket("results/one"), **options)
    mvad.report(bucket("results/one"), quiet=True)
    page = storage.read(storage.join(bucket("results/one"), "report.html")).decode()
    assert page.count("data:image/webp") > 32
    assert "secret" not in page
    mvad.report(bucket("results/one"), to=bucket("pages/one.html"), quiet=True)
    assert storage.exists(storage.join(bucket("pages"), "one.html"))
    mvad.maps(bucket("results/one"), bucket("results/one/maps"), quiet=True)
    drawn = storage.join(bucket("results/one"), "maps", "alpha/test/good/000.png.overlay.png")
    assert storage.read(drawn).startswith(b"\x89PNG")
    assert_no_keys(storage.to_uri(bucket("results/one")))
    # A bank on object storage is mapped from a temporary copy, which is removed at once.
    model = find_models(bucket("results/one/models"))["alpha"]
    bank = map_arrays(model)["bank"]
    assert isinstance(bank, np.memmap)
    assert not Path(bank.filename).exists()
    np.testing.assert_array_equal(bank, read_arrays(model)["bank"])


def test_regions_go_from_object_storage_to_object_storage(bucket):
    out, to = bucket("regions/out"), storage.to_uri(bucket("regions/to"))
    box = {"x": 1, "y": 2, "width": 3, "height": 4, "area": 5, "peak": 2.0, "mean": 1.5}
    for number in range(2):
        write_rows(out, "cap", [{"image_id": f"ü {number}#.png", "regions": [box] * number}])
    write_run(out, cap=1.0)
    for format in ("csv", "coco", "yolo"):
        assert mvad.regions(out, to, format=format, quiet=True).errors == []
    assert storage.read(storage.join(to, "regions.csv")).splitlines()[1:] == [
        '"ü 1#.png","cap",1,2,3,4,5,2,1.5,1.5,,,'.encode()
    ]
    document = json.loads(storage.read(storage.join(to, "coco.json")))
    assert (len(document["images"]), len(document["annotations"])) == (2, 1)
    assert storage.read(storage.join(to, "labels/ü 0#.txt")) == b""
    assert storage.read(storage.join(to, "labels/ü 1#.txt")) == b"0 0.02083333 0.06666667 0.02500000 0.06666667\n"


def test_a_stream_that_fails_leaves_no_object(bucket):
    def parts():
        yield b"half"
        raise ValueError("no more")

    uri = storage.join(storage.to_uri(bucket("streams")), "x")
    with pytest.raises(ValueError, match="no more"):
        storage.write_stream(uri, parts())
    assert not storage.exists(uri)
    storage.write_stream(uri, iter([b"wh", b"ole"]))
    assert storage.read(uri) == b"whole"
