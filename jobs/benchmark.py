"""Measure speed and memory: the benchmark of ``tests/benchmarks``, also for ``ray job submit``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from benchmarks import main

if __name__ == "__main__":
    main()
