"""Kill every command that writes in each of its changes of the storage, repeat it, and compare what it leaves.

    PYTHONPATH=tests python tests/helpers/killed_writes.py [COMMAND ...]

The long form of ``tests/faults/test_killed_writes.py``: each repetition is a job of its own, which takes many minutes.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mvad
from helpers.fault_injection import kill_everywhere
from helpers.tiles import EMBEDDED, write_category
from mvad import results
from mvad.model_store import read_model
from mvad.runtime.session import ray_session
from mvad.storage import to_uri

SMALL: dict[str, Any] = {**EMBEDDED, "image_size": 64, "actors": 1, "settle": 0, "max_errors": "100%"}
FITTED = {name: value for name, value in SMALL.items() if name != "settle"}
SCORED = {"actors": 1, "quiet": True, "settle": 0}
COMPARED = {**FITTED, "methods": "patchcore,knn"}


def fingerprint(folder: Path) -> dict[str, Any]:
    """What must be the same whatever happened: the models' ids, all rows, and which files there are besides."""
    models = {
        str(path.relative_to(folder)): read_model(to_uri(path.parent)).model_id for path in folder.rglob("model.json")
    }
    tables = [path for path in (folder, *folder.rglob("*")) if (path / "scores").is_dir()]
    rows = {
        str(path.relative_to(folder)): results.read_scores(to_uri(path))
        .drop_columns(["run_id", "scored_at"])
        .to_pylist()
        for path in tables
    }
    done = sorted(str(path.relative_to(folder)) for path in folder.rglob("_SUCCESS"))
    files = sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.suffix in (".html", ".png", ".json")
    )
    return json.loads(json.dumps([models, rows, done, files], default=str))


def commands(data: Path, models: Path) -> dict[str, tuple[Callable[[Path], Any], bool]]:
    """Each command, by the folder that it writes to, and whether that begins as a copy of fitted models or a run."""
    tiles = str(data)
    dump = str(data / "alpha/test")
    return {
        "fit": (lambda out: mvad.fit(tiles, str(out), **FITTED), False),
        "run": (lambda out: mvad.run(tiles, str(out), **SMALL), False),
        "score": (lambda out: mvad.score(tiles, str(models), str(out), **SCORED), False),
        "new run": (lambda out: mvad.score(tiles, str(models), str(out / "run"), new_run=True, **SCORED), True),
        "nightly": (
            lambda out: mvad.nightly(dump, str(models), str(out), "2026-11-23", category="alpha", **SCORED),
            False,
        ),
        "update": (lambda out: mvad.update(tiles, str(out / "models"), actors=1, quiet=True), True),
        "compare": (lambda out: mvad.compare(tiles, str(out), **COMPARED), False),
        "evaluate": (lambda out: mvad.evaluate(str(out / "run"), false_alarm_rate=0.2, quiet=True), True),
        "report": (lambda out: mvad.report(str(out / "run"), quiet=True), True),
        "compact": (lambda out: mvad.compact(str(out / "run"), quiet=True), True),
        "maps": (lambda out: mvad.maps(str(out / "run"), str(out / "run/maps"), quiet=True), True),
        "regions": (
            lambda out: mvad.regions(str(out / "run"), str(out / "run/regions"), format="labelme", quiet=True),
            True,
        ),
        "inspect": (
            lambda out: mvad.inspect(
                tiles, str(out / "inspect.html"), features=False, actors=1, quiet=True, new_run=True
            ),
            False,
        ),
    }


def main(names: list[str]) -> int:
    """Try the commands with these names, or all; returns how many of them left something else."""
    folder, n_failed = Path(tempfile.mkdtemp(prefix="mvad-killed-")), 0
    for number, name in enumerate(("alpha", "beta")):
        write_category(folder / "data", name, seed=number)
    begun = folder / "begun"
    with ray_session(None):
        mvad.run(str(folder / "data"), str(begun / "run"), maps="all", **SMALL)
        shutil.copytree(begun / "run/models", begun / "models")
        models = folder / "models"
        shutil.copytree(begun / "models", models)
        for name, (command, begins) in commands(folder / "data", models).items():
            if names and name not in names:
                continue
            expected, out = folder / f"expected {name}", folder / f"out {name}"
            for place in (expected, out) if begins else ():
                shutil.copytree(begun, place)
            command(expected)
            undisturbed, faults = fingerprint(expected), []

            def check(n: int, out: Path = out, undisturbed: Any = undisturbed, faults: list[int] = faults) -> None:
                if fingerprint(out) != undisturbed:
                    faults.append(n)

            def run(command: Callable[[Path], Any] = command, out: Path = out) -> Any:
                return command(out)

            try:
                n_changes = kill_everywhere(run, [out], check, folder / f"kept {name}")
                print(f"{name}: killed in each of {n_changes} changes; different after those at {faults}", flush=True)
            except Exception as error:
                print(f"{name}: {type(error).__name__}: {error}", flush=True)
                faults.append(-1)
            n_failed += bool(faults)
    shutil.rmtree(folder)
    return n_failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
