"""Runs the demo: reads the models, starts Ray, and serves until told to stop.

This process answers requests, decodes images and draws pictures; actors score images.
"""

import functools
import logging
import signal
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

import ray
import uvicorn
from ray.exceptions import RayError
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp

from mvad import storage
from mvad.console import Reporter, plural
from mvad.demo.answers import LimitsAnswer
from mvad.demo.app import ScoreFunction, demo_app
from mvad.demo.category_models import CategoryModels, ExtractorKey, read_category_models
from mvad.demo.connections import Connection, ConnectionLimits, Connections, TrackedApp
from mvad.demo.hosts import AllowedHosts, is_loopback
from mvad.demo.scorer import DemoScorer, Sample, SampleResult
from mvad.demo.waiting import Batches, BatchFunction, BusyError, ImageQueue
from mvad.detectors.base import Nearest
from mvad.errors import UsageError
from mvad.features.backbone_spec import BackboneSpec
from mvad.features.specs import prepare
from mvad.features.weights import Network
from mvad.html.image_memory import ImageMemory, give_back_freed_memory
from mvad.model_store import load_networks
from mvad.options import ServeOptions, takes
from mvad.review.folder import NightsFolder
from mvad.review.nearest import GoodImages, Load
from mvad.review.pages import review_routes
from mvad.runtime.session import ray_session
from mvad.runtime.threads import worker_device

START_TIMEOUT_S, STOP_TIMEOUT_S = 120, 2
HELD_UPLOADS = 8  # of the maximum size: what all connections together may hold

log = logging.getLogger(__name__)


@contextmanager
@takes(ServeOptions)
def serving(folder: str, options: ServeOptions) -> Iterator[str]:
    """Serve the demo with the models in a folder while the context lasts; yields the address of the page.

    Options and errors are those of `commands.serve.serve`.
    """
    report = Reporter(options.quiet)
    category_models, usable = read_category_models(folder, options)
    nights = NightsFolder(storage.to_uri(options.results)) if options.results else None
    if nights is not None:
        nights.nights()  # else UsageError, before anything is started
        nights.look_ahead()  # while Ray starts
    with closing(_bind(options.host, options.port)) as listener:
        port = listener.getsockname()[1]
        usable, networks = load_networks(usable, options.weights)
        for warning in usable.warnings:
            report.warn(warning)
        models = {category: category_models[category] for category in sorted(usable)}
        if not is_loopback(options.host):
            report.warn(
                f"anyone who can reach port {port} of this machine can use the demo: there is no password or encryption"
            )
        report.info(f"models of {plural(len(models), 'category', 'categories')}; starting")
        with (
            ray_session(options.address, say=report.info),
            _scoring_processes(models, networks, options) as processes,
            serving_app(_application(models, processes, options, nights), listener, _connection_limits(options)),
        ):
            host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(options.host, options.host)  # a browser can open these
            yield f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _application(
    models: CategoryModels, processes: Sequence[BatchFunction], options: ServeOptions, nights: NightsFolder | None
) -> ASGIApp:
    limits = LimitsAnswer(upload_bytes=options.max_upload, files=options.max_files, pixels=options.max_pixels)
    hosts = AllowedHosts(options.host, options.allow_host or ())
    memory = ImageMemory(options.image_memory)
    queue, score = ImageQueue(), Batches(processes).score
    pages = None
    if nights is not None:
        infos = {category: model.model for category, model in models.items()}
        good_images = GoodImages(infos, functools.partial(_nearest, score, queue), memory, options.max_pixels)
        pages = review_routes(nights, memory, options.max_pixels, good_images)
    return demo_app(models, limits, score, hosts, memory, queue, pages=pages)


async def _nearest(score: ScoreFunction, queue: ImageQueue, category: str, load: Load) -> Nearest | None:
    """What a model has learnt that is most like an image, which waits as one that is uploaded does.

    UsageError if it cannot be scored; `BusyError`; and what ``load`` raises.
    """
    queue.require_room()
    async with queue.place():
        result = await score(Sample(await run_in_threadpool(load), category, wants_nearest=True))
    if result.error is not None:
        raise UsageError(result.error)
    return result.nearest


