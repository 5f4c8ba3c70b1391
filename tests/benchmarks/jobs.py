"""Fit and score as users run them, next to the same work without Ray."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.case import Case, link_images, n_cpus, time_runs
from benchmarks.floor import ExtractorLoader, Workers, backbone_loader, spec_loader
from benchmarks.peak import peak_memory
from mvad.commands.plan import Costs, predict
from mvad.detectors import State
from mvad.features.kinds import PATCHES
from mvad.features.specs import prepare
from mvad.model_store import read_arrays
from mvad.results import read_run
from mvad.storage import to_uri

START_IMAGES, POLL_S = 10, 0.02
MIN_LONG_RUN = 500  # images; in shorter runs, noise at the start hides the cost of the flow


def measure_jobs(case: Case) -> dict[str, Any]:
    """Seconds and memory of fitting and scoring; of the floor, started and running; of all work without Ray."""
    options, n_long, n_short = case.options, len(case.many), len(case.once)
    case.fit(limit=16)
    with peak_memory() as fit_peak:
        fits = time_runs(case.fit, options.fit_repeats)
    calibrated = time_runs(lambda: case.fit(calibration="loo"), options.fit_repeats)
    case.score("once")
    floor_loader = backbone_loader(case.network, case.size.width, options.engine)
    work_loader = spec_loader(prepare([PATCHES], case.network, case.size, options.engine))
    model = case.model.method, State(case.model.settings, read_arrays(case.model))
    long_s: list[float] = []
    short_s: list[float] = []
    floor_s: list[float] = []
    started_floor_s: list[float] = []
    without_ray_s: list[float] = []
    first_result_s: list[float] = []
    with peak_memory() as score_peak:
        for _ in range(options.repeats):
            long_s += time_runs(lambda: case.score("many"))
            stages = read_run(to_uri(str(case.folder / "many-scores")))["stages"]
            first_result_s.append(stages["score"]["first_seconds"])
            short_s += time_runs(lambda: case.score("once"))
            running, starting = _floor_seconds(floor_loader, case)
            floor_s.append(running)
            started_floor_s.append(starting)
            workers = Workers(work_loader, case.size, n_cpus(), model)
            workers.measure(case.once)
            seconds, costs = workers.measure(case.many)
            without_ray_s.append(seconds)
            workers.close()
    measurements: dict[str, Any] = {
        "scored_images": n_long,
        "fit_seconds": fits,
        "calibrated_fit_seconds": calibrated,
        "score_images_per_second": [n_long / seconds for seconds in long_s],
        "floor_images_per_second": [n_long / seconds for seconds in floor_s],
        "floor_from_its_start_images_per_second": [n_long / seconds for seconds in started_floor_s],
        "without_ray_images_per_second": [n_long / seconds for seconds in without_ray_s],
        "above_floor": _ratio(long_s, floor_s),
        "above_floor_from_its_start": _ratio(long_s, started_floor_s),
        "short_run": {"images": n_short, "seconds": short_s},
        "first_result_seconds": first_result_s,
        "stages": costs._asdict(),
        "peak_bytes": {
            "fit driver": fit_peak.driver,
            "fit actor": fit_peak.actor,
            "score driver": score_peak.driver,
            "score actor": score_peak.actor,
        },
        "auroc": case.auroc(case.scores()),
    }
    if n_long >= max(MIN_LONG_RUN, 2 * n_short):
        # A long run minus a short one leaves the flow alone: both take the same time to start.
        flow = [(long - short) / (n_long - n_short) for long, short in zip(long_s, short_s, strict=True)]
        measurements["flow_images_per_second"] = [1 / seconds for seconds in flow]
        measurements["flow_above_floor"] = _ratio(flow, [seconds / n_long for seconds in floor_s])
        measurements["ray_overhead"] = statistics.median(
            (ours - without_ray / n_long) / (floor / n_long)
            for ours, without_ray, floor in zip(flow, without_ray_s, floor_s, strict=True)
        )
    return measurements


def measure_start(case: Case) -> dict[str, Any]:
    """Seconds from the command ``mvad score`` of ten images, a process of its own, to its first rows and to its end."""
    data, out = case.folder / "ten", case.folder / "ten-scores"
    link_images(case.test[:START_IMAGES], data / case.category)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    words = ["score", str(data), "--models", str(case.folder / "models"), "--out", str(out), "--new-run", "--quiet"]
    words += ["--weights", str(case.weights), "--engine", case.options.engine]
    first_s, whole_s = [], []
    for _ in range(1 + case.options.repeats):  # the first is a warm-up
        shutil.rmtree(out, ignore_errors=True)
        started = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "mvad", *words], env=environment)
        while process.poll() is None and not any(out.rglob("scores/**/*.parquet")):
            time.sleep(POLL_S)
        first_s.append(time.perf_counter() - started)
        if process.wait():
            raise RuntimeError(f"mvad {' '.join(words)} ended with {process.returncode}")
        whole_s.append(time.perf_counter() - started)
    return {"images": START_IMAGES, "first_result_seconds": first_s[1:], "seconds": whole_s[1:]}


def _floor_seconds(loader: ExtractorLoader, case: Case) -> tuple[float, float]:
    """Seconds for all images by processes that already run, and by processes that are started for them."""
    started = time.perf_counter()
    workers = Workers(loader, case.size, n_cpus())
    workers.measure(case.many)
    starting = time.perf_counter() - started
    running, _ = workers.measure(case.many)
    workers.close()
    return running, starting


def measure_plan(case: Case, measurements: dict[str, Any]) -> list[dict[str, float]]:
    """Compare what ``mvad plan`` predicts for one core and for all cores of this machine with what scoring takes."""
    costs = Costs(**measurements["stages"], file_bytes=0.0, moved_bytes=0.0)
    tests = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([tests, *filter(None, sys.path)])}
    rows = []
    for cores in sorted({1, n_cpus()} if hasattr(os, "sched_setaffinity") else ()):
        task = {
            "cores": cores,
            "runs": [[str(case.folder / "once"), len(case.once)], [str(case.folder / "many"), len(case.many)]],
            "models": str(case.folder / "models"),
            "out": str(case.folder / "cores-scores"),
            "options": {"weights": str(case.weights), "engine": case.options.engine},
        }
        process = subprocess.run(
            [sys.executable, "-m", "benchmarks.cores"],
            input=json.dumps(task),
            env=environment,
            text=True,
            capture_output=True,
            check=True,
        )
        predicted = predict(costs, len(case.many), gpus=0, cores=cores).images_per_second
        measured = json.loads(process.stdout.strip().splitlines()[-1])
        rows.append({"cores": cores, "predicted_images_per_second": predicted, "measured_images_per_second": measured})
    return rows


def _ratio(ours: Sequence[float], others: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, others, strict=True))
