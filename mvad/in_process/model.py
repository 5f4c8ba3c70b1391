"""A fitted model in this process: it scores images as a job does, without Ray."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mvad import storage
from mvad.anomaly_maps.colours import Scale, threshold_scale
from mvad.anomaly_maps.regions import MapRule
from mvad.calibration import DecisionRule, median_and_spread
from mvad.data.image_size import ImageSize
from mvad.data.images import FULL_DEPTH, crop_centre
from mvad.errors import ImageError, UsageError, failure_reason, one_line
from mvad.features.specs import prepare
from mvad.features.weights import Network
from mvad.in_process.inputs import ImageLike, Reading, as_list, check, is_single, name_of, read_resized
from mvad.in_process.prediction import Prediction
from mvad.in_process.workers import Workers
from mvad.model_store import (
    FittedModel,
    ModelInfo,
    ModelSet,
    find_models,
    load_networks,
    model_id,
    models_for,
    read_fitted,
    read_model,
    save_model,
)
from mvad.options import DecisionOptions, PredictOptions, takes
from mvad.results.verdicts import decide, decision_rule
from mvad.runtime.threads import Threads, compute_device, usable_cores
from mvad.scoring.jobs import SCORING_FAILED
from mvad.scoring.outcomes import Outcome, score_large, score_whole


class Model:
    """A fitted model of one category, which scores images in this process, from any number of threads at once.

    It holds the network and the memory bank, which is about the size of the model's folder, and for each thread the
    features of one image. Scores, p-values, thresholds and regions are those of a job on the same machine, to the last
    bit.

    Parameters
    ----------
    fitted, network
        What was learnt, and the backbone with its weights.
    options
        How it decides, and how images are read.
    threads
        How many images are computed side by side; by default as many as there are cores.
    known_id
        The id of the model if it has been saved; else it is computed from all of its arrays.
    """

    def __init__(
        self,
        fitted: FittedModel,
        network: Network,
        options: PredictOptions,
        threads: int | None = None,
        *,
        known_id: str | None = None,
    ) -> None:
        device, n_threads = compute_device(), threads or usable_cores()
        uses_gpu = device != "cpu"
        kind = fitted.method.feature
        self._fitted, self._size, self._kind = fitted, fitted.size, kind
        self._extract = prepare([kind], network, fitted.size, options.engine, uses_gpu).load(device)
        self._detector = fitted.method.from_state(fitted.state, device)
        self._model_id = known_id or model_id(fitted)
        self._rule = _rule_of(fitted, self._model_id, options)
        self._scale = _scale_of(self._rule)
        self._reading = Reading(options.max_pixels, int(fitted.record.get("bit_depth", FULL_DEPTH)), options.first_page)
        # The windows of an image share the cores: one such image at a time.
        one_at_a_time = uses_gpu or self._size.window is not None
        self._workers = Workers(1 if one_at_a_time else n_threads)
        self._window_threads = Threads(1 if uses_gpu else n_threads) if self._size.window is not None else None

    @property
    def category(self) -> str:
        return self._fitted.category

    @property
    def method(self) -> str:
        """Name of the method, as on the command line."""
        return self._fitted.method.method

    @property
    def backbone(self) -> str:
        return self._fitted.backbone.name

    @property
    def input_size(self) -> ImageSize:
        """How an image becomes the model's input."""
        return self._size

    @property
    def record(self) -> dict[str, Any]:
        """How the model was made: counts, options, versions."""
        return self._fitted.record

    @property
    def model_id(self) -> str:
        """SHA-256 that only models which give equal scores share."""
        return self._model_id

    @property
    def threshold(self) -> float | None:
        """The score above which an image is flagged; None without calibration."""
        return self._rule.threshold

    @property
    def promise(self) -> str | None:
        """What the threshold guarantees, as a sentence."""
        return self._rule.guarantee

    @property
    def calibration(self) -> NDArray[np.float32] | None:
        """Scores of held-out good images, (n,)."""
        return self._rule.calibration

    def __repr__(self) -> str:
        threshold = "no threshold" if self.threshold is None else f"threshold {self.threshold:.4g}"
        return f"<Model of {self.category!r}: {self.method}, {self.backbone}, {self._size} pixels, {threshold}>"

    @overload
    def predict(self, images: ImageLike, *, maps: bool = True) -> Prediction: ...  # type: ignore[overload-overlap]

    @overload
    def predict(self, images: Sequence[ImageLike], *, maps: bool = True) -> list[Prediction]: ...

    def predict(self, images: Any, *, maps: bool = True) -> Prediction | list[Prediction]:
        """Score one image, or several: one prediction, or a list of them in the images' order.

        Parameters
        ----------
        images
            A path or URI, the bytes of an image file, a PIL image, or an array of (height, width, 3) uint8 RGB pixels;
            or a sequence of those, or an array of (n, height, width, 3).
        maps
            Whether predictions have ``patch_scores`` and `Prediction.anomaly_map`. Scores and regions are the same
            without, and take a part of the time.

        Raises
        ------
        UsageError
            Something that is no image, such as an array of another type. A file that cannot be read or decoded is the
            ``error`` of its prediction.
        """
        if is_single(images):
            check(images)
            return self._workers.map(lambda image: self._predict(image, name_of(image, 1), maps), [images])[0]
        listed = as_list(images)
        names = [name_of(image, number) for number, image in enumerate(listed, 1)]
        return self._workers.map(lambda one: self._predict(*one, maps), zip(listed, names, strict=True))

    def save(self, folder: str | os.PathLike[str]) -> str:
        """Write the model below a folder of models, for every command; returns its own folder.

        A model of the same method and category there is replaced.
        """
        return storage.readable(save_model(storage.to_uri(os.fspath(folder)), self._fitted).uri)

    def _predict(self, image: ImageLike, name: str, maps: bool) -> Prediction:
        try:
            resized, width, height = read_resized(image, self._size, self._reading)
        except ImageError as error:
            return Prediction(name, error=one_line(error))
        pixels = np.asarray(crop_centre(resized, self._size))
        try:
            outcome = self._score(pixels, width, height, maps)
        except Exception as error:
            outcome = Outcome(f"{SCORING_FAILED}: {failure_reason(error)}")
        if outcome.score is None:
            return Prediction(name, error=outcome.error)
        decided = decide(pa.array([outcome.score], pa.float32()), self._rule)
        return Prediction(
            name,
            float(outcome.score),
            regions=outcome.regions,
            anomalous_area=outcome.anomalous_area,
            width=width,
            height=height,
            patch_scores=outcome.patch_scores,
            **{column: values[0].as_py() for column, values in decided.items()},
            _image=image,
            _reading=self._reading,
            _size=self._size,
            _scale=self._scale,
        )

    def _score(self, pixels: NDArray[np.uint8], width: int, height: int, maps: bool) -> Outcome:
        rule = MapRule(self._size, self._rule.pixel_threshold, -np.inf if maps else np.inf)
        if self._window_threads is not None:
            rules, detectors = {0: rule}, {0: self._detector}
            return score_large(pixels, self._extract, rules, detectors, width, height, self._window_threads)[0]
        features = self._extract(pixels[None])[self._kind]
        sides = np.array([width], np.int32), np.array([height], np.int32)
        return score_whole(rule, self._detector, features, *sides)[0]


