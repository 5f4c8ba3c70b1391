"""The part ``gpu`` of the benchmark: stages in processes of their own, each with a time limit."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.case import category_uris
from benchmarks.options import GPU_STAGES, BenchmarkOptions
from mvad.data.manifest import Manifest
from mvad.process import kill_children

NO_GPU = "gpu: PyTorch sees no CUDA device on this machine; this part is skipped."
# Eight minutes together; a stage that takes longer keeps the rows it has.
TIME_LIMITS_S = dict(zip(GPU_STAGES, (105, 130, 50, 15, 35, 20, 110, 15), strict=True))
LOG_LENGTH = 3000  # characters at the end of the log of a stage that failed
TESTS = Path(__file__).parents[2]


def measure_gpu(
    manifest: Manifest, category: str, options: BenchmarkOptions, folder: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each stage and what it measured: ``rows``, ``seconds``, and ``error`` and ``log`` of one that failed."""
    task = {
        "root": manifest.root.removeprefix("file://"),
        "category": category,
        "train": category_uris(manifest, category, "train"),
        "test": category_uris(manifest, category, "test"),
        "options": dataclasses.asdict(options),
    }
    for stage in options.gpu_stages:
        scratch = folder / stage
        scratch.mkdir(parents=True)
        yield stage, run_stage(stage, {**task, "folder": str(scratch)}, TIME_LIMITS_S[stage])


def run_stage(stage: str, task: dict[str, Any], limit_s: float, visible_devices: str | None = None) -> dict[str, Any]:
    """Run a stage in a process of its own, which writes a line of JSON per row, and read what it wrote.

    ``visible_devices`` are the CUDA devices it may use; none if it is empty.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])}
    if visible_devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible_devices
    folder = Path(task["folder"])
    out, err = folder / f"{stage}.jsonl", folder / f"{stage}.log"
    started = time.perf_counter()
    with out.open("w") as rows, err.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu.stage", stage],
            stdin=subprocess.PIPE,
            stdout=rows,
            stderr=log,
            env=environment,
            text=True,
        )
        try:
            process.communicate(json.dumps(task), timeout=limit_s)
            error = None if process.returncode == 0 else _last_line(err) or f"exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            error = f"took more than {limit_s:.0f} s"
        finally:
            if process.poll() is None:
                kill_children(process.pid)
                process.kill()
                process.wait()
    seconds, rows_read = time.perf_counter() - started, [*map(json.loads, out.read_text().splitlines())]
    found = {"rows": rows_read, "seconds": seconds, "error": error}
    return found if error is None else {**found, "log": err.read_text(errors="replace")[-LOG_LENGTH:]}


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""
