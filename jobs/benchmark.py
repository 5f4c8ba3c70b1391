"""The benchmark of ``tests/benchmarks``, on this machine or for ``ray job submit``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from benchmarks.main import main

if __name__ == "__main__":
    main()
