"""The table of a night arrives by e-mail, or there is one sentence."""

import socket

import pytest

from helpers.nights import DAY, night, row
from helpers.receivers import mail_server
from mvad.alarms.channel import AlarmError
from mvad.alarms.document import subject, text
from mvad.alarms.mail import Mail, Server, message
from mvad.errors import UsageError

TO = "line-7@example.org"


@pytest.fixture
def environment(monkeypatch):
    """Set MVAD_SMTP_* to these values, and no others."""

    def set_all(**values):
        for name in ("HOST", "PORT", "USER", "PASSWORD", "FROM", "SECURITY"):
            monkeypatch.delenv(f"MVAD_SMTP_{name}", raising=False)
        for name, value in values.items():
            monkeypatch.setenv(f"MVAD_SMTP_{name}", str(value))

    set_all()
    return set_all


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def trust(authority, tmp_path, monkeypatch):
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")  # aiosmtpd means STARTTLS
@pytest.mark.parametrize("security", ["starttls", "tls"])
def test_the_table_arrives_encrypted_with_a_login(environment, port, security, tmp_path, monkeypatch):
    messages = []
    environment(HOST="127.0.0.1", PORT=port, USER="mvad@example.org", PASSWORD="s3cret", SECURITY=security)
    with mail_server(messages, port, security, login=("mvad@example.org", "s3cret")) as authority:
        trust(authority, tmp_path, monkeypatch)
        Mail(TO, Server.of_environment()).send(night())
    (mail,) = messages
    assert (mail["From"], mail["To"]) == ("mvad@example.org", TO)
    assert mail.get_content_type() == "text/plain"
    body = mail.get_payload(decode=True).decode()
    assert body.splitlines() == text(night()).splitlines()
    assert "s3cret" not in mail.as_string()


def test_a_certificate_that_is_not_trusted_ends_it(environment, port):
    messages = []
    environment(HOST="127.0.0.1", PORT=port, FROM=TO)
    with mail_server(messages, port, "starttls"), pytest.raises(AlarmError, match="unable to get local issuer"):
        Mail(TO, Server.of_environment()).send(night())
    assert messages == []


def test_a_server_without_starttls_gets_nothing(environment, port):
    messages = []
    environment(HOST="127.0.0.1", PORT=port, FROM=TO)
    with mail_server(messages, port), pytest.raises(AlarmError, match="STARTTLS extension not supported"):
        Mail(TO, Server.of_environment()).send(night())
    assert messages == []


def test_without_encryption_if_asked_for(environment, port):
    messages = []
    environment(HOST="127.0.0.1", PORT=port, FROM="mvad@example.org", SECURITY="none")
    with mail_server(messages, port):
        Mail(TO, Server.of_environment()).send(night())
        with pytest.raises(AlarmError, match=r"^the server answered 550 5\.1\.1 no such mailbox$"):
            Mail("nobody@example.org", Server.of_environment()).send(night())
    assert [mail["To"] for mail in messages] == [TO]


def test_a_wrong_password_is_not_shown(environment, port, tmp_path, monkeypatch):
    environment(HOST="127.0.0.1", PORT=port, USER="mvad@example.org", PASSWORD="wrong")
    with mail_server([], port, "starttls", login=("mvad@example.org", "s3cret")) as authority:
        trust(authority, tmp_path, monkeypatch)
        server = Server.of_environment()
        with pytest.raises(AlarmError) as raised:
            Mail(TO, server).send(night())
    assert str(raised.value) == "the server refuses MVAD_SMTP_USER with MVAD_SMTP_PASSWORD (535)"
    assert "wrong" not in repr(server)


def test_a_server_that_says_nothing_is_left(environment):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment(HOST="127.0.0.1", PORT=silent.getsockname()[1], FROM=TO)
        with pytest.raises(AlarmError, match=r"^the server does not answer$"):
            Mail(TO, Server.of_environment(), timeout_s=0.05).send(night())


