"""The wheel holds the whole package, and works outside of the checkout."""

import email
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from helpers.tiles import ROOT
from mvad.version import VERSION

FORGOTTEN = "mvad/html/forgotten/page.html"  # in a folder that nothing in pyproject.toml names
BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
# No package of an extra can be imported, in any process of Python.
WITHOUT_EXTRAS = """
import sys
class Missing:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing)
"""
EXTRAS = {"aiohttp", "aiohttp_cors", "colorful", "fastapi", "grpc", "multipart", "opencensus", "opentelemetry"}
EXTRAS |= {"python_multipart", "smart_open", "starlette", "uvicorn", "virtualenv"}
SCRIPT = "from importlib.metadata import distribution as of; of('mvad').entry_points['mvad'].load()()"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of all that the wheel is built from, without the leavings of earlier builds, and with `FORGOTTEN`."""
    folder = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "mvad", folder / "mvad", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / FORGOTTEN).parent.mkdir()
    (folder / FORGOTTEN).write_text("<p>")
    return folder


@pytest.fixture(scope="module")
def unpacked(source, tmp_path_factory):
    """The folder of the wheel's files; it is built without network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-c", BUILD, str(folder)]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


def files(folder):
    return {path.relative_to(folder).as_posix() for path in (folder / "mvad").rglob("*") if path.is_file()}


def run(unpacked, folder, *arguments):
    """Run Python in a folder elsewhere, with the unpacked wheel before all that is installed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder / "site"), str(unpacked)])}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_no_file_of_the_package_is_missing(source, unpacked):
    missing = files(source) - files(unpacked)
    assert FORGOTTEN in missing, "this test would not see a folder that pyproject.toml forgets"
    assert missing == {FORGOTTEN}, "name them in pyproject.toml, tool.setuptools.package-data"
    assert not files(unpacked) - files(source)
    assert "mvad/py.typed" in files(unpacked)


def test_licences_are_in_the_wheel(unpacked):
    (information,) = unpacked.glob("mvad-*.dist-info")
    assert (information / "licenses/LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    uplot = "mvad/review/static/uPlot.LICENSE"
    assert (information / "licenses" / uplot).read_text() == (unpacked / uplot).read_text()


def test_the_metadata_says_who_made_it_and_under_which_licence(unpacked):
    (information,) = unpacked.glob("mvad-*.dist-info")
    metadata = email.message_from_string((information / "METADATA").read_text())
    assert metadata["Author"] == "The mvad developers"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    assert metadata.get_all("Project-URL") is None
    assert metadata["Description-Content-Type"] == "text/markdown"


def test_the_wheel_works_outside_of_the_checkout(unpacked, tmp_path):
    place = run(unpacked, tmp_path, "-c", "import mvad; print(mvad.__file__)")
    assert place.stdout.strip() == str(unpacked / "mvad/__init__.py")
    for command in (("-m", "mvad"), ("-c", SCRIPT)):
        version = run(unpacked, tmp_path, *command, "--version")
        assert (version.returncode, version.stdout) == (0, f"{VERSION}\n"), version.stderr
    sample = run(unpacked, tmp_path, "-m", "mvad", "sample", "data")
    assert sample.returncode == 0, sample.stderr
    assert len(list((tmp_path / "data/weave/train/good").iterdir())) == 48


def test_a_job_needs_no_extra(unpacked, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(WITHOUT_EXTRAS.format(names=EXTRAS))
    assert "No module named 'fastapi'" in run(unpacked, tmp_path, "-c", "import fastapi").stderr
    tiny = ("--backbone", "efficientnet_lite0", "--image-size", 64, "--limit", 4, "--categories", "weave", "--quiet")
    for command in (("sample", "data"), ("run", "data", "--out", "results", *tiny)):
        ended = run(unpacked, tmp_path, "-m", "mvad", *command)
        assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "results/summary.json").exists()
    assert "mvad[serve]" in run(unpacked, tmp_path, "-m", "mvad", "serve", "--models", "results/models").stderr
