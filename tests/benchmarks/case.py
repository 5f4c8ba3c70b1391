"""What is measured: one category and one backbone, and the jobs that run on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from sklearn.metrics import roc_auc_score

import mvad
from benchmarks.options import BenchmarkOptions
from mvad.data.image_size import ImageSize
from mvad.data.images import load_image
from mvad.data.manifest import Manifest
from mvad.features.backbone_spec import EMBEDDED, BackboneSpec
from mvad.features.backbones import build_network
from mvad.features.kinds import PATCHES
from mvad.features.specs import prepare
from mvad.features.weights import Network, load_weights
from mvad.model_store import ModelInfo, find_models, read_arrays
from mvad.results import read_scores
from mvad.search.memory_bank import MemoryBank
from mvad.storage import to_uri

MAX_PIXELS = 10**9


class Case:
    """One category and one backbone: links to its images, and the models and results made from them.

    Attributes
    ----------
    train, test
        URIs of the images.
    once, many
        URIs of links: one per test image, and as many as are to be scored (test images repeated).
    labels
        0 or 1 per test image, by the name of the link.
    """

    def __init__(
        self, manifest: Manifest, category: str, spec: BackboneSpec, options: BenchmarkOptions, folder: Path
    ) -> None:
        self.category, self.spec, self.options, self.folder = category, spec, options, folder
        self.size = ImageSize.square(options.image_size)
        folder.mkdir()
        self.weights = folder / "weights.pth"
        write_weights(spec, self.weights)
        self.weights_note = "ImageNet" if spec.name == EMBEDDED else "seeded at random"
        self.network = Network.load(spec, str(self.weights))
        self.train, self.test = (category_uris(manifest, category, split) for split in ("train", "test"))
        self.good = folder / "data" / category / "train/good"
        link_images(self.train, self.good)
        self.once = link_images(self.test, folder / "once" / category)
        self.many = link_images(np.resize(self.test, options.images).tolist(), folder / "many" / category)
        self.labels = {
            Path(link).name: int("/good/" not in source) for link, source in zip(self.once, self.test, strict=True)
        }

    def fit(self, limit: int | None = None, calibration: str = "none") -> None:
        """Fit to the training images, to at most ``limit`` of them."""
        fit_models(
            self.folder / "data",
            self.folder / ("models" if calibration == "none" else f"{calibration}-models"),
            calibration=calibration,
            backbone=self.spec.name,
            weights=str(self.weights),
            engine=self.options.engine,
            image_size=self.size.width,
            coreset_ratio=self.options.coreset_ratio,
            limit=limit,
        )

    def score(self, images: str) -> None:
        """Score ``once`` or ``many`` into the folder of that name with ``-scores`` behind it."""
        folders = [self.folder / name for name in (images, "models", f"{images}-scores")]
        score_images(*folders, weights=str(self.weights), engine=self.options.engine)

    @property
    def model(self) -> ModelInfo:
        return find_models(to_uri(str(self.folder / "models")))[self.category]

    def bank(self) -> MemoryBank:
        return MemoryBank(read_arrays(self.model)["bank"])

    def features(self, uris: Sequence[str]) -> torch.Tensor:
        """Patch features, (n, height, width, channels) float32."""
        extract = prepare([PATCHES], self.network, self.size, self.options.engine).load()
        return torch.cat([extract(load_image(uri, self.size, MAX_PIXELS)[0][None])[PATCHES] for uri in uris])

    def scores(self) -> dict[str, float]:
        """Scores that mvad gave the test images, by the name of the link."""
        rows = read_scores(to_uri(str(self.folder / "once-scores")), ["uri", "score"]).to_pylist()
        return {Path(row["uri"]).name: row["score"] for row in rows}

    def auroc(self, scores: dict[str, float]) -> float | None:
        """Image AUROC of scores by the name of the link; None if all images have the same label."""
        if len(set(self.labels.values())) < 2:
            return None
        names = sorted(self.labels)
        return float(roc_auc_score([self.labels[name] for name in names], [scores[name] for name in names]))


def fit_models(data: Path, models: Path, **options: Any) -> None:
    """Run ``mvad fit``, unless told otherwise without calibration, replacing earlier models."""
    mvad.fit(str(data), str(models), **{"calibration": "none", "new_run": True, "quiet": True, **options})


def score_images(data: Path, models: Path, out: Path, **options: Any) -> None:
    """Run ``mvad score``, replacing earlier results."""
    mvad.score(str(data), str(models), str(out), new_run=True, quiet=True, **options)


def category_uris(manifest: Manifest, category: str, split: str) -> list[str]:
    """URIs of a category's training or test images."""
    columns = zip(*(manifest.table[name].to_pylist() for name in ("category", "split", "uri")), strict=True)
    return [uri for row_category, row_split, uri in columns if (row_category, row_split) == (category, split)]


def link_images(uris: Sequence[str], folder: Path) -> list[str]:
    """Make links with unique names, so that the same image can occur many times; return their URIs."""
    folder.mkdir(parents=True)
    links = []
    for number, uri in enumerate(uris):
        link = folder / f"{number:06}{Path(uri).suffix}"
        link.symlink_to(uri.removeprefix("file://"))
        links.append(to_uri(str(link)))
    return links


def n_cpus() -> int:
    """Cores that Ray counts here: the number of processes of the floor, and of threads of the peer."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def time_runs(work: Callable[[], Any], repeats: int = 1) -> list[float]:
    """Seconds that each of several runs takes."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return seconds


def write_weights(spec: BackboneSpec, path: Path) -> None:
    """Write the packaged weights, or a seeded random state of another backbone: speed does not depend on the values."""
    if spec.name == EMBEDDED:
        state = {name: torch.tensor(array) for name, array in load_weights(spec).items()}
    else:
        torch.manual_seed(0)
        state = build_network(spec).state_dict()
    torch.save(state, path)