def test_where_nobody_listens_the_system_says_why(environment, port):
    environment(HOST="127.0.0.1", PORT=port, FROM=TO)
    with pytest.raises(AlarmError, match=r"^Connection refused$"):
        Mail(TO, Server.of_environment()).send(night())


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "--email needs a server; set MVAD_SMTP_HOST"),
        ({"HOST": "mail"}, "MVAD_SMTP_FROM '' is no address such as to@example.org."),
        ({"HOST": "mail", "USER": "mvad"}, "MVAD_SMTP_FROM 'mvad' is no address"),
        ({"HOST": "mail", "FROM": "a@b\nBcc: c@d"}, r"MVAD_SMTP_FROM 'a@b\\nBcc: c@d' is no address"),
        ({"HOST": "mail", "FROM": TO, "PORT": "smtp"}, "MVAD_SMTP_PORT is 'smtp'; set it to the number of a port."),
        ({"HOST": "mail", "FROM": TO, "PORT": "65536"}, "MVAD_SMTP_PORT is '65536'"),
        ({"HOST": "mail", "FROM": TO, "SECURITY": "ssl"}, "MVAD_SMTP_SECURITY is 'ssl'; set it to one of: starttls"),
        ({"HOST": "mail", "FROM": TO, "SECURITY": "none", "USER": "me"}, "MVAD_SMTP_SECURITY none sends the password"),
    ],
)
def test_what_the_environment_lacks_is_said_before_the_work(environment, values, sentence):
    environment(**values)
    with pytest.raises(UsageError) as raised:
        Server.of_environment()
    assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize(("security", "port"), [("", 587), ("starttls", 587), ("tls", 465), ("none", 25)])
def test_each_security_has_its_port(environment, security, port):
    environment(HOST="mail", FROM=TO, SECURITY=security)
    assert Server.of_environment().port == port


@pytest.mark.parametrize("address", ["", "me", "@example.org", "me@", "a@b, c@d", "Me <me@b.org>", "a@b\r\nBcc: c@d"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(UsageError, match=r"^--email .* is no address such as to@example\.org"):
        Mail(address, Server("mail", TO, 587))


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, "LOOK (weave), DRIFT (plate), NOT SCORED (ring), NO IMAGES (cam4), too many errors"),
        ({"exit_code": 0, "rows": [row("weave")], "missing": []}, "OK"),
        ({"exit_code": 1, "failure": "disk full", "rows": []}, "FAILED"),
        ({"exit_code": 4, "rows": [], "missing": list("abcdefg")}, "NO IMAGES (a, b, c, 4 more)"),
        ({"exit_code": 4, "rows": [], "missing": ["x" * 500]}, f"NO IMAGES ({'x' * 40})"),
        (
            {"exit_code": 4, "rows": [], "missing": ["a\r\nBcc: all@example.org\x1b"]},
            r'NO IMAGES ("a\r\nBcc: all@example.org\x1b")',
        ),
    ],
)
def test_the_subject_says_who_has_to_look(values, line):
    assert subject(night(**values)) == f"mvad: night of {DAY}: {line}"
    mail = message(night(**values), "mvad@example.org", TO)
    (header,) = [str(value) for name, value in mail.items() if name == "Subject"]
    assert header == f"mvad: night of {DAY}: {line}"
    assert mail["Bcc"] is None
    sent = bytes(mail).split(b"\n\n")[0]
    assert not [name for name in sent.splitlines() if name.lower().startswith(b"bcc")]


def test_names_and_errors_are_text_in_the_body(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    rows = [row("caf\xe9 \x1b[31m", n_flagged=1), row("line\nbreak")]
    errors = [{"image_id": f"{n}\n.png", "category": "a", "split": "test", "error": "cut\noff"} for n in range(25)]
    body = text(night(rows=rows, errors=errors))
    assert "\x1b" not in body
    assert r"café \x1b[31m" in body
    assert body.count("error: ") == 20
    assert "and 5 more files that could not be used\n" in body
    content = message(night(rows=rows, errors=errors), TO, TO).get_content()
    assert content.splitlines() == body.splitlines()


def test_a_night_that_failed_says_why():
    body = text(night(exit_code=1, failure="No space left on device", rows=[], missing=[], errors=[]))
    assert body.splitlines() == [
        "night of 2026-11-23: exit code 1",
        "It failed: No space left on device",
        "results in /nights/date=2026-11-23",
    ]
