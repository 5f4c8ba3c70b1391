"""Kill parts of score runs at random, take the runs up again, and compare their rows with those of an undisturbed run.

    PYTHONPATH=tests python tests/helpers/harness.py --kills 100 --signals 100

Killed with SIGKILL, at a random moment of a run: the driver, a scoring actor, a worker process (decoding, writing), or
the raylet of a node (of two) that runs them. With ``--signals``, the driver gets SIGTERM, SIGINT or SIGHUP as well, and
must end with 128 + the signal's number. No process may be left of a run that has ended. A run that ends with another
exit code than 0 is taken up again. When one has ended with 0, its rows must be those of the undisturbed run, each once,
and the next folder is begun. With ``--shortages``, a run meets a full disk besides, and one an object store that holds
a few images only.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from mvad import results
from mvad.storage import to_uri

TARGETS = ("driver", "actor", "worker", "node")
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP")  # to the driver
MARK = "MVAD_TEST_RUN"  # variable that all processes of a run inherit
VANISH_S = 60.0  # at most, until the processes of Ray have noticed that a driver is gone; the next run begins meanwhile
MAX_RUNS_PER_KILL = 30
TIMEOUT = 300.0  # seconds a run may take before it counts as hanging
COMPARED = ("category", "split", "score", "p_value", "threshold", "is_anomaly", "status", "error", "model_id")
SMALL_DISK, SMALL_STORE = "40k", 80_000_000  # bytes
SMALL = ["--actors", "2", "--batch-size", "4", "--quiet"]


@dataclass
class Tally:
    """What was killed, and what was wrong with the rows afterwards."""

    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    finished: int = 0
    faults: list[str] = field(default_factory=list)


def prepare(folder: Path) -> tuple[Path, Path]:
    """Images to score, some of them broken, and models."""
    data, models = folder / "data", folder / "models"
    mvad("sample", data)
    options = ["--backbone", "efficientnet_lite0", "--image-size", "64", "--coreset-ratio", "0.02", "--folds", "2"]
    mvad("fit", data, "--models", models, *options, "--limit", "8", "--quiet")
    dump = folder / "dump"
    for category in sorted(path.name for path in data.iterdir()):
        shutil.copytree(data / category / "test", dump / category)
        (dump / category / "broken.png").write_bytes(b"\x89PNG\r\n")
    return dump, models


def mvad(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "mvad", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def rows_of(out: Path) -> list[tuple[str, tuple[Any, ...]]]:
    table = results.read_scores(to_uri(out), ["image_id", *COMPARED])
    return [(row["image_id"], tuple(row[name] for name in COMPARED)) for row in table.to_pylist()]


def compare(out: Path, expected: dict[str, tuple[Any, ...]]) -> list[str]:
    """What is wrong with the rows in ``out``: lost, repeated, invented or different ones."""
    rows = rows_of(out)
    counts = Counter(image_id for image_id, _ in rows)
    found = dict(rows)
    wrong = [f"lost {name}" for name in expected if name not in found]
    wrong += [f"invented {name}" for name in found if name not in expected]
    wrong += [f"{count} rows of {name}" for name, count in counts.items() if count > 1]
    wrong += [f"other row of {name}" for name, row in found.items() if name in expected and row != expected[name]]
    wrong += [] if (out / "_SUCCESS").exists() else ["no _SUCCESS"]
    return wrong


def processes() -> Iterator[tuple[int, int, str]]:
    """Id, parent and command line of every process."""
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                command = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            yield int(place.name), parent, command


def below(root: int) -> list[tuple[int, str]]:
    """Id and command line of all descendants of a process."""
    everything = list(processes())
    found, frontier = [], {root}
    while frontier:
        children = [(number, command) for number, parent, command in everything if parent in frontier]
        found += children
        frontier = {number for number, _ in children}
    return found


def victims(target: str, driver: int, roots: list[int]) -> list[int]:
    """The processes of a run that are a target; Ray's hang below ``roots``, or below the driver if it has its own."""
    if target == "driver" or target in SIGNALS:
        return [driver]
    roots = roots or [driver]
    if target == "node":
        return roots[1:] or [number for number, command in below(driver) if "/raylet/raylet " in command]
    everything = [one for root in roots for one in below(root)]
    if target == "actor":
        return [number for number, command in everything if command.startswith("ray::MapWorker")]
    return [
        number
        for number, command in everything
        if command.startswith("ray::") and "MapBatches(" in command and "MapWorker" not in command
    ]


