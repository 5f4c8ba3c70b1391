"""Small servers on loopback that alarms are sent to: HTTP with answers that a test chooses, and SMTP."""

import ssl
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Message
from aiosmtpd.smtp import AuthResult


class HttpReceiver:
    """An HTTP server that answers with statuses, and headers, one after the other; the last one again and again.

    With an ``authority``, a certificate authority of trustme that signs its key, it speaks HTTPS.

    Attributes
    ----------
    url
        Of the server, without a path.
    requests
        What came: path, headers and body of each.
    """

    def __init__(self, *answers, authority=None):
        self.requests = []
        self._answers = [answer if isinstance(answer, tuple) else (answer, {}) for answer in answers or (204,)]
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append((self.path, self.headers, body))
                answers = receiver._answers
                status, headers = answers.pop(0) if len(answers) > 1 else answers[0]
                self.send_response(status)
                for name, value in {"Content-Length": "0", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if authority is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert("127.0.0.1").configure_cert(context)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        scheme = "http" if authority is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Kept(Message):
    def __init__(self, messages):
        super().__init__()
        self._messages = messages

    def handle_message(self, message):
        self._messages.append(message)

    async def handle_RCPT(self, server, session, envelope, address, options):  # noqa: N802
        if address.startswith("nobody@"):
            return "550 5.1.1 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"


@contextmanager
def mail_server(messages, port, security="none", login=None):
    """An SMTP server for which ``messages`` collects what came; gives the certificate authority that signed its key.

    ``login`` is a user and a password that it asks for.
    """
    authority = trustme.CA()
    context = None
    if security != "none":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)

    def authenticate(server, session, envelope, mechanism, data):
        return AuthResult(success=(data.login.decode(), data.password.decode()) == login, handled=False)

    options = {"authenticator": authenticate, "auth_required": True} if login else {}
    if security == "tls":
        options["auth_require_tls"] = False  # aiosmtpd means STARTTLS
    if security == "starttls":
        options |= {"tls_context": context, "require_starttls": True}
    server = Controller(
        _Kept(messages), "127.0.0.1", port, ssl_context=context if security == "tls" else None, **options
    )
    server.start()
    try:
        yield authority
    finally:
        server.stop()
