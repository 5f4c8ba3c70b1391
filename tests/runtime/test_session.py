import pytest
import ray

from mvad.errors import UsageError
from mvad.runtime.session import ray_session


def test_ray_alone_asks_for_a_token(ray_local):
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    assert is_token_auth_enabled()


def test_no_such_cluster(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def refuse(**arguments):
        raise ConnectionError("nobody there")

    monkeypatch.setattr(ray, "init", refuse)
    with (
        pytest.raises(UsageError, match=r"no Ray cluster at '10.0.0.9:6379' \(nobody there\)"),
        ray_session("10.0.0.9:6379"),
    ):
        pass
