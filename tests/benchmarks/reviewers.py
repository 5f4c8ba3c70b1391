"""Many reviewers at the pages Nights and Review: how long answers take, and whether memory grows.

PYTHONPATH=tests python -m benchmarks.reviewers MODELS NIGHTS --users 50 --seconds 300
"""

from __future__ import annotations

import argparse
import datetime
import random
import sys
import threading
import time
from collections import defaultdict

import numpy as np
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from benchmarks.load import demo

THINKING_S = 2.0  # between two requests of a user, on average
NIGHTS_SHOWN = 30  # of a queue
SAMPLED_S = 15.0


class Reviewer(threading.Thread):
    """Somebody who looks at the nights, takes images from a queue, and labels them."""

    def __init__(self, address: str, number: int, last: datetime.date, until: float) -> None:
        super().__init__(daemon=True)
        self._address, self._name, self._until = address, f"reviewer {number}", until
        self._random, self._since = random.Random(number), last - datetime.timedelta(NIGHTS_SHOWN - 1)
        self._session = requests.Session()
        # As browsers do: a connection that the server closes just as it is used again is opened anew.
        self._session.mount("http://", HTTPAdapter(max_retries=Retry(1, allowed_methods=None)))
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.failures: list[str] = []

    def run(self) -> None:
        while time.monotonic() < self._until:
            if self._random.random() < 0.2:
                self._ask("nights")
            order = self._random.choice(["score flagged", "threshold all", "random passed"]).split()
            parameters = {"drawn": order[0], "among": order[1], "since": self._since.isoformat(), "limit": 20}
            found = self._ask("queue", parameters)
            for image in self._random.sample(found["images"] if found else [], 3 if found and found["images"] else 0):
                place = {"folder": image["folder"], "image_id": image["image_id"]}
                self._ask("picture", place, may_be_missing=True)
                self._ask("map", place, may_be_missing=True)
                label = {**place, "judgement": self._random.choice(["good", "defect"]), "drawn": order[0]}
                self._ask("labels", body={"reviewer": self._name, "labels": [label]})

    def _ask(self, path: str, parameters: dict | None = None, body: dict | None = None, may_be_missing: bool = False):
        time.sleep(self._random.expovariate(1 / THINKING_S))
        started = time.perf_counter()
        method = "GET" if body is None else "POST"
        answer = self._session.request(method, f"{self._address}api/{path}", params=parameters, json=body, timeout=60)
        self.seconds[path].append(time.perf_counter() - started)
        if not answer.ok and not (may_be_missing and answer.status_code == 404):
            self.failures.append(f"{path}: {answer.status_code} {answer.text[:200]}")
            return None
        return answer.json() if answer.headers.get("content-type", "").startswith("application/json") else None


def main() -> int:
    parser = argparse.ArgumentParser(description="Many reviewers at the pages Nights and Review, on this machine.")
    parser.add_argument("models", help="folder of fitted models")
    parser.add_argument("nights", help="folder of nights; labels are written into it")
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=300.0)
    options = parser.parse_args()
    with demo(options.models, "--results", options.nights) as (address, process):
        for name in ("first answer, all nights", "second answer"):
            started = time.perf_counter()
            content = requests.get(f"{address}api/nights", timeout=600).json()
            n_images = sum(night["n_images"] for one in content["series"] for night in one["nights"])
            print(
                f"{name}: {time.perf_counter() - started:.2f} s, {len(content['nights'])} nights, {n_images:,} images"
            )
        last = datetime.date.fromisoformat(content["nights"][-1])
        until = time.monotonic() + options.seconds
        users = [Reviewer(address, number, last, until) for number in range(options.users)]
        for user in users:
            user.start()
        memory = []
        while time.monotonic() < until:
            time.sleep(min(SAMPLED_S, options.seconds / 4))
            memory.append(round(process.memory_info().rss / 1e6))
        for user in users:
            user.join()
    seconds: dict[str, list[float]] = defaultdict(list)
    for user in users:
        for path, values in user.seconds.items():
            seconds[path] += values
    everything = [value for values in seconds.values() for value in values]
    for path, values in [*sorted(seconds.items()), ("all", everything)]:
        low, high = np.percentile(values, [50, 99])
        print(f"{path}: {len(values):,} answers, median {1000 * low:.0f} ms, 99 % within {1000 * high:.0f} ms")
    failures = [failure for user in users for failure in user.failures]
    print(f"failed: {len(failures)}; memory of the server in MB: {', '.join(map(str, memory))}")
    print("\n".join(failures[:5]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
