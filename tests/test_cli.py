"""Every wrong use: one clear sentence and exit code 2, before Ray is started or anything is written."""

import errno
import functools
import importlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from ray.exceptions import OutOfDiskError, RayTaskError
from typer.main import get_command

from helpers.tiles import ROOT, write_category
from mvad.cli import application, main
from mvad.process import GO_ON

JOBS = ROOT / "jobs"


def call(capsys, *arguments):
    """Exit code, standard output and standard error of a command."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    code = ended.value.code
    return (0 if code is None else code), captured.out, captured.err


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    """Wrong use must be found before Ray is started."""
    monkeypatch.setattr("mvad.pipeline.job.ray_session", lambda *_: pytest.fail("Ray was started"))


@pytest.fixture
def data(tmp_path):
    write_category(tmp_path / "data", "cap", train=2, good=1, defective=1)
    return tmp_path / "data"


def wrong_uses(data, tmp_path):
    """Name, arguments, and what the sentence must say."""
    out = tmp_path / "out"
    unlabelled = tmp_path / "train_only"
    write_category(unlabelled, "cap", train=2, good=0, defective=0)
    untrained = tmp_path / "test_only"
    write_category(untrained, "cap", train=0, good=1, defective=1)
    half = tmp_path / "half"
    write_category(half, "cap", train=2, good=1, defective=1)
    write_category(half, "lid", train=0, good=1, defective=1)
    empty = tmp_path / "empty"
    empty.mkdir()
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "run.json").write_text("{}")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.doc").touch()
    mixed = tmp_path / "mixed"
    (mixed / "models").mkdir(parents=True)
    lite = ("--backbone", "efficientnet_lite0")
    night = ("nightly", "--dump", data, "--models", empty, "--out", out)
    return [
        ("run", tmp_path / "nowhere", "--out", out, "no such folder"),
        ("run", empty, "--out", out, "no images under"),
        ("run", untrained, "--out", out, "no train/good images"),
        ("run", half, "--out", out, "category 'lid' .* has no train/good images"),
        ("run", unlabelled, "--out", out, *lite, "no test images"),
        ("run", data, "--out", out, "--categories", "bolt", "unknown category 'bolt'"),
        ("run", data, "--out", out, "--backbone", "resnet5000", "unknown backbone 'resnet5000'"),
        ("run", data, "--out", out, "--method", "magic", "--method 'magic' is unknown; choose one of: 'patchcore'"),
        ("run", data, "--out", taken, *lite, "holds another run's results"),
        ("run", data, "--out", foreign, *lite, "holds other files"),
        ("run", data, "--out", foreign, *lite, "--new-run", "holds other files"),
        ("run", data, "--out", mixed, *lite, "--new-run", r"holds other files \(models\)"),
        ("score", data, "--models", mixed / "models", "--out", mixed, "--new-run", "the models lie inside"),
        ("run", data, "--out", out, "--weights", tmp_path / "none.pth", "no such weights file"),
        ("run", data, "--out", out, "--coreset-ratio", "0", "coreset-ratio"),
        ("run", data, "--out", out, "--image-size", "8", "image-size 8 is too small"),
        ("run", data, "--out", out, "--image-size", "64", "--crop", "65", "crop 65 is larger"),
        ("run", data, "--out", out, "--maps", "some", "--maps 'some' is unknown"),
        ("run", data, "--out", out, "--max-errors", "few", "give a count"),
        ("run", data, "--out", out, "--batch-size", "0", "batch-size 0 is too small"),
        ("run", "ftp://host/data", "--out", out, "ftp:// is not supported"),
        ("fit", tmp_path / "nowhere", "--models", out, "no such folder"),
        ("score", data, "--models", empty, "--out", out, "no models in"),
        ("evaluate", empty, "no results in"),
        ("report", empty, "no results in"),
        ("maps", empty, "--to", out, "no results in"),
        ("regions", empty, "--to", out, "no results in"),
        ("regions", empty, "--to", out, "--format", "xml", "--format 'xml' is unknown; choose one of: 'csv', 'coco'"),
        ("models", empty, "no models in"),
        ("update", data, "--models", empty, "no models in"),
        ("nightly", "--dump", data, "--models", empty, "--out", out, "--date", "monday", "is not a date"),
        (*night, "--notify", "https://a.org", "--notify", "http://b.org/?key=1", "--notify http://b.org/ sends the"),
        ("compare", data, "--out", out, "--shots", "few", "--shots 'few' is not a whole number"),
        ("compare", tmp_path / "nowhere", "--out", out, "no such folder"),
        ("false-alarms", data, "--rates", "2", "--rates '2' must be below 1"),
        ("run", data, "--out", out, "--method", "vae-fewshot", *lite, "learns from other categories first"),
        ("run", data, "--out", out, "--folds", "1", "leaves nothing to learn from"),
        ("run", data, "--out", out, "--false-alarm-rate", "0", "--false-alarm-rate 0.0 must be above 0"),
        ("run", data, "--out", out, "--threshold-rule", "guess", "threshold-rule 'guess' is unknown"),
        ("run", data, "--out", out, "--flips", "some", "flips 'some' is unknown"),
        ("inspect", data, "--out", tmp_path / "out", r"ends in \.html"),
        ("inspect", tmp_path / "nowhere", "no such folder"),
        ("inspect", data, "--embedding", "umap", "embedding 'umap' is unknown"),
        ("inspect", data, "--backbone", "resnet5000", "unknown backbone 'resnet5000'"),
        ("sample", data, "is not empty"),
    ]


def test_wrong_uses(capsys, data, tmp_path):
    for *arguments, message in wrong_uses(data, tmp_path):
        code, out, err = call(capsys, *arguments)
        where = " ".join(map(str, arguments))
        assert code == 2, where
        assert out == "", where
        assert re.search(message, err), f"{where}: {err}"
        assert re.fullmatch(r"mvad: .+\n", err), f"{where}: not one line: {err}"
        assert not (tmp_path / "out").exists(), where
    assert (tmp_path / "foreign/thesis.doc").exists()


def test_missing_weights_name_the_file_and_the_way_out(capsys, data, tmp_path, monkeypatch):
    from urllib.error import URLError

    import torch

    def refuse(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    code, _, err = call(capsys, "run", data, "--out", tmp_path / "out")
    assert code == 2
    assert "resnet50-0676ba61.pth" in err
    assert "--weights" in err
    assert "efficientnet_lite0" in err


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", "data"], ["fly"], ["run", "data", "--out", "x", "--speed", "9"]]
)
def test_arguments_that_do_not_parse(capsys, arguments):
    assert call(capsys, *arguments)[0] == 2


@pytest.mark.parametrize("command", sorted(get_command(application()).commands))
def test_help_of_every_command_has_an_example(capsys, command):
    code, out, _ = call(capsys, command, "--help")
    assert code == 0
    assert f"Example: mvad {command}" in out


def test_every_option_is_explained_and_has_its_default(capsys, monkeypatch):
    from dataclasses import fields

    from mvad.options import RunOptions

    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = call(capsys, "run", "--help")
    for field in fields(RunOptions):
        assert f"--{field.name.replace('_', '-')}" in out
    assert "resnet50; vit_b_16 for vit-knn" in " ".join(out.split())
    assert "[default: 0.1]" in out


@pytest.mark.parametrize("job", sorted(JOBS.glob("[!e]*.py")), ids=lambda path: path.stem)
def test_jobs_take_the_same_options(job, tmp_path):
    ended = subprocess.run(
        [sys.executable, job, "--help"],
        cwd=JOBS.parent,
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
    )
    assert ended.returncode == 0, ended.stderr
    assert job.stem in ended.stdout.split("\n\n")[0]
    assert "--coreset-ratio" in ended.stdout or job.stem in ("score", "nightly", "update")


def _environment():
    import os

    return {**os.environ, "PYTHONPATH": str(JOBS.parent), "COLUMNS": "120"}


def test_json_is_all_of_standard_output(capsys, base_run):
    out, result = base_run
    code, printed, err = call(capsys, "evaluate", out, "--json")
    assert code == 0
    found = json.loads(printed)
    assert found["exit_code"] == 0
    assert found["summary"] == result.summary
    assert "alpha" in err  # the table for a person
    code, printed, _ = call(capsys, "models", out / "models", "--json")
    assert [row["category"] for row in json.loads(printed)] == ["alpha", "beta"]
    assert "--json" not in call(capsys, "serve", "--help")[1]


def replace_command(monkeypatch, name, function):
    """Let another function be called for a command, of the same options."""
    module = importlib.import_module(f"mvad.commands.{name}")
    monkeypatch.setattr(module, name, functools.wraps(getattr(module, name))(function))


def test_json_has_the_exit_code_and_no_number_that_json_lacks(capsys, monkeypatch, data):
    from mvad.results.run_record import Result

    rows = [{"image_auroc": float("nan"), "n": np.int64(3), "share": np.float32(0.5)}]
    errors = [{"image_id": "ü\n.png", "error": "no image"}]
    result = Result(3, rows, errors, {"fit": 1.5})
    replace_command(monkeypatch, "run", lambda *_, **__: result)
    code, printed, _ = call(capsys, "run", data, "--out", data / "out", "--json")
    assert code == 3
    assert json.loads(printed) == {
        "exit_code": 3,
        "summary": [{"image_auroc": None, "n": 3, "share": 0.5}],
        "errors": errors,
        "seconds": {"fit": 1.5},
    }


def test_a_log_says_how_long_is_left(capsys, monkeypatch):
    from mvad import console

    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.Reporter().stage("score", 1_000) as stage:
        for _ in range(4):
            now[0] += 20.0
            stage.advance(100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].split() == ["score", "200", "of", "1,000", "images", "5.0/s,", "0:02:40", "left"]
    assert len(lines) == 3


def test_shells_complete_commands():
    variables = {**_environment(), "_MVAD_COMPLETE": "complete_bash", "COMP_WORDS": "mvad sc", "COMP_CWORD": "1"}
    ended = subprocess.run([sys.executable, "-m", "mvad"], env=variables, capture_output=True, text=True, check=False)
    assert ended.stdout.split() == ["score"]


def full(place):
    return OSError(errno.ENOSPC, "No space left on device", place)


def in_a_task(error):
    """As Ray passes on what a task has raised, and Ray Data what a task of its own has."""
    outer = RuntimeError("the pipeline failed")
    outer.__cause__ = RayTaskError("write", "Traceback ...", error)
    return outer


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (full("/out/part.parquet"), 1, "/out/part.parquet: No space left on device"),
        (in_a_task(full("/out/part.parquet")), 1, "/out/part.parquet: No space left on device"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/out/x"), 1, "/out/x: Disk quota exceeded"),
        (OSError(errno.EROFS, "Read-only file system", "/out/x"), 2, "/out/x: Read-only file system"),
        (in_a_task(PermissionError(errno.EACCES, "Permission denied", "/x")), 2, "/x: Permission denied"),
        (OSError("When uploading part:\nAWS Error ACCESS_DENIED"), 1, "When uploading part: AWS Error ACCESS_DENIED"),
        (OutOfDiskError("Local disk is full\nThe object"), 1, "Ray: Local disk is full"),
    ],
)
def test_trouble_with_a_disk_a_store_or_the_cluster_is_one_sentence(capsys, monkeypatch, data, error, code, message):
    def fail(*_, **__):
        raise error

    replace_command(monkeypatch, "score", fail)
    ended, out, err = call(capsys, "score", data, "--models", data, "--out", data / "out")
    assert (ended, out) == (code, "")
    assert err.startswith(f"mvad: {message}")
    assert err.endswith(f"{GO_ON}\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize("error", [ValueError("shapes"), in_a_task(ValueError("shapes"))])
def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch, data, error):
    def fail(*_, **__):
        raise error

    replace_command(monkeypatch, "score", fail)
    with pytest.raises(type(error)):
        main(["score", str(data), "--models", str(data), "--out", str(data / "out")])


def test_windows_is_refused_in_one_sentence(capsys, monkeypatch):
    monkeypatch.setattr("mvad.cli.sys.platform", "win32")
    code, _, err = call(capsys, "models", "nowhere")
    assert code == 2
    assert err == "mvad: mvad runs on Linux and macOS; on Windows, run it in WSL 2.\n"


def test_one_command_imports_no_other():
    imported = """
