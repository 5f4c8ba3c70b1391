"""Speed and memory, measured side by side in one run: against anomalib, against the floor, against plain algorithms."""

from __future__ import annotations

import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score

from mvad.backbones import EMBEDDED, BackboneSpec, describe, network, timm_name
from mvad.benchmarks.floor import Floor
from mvad.benchmarks.growth import growth
from mvad.benchmarks.peak import peak_memory
from mvad.benchmarks.references import compare_coresets, compare_searches
from mvad.console import WIDTH
from mvad.errors import UsageError
from mvad.features import FeatureExtractor
from mvad.generate import sample
from mvad.images import load_image
from mvad.manifest import Manifest, read_manifest
from mvad.model_store import find_models, read_arrays
from mvad.neighbours import MemoryBank
from mvad.options import BenchmarkOptions, CommonOptions, ImageSize
from mvad.pipeline import fit, score
from mvad.planning import Costs, predict
from mvad.record import versions
from mvad.results import read_scores
from mvad.session import ray_session
from mvad.storage import to_uri
from mvad.weights import load_weights

PEER = "anomalib==2.7.0"
PEER_LAYERS = {EMBEDDED: ["blocks.2", "blocks.4"]}  # by backbone; ResNets have layer2 and layer3
SEARCHED = 32  # test images that searches are compared on
PROJECTION = 128  # dimensions that coresets are chosen in
MAX_PIXELS = 10**9
LONG_RUN = 500  # images; in shorter runs, noise in starting hides what the flow takes


def benchmark(data: str | None, out: str, **options: Any) -> dict[str, Any]:
    """Measure fitting and scoring of one category, print tables of ratios, and write all numbers to a JSON file.

    Every measurement is the median of several after a warm-up, but for fits of anomalib, which are measured once.

    Parameters
    ----------
    data
        A folder in MVTec layout; default: the generated sample.
    out
        The JSON file (a path).

    Raises
    ------
    UsageError
        Unusable input, or anomalib cannot be installed.
    """
    chosen = BenchmarkOptions(**options)
    console = Console(highlight=False, width=WIDTH, quiet=chosen.quiet)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if data is None:
            sample(str(folder / "sample"))
        manifest = read_manifest(data or str(folder / "sample"), CommonOptions(categories=chosen.categories))
        category = manifest.categories[0]
        found: dict[str, Any] = {
            "machine": {"processor": _processor(), "cores": os.cpu_count(), "gpu": _gpu()},
            "versions": versions(),
            "command": " ".join(["python", "jobs/benchmark.py", *sys.argv[2:]]),
            "category": category,
            "backbones": {},
        }
        with ray_session(None):
            for name in chosen.backbone_names:
                place = folder / name
                place.mkdir()
                measured = _measure(_Case(manifest, category, describe(name), chosen, place))
                found["backbones"][name] = measured
                _show(console, name, measured)
            if chosen.growth_sizes:
                found["growth"] = growth(manifest, category, chosen.growth_sizes, chosen, folder / "growth")
                _show_growth(console, found["growth"])
    Path(out).write_text(json.dumps(found, indent=2))
    console.print(f"{found['machine']}, torch {torch.__version__}; all numbers in {out}", soft_wrap=True)
    return found


