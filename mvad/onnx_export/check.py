"""Score images by a model in mvad and by its export in ONNX Runtime, and compare."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from mvad import storage
from mvad.anomaly_maps.export import full_map
from mvad.anomaly_maps.geometry import anomaly_map
from mvad.calibration import DecisionRule
from mvad.console import Reporter
from mvad.data.images import read_image, resize_and_crop
from mvad.data.layouts.files import find_images
from mvad.detectors import METHODS, State
from mvad.errors import ImageError, UsageError, one_line
from mvad.features.specs import prepare
from mvad.features.weights import Network
from mvad.model_store import ModelInfo, read_arrays, recorded_shape
from mvad.onnx_export.model import IMAGE, IS_ANOMALY, MAP, PREFIX, SCORE
from mvad.onnx_export.result import Comparison
from mvad.options import ExportOptions


class Exported:
    """An export in ONNX Runtime, on CPUs; UsageError if it is none of the model."""

    def __init__(self, content: bytes, name: str, model: ModelInfo) -> None:
        try:
            self._session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has many
            raise UsageError(f"{name} is no model that ONNX Runtime can run ({one_line(error)[:200]}).") from error
        model_id = self._session.get_modelmeta().custom_metadata_map.get(PREFIX + "model_id")
        if model_id != model.model_id:
            found = "no export of mvad" if model_id is None else f"the export of another model ({model_id[:12]})"
            raise UsageError(f"{name} is {found}, not of {model.model_id[:12]}; remove it, or give another --out.")

    def __call__(self, image: Image.Image) -> dict[str, Any]:
        """The outputs by name."""
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, {IMAGE: np.asarray(image)}), strict=True))


class Original:
    """The model in mvad."""

    def __init__(self, model: ModelInfo, network: Network, engine: str) -> None:
        method, shape = METHODS[model.method], recorded_shape(model)
        self._kind, self._size = method.feature, model.size
        self._detector = method.from_state(State(model.settings, read_arrays(model, shape)))
        self._extract = prepare([self._kind], network, model.size, engine).load()

    def __call__(self, image: Image.Image) -> tuple[float, NDArray[np.float32] | None]:
        """The score of an image, and its map in the image's own pixels if the method localises."""
        features = self._extract(resize_and_crop(image, self._size)[None])[self._kind]
        scores = self._detector.score(features)
        if scores.grid is None:
            return float(scores.image[0]), None
        model_map, size = anomaly_map(scores.grid[0], self._size), {"width": image.width, "height": image.height}
        return float(scores.image[0]), full_map(size, model_map, self._size, image.width * image.height)


def compare(
    exported: Exported,
    original: Original,
    model: ModelInfo,
    rule: DecisionRule,
    options: ExportOptions,
    report: Reporter,
) -> Comparison:
    """Score all images below the folder ``options.check`` twice; UsageError if there is none that can be read."""
    assert options.check is not None
    folder = storage.to_uri(options.check)
    files = sorted(find_images(storage.list_files(folder)).images)
    comparison = Comparison()
    with report.stage("check", len(files)) as stage:
        for image_id, image in _images([(file.path, file.uri) for file in files], model, options, comparison):
            _compare_one(image_id, exported(image), *original(image), rule, comparison)
            stage.advance(1)
    report.errors(comparison.errors, "the result")
    if not comparison.n_images:
        raise UsageError(
            f"there is no image below {storage.readable(folder)} that could be scored; give another --check."
        )
    return comparison


def _images(
    files: list[tuple[str, str]], model: ModelInfo, options: ExportOptions, comparison: Comparison
) -> Iterator[tuple[str, Image.Image]]:
    for image_id, uri in files:
        try:
            yield image_id, read_image(uri, options.max_pixels, bit_depth=model.bit_depth)
        except ImageError as error:
            comparison.errors.append({"image_id": image_id, "error": one_line(error)})


def _compare_one(
    image_id: str,
    outputs: dict[str, Any],
    score: float,
    image_map: NDArray[np.float32] | None,
    rule: DecisionRule,
    comparison: Comparison,
) -> None:
    comparison.n_images += 1
    exported_score = float(outputs[SCORE])
    difference = _difference(np.array(exported_score), np.array(score))
    if comparison.largest_image is None or difference > comparison.largest_difference:
        comparison.largest_difference, comparison.largest_image = difference, image_id
    if image_map is not None:
        before = comparison.largest_map_difference or 0.0
        comparison.largest_map_difference = max(before, _difference(outputs[MAP], image_map))
    verdict = None if rule.threshold is None else score > rule.threshold
    exported_verdict = bool(outputs[IS_ANOMALY]) if IS_ANOMALY in outputs else None
    if verdict != exported_verdict:
        facts = {"image_id": image_id, "score": score, "exported_score": exported_score}
        comparison.verdicts.append({**facts, "is_anomaly": verdict, "exported_is_anomaly": exported_verdict})


def _difference(values: NDArray[Any], others: NDArray[Any]) -> float:
    """The largest difference of two arrays, relative to their largest value; infinite where one is not finite."""
    is_seen = ~np.isnan(others)
    if values.shape != others.shape or not np.isfinite(values[is_seen]).all() or not np.isnan(values[~is_seen]).all():
        return float("inf")
    values, others = values[is_seen].astype(np.float64), others[is_seen].astype(np.float64)
    largest = max(np.abs(values).max(initial=0.0), np.abs(others).max(initial=0.0))
    return float(np.abs(values - others).max(initial=0.0) / largest) if largest else 0.0
