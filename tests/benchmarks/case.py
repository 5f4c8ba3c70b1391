"""What is measured: one category and one backbone, and the jobs that are run on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from sklearn.metrics import roc_auc_score

from mvad.data.image_size import ImageSize
from mvad.data.images import load_image
from mvad.data.manifest import Manifest
from mvad.features.backbone_spec import EMBEDDED, BackboneSpec
from mvad.features.backbones import network
from mvad.features.extractor import prepare
from mvad.features.kinds import PATCHES
from mvad.features.weights import Network, load_weights
from mvad.model_store import ModelInfo, find_models, read_arrays
from mvad.options import BenchmarkOptions
from mvad.pipeline.flow import fit, score
from mvad.results import read_scores
from mvad.search.memory_bank import MemoryBank
from mvad.storage import to_uri

MAX_PIXELS = 10**9


class Case:
    """One category and backbone: folders of links to its images, and the models and results made of them.

    Attributes
    ----------
    train, test
        URIs of the images.
    once, many
        URIs of links: to each test image, and to so many as are to be scored, the same ones over and over.
    labels
        Of the test images, by the name of the link.
    """

    def __init__(
        self, manifest: Manifest, category: str, spec: BackboneSpec, options: BenchmarkOptions, folder: Path
    ) -> None:
        self.category, self.spec, self.options, self.folder = category, spec, options, folder
        self.size = ImageSize(resize=options.image_size, crop=options.image_size)
        self.weights = _weights_file(spec, folder)
        self.weights_note = "ImageNet" if spec.name == EMBEDDED else "seeded at random"
        self.network = Network.load(spec, str(self.weights))
        own = manifest.table.filter(np.array(manifest.table["category"].to_pylist()) == category)
        split, uris = (np.array(own[name].to_pylist()) for name in ("split", "uri"))
        self.train, self.test = uris[split == "train"].tolist(), uris[split == "test"].tolist()
        self.good = folder / "data" / category / "train/good"
        linked(self.train, self.good)
        self.once = linked(self.test, folder / "once" / category)
        self.many = linked(np.resize(self.test, options.images).tolist(), folder / "many" / category)
        self.labels = {
            Path(link).name: int("/good/" not in source) for link, source in zip(self.once, self.test, strict=True)
        }

    def fit(self, limit: int | None = None) -> None:
        fit(
            str(self.folder / "data"),
            str(self.folder / "models"),
            backbone=self.spec.name,
            weights=str(self.weights),
            engine=self.options.engine,
            image_size=self.size.crop,
            coreset_ratio=self.options.coreset_ratio,
            folds=0,
            limit=limit,
            new_run=True,
            quiet=True,
        )

    def score(self, images: str, out: str | None = None) -> None:
        places = [str(self.folder / name) for name in (images, "models", out or f"{images}-scores")]
        score(*places, weights=str(self.weights), engine=self.options.engine, new_run=True, quiet=True)

    @property
    def model(self) -> ModelInfo:
        return find_models(to_uri(str(self.folder / "models")))[self.category]

    def bank(self) -> MemoryBank:
        return MemoryBank(read_arrays(self.model)["bank"])

    def features(self, uris: Sequence[str]) -> torch.Tensor:
        extract = prepare([PATCHES], self.network, self.size, self.options.engine).load()
        return torch.cat([extract(load_image(uri, self.size, MAX_PIXELS)[0][None])[PATCHES] for uri in uris])

    def scores(self) -> dict[str, float]:
        """Our scores of the test images, by the name of the link."""
        rows = read_scores(to_uri(str(self.folder / "once-scores")), ["uri", "score"]).to_pylist()
        return {Path(row["uri"]).name: row["score"] for row in rows}

    def auroc(self, scores: dict[str, float]) -> float | None:
        """Of scores by the name of the link; None if all images are of one kind."""
        if len(set(self.labels.values())) < 2:
            return None
        names = sorted(self.labels)
        return float(roc_auc_score([self.labels[name] for name in names], [scores[name] for name in names]))


def ray_cpus() -> int:
    """Cores that Ray counts here: processes of the floor and threads of the peer."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def seconds_of(work: Callable[[], Any], repeats: int = 1) -> list[float]:
    """Seconds that work takes, so many times."""
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return found


def linked(uris: Sequence[str], folder: Path) -> list[str]:
    """Links to images under names of their own, so that one may be there many times; their URIs."""
    folder.mkdir(parents=True)
    links = []
    for number, uri in enumerate(uris):
        link = folder / f"{number:06}{Path(uri).suffix}"
        link.symlink_to(uri.removeprefix("file://"))
        links.append(to_uri(str(link)))
    return links


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