class _Case:
    """One category and backbone: folders of links to its images, and the models and results made of them."""

    def __init__(
        self, manifest: Manifest, category: str, spec: BackboneSpec, options: BenchmarkOptions, folder: Path
    ) -> None:
        self.category, self.spec, self.options, self.folder = category, spec, options, folder
        self.size = ImageSize(resize=options.image_size, crop=options.image_size)
        self.weights = _weights_file(spec, folder)
        own = manifest.table.filter(np.array(manifest.table["category"].to_pylist()) == category)
        split, uris = (np.array(own[name].to_pylist()) for name in ("split", "uri"))
        self.train, self.test = uris[split == "train"].tolist(), uris[split == "test"].tolist()
        self.good = folder / "data" / category / "train/good"
        _linked(self.train, self.good)
        self.once = _linked(self.test, folder / "once" / category)
        self.many = _linked(np.resize(self.test, options.images).tolist(), folder / "many" / category)
        self.labels = {
            Path(link).name: int("/good/" not in source) for link, source in zip(self.once, self.test, strict=True)
        }

    def fit(self, limit: int | None = None) -> None:
        fit(
            str(self.folder / "data"),
            str(self.folder / "models"),
            backbone=self.spec.name,
            weights=str(self.weights),
            image_size=self.size.crop,
            coreset_ratio=self.options.coreset_ratio,
            folds=0,
            limit=limit,
            new_run=True,
            quiet=True,
        )

    def score(self, images: str, actors: int | None = None) -> None:
        places = [str(self.folder / name) for name in (images, "models", f"{images}-scores")]
        score(*places, weights=str(self.weights), actors=actors, new_run=True, quiet=True)

    def bank(self) -> MemoryBank:
        return MemoryBank(read_arrays(find_models(to_uri(str(self.folder / "models")))[self.category])["bank"])

    def features(self, uris: Sequence[str]) -> torch.Tensor:
        extract = FeatureExtractor(["patches"], self.spec, load_weights(self.spec, str(self.weights)), self.size)
        parts = (load_image(uri, self.size, MAX_PIXELS)[0][None] for uri in uris)
        return torch.cat([extract(pixels)["patches"] for pixels in parts])

    def scores(self) -> dict[str, float]:
        """Our scores of the test images, by the name of the link."""
        rows = read_scores(to_uri(str(self.folder / "once-scores")), ["uri", "score"]).to_pylist()
        return {Path(row["uri"]).name: row["score"] for row in rows}


