"""Greedy coordinate search: one step of `candidates` at a time, within a time budget."""

import math
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
import ray

from mvad.console import Stage
from mvad.data.image_size import EXACT, ImageSize
from mvad.detectors.patchcore import LAYERS, bank_size
from mvad.errors import ImageError, UsageError
from mvad.features.kinds import GRIDS
from mvad.features.specs import feature_shapes
from mvad.features.weights import Network
from mvad.fitting import FitJob, resolve_backbone
from mvad.fitting.sharding import max_images
from mvad.options import FitOptions, as_json
from mvad.pipeline.image_sizes import measure_sizes
from mvad.runtime.resources import actor_pool
from mvad.storage.text import shown_name
from mvad.tuning.candidates import CANDIDATES, Changes, Cost, alternatives, extraction_key
from mvad.tuning.evaluate import Evaluation, evaluate
from mvad.tuning.features import Extraction, extract, grid_of
from mvad.tuning.figures import Figures, bootstrap_weights, choose, figures
from mvad.tuning.images import MAX_FIT, MAX_HELD_OUT, N_DEFECTS, TuningImages, tuning_images

RESOLVED = {"image_size", "layers", "neighbourhood", "norm", "preset"}  # options that spec and size stand for
MAX_EXTRACTIONS = 2  # whose features are kept at once


@dataclass(frozen=True)
class Tried:
    """A candidate and what was found."""

    changes: Changes  # to the options as given
    options: FitOptions
    size: ImageSize
    cost: Cost
    figures: Figures
    seconds: float  # of the task that evaluated it


@dataclass
class Choice:
    """The options of a category, and why."""

    category: str
    options: FitOptions
    changes: Changes = field(default_factory=dict)
    tried: list[Tried] = field(default_factory=list)  # the options as given come first
    not_tried: list[Changes] = field(default_factory=list)  # for lack of time
    note: str | None = None  # why there was nothing to choose
    n_fit: int = 0
    n_held_out: int = 0
    n_defective: int = 0
    seconds: float = 0.0


@dataclass
class _Started:
    """A candidate whose task is under way."""

    changes: Changes
    options: FitOptions
    extraction: Extraction
    cost: Cost
    task: ray.ObjectRef