def _scale_of(rule: DecisionRule) -> Scale | None:
    """The colours of maps; None without a finite threshold."""
    if rule.threshold is None or rule.calibration is None or not np.isfinite(rule.threshold):
        return None
    return threshold_scale(*median_and_spread(rule.calibration), rule.threshold)


def _rule_of(fitted: FittedModel, fitted_id: str, options: DecisionOptions) -> DecisionRule:
    return decision_rule(
        fitted_id,
        fitted.method.method,
        fitted.category,
        fitted.calibration,
        options,
        fitted.record,
        fitted.map_peaks,
    )


@takes(PredictOptions)
def load_model(
    path: str | os.PathLike[str],
    category: str | None = None,
    method: str | None = None,
    threads: int | None = None,
    *,
    options: PredictOptions,
) -> Model:
    """Load a model, for use in this process.

    Parameters
    ----------
    path
        The folder of one model, such as ``models/patchcore/bottle``, or a folder of models; a path or a URI.
    category, method
        Which model, where there are several.
    threads
        How many images are computed side by side; by default as many as there are cores.
    **options
        How it decides, and how images are read, as for `mvad.score`.

    Raises
    ------
    UsageError
        No such model, a damaged one, or its backbone's weights are not at hand.
    """
    info = _find(storage.to_uri(os.fspath(path)), category, method)
    found = ModelSet(info.uri, {info.category: info}, {}, {})
    usable, networks = load_networks(found, options.weights)
    model = usable[info.category]
    return Model(read_fitted(model), networks[model.backbone], options, threads, known_id=model.model_id)


def _find(uri: str, category: str | None, method: str | None) -> ModelInfo:
    if storage.exists(storage.join(uri, "model.json")):
        return read_model(uri)
    models = find_models(uri, method)
    if category is None:
        if len(models) > 1:
            raise UsageError(
                f"{storage.readable(uri)} holds models of {len(models)} categories; choose one with category: "
                f"{', '.join(sorted(models)[:10])}."
            )
        category = next(iter(models))
    return models_for([category], models)[category]
