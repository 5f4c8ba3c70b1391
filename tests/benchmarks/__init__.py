"""Speed and memory, measured side by side in one run: against anomalib, against the floor, against plain algorithms."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks import tables
from benchmarks.case import Case
from benchmarks.forward import compare_forward_passes
from benchmarks.growth import growth
from benchmarks.jobs import measure_jobs, measure_plan
from benchmarks.peer import measure_peer
from benchmarks.references import compare_coresets, compare_searches, compare_shards
from mvad.console import WIDTH
from mvad.data.manifest import read_manifest
from mvad.data.synthetic import sample
from mvad.features.backbones import describe
from mvad.features.extractor import resolve_engine
from mvad.options import BenchmarkOptions, CommonOptions
from mvad.results.run_record import versions
from mvad.runtime.session import ray_session

SEARCHED = 32  # test images that searches are compared on


def benchmark(data: str | None, out: str, **options: Any) -> dict[str, Any]:
    """Measure fitting and scoring of one category, print tables of ratios, and write all numbers to a JSON file.

    Every measurement is the median of several after a warm-up, but for fits of anomalib, which are measured once.

    Parameters
    ----------
    data
        A folder in MVTec layout; default: the generated sample.
    out
        The JSON file (a path).

    Raises
    ------
    UsageError
        Unusable input, or anomalib cannot be installed.
    """
    chosen = BenchmarkOptions(**options)
    console = Console(highlight=False, width=WIDTH, quiet=chosen.quiet)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if data is None:
            sample(str(folder / "sample"))
        manifest = read_manifest(data or str(folder / "sample"), CommonOptions(categories=chosen.categories))
        category = manifest.categories[0]
        found: dict[str, Any] = {
            "machine": {"processor": _processor(), "cores": os.cpu_count(), "gpu": _gpu()},
            "versions": versions(),
            "engine": resolve_engine(chosen.engine, torch.cuda.is_available()),
            "command": " ".join(["python", "jobs/benchmark.py", *sys.argv[2:]]),
            "category": category,
            "backbones": {},
        }
        with ray_session(None):
            for name in chosen.backbone_names:
                place = folder / name
                place.mkdir()
                case = Case(manifest, category, describe(name), chosen, place)
                found["backbones"][name] = measured = _measure(case)
                tables.show(console, name, measured)
            if "growth" in chosen.part_names:
                found["growth"] = growth(manifest, category, chosen.growth_sizes, chosen, folder / "growth")
                tables.show_growth(console, found["growth"])
    Path(out).write_text(json.dumps(found, indent=2))
    machine = ", ".join(f"{what}: {value}" for what, value in found["machine"].items())
    console.print(
        f"{machine}; engine: {found['engine']}; torch {torch.__version__}; all numbers in {out}", soft_wrap=True
    )
    return found


def _measure(case: Case) -> dict[str, Any]:
    options, parts = case.options, case.options.part_names
    found: dict[str, Any] = {
        "image_size": case.size.crop,
        "coreset_ratio": options.coreset_ratio,
        "train_images": len(case.train),
        "weights": case.weights_note,
    }
    if "forward" in parts:
        found["forward"] = compare_forward_passes(case.network, case.size, case.test, options.repeats)
    if "jobs" in parts:
        found |= measure_jobs(case)
    elif {"peer", "algorithms"} & {*parts}:
        case.fit()
    if "plan" in parts and "jobs" in parts:
        found["plan"] = measure_plan(case, found)
    if "peer" in parts:
        found["peer"] = measure_peer(case)
    if "algorithms" in parts:
        features, searched = case.features(case.train), case.features(case.test[:: max(1, len(case.test) // SEARCHED)])
        found["coreset"] = compare_coresets(features, options.coreset_ratio)
        found["search"] = compare_searches(searched, case.bank(), options.repeats)
        found["shards"] = compare_shards(
            features, case.features(case.test), list(case.labels.values()), options.coreset_ratio
        )
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _gpu() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
