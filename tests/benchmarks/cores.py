"""Score with some of this machine's cores alone: a process of its own, with a Ray of its own.

One JSON object is read from standard input, and the images a second of the flow are written to standard output::

    {"cores", "runs": [[short folder, images], [long folder, images]], "models", "out", "options"}
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time

import ray

import mvad
from mvad.runtime import session


def main() -> None:
    given = json.loads(sys.stdin.read())
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given["cores"]])
    with session.core_muted():
        ray.init(
            address="local",
            include_dashboard=False,
            num_cpus=given["cores"],
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    seconds = []
    (short, few), (long, many) = given["runs"]
    for folder in (short, short, long):  # the first is a warm-up
        started = time.perf_counter()
        mvad.score(folder, given["models"], given["out"], new_run=True, quiet=True, **given["options"])
        seconds.append(time.perf_counter() - started)
    sys.stdout.write(json.dumps((many - few) / max(seconds[2] - seconds[1], 1e-9)) + "\n")


if __name__ == "__main__":
    main()
