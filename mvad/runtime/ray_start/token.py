"""The token that a Ray started on this machine asks for."""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def private_token() -> Iterator[None]:
    """Let the Ray that is started here ask for a token that this user alone can read.

    Ray keeps it in ``~/.ray/auth_token``. Where the home folder is missing or cannot be written to, it is in the
    environment of this process and those that it starts. A token that the environment names is used as it is.
    """
    if os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}:
        yield
        return
    try:
        _create_token(Path(os.environ["HOME"]) / ".ray/auth_token")
    except (KeyError, OSError):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        _forget_token()
        try:
            yield
        finally:
            del os.environ["RAY_AUTH_TOKEN"]
            _forget_token()
    else:
        yield


def _create_token(path: Path) -> None:
    """Create the file of the token if it is missing; nobody else may read it. OSError if it cannot be created."""
    if path.exists():
        with suppress(OSError):
            path.chmod(0o600)
        path.read_bytes()
        return
    path.parent.mkdir(mode=0o700, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(32))
        with suppress(FileExistsError):  # of another process that started at the same time
            os.link(temporary, path)
    finally:
        os.unlink(temporary)


def _forget_token() -> None:
    """Let Ray's core look for the token again."""
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    AuthenticationTokenLoader.instance().reset_cache()
