"""Images that wait: how many may, which of them are worked on, and in which batches they are scored."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

from starlette.exceptions import HTTPException

from mvad.demo.scorer import Sample, SampleResult

MAX_BATCH_IMAGES = 8
PLACES = 4 * MAX_BATCH_IMAGES  # images that are decoded, scored or drawn; the others wait as files
MAX_WAIT_S = 10.0
FIRST_SECONDS_PER_IMAGE = 0.05  # until the first images have been measured
SMOOTHING = 0.05  # weight of the latest image in the mean time per image

BatchFunction = Callable[[Sequence[Sample]], Awaitable[Sequence[SampleResult]]]


class BusyError(HTTPException):
    """No image can be scored at the moment; the message is a sentence."""

    def __init__(self, message: str, retry_after_s: float = 5.0) -> None:
        super().__init__(503, message, {"Retry-After": str(max(1, math.ceil(retry_after_s)))})


class ImageQueue:
    """Images in the order of their arrival, ``places`` of which are worked on at a time.

    A request that would wait for more than ``max_wait_s`` seconds, at the rate of the last images, is refused at once:
    however many clients there are, those that are admitted are served in time, and no work is done in vain.
    """

    def __init__(
        self, places: int = PLACES, max_wait_s: float = MAX_WAIT_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.max_wait_s, self._clock = max_wait_s, clock
        self.n_images = 0  # waiting or worked on
        self.seconds_per_image = FIRST_SECONDS_PER_IMAGE
        self._places = asyncio.Semaphore(places)
        self._last_finished = 0.0  # or, after a pause, when the first image came

    def require_room(self) -> None:
        """BusyError if the queue is full; a request can be refused before its images are received."""
        wait_s = self.n_images * self.seconds_per_image
        if wait_s > self.max_wait_s:
            raise BusyError(f"{self.n_images} images are waiting, for {wait_s:.0f} s; try again then.", wait_s)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place and keep it while an image is worked on."""
        if self.n_images == 0:
            self._last_finished = self._clock()
        self.n_images += 1
        try:
            async with self._places:
                yield
        finally:
            now = self._clock()
            self.seconds_per_image += SMOOTHING * (now - self._last_finished - self.seconds_per_image)
            self._last_finished = now
            self.n_images -= 1


class Batches:
    """Scores samples in batches of up to ``max_images``; each of ``processes`` has one batch at a time.

    Samples wait while all processes are busy: the more there are, the larger the batches.
    """

    def __init__(self, processes: Iterable[BatchFunction], max_images: int = MAX_BATCH_IMAGES) -> None:
        self._idle = deque(processes)
        self._max_images = max_images
        self._waiting: deque[tuple[Sample, asyncio.Future[SampleResult]]] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def score(self, sample: Sample) -> SampleResult:
        """Score a sample; raises what the process raises."""
        result: asyncio.Future[SampleResult] = asyncio.get_running_loop().create_future()
        self._waiting.append((sample, result))
        self._start()
        return await result

    def _start(self) -> None:
        while self._waiting and self._idle:
            batch = [self._waiting.popleft() for _ in range(min(self._max_images, len(self._waiting)))]
            task = asyncio.create_task(self._run(self._idle.popleft(), batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run(self, process: BatchFunction, batch: list[tuple[Sample, asyncio.Future[SampleResult]]]) -> None:
        try:
            results = await process([sample for sample, _ in batch])
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():  # its request may have been cancelled
                    future.set_result(result)
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
        finally:
            self._idle.append(process)
            self._start()
