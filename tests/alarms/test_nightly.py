"""`mvad nightly` with alarms, from the images to those who are told."""

import json
import re
import shutil
import socket

import pytest
from prometheus_client.parser import text_string_to_metric_families

import mvad
from helpers.receivers import HttpReceiver, mail_server
from helpers.tiles import ROOT
from mvad.alarms.webhook import Timing, Webhook
from mvad.errors import UsageError

DAY = "2026-11-23"
OPTIONS = {"actors": 1, "max_errors": "50%", "quiet": True}
FENCE = r"```{}\n(.*?)```"


def section():
    return (ROOT / "docs/nightly.md").read_text().partition("\n## Alarms\n")[2].partition("\n## ")[0]


@pytest.fixture(scope="module")
def dump(tiles, tmp_path_factory):
    """Images of one of two categories that have a model, and a file that is no image."""
    folder = tmp_path_factory.mktemp("dump")
    shutil.copytree(tiles / "alpha/test", folder / "alpha")
    (folder / "alpha/broken.png").write_bytes(b"\x89PNG")
    return folder


@pytest.fixture
def smtp(monkeypatch):
    """What came to a mail server that the environment names."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"HOST": "127.0.0.1", "PORT": port, "FROM": "mvad@example.org", "SECURITY": "none"}.items():
        monkeypatch.setenv(f"MVAD_SMTP_{name}", str(value))
    messages = []
    with mail_server(messages, port):
        yield messages


@pytest.fixture(autouse=True)
def _secret_and_no_waits(monkeypatch):
    monkeypatch.setenv("MVAD_NOTIFY_SECRET", "s3cret")
    fast = Timing(attempts=2, pause_s=0.01)
    monkeypatch.setattr(
        "mvad.alarms.alarms.Webhook", lambda url, insecure: Webhook(url, insecure=insecure, timing=fast)
    )


def test_a_night_is_told_once_and_as_documented(dump, base_run, smtp, tmp_path, capsys):
    out, models, file = tmp_path / "nights", str(base_run[0] / "models"), tmp_path / "mvad.prom"
    told = {"email": ["line-7@example.org"], "prometheus": str(file)}

    def run_night(**options):
        return mvad.nightly(str(dump), models, str(out), DAY, **OPTIONS | told | options)

    with HttpReceiver() as receiver, HttpReceiver(500, 500, 204) as failing:
        urls = [f"{receiver.url}/hook?token=t0ken", failing.url.replace("://", "://me:p4ss@") + "/"]
        result = run_night(notify=urls)  # beta delivered nothing
        assert result.exit_code == 4
        ((path, headers, body),) = receiver.requests
        assert path == "/hook?token=t0ken"
        assert len(failing.requests) == 2
        run = json.loads((out / f"date={DAY}/run.json").read_text())
        assert run["exit_code"] == 4
        content = json.loads(body)
        assert (content["run_id"], content["exit_code"], content["night"]) == (run["run_id"], 4, DAY)
        assert content["results"] == str(out / f"date={DAY}")
        states = {one["category"]: one["state"] for one in content["categories"]}
        assert states == {"alpha": "LOOK", "beta": "NO IMAGES"}
        alpha = content["categories"][0]
        row = result.summary[0]
        assert (alpha["images"], alpha["flagged"], alpha["errors"]) == (9, row["n_flagged"], 1)
        assert [one["image_id"] for one in content["errors"]] == ["alpha/broken.png"]
        assert content["worst"][0] | {"category": "alpha", "threshold": row["threshold"]} == content["worst"][0]

        (example,) = re.findall(FENCE.format("json"), section(), flags=re.S)
        assert keys(content) == keys(json.loads(example))
        (code,) = re.findall(FENCE.format("python"), section(), flags=re.S)
        names = {}
        exec(code, names)
        assert names["is_from_mvad"](b"s3cret", headers, body)
        assert not names["is_from_mvad"](b"s3cret", headers, body + b" ")
        assert not names["is_from_mvad"](b"another", headers, body)

        assert [mail["Subject"] for mail in smtp] == [f"mvad: night of {DAY}: LOOK (alpha), NO IMAGES (beta)"]
        families = {family.name: family for family in text_string_to_metric_families(file.read_text())}
        assert [sample.value for sample in families["mvad_night_exit_code"].samples] == [4]

        (dump / "alpha/broken.png").unlink()
        assert run_night(notify=urls, expect="alpha", new_run=True).exit_code == 0  # told as another run
        assert (len(receiver.requests), len(failing.requests), len(smtp)) == (2, 3, 2)
        assert run_night(notify=urls, expect="alpha").exit_code == 0  # nothing to do
        assert (len(receiver.requests), len(failing.requests), len(smtp)) == (2, 3, 2)
        assert run_night(notify=[*urls, f"{receiver.url}/new"], expect="alpha").exit_code == 0
        assert receiver.requests[-1][0] == "/new"
        assert json.loads(receiver.requests[-1][2])["run_id"] == json.loads(receiver.requests[-2][2])["run_id"]
        assert (len(receiver.requests), len(failing.requests), len(smtp)) == (3, 3, 2)
    said = "".join(capsys.readouterr())
    assert said.count("was not told of the night (it answered 500 Internal Server Error)") == 1
    written = "".join((out / f"date={DAY}" / name).read_text() for name in ("run.json", "notified.json"))
    for secret in ("t0ken", "p4ss", "s3cret"):
        assert secret not in said + written + file.read_text()
    assert f"{receiver.url}/hook" in written


def keys(content):
    """The keys of a document, below the first entry of each list."""
    if isinstance(content, dict):
        return {name: keys(value) for name, value in content.items() if name != "drift"}
    return keys(content[0]) if isinstance(content, list) else None


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(28, "No space left on device", "/nights/x"), 1, "/nights/x: No space left on device"),
        (UsageError("it cannot be read: s3://KEY:SECRET@bucket/x."), 2, "it cannot be read: s3://bucket/x."),
        (KeyError("row"), 1, "KeyError: 'row'"),
    ],
)
def test_a_night_that_fails_after_it_was_begun_is_told(dump, base_run, tmp_path, monkeypatch, error, code, said):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("mvad.scoring.scoring_jobs", fail)
    with HttpReceiver() as receiver:
        with pytest.raises(type(error)):
            mvad.nightly(
                str(dump), str(base_run[0] / "models"), str(tmp_path), DAY, **OPTIONS | {"notify": receiver.url}
            )
        ((*_, body),) = receiver.requests
    content = json.loads(body)
    run = json.loads((tmp_path / f"date={DAY}/run.json").read_text())
    assert (content["exit_code"], content["failure"], content["categories"]) == (code, said, [])
    assert content["run_id"] == run["run_id"]
    assert run["status"] == "running"


def test_a_night_that_was_not_begun_is_not_told(dump, tmp_path):
    with HttpReceiver() as receiver:
        with pytest.raises(UsageError):
            mvad.nightly(str(dump), str(tmp_path / "none"), str(tmp_path), DAY, **OPTIONS | {"notify": receiver.url})
        assert receiver.requests == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"notify": "http://me:pass@example.org/x?key=abc"}, "--notify http://example.org/x sends the night without"),
        ({"notify": ["pass"]}, "--notify needs a URL"),
        ({"email": "me"}, "--email 'me' is no address"),
        ({"prometheus": "x.txt"}, "--prometheus .*x.txt must end in .prom"),
    ],
)
def test_alarms_that_cannot_work_are_refused_before_the_work(options, sentence, tmp_path, smtp):
    with pytest.raises(UsageError, match=f"^{sentence}") as raised:
        mvad.nightly(str(tmp_path), str(tmp_path), str(tmp_path / "out"), DAY, **OPTIONS | options)
    assert "pass" not in str(raised.value)
    assert not (tmp_path / "out").exists()