def _connection_limits(options: ServeOptions) -> ConnectionLimits:
    return ConnectionLimits(held_bytes=HELD_UPLOADS * options.max_upload)


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


class ScoringProcess:
    """Actor that scores images; ``extractor_specs`` are references to those of `DemoScorer`."""

    def __init__(
        self,
        models: CategoryModels,
        extractor_specs: Mapping[ExtractorKey, ray.ObjectRef],
        max_model_bytes: int,
        keys: storage.Keys,
    ) -> None:
        del keys  # of object storage, for models: known to the process since they arrived
        specs = {key: ray.get(reference) for key, reference in extractor_specs.items()}
        self._scorer = DemoScorer(models, specs, max_model_bytes, worker_device())

    def ready(self) -> None:
        """Return as soon as the actor runs."""

    def score(self, samples: Sequence[Sample]) -> list[SampleResult]:
        return self._scorer.score(samples)


@contextmanager
def _scoring_processes(
    models: CategoryModels, networks: Mapping[BackboneSpec, Network], options: ServeOptions
) -> Iterator[list[BatchFunction]]:
    """Run one process per GPU, or one on CPUs, while the context lasts; one that fails is started again.

    UsageError if they do not start, or the engine cannot be used.
    """
    n_gpus = int(ray.cluster_resources().get("GPU", 0))
    resources: dict[str, Any] = {"num_gpus": 1, "num_cpus": 0} if n_gpus else {"num_cpus": 0.5}
    feature_kinds: dict[ExtractorKey, set[str]] = defaultdict(set)
    for model in models.values():
        feature_kinds[model.extractor_key].add(model.feature_kind)
    # The references must live until the end: Ray may drop an object without references.
    extractor_specs = {
        (backbone, size): ray.put(prepare(sorted(kinds), networks[backbone], size, options.engine, n_gpus > 0))
        for (backbone, size), kinds in feature_kinds.items()
    }
    keys = ray.put(storage.Keys())
    actor_class = ray.remote(max_restarts=-1, **resources)(ScoringProcess)
    actors: list[Any] = [
        actor_class.remote(models, extractor_specs, options.memory_limit, keys) for _ in range(max(1, n_gpus))
    ]
    try:
        try:
            ray.get([actor.ready.remote() for actor in actors], timeout=START_TIMEOUT_S)
        except RayError as error:
            raise UsageError(f"the demo does not start: {' '.join(str(error).split())}") from error
        yield [functools.partial(_score, actor) for actor in actors]
    finally:
        for actor in actors:
            ray.kill(actor)
        del extractor_specs, keys


async def _score(actor: Any, samples: Sequence[Sample]) -> list[SampleResult]:
    try:
        return await actor.score.remote(samples)
    except RayError as error:
        log.error("scoring failed", exc_info=error)
        raise BusyError("the scoring process has failed and is restarting; try again.") from error


@contextmanager
def serving_app(app: ASGIApp, listener: socket.socket, limits: ConnectionLimits) -> Iterator[None]:
    """Serve an application in a thread while the context lasts; ``listener`` is bound, and closed at the end."""
    give_back_freed_memory()
    connections = Connections(limits)
    config = uvicorn.Config(
        TrackedApp(app, connections),
        http=functools.partial(Connection, connections),  # type: ignore[arg-type]
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level=logging.CRITICAL,  # what it reports are mistakes of clients
        access_log=False,
        server_header=False,
        proxy_headers=False,  # a client could name any address as its own
        timeout_graceful_shutdown=STOP_TIMEOUT_S,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="http", daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


def _bind(host: str, port: int) -> socket.socket:
    """A socket bound to the address to listen on, to any free port for 0; UsageError if it cannot be listened on."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise UsageError(
            f"cannot listen on port {port} of {host!r} ({error.strerror or error}); give another --port or --host."
        ) from error
    return listener