import sys
from mvad.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    print(*sorted(name for name in sys.modules if name.startswith("mvad.commands.")))
"""
    ended = subprocess.run(
        [sys.executable, "-c", imported, "score", "--help"],
        env=_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.splitlines()[-1] == "mvad.commands.score"


@pytest.mark.parametrize("module", ["resource", "fcntl", "pwd"])
def test_commands_can_be_imported_without_modules_of_unix(module):
    imports = f"""
import importlib, sys
sys.modules[{module!r}] = None
import mvad.__main__, mvad.cli
mvad.cli.application()
for name in ("mvad.runtime.telemetry", "mvad.runtime.versions", "mvad.storage", "mvad.results"):
    importlib.import_module(name)
"""
    ended = subprocess.run(
        [sys.executable, "-c", imports], env=_environment(), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("option", ["maps --to", "report --to", "inspect --out", "compare --out"])
def test_a_place_that_cannot_be_written_is_found_before_the_work(capsys, data, base_run, tmp_path, option):
    command, name = option.split()
    (tmp_path / "file").touch()
    place = tmp_path / "file/below"
    place = place.with_suffix(".html") if command in ("report", "inspect") else place
    subject = base_run[0] if command in ("maps", "report") else data
    further = ("--backbone", "efficientnet_lite0", "--methods", "knn") if command == "compare" else ()
    code, out, err = call(capsys, command, subject, name, place, *further)
    assert code == 2
    assert out == ""
    assert "Not a directory" in err
    assert err.count("\n") == 1
