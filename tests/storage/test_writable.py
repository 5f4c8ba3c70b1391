"""What cannot be written says so, with its name; and before there is something to write."""

import errno
import os

import pytest

from mvad import storage
from mvad.errors import UsageError


@pytest.mark.parametrize("below", ["", "new", "new/and/deeper", "ü %41"])
def test_a_folder_that_can_be_written_is_not_touched(tmp_path, below):
    storage.ensure_writable_folder(storage.to_uri(tmp_path / below))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "reason"), [("file", "Not a directory"), ("file/below", "Not a directory"), ("link", "Not a directory")]
)
def test_a_place_that_is_no_folder(tmp_path, place, reason):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(UsageError, match=rf"{place} cannot be written to \({reason}\)"):
        storage.ensure_writable_folder(storage.to_uri(tmp_path / place))


def test_a_file_system_that_is_read_only(tmp_path, monkeypatch):
    def refuse(path, **_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("pathlib.Path.touch", refuse)
    with pytest.raises(UsageError, match=r"cannot be written to \(Read-only file system\)"):
        storage.ensure_writable_folder(storage.to_uri(tmp_path))


def test_a_store_that_refuses(tmp_path, monkeypatch):
    def refuse(uri, *_):
        raise OSError("When uploading part:\nAWS Error ACCESS_DENIED")

    monkeypatch.setattr("mvad.storage.files.write", refuse)
    with pytest.raises(UsageError, match=r"s3://bucket/out cannot be written to \(When uploading part: AWS Error ACC"):
        storage.ensure_writable_folder("s3://bucket/out")


@pytest.mark.parametrize("step", ["makedirs", "fsync", "replace"])
def test_a_write_that_fails_names_the_file_and_leaves_none(tmp_path, monkeypatch, step):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"mvad.storage.files.os.{step}", fail)
    with pytest.raises(OSError, match="No space left") as failed:
        storage.write(storage.to_uri(tmp_path / "part.parquet"), b"rows")
    assert failed.value.filename == str(tmp_path / "part.parquet")
    assert failed.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