def disturbed_run(
    command: list[str], target: str, delay: float, environment: dict[str, str], roots: list[int]
) -> tuple[bool, int | None, str]:
    """Run once and kill one target after a delay, or send a signal.

    Returns whether it was hit, the exit code (None: it hung), and the mark of its processes.
    """
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        command,
        env={**environment, MARK: mark},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    started, hit = time.monotonic(), False
    number = signal.Signals[target] if target in SIGNALS else signal.SIGKILL
    try:
        while process.poll() is None and time.monotonic() - started < TIMEOUT:
            if not hit and time.monotonic() - started >= delay:
                for victim in victims(target, process.pid, roots)[:1]:
                    os.kill(victim, number)
                    hit = True
            time.sleep(0.05)
        code = process.poll()
    except ProcessLookupError:
        code = process.wait(TIMEOUT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return hit, code, mark


@dataclass
class Ended:
    """Runs that have ended, whose processes must be gone `VANISH_S` later."""

    runs: dict[str, tuple[str, float]] = field(default_factory=dict)  # by mark: its name, and when it must be gone

    def add(self, mark: str, name: str) -> None:
        self.runs[mark] = name, time.monotonic() + VANISH_S

    def overstayed(self, *, wait: bool = False) -> list[str]:
        """What is left of runs whose time is up; with ``wait``, of all, once it is."""
        found: list[str] = []
        while self.runs:
            left: dict[str, list[str]] = {}
            for process in psutil.process_iter():
                mark, command = _marked(process)
                if mark in self.runs:
                    left.setdefault(mark, []).append(command)
            for mark, (name, end) in list(self.runs.items()):
                if mark not in left or time.monotonic() > end:
                    found += [f"left after the end of {name}: {command}" for command in left.get(mark, ())]
                    del self.runs[mark]
            if not wait:
                break
            time.sleep(0.5)
        return found


def _marked(process: psutil.Process) -> tuple[str, str]:
    """The mark of a process, and its command line; no mark if it has none or is gone."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return "", ""
        return process.environ().get(MARK, ""), " ".join(process.cmdline())[:80]
    except psutil.Error:
        return "", ""


class Nodes:
    """Two Ray nodes on this machine, for as long as they are wanted; the second is replaced when it has been killed."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        self.second = self.cluster.add_node(num_cpus=2)

    def replace(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = self.cluster.add_node(num_cpus=2)

    @property
    def roots(self) -> list[int]:
        """Their raylets, the head's first."""
        nodes = (self.cluster.head_node, self.second)
        return [process.process.pid for node in nodes for process in node.all_processes["raylet"]]


class Running:
    """A Ray that runs in this process already, of one node, which is no target."""

    def __init__(self) -> None:
        import ray

        self.address, self.roots = ray.get_runtime_context().gcs_address, [os.getpid()]


def campaign(
    folder: Path,
    dump: Path,
    models: Path,
    kills: int,
    seed: int,
    targets: tuple[str, ...] = TARGETS,
    running: Running | None = None,
    options: tuple[str, ...] = (),
    signals: int = 0,
) -> Tally:
    """So many kills, equally many of each target, and signals, at moments that follow from the seed.

    Each run starts a Ray of its own, which takes seconds, unless there is one ``running``. ``options`` are further ones
    of ``mvad score``.
    """
    choose = random.Random(seed)
    score = [sys.executable, "-m", "mvad", "score", str(dump), "--models", str(models), *SMALL, *options, "--out"]
    plain, tally = folder / "undisturbed", Tally()
    started = time.monotonic()
    local = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    local |= {"RAY_ADDRESS": running.address} if running else {}
    subprocess.run([*score, str(plain)], check=True, env=local, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    duration = time.monotonic() - started
    expected = dict(rows_of(plain))
    each = kills // len(targets)
    alone = [target for _ in range(each) for target in targets if target != "node"]
    alone += [SIGNALS[number % len(SIGNALS)] for number in range(signals)]
    _kill_all(tally, alone, choose, duration, score, folder / "alone", expected, local, running)
    if "node" in targets:
        nodes = Nodes()
        environment = {**local, "RAY_ADDRESS": nodes.cluster.address}
        _kill_all(tally, ["node"] * each, choose, duration, score, folder / "nodes", expected, environment, nodes)
        nodes.cluster.shutdown()
    return tally


def _kill_all(
    tally: Tally,
    targets: list[str],
    choose: random.Random,
    duration: float,
    score: list[str],
    folder: Path,
    expected: dict[str, tuple[Any, ...]],
    environment: dict[str, str],
    nodes: Nodes | Running | None,
) -> None:
    """Kill the targets one after the other; a folder whose run has ended with 0 is compared, and the next begun."""
    number, ended = 0, Ended()
    out = folder / "0"
    for target in targets:
        hit, n_runs = False, 0
        while not hit:
            n_runs, n_faults = n_runs + 1, len(tally.faults)
            if n_runs > MAX_RUNS_PER_KILL:
                raise RuntimeError(f"no {target} was there to be killed in {MAX_RUNS_PER_KILL} runs")
            delay = choose.uniform(0.2, 1.0) * duration
            roots = nodes.roots if nodes else []
            hit, code, mark = disturbed_run([*score, str(out)], target, delay, environment, roots)
            ended.add(mark, f"run {out.name}, {target}")
            tally.runs += 1
            tally.kills[target] += hit
            if code is None:
                tally.faults.append(f"{out.name}: the run hung after the kill of a {target}")
            elif hit and target in SIGNALS and code not in (0, 128 + signal.Signals[target]):
                tally.faults.append(f"{out.name}: exit code {code} after {target}")
            tally.faults += ended.overstayed()
            if isinstance(nodes, Nodes) and hit:
                nodes.replace()
            if code == 0:
                tally.finished += 1
                tally.faults += [f"{target}, {out.name}: {text}" for text in compare(out, expected)]
                number += 1
                out = folder / str(number)
            outcome = f"{tally.finished} runs compared, {len(tally.faults)} faults"
            print(f"{target:<7} {tally.kills[target]:>4} killed, exit code {code}; {outcome}", flush=True)
            for fault in tally.faults[n_faults:]:
                print(f"  {fault}", flush=True)
    if out.exists():  # the last one is finished undisturbed
        subprocess.run([*score, str(out)], check=True, env=environment, stdout=subprocess.DEVNULL)
        tally.finished += 1
        tally.faults += [f"{out.name}: {text}" for text in compare(out, expected)]
    left = ended.overstayed(wait=True)
    tally.faults += left
    for fault in left:
        print(f"  {fault}", flush=True)


def full_disk(folder: Path, dump: Path, models: Path, expected: dict[str, tuple[Any, ...]]) -> list[str] | None:
    """Score onto a disk that is too small, then make it larger and take the run up; None where none can be mounted."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(disk)]
    if subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        return None
    out = disk / "out"
    score = [sys.executable, "-m", "mvad", "score", str(dump), "--models", str(models), *SMALL, "--out", str(out)]
    try:
        first = subprocess.run(score, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        second = subprocess.run(score, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wrong = [] if first.returncode else ["the disk was not full"]
        wrong += [f"exit code {second.returncode} with room again"] if second.returncode else []
        return wrong + compare(out, expected)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def small_store(folder: Path, data: Path) -> list[str]:
    """Score large images with an object store that holds few of them, and with the usual one."""
    from ray.cluster_utils import Cluster

    options = ["--backbone", "efficientnet_lite0", "--image-size", "512", "--coreset-ratio", "0.01", "--folds", "0"]
    mvad("fit", data, "--models", folder / "large", "--limit", "4", "--quiet", *options)
    arguments = ["score", str(data), "--models", str(folder / "large"), "--maps", "all", "--quiet", "--out"]
    mvad(*arguments, folder / "roomy")
    nodes = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "include_dashboard": False, "object_store_memory": SMALL_STORE},
    )
    try:
        environment = {**os.environ, "RAY_ADDRESS": nodes.address}
        command = [sys.executable, "-m", "mvad", *arguments, str(folder / "tight")]
        done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    finally:
        nodes.shutdown()
    if done.returncode:
        return [f"exit code {done.returncode}"]
    return compare(folder / "tight", dict(rows_of(folder / "roomy")))


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill, resume, compare.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--signals", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--shortages", action="store_true", help="also a full disk and a small object store")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        dump, models = prepare(Path(folder))
        targets = tuple(options.targets.split(","))
        tally = campaign(Path(folder), dump, models, options.kills, options.seed, targets, signals=options.signals)
        if options.shortages:
            expected = dict(rows_of(Path(folder) / "undisturbed"))
            for name, wrong in (
                ("full disk", full_disk(Path(folder), dump, models, expected)),
                ("small object store", small_store(Path(folder), Path(folder) / "data")),
            ):
                print(
                    f"{name}: {'no disk can be mounted here' if wrong is None else f'{len(wrong)} faults'}", flush=True
                )
                tally.faults += [f"{name}: {text}" for text in wrong or []]
    killed = ", ".join(f"{count} {target}" for target, count in tally.kills.items())
    seconds = time.monotonic() - started
    print(f"{sum(tally.kills.values())} kills and signals ({killed}) in {tally.runs} runs, {seconds:.0f} s")
    print(f"{tally.finished} runs compared with the undisturbed one: {len(tally.faults)} faults")
    for fault in tally.faults[:20]:
        print(f"  {fault}")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
