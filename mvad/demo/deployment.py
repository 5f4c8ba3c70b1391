"""The demo on Ray Serve: one process answers, others score."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import faiss
import ray
import torch
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from mvad.demo.app import BusyError, demo_app
from mvad.demo.bench import Bench, Finding, Sample
from mvad.demo.catalogue import Catalogue, Group, kinds_of
from mvad.demo.uploads import Limits
from mvad.errors import UsageError
from mvad.features.backbone_spec import BackboneSpec
from mvad.features.extractor import prepare
from mvad.features.weights import Network

NAME = "mvad"
BATCH, BATCH_WAIT = 8, 0.02  # images at most, and seconds at most that the first of them waits
REQUESTS, WAITING = 16, 64  # that are served at once, and that wait
QUIET = LoggingConfig(log_level="ERROR", enable_access_log=False)


class Scoring:
    """Process that holds models and scores what it is sent, several images at a time.

    Parameters
    ----------
    packages
        References to what extracts the features of each group of models.
    limit
        Bytes of models that are held ready.
    """

    def __init__(self, catalogue: Catalogue, packages: Mapping[Group, ray.ObjectRef], limit: int) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.backends.cudnn.deterministic = True
        # One thread, as the actors of the other commands have: with more, sums are rounded differently.
        self.thread = ThreadPoolExecutor(1, initializer=_keep_to_one_thread)
        self.bench = Bench(catalogue, {group: ray.get(held) for group, held in packages.items()}, limit, device)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=BATCH_WAIT)
    async def score(self, samples: Sequence[Sample]) -> list[Finding]:
        return await asyncio.get_running_loop().run_in_executor(self.thread, self.bench.score, samples)


class Front:
    """Process that answers requests: the page, uploads, pictures."""

    def __init__(self, catalogue: Catalogue, limits: Limits, scoring: DeploymentHandle) -> None:
        self.catalogue, self.limits, self.scoring = catalogue, limits, scoring

    def __serve_build_asgi_app__(self) -> FastAPI:
        return demo_app(self.catalogue, self.limits, self.score)

    async def score(self, sample: Sample) -> Finding:
        try:
            return await self.scoring.score.remote(sample)
        except BackPressureError as error:
            raise BusyError("too many images are waiting; try again in a moment.") from error
        except RayError as error:
            logging.getLogger(__name__).error("scoring failed", exc_info=error)
            raise BusyError("what scores images has just failed and is started anew; try again.") from error


def _keep_to_one_thread() -> None:
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


@contextmanager
def deployed(
    catalogue: Catalogue,
    networks: Mapping[BackboneSpec, Network],
    engine: str,
    limits: Limits,
    limit: int,
    host: str,
    port: int,
) -> Iterator[None]:
    """Serve the demo by the Ray that is running while the context lasts; ``limit`` as for `Scoring`.

    Raises
    ------
    UsageError
        That Ray serves something already, what serves does not start, or the engine cannot be used.
    """
    if _is_serving():
        raise UsageError("that Ray cluster serves something already; use another one, or none, for the demo.")
    gpus = int(ray.cluster_resources().get("GPU", 0))
    share: dict[str, Any] = {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": 0.5}
    common: dict[str, Any] = {
        "logging_config": QUIET,
        "graceful_shutdown_timeout_s": 2.0,
        "max_queued_requests": WAITING,
    }
    # The references are kept until the end: Ray may drop what nobody refers to.
    packages = {
        group: ray.put(prepare(kinds_of(catalogue, group), networks[group[0]], group[1], engine, gpus > 0))
        for group in dict.fromkeys(offer.group for offer in catalogue.values())
    }
    scoring = serve.deployment(
        name="scoring", ray_actor_options=share, num_replicas=max(1, gpus), max_ongoing_requests=4 * BATCH, **common
    )(Scoring)
    front = serve.deployment(name="front", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=REQUESTS, **common)(
        serve.ingress()(Front)
    )
    bound = front.bind(catalogue, limits, scoring.bind(catalogue, packages, limit))
    try:
        _start(bound, host, port)
        yield
    finally:
        serve.shutdown()
        del packages


def _start(bound: serve.Application, host: str, port: int) -> None:
    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # the terminal is for our own lines
    try:
        serve.start(proxy_location="HeadOnly", http_options=HTTPOptions(host=host, port=port), logging_config=QUIET)
        serve.run(bound, name=NAME)
    except (RuntimeError, TimeoutError, RayError) as error:
        raise UsageError(f"the demo does not start: {' '.join(str(error).split())}") from error


def _is_serving() -> bool:
    try:
        return bool(serve.status().proxies)
    except Exception:
        return False