class CategorySearch:
    """The search for one category.

    Parameters
    ----------
    images
        The manifest's rows of its training images.
    others
        URIs of training images of other categories.
    bit_depths
        By category.
    """

    def __init__(
        self, job: FitJob, images: pa.Table, others: Sequence[str], bit_depths: Mapping[str, int], stage: Stage
    ) -> None:
        self.job, self.images, self.others = job, images, others
        self.bit_depths, self.stage = bit_depths, stage
        self.choice = Choice(job.category, job.options)
        self._networks = {job.network.spec: job.network}
        self._sizes: dict[Hashable, ImageSize] = {}
        self._extractions: dict[Hashable, Extraction] = {}
        self._extraction_seconds = 0.0  # with the options as given

    def run(self, deadline: float) -> Choice:
        """Try candidates until the deadline (of `time.monotonic`), and choose."""
        started, choice, options = time.monotonic(), self.choice, self.job.options
        size = self._size(options)
        if size.window is not None:
            choice.note = "its images are looked at through windows, which are not tuned"
            return choice
        chosen = self._choose_images(options)
        if chosen is None:
            choice.note = "it has too few good images to hold some out"
            return choice
        self._tuned, self._grid = chosen, grid_of(size)
        choice.n_fit, choice.n_held_out = len(chosen.fit), int(chosen.held_out.max()) + 1
        choice.n_defective = len(chosen.scored) - choice.n_held_out
        self._weights = bootstrap_weights(choice.n_held_out, options.seed)
        self._pool = actor_pool(options.actors, len(chosen.fit) + len(chosen.scored))
        try:
            self._search(deadline)
        except ImageError as error:
            choice.options, choice.changes, choice.note = options, {}, f"an image cannot be used any more ({error})"
        choice.seconds = time.monotonic() - started
        return choice

    def _search(self, deadline: float) -> None:
        choice, started = self.choice, time.monotonic()
        first = self._start({}, choice.options, math.inf)
        self._extraction_seconds = time.monotonic() - started
        (given,) = self._finish([first], math.inf)
        choice.tried.append(given)
        current = given
        for step in CANDIDATES[choice.options.method]:
            choice.tried += self._try(step, current, deadline)
            current = choice.tried[choose([one.figures for one in choice.tried], [one.cost for one in choice.tried])]
            self._forget_all_but(current)
        choice.options, choice.changes = current.options, current.changes

    def _try(self, step: Sequence[Changes], current: Tried, deadline: float) -> list[Tried]:
        """Try the changes of a step, side by side as far as memory holds their features."""
        under_way: list[_Started] = []
        tried: list[Tried] = []
        end = time.monotonic()
        for changes, options in self._possible(step, current.options):
            end = max(end, time.monotonic()) + self._expected_seconds(options)
            together = {**current.changes, **changes}
            if end > deadline:
                self.choice.not_tried.append(together)
                continue
            self.stage.busy_with(f"{shown_name(self.choice.category)}: {in_words(together)}")
            if len(self._extractions) == MAX_EXTRACTIONS and extraction_key(options) not in self._extractions:
                tried += self._finish(under_way, deadline)
                under_way.clear()
                self._forget_all_but(current)
            try:
                under_way.append(self._start(together, options, deadline))
            except TimeoutError:
                self.choice.not_tried.append(together)
        return tried + self._finish(under_way, deadline)

    def _forget_all_but(self, current: Tried) -> None:
        key = extraction_key(current.options)
        self._extractions = {one: found for one, found in self._extractions.items() if one == key}

    def _expected_seconds(self, options: FitOptions) -> float:
        """About how long a candidate takes, from what the options as given took.

        Extraction goes by pixels; evaluation by pairs of patches and vectors of the bank.
        """
        given, cost = self.choice.tried[0], self._cost(options)
        growth = cost.pixels / given.cost.pixels
        extraction = 0.0 if extraction_key(options) in self._extractions else self._extraction_seconds * growth
        patches = math.prod(self._shape(options)[:-1]) / math.prod(self._shape(given.options)[:-1])
        return extraction + given.seconds * patches * cost.bank / given.cost.bank

    def _possible(self, step: Sequence[Changes], options: FitOptions) -> Iterator[tuple[Changes, FitOptions]]:
        """The changes of a step that the backbone can do, and that do not cut images into windows."""
        known = {self._meaning(options)}
        for changes, changed in alternatives(step, options):
            try:
                is_possible = self._size(changed).window is None and bool(self._shape(changed))
            except UsageError:
                continue
            meaning = self._meaning(changed)
            if is_possible and meaning not in known:
                known.add(meaning)
                yield changes, changed

    def _meaning(self, options: FitOptions) -> Hashable:
        """Equal for options that give the same model, as where one names what is the default anyway."""
        detector = self.job.method.from_options(options)
        others = {
            name: value for name, value in as_json(options).items() if name not in RESOLVED | {*asdict(detector.params)}
        }
        return resolve_backbone(options), self._size(options), repr(detector.params), repr(others)

    def _choose_images(self, options: FitOptions) -> TuningImages | None:
        """As many images as memory holds the features of, whichever candidate is tried."""
        budget = options.memory_budget.after_weights(self.job.network.nbytes)
        steps = CANDIDATES[options.method]
        every = [options, *(changed for step in steps for _, changed in self._possible(step, options))]
        kind = self.job.method.feature
        n_fit = min(max_images({kind: self._shape(one)}, one, budget) for one in every)
        n_scored = budget.bytes // (4 * max(math.prod(self._shape(one)) for one in every))
        bit_depth = self.bit_depths[self.job.category]
        n_held_out = min(MAX_HELD_OUT, n_scored // (1 + N_DEFECTS))
        return tuning_images(self.images, self.others, options, bit_depth, min(MAX_FIT, n_fit), n_held_out)

    def _shape(self, options: FitOptions) -> tuple[int, ...]:
        """The shape of one image's features."""
        kind = self.job.method.feature
        return feature_shapes([kind], resolve_backbone(options), self._size(options))[kind]

    def _size(self, options: FitOptions) -> ImageSize:
        spec, key = resolve_backbone(options), extraction_key(options)
        if key not in self._sizes:
            measured = measure_sizes(self.images, options, spec, windows=self.job.method.feature in GRIDS)
            # Images are decoded exactly, as those that get synthetic defects are.
            self._sizes[key] = replace(measured[self.job.category], ignore=self.job.ignore, decode=EXACT)
        return self._sizes[key]

    def _start(self, changes: Changes, options: FitOptions, deadline: float) -> _Started:
        """Extract the features of a candidate, unless there are some, and start its evaluation.

        TimeoutError if the features are not there by the deadline.
        """
        size, network, key = self._size(options), self._network(options), extraction_key(options)
        if key not in self._extractions:
            self._extractions[key] = extract(
                self._tuned,
                self.job.category,
                options,
                network,
                size,
                self._grid,
                self._pool,
                self.stage,
                self.bit_depths,
                deadline,
            )
        found = self._extractions[key]
        task: Any = ray.remote(evaluate).options(**self._pool.task_resources)
        reference = task.remote(self._as_of_all(options), size, self._grid, found.fit, found.scored)
        return _Started(changes, options, found, self._cost(options), reference)

    def _as_of_all(self, options: FitOptions) -> FitOptions:
        """The options with which the bank holds the share of patches that it will hold of all images."""
        share = self.choice.n_fit / len(self.images)
        return replace(options, max_vectors=max(1, round(share * options.max_vectors)), preset=None)

    def _cost(self, options: FitOptions) -> Cost:
        *grid, _ = self._shape(options)
        n_patches = len(self.images) * options.rows_per_image * math.prod(grid)
        n_banks = len(resolve_backbone(options).patch_layers) if options.banks == LAYERS else 1
        return Cost(self._size(options).n_pixels, n_banks * bank_size(options, n_patches))

    def _network(self, options: FitOptions) -> Network:
        spec = resolve_backbone(options)
        if spec not in self._networks:
            self._networks[spec] = Network.load(spec, options.weights)
        return self._networks[spec]

    def _finish(self, under_way: Sequence[_Started], deadline: float) -> list[Tried]:
        """The candidates that are evaluated by the deadline; others are given up."""
        tried = []
        for one, found in zip(under_way, results_by(deadline, [one.task for one in under_way]), strict=True):
            if found is None:
                self.choice.not_tried.append(one.changes)
                continue
            measured = figures(found.evidence, self._tuned.held_out, self._tuned.kinds, self._weights)
            tried.append(Tried(one.changes, one.options, one.extraction.size, one.cost, measured, found.seconds))
            self.stage.expect(1)
            self.stage.advance(1)
        return tried


def results_by(deadline: float, tasks: Sequence[ray.ObjectRef]) -> list[Evaluation | None]:
    """The results of tasks that end by a deadline (of `time.monotonic`); the others are cancelled, and None."""
    seconds = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
    ended, late = ray.wait(list(tasks), num_returns=len(tasks), timeout=seconds) if tasks else ([], [])
    for task in late:
        ray.cancel(task, force=True)
    return [ray.get(task) if task in ended else None for task in tasks]


def in_words(changes: Changes) -> str:
    """Changes as a person reads them."""
    return ", ".join(f"{name.replace('_', '-')} {value}" for name, value in changes.items()) or "as given"
