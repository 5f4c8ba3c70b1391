"""Send the table of a night by e-mail, through the server that the environment names."""

from __future__ import annotations

import email.utils
import os
import smtplib
import ssl
from dataclasses import dataclass, field
from email.errors import MessageError
from email.headerregistry import Address
from email.message import EmailMessage

from mvad.alarms.channel import AlarmError, system_reason
from mvad.alarms.document import Night, subject, text
from mvad.alarms.webhook import is_loopback
from mvad.errors import UsageError, one_line
from mvad.storage.text import visible

STARTTLS, TLS, NONE = "starttls", "tls", "none"
PORTS = {STARTTLS: 587, TLS: 465, NONE: 25}  # by MVAD_SMTP_SECURITY
MAX_ANSWER = 200  # characters of a server's answer


@dataclass(frozen=True)
class Server:
    """A server that takes mail; certificates are checked, and without encryption no password is sent."""

    host: str
    sender: str  # address
    port: int
    security: str = STARTTLS
    user: str = ""
    password: str = field(default="", repr=False)

    @classmethod
    def of_environment(cls) -> Server:
        """The server in MVAD_SMTP_HOST and its like; UsageError, which shows no password, if they say too little."""
        values = {
            name: os.environ.get(f"MVAD_SMTP_{name}", "") for name in ("HOST", "FROM", "PORT", "USER", "PASSWORD")
        }
        security = os.environ.get("MVAD_SMTP_SECURITY") or STARTTLS
        if not values["HOST"]:
            raise UsageError("--email needs a server; set MVAD_SMTP_HOST to its name.")
        if security not in PORTS:
            raise UsageError(f"MVAD_SMTP_SECURITY is {visible(security)!r}; set it to one of: {', '.join(PORTS)}.")
        port = values["PORT"] or str(PORTS[security])
        if not (port.isascii() and port.isdecimal() and 0 < int(port) < 1 << 16):
            raise UsageError(f"MVAD_SMTP_PORT is {visible(port)!r}; set it to the number of a port.")
        if security == NONE and values["USER"] and not is_loopback(values["HOST"]):
            raise UsageError(
                "MVAD_SMTP_SECURITY none sends the password in the clear; use starttls or tls, or unset MVAD_SMTP_USER."
            )
        sender = checked_address(values["FROM"] or values["USER"], "MVAD_SMTP_FROM")
        return cls(values["HOST"], sender, int(port), security, values["USER"], values["PASSWORD"])

    def deliver(self, message: EmailMessage, timeout_s: float) -> None:
        """Send a message, waiting so many seconds for each answer; OSError if it is not taken."""
        context = None if self.security == NONE else ssl.create_default_context()
        if self.security == TLS:
            server: smtplib.SMTP = smtplib.SMTP_SSL(self.host, self.port, timeout=timeout_s, context=context)
        else:
            server = smtplib.SMTP(self.host, self.port, timeout=timeout_s)
        with server:
            if self.security == STARTTLS:
                server.starttls(context=context)
            if self.user:
                server.login(self.user, self.password)
            server.send_message(message)


class Mail:
    """Somebody who gets the table by e-mail; `channel.Channel`. UsageError if ``address`` is none."""

    def __init__(self, address: str, server: Server, *, timeout_s: float = 10.0, limit_s: float = 60.0) -> None:
        self._address = checked_address(address, "--email")
        self.name, self.limit_s = f"mailto:{address}", limit_s
        self._server, self._timeout_s = server, timeout_s

    def send(self, night: Night) -> None:
        """Send the table."""
        try:
            self._server.deliver(message(night, self._server.sender, self._address), self._timeout_s)
        except OSError as error:  # which those of smtplib are, too
            raise AlarmError(_reason(error)) from error


def message(night: Night, sender: str, recipient: str) -> EmailMessage:
    """The e-mail about a night."""
    mail = EmailMessage()
    mail["Subject"] = subject(night)
    mail["From"], mail["To"] = sender, recipient
    mail["Date"] = email.utils.localtime()
    mail["Message-ID"] = email.utils.make_msgid(domain=sender.rpartition("@")[2])
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(text(night))
    return mail


def checked_address(address: str, name: str) -> str:
    """An address such as to@example.org; UsageError, which says what ``name`` should be, if it is another text."""
    try:
        parts = Address(addr_spec=address)
        is_address = bool(parts.username and parts.domain) and str(parts) == address
    except (ValueError, IndexError, MessageError):
        is_address = False
    if not is_address:
        raise UsageError(f"{name} {visible(address)!r} is no address such as to@example.org.")
    return address


def _reason(error: OSError) -> str:
    if isinstance(error, smtplib.SMTPAuthenticationError):
        return f"the server refuses MVAD_SMTP_USER with MVAD_SMTP_PASSWORD ({error.smtp_code})"
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        code, answer = next(iter(error.recipients.values()))
        return _answer(code, answer)
    if isinstance(error, smtplib.SMTPResponseException):
        return _answer(error.smtp_code, error.smtp_error)
    if isinstance(error, TimeoutError) or isinstance(error.__context__, TimeoutError):
        return "the server does not answer"
    return system_reason(error) or one_line(error)[:MAX_ANSWER]


def _answer(code: int, answer: bytes | str) -> str:
    words = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else answer
    return f"the server answered {code} {one_line(words)[:MAX_ANSWER]}"
