"""Runs the demo: reads the models, starts Ray, and serves until told to stop.

On Ray Serve, one process answers requests and others score images.
"""

import asyncio
import ipaddress
import logging
import signal
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from mvad import storage
from mvad.console import Reporter, plural
from mvad.demo.answers import LimitsAnswer
from mvad.demo.app import BusyError, demo_app
from mvad.demo.category_models import CategoryModels, ExtractorKey, read_category_models
from mvad.demo.scorer import DemoScorer, Sample, SampleResult
from mvad.errors import UsageError
from mvad.features.backbone_spec import BackboneSpec
from mvad.features.extractor import prepare
from mvad.features.weights import Network
from mvad.model_store import load_networks
from mvad.options import ServeOptions, takes
from mvad.runtime.session import ray_session
from mvad.runtime.threads import use_one_thread, worker_device

APPLICATION = "mvad"
MAX_BATCH_IMAGES, BATCH_WAIT_S = 8, 0.02
MAX_REQUESTS, MAX_WAITING_REQUESTS = 16, 64  # served at once; queued
STOP_TIMEOUT_S = 2.0
LOGGING = LoggingConfig(log_level="ERROR", enable_access_log=False)


@contextmanager
@takes(ServeOptions)
def serving(folder: str, options: ServeOptions) -> Iterator[str]:
    """Serve the demo with the models in a folder while the context lasts; yields the address of the page.

    Options and errors are those of `commands.serve.serve`.
    """
    report = Reporter(options.quiet)
    category_models, usable = read_category_models(folder, options)
    port = _free_port(options.host, options.port)
    usable, networks = load_networks(usable, options.weights)
    for warning in usable.warnings:
        report.warn(warning)
    models = {category: category_models[category] for category in sorted(usable)}
    if not _is_loopback(options.host):
        report.warn(
            f"anyone who can reach port {port} of this machine can use the demo: it has no password and no encryption"
        )
    report.info(f"models of {plural(len(models), 'category', 'categories')}; starting")
    with ray_session(options.address, say=report.info), _deployed(models, networks, options, port):
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(options.host, options.host)  # a browser can open these
        yield f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def wait_for_signal() -> None:
    """Wait for Ctrl-C; on the main thread, also for SIGTERM."""
    stopped = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    handlers = {number: signal.signal(number, lambda *_: stopped.set()) for number in numbers}
    try:
        while not stopped.wait(1.0):
            pass
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class Backend:
    """Process that scores images in small batches; ``extractor_specs`` are references to those of `DemoScorer`."""

    def __init__(
        self,
        models: CategoryModels,
        extractor_specs: Mapping[ExtractorKey, ray.ObjectRef],
        max_model_bytes: int,
        keys: ray.ObjectRef,
    ) -> None:
        ray.get(keys)  # of object storage, for models
        specs = {key: ray.get(reference) for key, reference in extractor_specs.items()}
        self._scorer = DemoScorer(models, specs, max_model_bytes, worker_device())
        self._thread = ThreadPoolExecutor(1, initializer=use_one_thread)  # as in the actors of the other commands

    @serve.batch(max_batch_size=MAX_BATCH_IMAGES, batch_wait_timeout_s=BATCH_WAIT_S)
    async def score(self, samples: Sequence[Sample]) -> list[SampleResult]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._scorer.score, samples)


class Frontend:
    """Process that answers requests: it serves the page, decodes uploads and draws pictures."""

    def __init__(self, models: CategoryModels, limits: LimitsAnswer, backend: DeploymentHandle) -> None:
        self._models, self._limits, self._backend = models, limits, backend

    def __serve_build_asgi_app__(self) -> FastAPI:
        return demo_app(self._models, self._limits, self.score)

    async def score(self, sample: Sample) -> SampleResult:
        try:
            return await self._backend.score.remote(sample)
        except BackPressureError as error:
            raise BusyError("too many images are waiting; try again in a moment.") from error
        except RayError as error:
            logging.getLogger(__name__).error("scoring failed", exc_info=error)
            raise BusyError("the scoring process has failed and is restarting; try again.") from error


@contextmanager
def _deployed(
    models: CategoryModels, networks: Mapping[BackboneSpec, Network], options: ServeOptions, port: int
) -> Iterator[None]:
    """Serve the demo on the running Ray while the context lasts.

    UsageError if this Ray serves an application already, the demo does not start, or the engine cannot be used.
    """
    if _is_serving():
        raise UsageError("this Ray cluster already serves an application; use another cluster, or none, for the demo.")
    n_gpus = int(ray.cluster_resources().get("GPU", 0))
    resources: dict[str, Any] = {"num_gpus": 1, "num_cpus": 0} if n_gpus else {"num_cpus": 0.5}
    common: dict[str, Any] = {
        "logging_config": LOGGING,
        "graceful_shutdown_timeout_s": STOP_TIMEOUT_S,
        "max_queued_requests": MAX_WAITING_REQUESTS,
    }
    feature_kinds: dict[ExtractorKey, set[str]] = defaultdict(set)
    for model in models.values():
        feature_kinds[model.extractor_key].add(model.feature_kind)
    # The references must live until the end: Ray may drop an object without references.
    extractor_specs = {
        (backbone, size): ray.put(prepare(sorted(kinds), networks[backbone], size, options.engine, n_gpus > 0))
        for (backbone, size), kinds in feature_kinds.items()
    }
    keys = ray.put(storage.Keys())
    backend = serve.deployment(
        name="backend",
        ray_actor_options=resources,
        num_replicas=max(1, n_gpus),
        max_ongoing_requests=4 * MAX_BATCH_IMAGES,
        **common,
    )(Backend)
    frontend = serve.deployment(
        name="frontend", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=MAX_REQUESTS, **common
    )(serve.ingress()(Frontend))
    limits = LimitsAnswer(upload_bytes=options.max_upload, files=options.max_files, pixels=options.max_pixels)
    scoring = backend.bind(models, extractor_specs, options.memory_limit, keys)
    http = HTTPOptions(host=options.host, port=port)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # the terminal is for mvad's own lines
    try:
        try:
            serve.start(proxy_location="HeadOnly", http_options=http, logging_config=LOGGING)
            serve.run(frontend.bind(models, limits, scoring), name=APPLICATION)
        except (RuntimeError, TimeoutError, RayError) as error:
            raise UsageError(f"the demo does not start: {' '.join(str(error).split())}") from error
        yield
    finally:
        serve.shutdown()
        del extractor_specs, keys


def _is_serving() -> bool:
    try:
        return bool(serve.status().proxies)
    except Exception:
        return False


def _free_port(host: str, port: int) -> int:
    """The port to listen on, any free one for 0; UsageError if the address cannot be listened on."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        raise UsageError(
            f"cannot listen on port {port} of {host!r} ({error.strerror or error}); give another --port or --host."
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
