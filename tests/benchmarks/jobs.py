"""Fit and score as users run them, beside the same work without Ray."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.case import Case, ray_cpus, seconds_of
from benchmarks.floor import Opener, Workers, floor_opener, package_opener
from benchmarks.peak import peak_memory
from mvad.commands.plan import Costs, predict
from mvad.detectors import State
from mvad.features.extractor import prepare
from mvad.features.kinds import PATCHES
from mvad.model_store import read_arrays
from mvad.results import read_run
from mvad.storage import to_uri

LONG_RUN = 500  # images; in shorter runs, noise in starting hides what the flow takes


def measure_jobs(case: Case) -> dict[str, Any]:
    """Seconds and memory of fitting and scoring; of the floor, started and not; of all work without Ray."""
    options, count, few = case.options, len(case.many), len(case.once)
    case.fit(limit=16)
    with peak_memory() as fit_peak:
        fits = seconds_of(case.fit, options.fit_repeats)
    case.score("once")
    floor, work = floor_opener(case.network, case.size.crop, options.engine), _work_opener(case)
    model = case.model.method, State(case.model.settings, read_arrays(case.model))
    floors, begun, works, longs, shorts, firsts = [], [], [], [], [], []
    with peak_memory() as score_peak:
        for _ in range(options.repeats):
            longs += seconds_of(lambda: case.score("many"))
            firsts.append(read_run(to_uri(str(case.folder / "many-scores")))["stages"]["score"]["first_seconds"])
            shorts += seconds_of(lambda: case.score("once"))
            warm, whole = _floor_seconds(floor, case)
            floors.append(warm)
            begun.append(whole)
            workers = Workers(work, case.size, ray_cpus(), model)
            workers.measure(case.once)
            seconds, stages = workers.measure(case.many)
            works.append(seconds)
            workers.close()
    found: dict[str, Any] = {
        "scored_images": count,
        "fit_seconds": fits,
        "score_images_per_second": [count / seconds for seconds in longs],
        "floor_images_per_second": [count / seconds for seconds in floors],
        "floor_from_its_start_images_per_second": [count / seconds for seconds in begun],
        "without_ray_images_per_second": [count / seconds for seconds in works],
        "above_floor": _ratio(longs, floors),
        "above_floor_from_its_start": _ratio(longs, begun),
        "short_run": {"images": few, "seconds": shorts},
        "first_result_seconds": firsts,
        "stages": stages._asdict(),
        "peak_bytes": {
            "fit driver": fit_peak.driver,
            "fit actor": fit_peak.actor,
            "score driver": score_peak.driver,
            "score actor": score_peak.actor,
        },
        "auroc": case.auroc(case.scores()),
    }
    if count >= max(LONG_RUN, 2 * few):
        # Between a short and a long run lies the flow alone: starting is the same in both.
        flow = [(long - short) / (count - few) for long, short in zip(longs, shorts, strict=True)]
        found["flow_images_per_second"] = [1 / seconds for seconds in flow]
        found["flow_above_floor"] = _ratio(flow, [seconds / count for seconds in floors])
        found["ray_overhead"] = statistics.median(
            (one - alone / count) / (least / count) for one, alone, least in zip(flow, works, floors, strict=True)
        )
    return found


def _work_opener(case: Case) -> Opener:
    return package_opener(prepare([PATCHES], case.network, case.size, case.options.engine))


def _floor_seconds(opener: Opener, case: Case) -> tuple[float, float]:
    """Seconds for all images by processes that run already, and by ones that start for them."""
    started = time.perf_counter()
    workers = Workers(opener, case.size, ray_cpus())
    workers.measure(case.many)
    whole = time.perf_counter() - started
    seconds, _ = workers.measure(case.many)
    workers.close()
    return seconds, whole


def measure_plan(case: Case, measured: dict[str, Any]) -> list[dict[str, float]]:
    """What `planning.predict` says of this machine with one and with all of its cores, and what scoring takes then."""
    costs = Costs(**measured["stages"], file_bytes=0.0, moved_bytes=0.0)
    found = []
    for cores in sorted({1, ray_cpus()} if hasattr(os, "sched_setaffinity") else ()):
        given = {
            "cores": cores,
            "runs": [[str(case.folder / images), len(uris)] for images, uris in _runs(case)],
            "models": str(case.folder / "models"),
            "out": str(case.folder / "cores-scores"),
            "options": {"weights": str(case.weights), "engine": case.options.engine},
        }
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.cores"],
            input=json.dumps(given),
            text=True,
            capture_output=True,
            check=True,
        )
        predicted = predict(costs, len(case.many), gpus=0, cores=cores).images_per_second
        rate = json.loads(done.stdout.strip().splitlines()[-1])
        found.append({"cores": cores, "predicted_images_per_second": predicted, "measured_images_per_second": rate})
    return found


def _runs(case: Case) -> list[tuple[str, Sequence[str]]]:
    return [("once", case.once), ("many", case.many)]


def _ratio(ours: Sequence[float], others: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, others, strict=True))
