"""Many clients at the demo: images per second, how long an answer takes, and whether memory grows.

PYTHONPATH=tests python -m benchmarks.load MODELS IMAGE --clients 8,32,100 --requests 2000
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from urllib3 import encode_multipart_formdata

from benchmarks.environment import environment_python

LOCUST = "locust==2.47.0"


@contextmanager
def demo(models: str, *arguments: str) -> Iterator[tuple[str, psutil.Process]]:
    """Serve the demo in a process of its own, with more arguments; yields its address and that process."""
    command = [sys.executable, "-m", "mvad", "serve", "--models", models, "--port", "0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        lines = iter(process.stdout.readline, "")
        address = next(word for line in lines for word in line.split() if word.startswith("http://"))
        yield address, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.communicate()


def measure(python: Path, job: dict[str, Any], process: psutil.Process) -> dict[str, Any]:
    """Send the requests of a job (`locust_process`); return what Locust measured, and the memory of the demo."""
    before = _megabytes(process)
    script = Path(__file__).with_name("locust_process.py")
    locust = subprocess.run([python, script], input=json.dumps(job), text=True, capture_output=True)
    if locust.returncode:
        raise RuntimeError(f"Locust failed: {locust.stderr}")
    measured = json.loads(locust.stdout.strip().splitlines()[-1])
    n_scored = measured["statuses"].get("200", 0)
    return {
        "clients": job["clients"],
        "requests": job["requests"],
        "scored": n_scored,
        "refused": measured["statuses"].get("503", 0),
        "failed": job["requests"] - n_scored - measured["statuses"].get("503", 0),
        "images_per_second": round(n_scored / measured["seconds"], 1),
        "p50_ms": measured["p50_ms"],
        "p99_ms": measured["p99_ms"],
        "mb_before": before,
        "mb_after": _megabytes(process),
    }


def _megabytes(process: psutil.Process) -> list[int]:
    """Resident memory of the process that answers requests, and of those that score images."""
    scoring = [
        child for child in process.children(recursive=True) if "ScoringProcess" in child.name() + str(child.cmdline())
    ]
    return [round(one.memory_info().rss / 1e6) for one in (process, *scoring)]


def main() -> int:
    parser = argparse.ArgumentParser(description="Many clients at the demo, on this machine.")
    parser.add_argument("models", help="folder of fitted models")
    parser.add_argument("image", help="the image that every request sends")
    parser.add_argument("--category", default="", help="the category of the image; default: detected")
    parser.add_argument("--pictures", action="store_true", help="ask for pictures, as the page does")
    parser.add_argument("--clients", default="8,32,100", help="numbers of clients, comma separated; one run each")
    parser.add_argument("--requests", type=int, default=2000, help="requests of each run")
    parser.add_argument("--locust-folder", default="~/.cache/mvad/locust", help="folder of Locust's environment")
    options = parser.parse_args()
    python = environment_python(Path(options.locust_folder).expanduser(), LOCUST)
    image = Path(options.image)
    fields = {"category": options.category, "pictures": str(options.pictures).lower()}
    body, content_type = encode_multipart_formdata({**fields, "images": (image.name, image.read_bytes())})
    complete = True
    with tempfile.NamedTemporaryFile() as file, demo(options.models) as (address, process):
        Path(file.name).write_bytes(body)
        job = {"host": address, "body": file.name, "content_type": content_type}
        measure(python, {**job, "clients": 4, "requests": 40}, process)  # a warm-up
        for clients in map(int, options.clients.split(",")):
            report = measure(python, {**job, "clients": clients, "requests": options.requests}, process)
            complete &= report["failed"] == 0
            print("  ".join(f"{name} {value}" for name, value in report.items()), flush=True)
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
