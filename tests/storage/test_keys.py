"""Access keys are used and never shown; a table sends requests nowhere else; a store that is away costs little."""

import pickle
import socket

import pyarrow.fs as pafs
import pytest

from helpers.nodes import free_port
from mvad import storage
from mvad.data.manifest import read_manifest
from mvad.errors import ImageError, UsageError
from mvad.options import DataOptions
from mvad.storage import endpoints, keys, to_uri
from mvad.storage.files import _filesystem

OPTIONS = "?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(keys, "_known", {})
    monkeypatch.setattr(endpoints, "_states", {})
    _filesystem.cache_clear()


@pytest.mark.parametrize(
    ("given", "uri", "written"),
    [
        ("s3://KEY:SECRET@bucket/data", "s3://bucket/data", "KEY:SECRET"),
        ("s3://KEY:SE/CR+ET@bucket/data/", "s3://bucket/data", "KEY:SE/CR+ET"),
        ("S3://KEY:SE%2FCR@bucket/a@b:c", "S3://bucket/a@b:c", "KEY:SE%2FCR"),
        (f"s3://KEY:SECRET@bucket{OPTIONS}", f"s3://bucket{OPTIONS}", "KEY:SECRET"),
        ("s3://bucket/a:b@c", "s3://bucket/a:b@c", ""),
        ("gs://anonymous@bucket/a", "gs://anonymous@bucket/a", ""),
        ("gs://someone:SECRET@bucket/a", "gs://bucket/a", "someone:SECRET"),
        ("http://user:SECRET@host/a", "http://host/a", "user:SECRET"),
    ],
)
def test_keys_are_taken_out_of_a_uri_and_known_below_it(given, uri, written):
    assert to_uri(given) == uri
    assert keys.find(storage.join(uri, "x", "y.png")) == written
    assert to_uri(uri) == uri
    assert to_uri(storage.join(uri, "deeper"))
    assert keys.find(storage.join(uri, "deeper", "z.png")) == written


def test_a_secret_with_any_character_opens_the_bucket():
    for secret in ("a/b+c=", "a%2Fb%2Bc%3D"):
        filesystem, path = storage.resolve(to_uri(f"s3://KEY:{secret}@bucket/data/x.png{OPTIONS}"))
        assert isinstance(filesystem, pafs.S3FileSystem)
        assert path == "bucket/data/x.png"
        assert filesystem.__reduce__()[1][0]["secret_key"] == "a/b+c="


def test_each_place_has_its_own_keys():
    for place in ("a:1@bucket/data", "b:2@bucket/data/new", "c:3@other", "bucket/out"):
        to_uri(f"s3://{place}")
    found = {
        name: keys.find(f"s3://{name}") for name in ("bucket/data/x", "bucket/data/new/x", "bucket/dat", "other/x")
    }
    assert found == {"bucket/data/x": "a:1", "bucket/data/new/x": "b:2", "bucket/dat": "a:1", "other/x": "c:3"}
    assert keys.find("s3://bucket/out/x") == ""  # of the environment
    assert keys.find("s3://unknown/x") == ""
    assert keys.find("s3://bucket/data/x?region=other") == ""


def test_workers_know_the_keys_of_the_driver(monkeypatch):
    to_uri("s3://a:1@bucket/data")
    sent = pickle.dumps(storage.WithKeys(keys.find))
    assert "a:1" not in repr(storage.WithKeys(keys.find))
    monkeypatch.setattr(keys, "_known", {})
    assert keys.find("s3://bucket/data/x") == ""
    assert pickle.loads(sent)("s3://bucket/data/x") == "a:1"


def test_keys_in_a_uri_of_a_table_are_dropped_or_those_of_data(tmp_path):
    to_uri("s3://KEY:SECRET@own/lists")
    (tmp_path / "t.csv").write_text("uri,category,mask_uri\ns3://KEY:SECRET@own/a.png,x,s3://K2:OTHER@own/m.png\n")
    (row,) = read_manifest(str(tmp_path / "t.csv"), DataOptions()).table.to_pylist()
    assert row["image_id"] == row["uri"] == "s3://own/a.png"
    assert row["mask_uri"] == "s3://***@own/m.png"
    with pytest.raises(ImageError, match="an endpoint of its own, or keys"):
        storage.read_bytes(row["mask_uri"], 10)


