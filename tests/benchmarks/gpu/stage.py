"""The process of one stage: reads a task as JSON from standard input, writes a line of JSON per row."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

Stage = Callable[[dict[str, Any]], Iterator[dict[str, Any]]]

MODULES = {  # of the function with the stage's name
    "agreement": "benchmarks.gpu.agreement",
    "runs": "benchmarks.gpu.agreement",
    "jobs": "benchmarks.gpu.jobs",
    "network": "benchmarks.gpu.network",
    "compiled": "benchmarks.gpu.network",
    "decoding": "benchmarks.gpu.decoding",
    "search": "benchmarks.gpu.bank",
    "coreset": "benchmarks.gpu.bank",
    "windows": "benchmarks.windows",
}


def main() -> None:
    (name,) = sys.argv[1:]
    stage: Stage = getattr(importlib.import_module(MODULES[name]), name)
    for row in stage(json.loads(sys.stdin.read())):
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
