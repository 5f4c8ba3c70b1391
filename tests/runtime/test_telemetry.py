import json
import logging

import numpy as np

from mvad.console import Reporter
from mvad.runtime import telemetry


def test_a_stage_is_one_line_of_json_in_the_log(ray_local, caplog, monkeypatch):
    report = Reporter(quiet=True)
    with caplog.at_level(logging.INFO, "mvad"), report.stage("score", 3) as stage:
        stage.actors += 1
        for actor, n_images, memory in (("first", 1, 500), ("its replacement", 2, 400)):
            monkeypatch.setattr(telemetry, "peak_memory", lambda memory=memory: memory)
            stage.totals.add_batch({"cap": 0.5}, n_images, 0, 10 * n_images, actor)
            stage.advance(n_images)
        monkeypatch.setattr(telemetry, "retries", lambda: 1)
        stage.totals.add_retries()
    (line,) = [record.message for record in caplog.records if record.name == "mvad"]
    logged = json.loads(line)
    assert logged["event"] == "stage"
    counts = ("stage", "images", "bytes_read", "actors", "actors_replaced", "tasks_retried")
    assert {name: logged[name] for name in counts} == {
        "stage": "score",
        "images": 3,
        "bytes_read": 30,
        "actors": 1,
        "actors_replaced": 1,
        "tasks_retried": 1,
    }
    assert logged["peak_memory"]["actor"] == 500
    assert report.stages["score"]["seconds"] == logged["seconds"]


def test_lines_reach_the_log_of_a_submitted_job(monkeypatch, capsys):
    logger = logging.getLogger("mvad")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    telemetry.log("stage", images=1)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv(telemetry.JOB_VARIABLE, "{}")
    telemetry.log("stage", images=2)
    telemetry.log("stage", images=3)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert lines == [{"event": "stage", "images": 2}, {"event": "stage", "images": 3}]


def test_nothing_is_retried_outside_of_tasks(ray_local):
    assert telemetry.retries() == 0


def test_peak_memory_includes_what_was_allocated():
    before = telemetry.peak_memory()
    array = np.ones(1 << 25)  # 256 MiB
    assert telemetry.peak_memory() >= min(before, array.nbytes)
    assert telemetry.peak_memory() > 10**8
