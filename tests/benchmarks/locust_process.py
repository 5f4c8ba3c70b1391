"""Send images to the demo from many clients at once, with Locust; runs in an environment of its own, without mvad.

Reads one JSON object from standard input and writes one line of JSON to standard output::

    {"host": the demo's address, "body": file with the body of a request, "content_type": its type,
     "clients": how many send one request after another, "requests": how many are sent together}
"""

import gevent.monkey

gevent.monkey.patch_all()

import json  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections import Counter  # noqa: E402
from pathlib import Path  # noqa: E402

import gevent  # noqa: E402
from locust import FastHttpUser, constant, task  # noqa: E402
from locust.env import Environment  # noqa: E402


def main() -> None:
    job = json.loads(sys.stdin.read())
    body, left, statuses = Path(job["body"]).read_bytes(), [job["requests"]], Counter()
    finished = gevent.event.Event()

    class Client(FastHttpUser):
        host, wait_time = job["host"], constant(0)

        @task
        def score(self) -> None:
            if left[0] <= 0:
                gevent.sleep(1)
                return
            left[0] -= 1
            with self.client.post(
                "score", data=body, headers={"Content-Type": job["content_type"]}, catch_response=True
            ) as answer:
                statuses[str(answer.status_code)] += 1
                if answer.status_code == 503:
                    answer.failure("shed")
            if sum(statuses.values()) == job["requests"]:
                finished.set()

    environment = Environment(user_classes=[Client])
    runner = environment.create_local_runner()
    started = time.perf_counter()
    runner.start(job["clients"], spawn_rate=job["clients"])
    finished.wait()
    seconds = time.perf_counter() - started
    total = environment.stats.total
    answer = {
        "seconds": seconds,
        "statuses": statuses,
        "p50_ms": total.get_response_time_percentile(0.5),
        "p99_ms": total.get_response_time_percentile(0.99),
    }
    runner.quit()
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
