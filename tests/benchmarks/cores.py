"""Score with only some of this machine's cores: a process of its own, with a Ray of its own.

Reads one JSON object from standard input and writes the images per second of the flow to standard output::

    {"cores", "runs": [[short folder, images], [long folder, images]], "models", "out", "options"}
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import ray

from benchmarks.case import score_images, time_runs
from mvad.runtime.ray_start.process import core_muted


def main() -> None:
    task = json.loads(sys.stdin.read())
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task["cores"]])
    with core_muted():
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=task["cores"],
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    (short, n_short), (long, n_long) = task["runs"]
    models, out, options = Path(task["models"]), Path(task["out"]), task["options"]
    _, short_s, long_s = (  # the first is a warm-up
        time_runs(lambda folder=folder: score_images(Path(folder), models, out, **options))[0]
        for folder in (short, short, long)
    )
    sys.stdout.write(json.dumps((n_long - n_short) / max(long_s - short_s, 1e-9)) + "\n")


if __name__ == "__main__":
    main()
