"""The benchmark's command: measures one category side by side with others, prints tables, writes all numbers."""

from __future__ import annotations

import inspect
import json
import os
import platform
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console

from benchmarks import tables
from benchmarks.case import Case
from benchmarks.forward import compare_forward_passes
from benchmarks.gpu.part import NO_GPU, measure_gpu
from benchmarks.gpu.tables import show_gpu, show_rows
from benchmarks.growth import measure_growth
from benchmarks.jobs import measure_jobs, measure_plan, measure_start
from benchmarks.options import BenchmarkOptions
from benchmarks.peer import measure_peer
from benchmarks.references import compare_coresets, compare_searches, compare_shards
from benchmarks.windows import measure_windows
from mvad.console import WIDTH
from mvad.data.manifest import Manifest, read_manifest
from mvad.data.synthetic import write_sample
from mvad.errors import UsageError
from mvad.features.backbones import describe
from mvad.features.specs import resolve_engine
from mvad.options import DataOptions
from mvad.runtime.session import ray_session
from mvad.runtime.versions import versions

N_SEARCHED = 32  # test images that searches are compared on


def benchmark(options: BenchmarkOptions) -> dict[str, Any]:
    """Measure fitting and scoring of one category, print tables of ratios, and write all numbers to a JSON file.

    Every number is the median of several measurements after a warm-up, except fits with anomalib, which run once.

    Raises
    ------
    UsageError
        Unusable input, or anomalib cannot be installed.
    """
    console = Console(highlight=False, width=WIDTH, quiet=options.quiet)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if options.data is None:
            write_sample(str(folder / "sample"))
        data = options.data or str(folder / "sample")
        manifest = read_manifest(data, DataOptions(categories=options.categories))
        category = manifest.categories[0]
        report: dict[str, Any] = {
            "machine": {"processor": _processor(), "cores": os.cpu_count(), "gpu": _gpu()},
            "versions": versions(),
            "engine": resolve_engine(options.engine, torch.cuda.is_available()),
            "command": " ".join(["python", "jobs/benchmark.py", *sys.argv[1:]]),
            "category": category,
            "backbones": {},
        }
        if "gpu" in options.part_names:
            _measure_gpu(manifest, category, options, folder / "gpu", report, console)
        cases: list[Case] = []
        with ray_session(None) if {*options.part_names} - {"gpu"} else nullcontext():
            for name in options.backbone_names if {*options.part_names} - {"gpu", "growth", "windows"} else ():
                case = Case(manifest, category, describe(name), options, folder / name)
                report["backbones"][name] = measurements = _measure(case)
                tables.show(console, name, measurements)
                cases.append(case)
            if "growth" in options.part_names:
                report["growth"] = measure_growth(manifest, category, options, folder / "growth")
                tables.show_growth(console, report["growth"])
            if "windows" in options.part_names:
                report["windows"] = measure_windows(folder / "windows")
                show_rows(console, "windows", [report["windows"]], "images seen through windows, one thread")
        if "start" in options.part_names:  # with no other Ray on the machine
            for case in cases:
                report["backbones"][case.spec.name]["start"] = start = measure_start(case)
                tables.show_start(console, case.spec.name, start)
    Path(options.out).write_text(json.dumps(report, indent=2))
    machine = ", ".join(f"{name}: {value}" for name, value in report["machine"].items())
    console.print(
        f"{machine}; engine: {report['engine']}; torch {torch.__version__}; all numbers in {options.out}",
        soft_wrap=True,
    )
    return report


def _measure_gpu(
    manifest: Manifest,
    category: str,
    options: BenchmarkOptions,
    folder: Path,
    report: dict[str, Any],
    console: Console,
) -> None:
    """Measure what the GPU does; each stage's numbers are printed, and written to the file, as soon as it ends."""
    if not torch.cuda.is_available():
        console.print(NO_GPU)
        return
    report["gpu"] = {}
    for stage, measured in measure_gpu(manifest, category, options, folder):
        report["gpu"][stage] = measured
        show_gpu(console, stage, measured)
        Path(options.out).write_text(json.dumps(report, indent=2))


def _measure(case: Case) -> dict[str, Any]:
    options, parts = case.options, case.options.part_names
    measurements: dict[str, Any] = {
        "image_size": case.size.width,
        "coreset_ratio": options.coreset_ratio,
        "train_images": len(case.train),
        "weights": case.weights_note,
    }
    if "forward" in parts:
        measurements["forward"] = compare_forward_passes(case.network, case.size, case.test, options.repeats)
    if "jobs" in parts:
        measurements |= measure_jobs(case)
    elif {"peer", "algorithms", "start"} & {*parts}:
        case.fit()
    if "plan" in parts and "jobs" in parts:
        measurements["plan"] = measure_plan(case, measurements)
    if "peer" in parts:
        measurements["peer"] = measure_peer(case)
    if "algorithms" in parts:
        train = case.features(case.train)
        queries = case.features(case.test[:: max(1, len(case.test) // N_SEARCHED)])
        labels = list(case.labels.values())
        measurements["coreset"] = compare_coresets(train, options.coreset_ratio)
        measurements["search"] = compare_searches(queries, case.bank(), options.repeats)
        measurements["shards"] = compare_shards(train, case.features(case.test), labels, options.coreset_ratio)
    return measurements


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _gpu() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def command(**arguments: Any) -> None:
    """Measure speed and memory of fitting and scoring one category, next to anomalib and to the floor.

    Example: python jobs/benchmark.py mvtec --categories bottle
    """
    benchmark(BenchmarkOptions(**arguments))


command.__signature__ = inspect.signature(BenchmarkOptions)  # type: ignore[attr-defined]  # typer reads it

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command()(command)


def main() -> None:
    """Run the command line and exit: 0 done, 2 wrong use."""
    try:
        app(prog_name="benchmark")
    except UsageError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        sys.exit(2)