@pytest.mark.parametrize(
    ("name", "is_allowed"),
    [
        (f"s3://bucket/a.png{OPTIONS}", True),
        ("s3://bucket/a.png?endpoint_override=127.0.0.1:9&scheme=http&region=eu-west-1", True),
        ("s3://bucket/a.png", True),
        ("s3://bucket/a.png?endpoint_override=127.0.0.1:10&scheme=http", False),
        ("s3://bucket/a.png?endpoint_override=127.0.0.1:9&scheme=https", False),
        ("gs://bucket/a.png?endpoint_override=evil", False),
        ("s3://bucket/a.png?tls_ca_file_path=/tmp/evil.pem", False),
        ("s3://K:S@bucket/a.png", False),
    ],
)
def test_a_table_chooses_no_endpoint_but_that_of_data(name, is_allowed):
    uri = storage.uri_in_table(name, f"s3://bucket/lists/t.csv{OPTIONS}")
    assert (uri == name) is is_allowed
    assert uri.startswith("s3://***@" if name.startswith("s3") else "gs://***@") is not is_allowed
    relative = storage.uri_in_table("img/a.png", f"s3://bucket/lists/t.csv{OPTIONS}")
    assert relative == f"s3://bucket/lists/img/a.png{OPTIONS}"


@pytest.mark.parametrize("uri", ["s3://KEY:SECRET@bad bucket/x", "s3://KEY:SECRET@b?unheard=1", "s3://KEY:SECRET@[b/x"])
def test_errors_hold_no_keys(uri):
    with pytest.raises(UsageError) as caught:
        storage.resolve(to_uri(uri))
    assert "SECRET" not in str(caught.value)
    assert "KEY" not in str(caught.value)


def away(monkeypatch):
    """A store at which nobody listens, and the attempts to connect to it."""
    monkeypatch.setattr(endpoints, "PAUSES_S", (0.0, 0.0))
    attempts, connect = [], socket.create_connection
    monkeypatch.setattr("socket.create_connection", lambda *address: attempts.append(address) or connect(*address))
    options = f"?endpoint_override=127.0.0.1:{free_port()}&scheme=http&region=us-east-1"
    return options, attempts


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_an_endpoint_that_is_away_is_tried_for_the_first_image_only(monkeypatch, scheme):
    options, attempts = away(monkeypatch)
    options = options if scheme == "s3" else options.replace("&region=us-east-1", "")
    for number in range(20):
        with pytest.raises(ImageError, match="cannot be reached: Connection refused"):
            storage.read_bytes(f"{scheme}://bucket{number % 2}/{number}.png{options}", 10)
    assert len(attempts) == 3
    monkeypatch.setattr(endpoints, "VALID_S", -1.0)  # a while later
    with pytest.raises(ImageError):
        storage.read_bytes(f"{scheme}://bucket/x.png{options}", 10)
    assert len(attempts) == 6


@pytest.mark.parametrize(
    ("message", "is_remembered"),
    [
        ("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7, Could not connect to server", True),
        ("AWS Error NETWORK_CONNECTION during HeadBucket operation: curlCode: 6, Could not resolve hostname", True),
        ("AWS Error ACCESS_DENIED during HeadObject operation: No response body.", False),
        ("AWS Error SLOW_DOWN during GetObject operation: Please reduce your request rate.", False),
        ("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 52, Server returned nothing", False),
    ],
)
def test_only_a_lost_connection_is_remembered(monkeypatch, message, is_remembered):
    asked = []

    def resolve(uri):
        asked.append(uri)
        raise OSError(message)

    monkeypatch.setattr("mvad.storage.files.resolve", resolve)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    for number in range(3):
        with pytest.raises(ImageError):
            storage.read_bytes(f"s3://bucket/{number}.png", 10)
    assert len(asked) == (1 if is_remembered else 3)
    with pytest.raises(ImageError):
        storage.read_bytes("s3://another/0.png", 10)
    assert asked[-1] == "s3://another/0.png"


def test_a_known_endpoint_is_not_asked_again_for_every_image(monkeypatch):
    attempts = []
    monkeypatch.setattr(endpoints, "_try_to_connect", attempts.append)
    for _ in range(5):
        with endpoints.reachable(f"s3://bucket/x{OPTIONS}"):
            pass
    assert attempts == [("127.0.0.1", 9)]


def test_uris_that_are_none_are_refused_for_data():
    with pytest.raises(UsageError, match="is not a URI"):
        to_uri("s3://[bad/x")
    assert to_uri("file:/data/x/") == "file:///data/x"
