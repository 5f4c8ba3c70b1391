"""What actors and tasks report of their work, added up next to the driver."""

import os
import subprocess
import sys

import ray

from mvad.runtime import stage_totals, telemetry
from mvad.runtime.stage_totals import StageTotals, Totals


@ray.remote
class Reporting:
    """An actor that has been given the totals of its stage."""

    def __init__(self, totals, name):
        self.totals, self.name = totals, name

    def work(self, seconds, n_images, n_errors, bytes_read):
        self.totals.add_batch(seconds, n_images, n_errors, bytes_read, self.name)


def test_actors_add_up(ray_local):
    totals = StageTotals("sum")
    assert totals.get() == Totals()
    first, second = (Reporting.remote(totals, name) for name in ("first", "second"))
    ray.get([first.work.remote({"cap": 1.5, "lid": 0.5}, 8, 0, 100), second.work.remote({"cap": 2.0}, 4, 1, 30)])
    ray.get(first.work.remote({"lid": 1.0}, 4, 0, 70))
    result = totals.get()
    assert result.seconds == {"cap": 3.5, "lid": 1.5}
    assert totals.seconds("cap") == 3.5
    assert totals.seconds("unknown") == 0.0
    assert result.bytes_read == 200
    assert result.actors == {"first", "second"}
    assert result.actor_memory > 10**7
    assert result.tasks_retried == 0


def test_the_largest_memory_of_an_actor_counts(ray_local, monkeypatch):
    totals = StageTotals("memory")
    for memory in (300, 500, 400):
        monkeypatch.setattr(telemetry, "peak_memory", lambda memory=memory: memory)
        totals.add_batch({0: 0.1}, 1, 0, 10, "actor")
    assert totals.get().actor_memory == 500


def test_images_and_errors_reach_the_metrics(ray_local, monkeypatch):
    counted = []
    monkeypatch.setattr(telemetry, "count", lambda *arguments: counted.append(arguments))
    StageTotals("metrics").add_batch({"cap": 0.25, "lid": 0.5}, 8, 3, 100, "actor")
    assert counted == [("metrics", 5, 3, 100, 0.75)]


def test_stages_do_not_mix_even_of_one_name(ray_local):
    first, second = StageTotals("same"), StageTotals("same")
    first.add_batch({"cap": 1.0}, 1, 0, 10, "first")
    second.add_batch({"cap": 2.0}, 1, 0, 20, "second")
    assert (first.get().bytes_read, second.get().bytes_read) == (10, 20)
    assert (first.seconds("cap"), second.seconds("cap")) == (1.0, 2.0)


def test_retries_are_counted_once_per_task(ray_local, tmp_path):
    """One of two tasks loses its process twice, after it has reported."""
    totals = StageTotals("retries")

    @ray.remote(max_retries=-1)
    def task(number):
        totals.add_retries()
        for attempt in range(2 * number):
            marker = tmp_path / f"{number}-{attempt}"
            if not marker.exists():
                marker.touch()
                os._exit(1)

    ray.get([task.remote(0), task.remote(1)])
    assert totals.get().tasks_retried == 2


def test_lost_numbers_do_not_end_a_run(ray_local, monkeypatch):
    stage_totals._ledger.cache_clear()
    totals = StageTotals("lost")
    stage_totals._ledger.cache_clear()
    ray.kill(totals._ledger)
    totals.add_batch({"cap": 1.0}, 1, 0, 10, "actor")
    monkeypatch.setattr(telemetry, "retries", lambda: 1)
    totals.add_retries()
    assert totals.get() == Totals()
    assert totals.seconds("cap") == 0.0


def test_each_session_of_ray_has_totals_of_its_own():
    """A program that calls several commands starts Ray, and ends it, with each."""
    script = """
from mvad.runtime.session import ray_session
from mvad.runtime.stage_totals import StageTotals
for bytes_read in (10, 20):
    with ray_session(None):
        totals = StageTotals("score")
        totals.add_batch({"cap": 1.5}, 1, 0, bytes_read, "actor")
        print(totals.get().bytes_read)
"""
    variables = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["10", "20"]