def _measure(case: _Case) -> dict[str, Any]:
    options = case.options
    case.fit(limit=16)
    with peak_memory() as fit_peak:
        fits = _seconds(case.fit, options.fit_repeats)
    case.score("once")
    floor = Floor(case.spec, str(case.weights), case.size, ray_cpus())
    floor.measure(case.once)
    floors, scores, short = [], [], []
    with peak_memory() as score_peak:
        for _ in range(options.repeats):
            seconds, stages = floor.measure(case.many)
            floors.append(seconds)
            scores += _seconds(lambda: case.score("many"), 1)
            short += _seconds(lambda: case.score("once"), 1)
    floor.close()
    count, few = len(case.many), len(case.once)
    bank = case.bank()
    searched = case.features(case.test[:: max(1, len(case.test) // SEARCHED)])
    measured: dict[str, Any] = {
        "image_size": case.size.crop,
        "train_images": len(case.train),
        "scored_images": count,
        "weights": "seeded at random" if case.spec.name != EMBEDDED else "ImageNet",
        "fit_seconds": fits,
        "score_images_per_second": [count / seconds for seconds in scores],
        "floor_images_per_second": [count / seconds for seconds in floors],
        "above_floor": _median_ratio(scores, floors),
        "short_run": {"images": few, "seconds": short},
        "decode_ms": stages.decode * 1e3,
        "forward_ms": stages.forward * 1e3,
        "peak_bytes": {
            "fit driver": fit_peak.driver,
            "fit actor": fit_peak.actor,
            "score driver": score_peak.driver,
            "score actor": score_peak.actor,
        },
        "auroc": _auroc(case.scores(), case.labels),
        "coreset": compare_coresets(case.features(case.train), options.coreset_ratio, PROJECTION),
        "search": compare_searches(searched, bank, options.repeats),
    }
    if count >= max(LONG_RUN, 2 * few):
        # Between a short and a long run lies the flow alone: starting is the same in both.
        flow = [(long - start) / (count - few) for long, start in zip(scores, short, strict=True)]
        measured["flow_above_floor"] = _median_ratio(flow, [seconds / count for seconds in floors])
        (long,), (start,) = (_seconds(functools.partial(case.score, name, actors=1), 1) for name in ("many", "once"))
        costs = Costs.of_stages(stages, measured["search"]["seconds"], uris=case.test, side=case.size.crop)
        measured["plan"] = [
            {
                "actors": actors,
                "predicted_images_per_second": predict(costs, count, gpus=0, cores=actors).images_per_second,
                "measured_images_per_second": 1 / seconds,
            }
            for actors, seconds in ((1, (long - start) / (count - few)), (ray_cpus(), statistics.median(flow)))
        ]
    if options.peer:
        measured["peer"] = _peer(case, bank)
    return measured


def _median_ratio(ours: Sequence[float], others: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, others, strict=True))


def _peer(case: _Case, bank: MemoryBank) -> dict[str, Any]:
    """anomalib on the same images: scoring with our bank, and fitting its own if that was asked for."""
    spec, options = case.spec, case.options
    np.save(case.folder / "bank.npy", bank.vectors)
    given = {
        "backbone": timm_name(spec.name) if spec.name == EMBEDDED else spec.name,
        "state": str(case.weights),
        "mean": spec.mean,
        "std": spec.std,
        "layers": PEER_LAYERS.get(spec.name, ["layer2", "layer3"]),
        "side": case.size.crop,
        "ratio": options.coreset_ratio,
        "threads": ray_cpus(),
        "score": str(case.folder / "once" / case.category),
    }
    python = peer_python(Path(options.peer_folder).expanduser())
    own_bank = {"train": None, "bank": str(case.folder / "bank.npy"), "repeats": options.repeats}
    scored = _run_peer(python, {**given, **own_bank})
    found = {
        "version": PEER,
        "score_images_per_second": [len(case.labels) / seconds for seconds in scored["score_seconds"]],
        "auroc_with_our_bank": _auroc(_by_name(scored), case.labels),
    }
    if options.peer_fit:
        fitted = _run_peer(python, {**given, "train": str(case.good), "bank": None, "repeats": 0})
        found["fit_seconds"] = fitted["fit_seconds"]
        found["auroc"] = _auroc(_by_name(fitted), case.labels)
    return found


def _by_name(found: dict[str, Any]) -> dict[str, float]:
    return {Path(path).name: value for path, value in found["scores"].items()}


def _run_peer(python: Path, given: dict[str, Any]) -> dict[str, Any]:
    script = Path(__file__).with_name("peer.py")
    done = subprocess.run([python, script], input=json.dumps(given), text=True, capture_output=True)
    if done.returncode:
        raise UsageError(f"{PEER} failed: {done.stderr.strip().splitlines()[-1]}; leave it out with --no-peer.")
    return json.loads(done.stdout.strip().splitlines()[-1])


def peer_python(folder: Path) -> Path:
    """The Python of an environment with anomalib, which is made if it is not there.

    It sees the packages of this environment behind its own, so that both sides run the same build of PyTorch.
    """
    python = folder / "bin/python"
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        done = subprocess.run([python, "-m", "pip", "install", "--quiet", PEER], text=True, capture_output=True)
        if done.returncode:
            raise UsageError(f"{PEER} cannot be installed into {folder}: {done.stderr.strip().splitlines()[-1]}")
        (folder / "installed").touch()
    return python


def ray_cpus() -> int:
    """Cores that Ray counts here: processes of the floor and threads of the peer."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _weights_file(spec: BackboneSpec, folder: Path) -> Path:
    """The embedded weights, or for another backbone a seeded random state: speed does not depend on the values."""
    place = folder / "weights.pth"
    if spec.name == EMBEDDED:
        state = {name: torch.tensor(array) for name, array in load_weights(spec).items()}
    else:
        torch.manual_seed(0)
        state = network(spec).state_dict()
    torch.save(state, place)
    return place


def _linked(uris: Sequence[str], folder: Path) -> list[str]:
    """Links to images under names of their own, so that one may be there many times; their URIs."""
    folder.mkdir(parents=True)
    links = []
    for number, uri in enumerate(uris):
        link = folder / f"{number:06}{Path(uri).suffix}"
        link.symlink_to(uri.removeprefix("file://"))
        links.append(to_uri(str(link)))
    return links


def _seconds(work: Callable[[], Any], repeats: int) -> list[float]:
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return found


def _auroc(scores: dict[str, float], labels: dict[str, int]) -> float | None:
    if len(set(labels.values())) < 2:
        return None
    return float(roc_auc_score([labels[name] for name in sorted(labels)], [scores[name] for name in sorted(labels)]))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _gpu() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _show(console: Console, name: str, measured: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", title=f"{name}, {measured['image_size']} pixels")
    for header, justify in (("what", "left"), ("mvad", "right"), ("other", "right"), ("ratio", "right")):
        table.add_column(header, justify=justify)  # type: ignore[arg-type]
    fit_seconds, rate = (
        statistics.median(measured["fit_seconds"]),
        statistics.median(measured["score_images_per_second"]),
    )
    peer = measured.get("peer")
    if peer and "fit_seconds" in peer:
        ratio = peer["fit_seconds"] / fit_seconds
        table.add_row("fit: anomalib", f"{fit_seconds:.1f} s", f"{peer['fit_seconds']:.1f} s", f"{ratio:.1f}")
    else:
        table.add_row("fit", f"{fit_seconds:.1f} s", "-", "-")
    if peer:
        other = statistics.median(peer["score_images_per_second"])
        table.add_row("score: anomalib, same bank", f"{rate:.1f}/s", f"{other:.1f}/s", f"{rate / other:.1f}")
    floor = statistics.median(measured["floor_images_per_second"])
    table.add_row("score: floor", f"{rate:.1f}/s", f"{floor:.1f}/s", f"{measured['above_floor']:.2f} x its time")
    if "flow_above_floor" in measured:
        flow = measured["flow_above_floor"]
        table.add_row(
            "score: floor, starting left out", f"{floor / flow:.1f}/s", f"{floor:.1f}/s", f"{flow:.2f} x its time"
        )
    for what, unit, one, other_one in (
        ("coreset: plain greedy", "s", "seconds", "plain_seconds"),
        ("search of an image: all patches", "ms", "seconds", "full_seconds"),
    ):
        part = measured["coreset" if unit == "s" else "search"]
        scale = 1 if unit == "s" else 1e3
        cells = [f"{part[key] * scale:.1f} {unit}" for key in (one, other_one)]
        table.add_row(what, *cells, f"{part['ratio']:.1f}")
    console.print(table)
    for what, value in (
        ("AUROC", measured["auroc"]),
        ("of anomalib with our bank", peer and peer["auroc_with_our_bank"]),
        ("of anomalib with its own", peer and peer.get("auroc")),
    ):
        if value is not None:
            console.print(f"{what} {value:.4f}", end="  ")
    for row in measured.get("plan", []):
        rates = [row[f"{what}_images_per_second"] for what in ("predicted", "measured")]
        console.print("\nplan, {} actors: {:.1f} images/s; measured: {:.1f}".format(row["actors"], *rates), end="")
    memory = ", ".join(f"{what} {size / 2**20:.0f} MiB" for what, size in measured["peak_bytes"].items())
    console.print(f"\npeak private memory: {memory}\n", soft_wrap=True)


def _show_growth(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    headers = ("images", "fit s", "driver MiB", "actor MiB", "bank", "score s", "images/s", "driver MiB", "actor MiB")
    for header in headers:
        table.add_column(header, justify="right")
    for row in rows:
        sizes = [f"{row[key] / 2**20:.0f}" for key in ("fit_driver", "fit_actor", "score_driver", "score_actor")]
        table.add_row(
            f"{row['images']:,}",
            f"{row['fit_seconds']:.1f}",
            *sizes[:2],
            f"{row['bank']:,}",
            f"{row['score_seconds']:.1f}",
            f"{row['images'] / row['score_seconds']:.1f}",
            *sizes[2:],
        )
    console.print(table)
