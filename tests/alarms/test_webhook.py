"""The document of a night arrives by HTTP, signed, or there is one sentence."""

import json
import socket
import threading
import time

import pytest
import trustme

from helpers.nights import night
from helpers.receivers import HttpReceiver
from mvad.alarms.alarms import deliver
from mvad.alarms.channel import AlarmError, within
from mvad.alarms.document import document
from mvad.alarms.webhook import Timing, Webhook, signature
from mvad.console import Reporter
from mvad.errors import UsageError
from mvad.storage import to_uri

FAST = Timing(answer_s=5, attempts=3, pause_s=0.01, longest_pause_s=0.02)


@pytest.fixture(autouse=True)
def _no_secret(monkeypatch):
    monkeypatch.delenv("MVAD_NOTIFY_SECRET", raising=False)


def test_the_document_arrives_as_it_is():
    with HttpReceiver() as receiver:
        Webhook(f"{receiver.url}/hook?channel=7", timing=FAST).send(night())
    ((path, headers, body),) = receiver.requests
    assert path == "/hook?channel=7"
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == document(night())
    assert "X-Mvad-Signature" not in headers


def test_the_document_is_signed_with_the_secret(monkeypatch):
    monkeypatch.setenv("MVAD_NOTIFY_SECRET", "s3cret")
    with HttpReceiver() as receiver:
        Webhook(receiver.url, timing=FAST).send(night())
    ((_, headers, body),) = receiver.requests
    timestamp = headers["X-Mvad-Timestamp"]
    assert abs(int(timestamp) - time.time()) < 3600
    assert headers["X-Mvad-Signature"] == signature(b"s3cret", timestamp, body)
    assert headers["X-Mvad-Signature"] != signature(b"other", timestamp, body)
    assert b"s3cret" not in body


def test_a_password_in_the_url_is_sent_as_such():
    with HttpReceiver() as receiver:
        Webhook(receiver.url.replace("://", "://me:pass@"), timing=FAST).send(night())
    ((_, headers, _),) = receiver.requests
    assert headers["Authorization"] == "Basic bWU6cGFzcw=="


def test_https_is_for_servers_whose_certificate_can_be_trusted(monkeypatch, tmp_path):
    # As for another machine: of this one no variable of the environment is asked.
    monkeypatch.setattr("mvad.alarms.webhook.is_loopback", lambda host: False)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with HttpReceiver(authority=authority) as receiver:
        webhook = Webhook(f"{receiver.url}/hook", timing=FAST)
        with pytest.raises(AlarmError, match="it cannot be reached"):
            webhook.send(night())
        assert receiver.requests == []
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        webhook.send(night())
    ((path, _, body),) = receiver.requests
    assert (path, json.loads(body)) == ("/hook", document(night()))


def test_a_signature_is_the_hmac_of_timestamp_dot_and_body():
    # printf '1.{}' | openssl dgst -sha256 -hmac key
    assert signature(b"key", "1", b"{}") == "sha256=" + (
        "1ba6b8171186efc613e8bcc0cbdab2748f24984d7c5a84faa2637afa0e40d224"
    )


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_fails_first_is_asked_again(status):
    with HttpReceiver(status, (status, {"Retry-After": "3600"}), 200) as receiver:
        Webhook(receiver.url, timing=FAST).send(night())
    assert len({body for *_, body in receiver.requests}) == 1
    assert len(receiver.requests) == 3


@pytest.mark.parametrize("asked", ["2", "0.5", "Wed, 21 Oct 2015 07:28:00 GMT", "9" * 5000, "soon", "-1"])
def test_retry_after_is_honoured_within_a_bound(monkeypatch, asked):
    waited = []
    monkeypatch.setattr("mvad.alarms.webhook.time.sleep", waited.append)
    with HttpReceiver((503, {"Retry-After": asked}), 500, 500, 204) as receiver:
        Webhook(receiver.url, timing=Timing(pause_s=1, longest_pause_s=3)).send(night())
    longest = {"2": 2, "9" * 5000: 1}.get(asked, 1)
    assert waited == [longest, 2, 3]


@pytest.mark.parametrize(
    ("answers", "n_requests", "reason"),
    [
        ([400], 1, "400 Bad Request"),
        ([(413, {"Retry-After": "1"})], 1, "413"),
        ([500, 404], 2, "404 Not Found"),
        ([503], 3, "503 Service Unavailable"),
        ([799], 3, "799"),
    ],
)
def test_a_server_that_refuses_is_not_asked_for_ever(answers, n_requests, reason):
    with HttpReceiver(*answers) as receiver, pytest.raises(AlarmError, match=f"^it answered {reason}"):
        Webhook(receiver.url, timing=FAST).send(night())
    assert len(receiver.requests) == n_requests


def test_redirects_are_not_followed():
    with HttpReceiver() as other:
        with (
            HttpReceiver((307, {"Location": f"{other.url}/"})) as receiver,
            pytest.raises(AlarmError, match="307 Temporary Redirect"),
        ):
            Webhook(receiver.url, timing=FAST).send(night())
        assert len(receiver.requests) == 1
        assert other.requests == []


