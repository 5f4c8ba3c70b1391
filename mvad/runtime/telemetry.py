"""Ray metrics, one line of JSON per stage, and memory, for whoever monitors a run.

Every node of a cluster exports the metrics to Prometheus, and Ray's dashboard plots them if it is installed:
``ray_mvad_images_total`` by stage and status, ``ray_mvad_bytes_read_total`` and ``ray_mvad_actor_seconds_total`` by
stage.
"""

import functools
import json
import logging
import os
import sys
from typing import Any

logger = logging.getLogger("mvad")
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set in the environment of a submitted job


@functools.cache
def _counters() -> tuple[Any, Any, Any]:
    from ray.util.metrics import Counter

    return (
        Counter("mvad_images", "Images that actors have processed.", ("stage", "status")),
        Counter("mvad_bytes_read", "Bytes of the image files that could be decoded.", ("stage",)),
        Counter("mvad_actor_seconds", "Seconds of computation in actors.", ("stage",)),
    )


def count(stage: str, ok: int, errors: int, size: int, seconds: float) -> None:
    """Add a batch to the metrics of this process, a Ray actor or task.

    ``ok`` and ``errors`` are numbers of images with and without a result, ``size`` is that of their files in bytes.
    """
    images, bytes_read, actor_seconds = _counters()
    for status, number in (("ok", ok), ("error", errors)):
        if number:
            images.inc(number, {"stage": stage, "status": status})
    if size:
        bytes_read.inc(size, {"stage": stage})
    actor_seconds.inc(max(seconds, 1e-9), {"stage": stage})


def peak_memory() -> int:
    """Peak resident memory of this process in bytes, with mapped parts of Ray's object store; 0 on Windows."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def retries() -> int:
    """How often Ray began the task that runs here before, on workers or nodes that were lost; 0 outside of tasks."""
    from ray._private.worker import global_worker  # there is no public way

    core = getattr(global_worker, "core_worker", None)
    return 0 if core is None else core.get_current_task_attempt_number()


def log(event: str, **facts: Any) -> None:
    """Log a line of JSON with Python's ``logging``; in a submitted job it goes to the job's log."""
    if JOB_VARIABLE in os.environ and not logger.handlers:
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)
    logger.info(json.dumps({"event": event, **facts}))