def test_a_server_that_never_answers_is_left():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        timing = Timing(answer_s=0.05, attempts=2, pause_s=0.01)
        with pytest.raises(AlarmError, match=r"^no answer within 0\.05 s$"):
            Webhook(f"http://127.0.0.1:{silent.getsockname()[1]}", timing=timing).send(night())


def test_no_pause_goes_past_the_time_for_all_attempts():
    with HttpReceiver(500) as receiver, pytest.raises(AlarmError, match="500"):
        Webhook(receiver.url, timing=Timing(pause_s=20, total_s=10)).send(night())
    assert len(receiver.requests) == 1


def test_what_does_not_end_is_left_behind():
    ended = threading.Event()
    with pytest.raises(AlarmError, match=r"not done within 0\.05 s"):
        within(0.05, ended.wait)
    ended.set()
    assert within(30, ended.wait) is True
    with pytest.raises(ZeroDivisionError):
        within(30, lambda: 1 / 0)


def test_where_nobody_listens_the_system_says_why():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(AlarmError) as raised:
            Webhook(f"http://127.0.0.1:{unused.getsockname()[1]}/hook?key=abc", timing=FAST).send(night())
    assert str(raised.value) == "it cannot be reached: Connection refused"


@pytest.mark.parametrize("url", ["http://localhost/x", "http://127.0.0.2:80/", "http://[::1]/", "https://example.org"])
def test_plain_http_stays_on_this_machine(url):
    assert Webhook(url).name == url


@pytest.mark.parametrize("host", ["example.org", "10.0.0.1", "localhost.example.org", "127.0.0.1.example.org"])
def test_plain_http_to_other_machines_must_be_allowed(host):
    with pytest.raises(UsageError, match=f"^--notify http://{host}/x sends the night without encryption"):
        Webhook(f"http://me:pass@{host}/x?key=abc")
    assert Webhook(f"http://me:pass@{host}/x?key=abc", insecure=True).name == f"http://{host}/x"


@pytest.mark.parametrize(
    "url",
    ["", "s3cret", "ftp://s3cret@host/", "https://", "https://host:s3cret/", "https://[s3cret/", "https://h/s3cret\n"],
)
def test_what_is_no_url_is_refused_without_being_shown(url):
    with pytest.raises(UsageError, match=r"^--notify needs a URL such as https://host/path\.$"):
        Webhook(url)


def notes(folder):
    return json.loads((folder / "notified.json").read_text())["channels"]


def test_who_was_told_is_not_told_again_and_who_was_not_is(tmp_path, capsys):
    with HttpReceiver() as receiver, HttpReceiver(400, 204) as failing:
        urls = [f"{receiver.url}/a?k=1", f"{receiver.url}/a?k=2", f"{failing.url}/b"]

        def tell(**values):
            deliver(
                [Webhook(url, timing=FAST) for url in urls], night(**values), to_uri(tmp_path), Reporter(quiet=True)
            )

        tell()
        names = [f"{receiver.url}/a", f"{receiver.url}/a (2)", f"{failing.url}/b"]
        assert list(notes(tmp_path)) == names
        assert [note["delivered"] for note in notes(tmp_path).values()] == [True, True, False]
        assert notes(tmp_path)[names[2]]["error"] == "it answered 400 Bad Request"
        warning = f"warning: {failing.url}/b was not told of the night (it answered 400 Bad Request); repeat"
        assert capsys.readouterr().err.startswith(warning)
        tell()
        assert all(note["delivered"] for note in notes(tmp_path).values())
        tell()
        assert [path for path, *_ in receiver.requests] == ["/a?k=1", "/a?k=2"]
        assert len(failing.requests) == 2
        tell(run_id="another")
        assert (len(receiver.requests), len(failing.requests)) == (4, 3)
    assert "k=" not in (tmp_path / "notified.json").read_text() + capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "[]", "7", "{", '{"run_id": "x", "channels": []}', '{"channels": {}}'])
def test_a_damaged_record_is_none(tmp_path, content):
    (tmp_path / "notified.json").write_text(content)
    with HttpReceiver() as receiver:
        deliver([Webhook(receiver.url)], night(), to_uri(tmp_path), Reporter(quiet=True))
    assert len(receiver.requests) == 1
    assert notes(tmp_path)[receiver.url]["delivered"]


def test_an_error_that_nobody_expects_costs_nothing_and_shows_nothing(tmp_path, capsys):
    class Broken:
        name, limit_s = "broken", 30

        def send(self, night):
            raise RuntimeError("s3cret")

    with HttpReceiver() as receiver:
        deliver([Broken(), Webhook(receiver.url)], night(), to_uri(tmp_path), Reporter(quiet=True))
    assert len(receiver.requests) == 1
    said = capsys.readouterr().err
    assert said.startswith("warning: broken was not told of the night (RuntimeError)")
    assert "s3cret" not in said + (tmp_path / "notified.json").read_text()


def test_a_record_that_cannot_be_written_becomes_a_warning(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with HttpReceiver() as receiver:
        deliver([Webhook(receiver.url)], night(), to_uri(tmp_path / "file"), Reporter(quiet=True))
    assert len(receiver.requests) == 1
    assert capsys.readouterr().err.startswith(f"warning: a repeated command may tell {receiver.url} again")
