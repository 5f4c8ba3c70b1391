"""Score images by a model in mvad and by its export in ONNX Runtime, and compare."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from mvad import storage
from mvad.console import Reporter
from mvad.data.images import FULL_DEPTH, read_image
from mvad.data.layouts.files import find_images
from mvad.errors import ImageError, UsageError, one_line
from mvad.in_process import Model, Prediction
from mvad.metrics.image import image_metrics
from mvad.model_store import ModelInfo
from mvad.onnx_export.images import LabelledImage
from mvad.onnx_export.model import IMAGE, IS_ANOMALY, MAP, PREFIX, SCORE
from mvad.onnx_export.result import INT8, Comparison, Int8Comparison
from mvad.options import ExportOptions


class Exported:
    """An export in ONNX Runtime, on CPUs; UsageError if it is none of the model."""

    def __init__(self, content: bytes, name: str, model: ModelInfo) -> None:
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # mvad computes in turns with it
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has many
            raise UsageError(f"{name} is no model that ONNX Runtime can run ({one_line(error)[:200]}).") from error
        facts = self._session.get_modelmeta().custom_metadata_map
        model_id = facts.get(PREFIX + "model_id")
        if model_id != model.model_id:
            found = "no export of mvad" if model_id is None else f"the export of another model ({model_id[:12]})"
            raise UsageError(f"{name} is {found}, not of {model.model_id[:12]}; remove it, or give another --out.")
        self.is_int8 = facts.get(PREFIX + "precision") == INT8
        self.seconds: list[float] = []  # that each image took

    def __call__(self, image: Image.Image) -> dict[str, Any]:
        """The outputs by name."""
        names, pixels = [output.name for output in self._session.get_outputs()], np.asarray(image)
        started = time.perf_counter()
        outputs = self._session.run(names, {IMAGE: pixels})
        self.seconds.append(time.perf_counter() - started)
        return dict(zip(names, outputs, strict=True))


def compare(exported: Exported, original: Model, options: ExportOptions, report: Reporter) -> Comparison:
    """Score all images below the folder ``options.check`` twice; UsageError if there is none that can be read."""
    assert options.check is not None
    folder, comparison = storage.to_uri(options.check), Comparison()
    files = sorted(find_images(storage.list_files(folder)).images)
    _score_twice([(file.path, file.uri) for file in files], exported, original, options, report, comparison)
    if not comparison.n_images:
        readable = storage.readable(folder)
        raise UsageError(f"no image below {readable} could be scored; give another folder with --check.")
    return comparison


def compare_int8(
    images: Sequence[LabelledImage], exported: Exported, original: Model, options: ExportOptions, report: Reporter
) -> Int8Comparison:
    """Score labelled images by a model and by its INT8 file; UsageError if none of one label can be read."""
    comparison, files = Int8Comparison(), [(image.image_id, image.uri) for image in images]
    scores = _score_twice(files, exported, original, options, report, comparison)
    labels = np.array([image.is_defective for image in images if image.image_id in scores], np.int8)
    comparison.n_defective = int(labels.sum())
    if not 0 < comparison.n_defective < len(labels):
        raise UsageError(f"no image of one label below {options.check} could be scored; give another with --check.")
    comparison.image_auroc, comparison.exported_image_auroc = (
        image_metrics(labels, np.nan_to_num(np.array(column, np.float32)))["image_auroc"]
        for column in zip(*scores.values(), strict=True)
    )
    return comparison


def _score_twice(
    files: Sequence[tuple[str, str]],
    exported: Exported,
    original: Model,
    options: ExportOptions,
    report: Reporter,
    comparison: Comparison,
) -> dict[str, tuple[float, float]]:
    """Add images, each an id and a URI, to a comparison; returns the scores by the model and by the file, by id."""
    bit_depth, scores = int(original.record.get("bit_depth", FULL_DEPTH)), {}
    with report.stage("check", len(files)) as stage:
        for image_id, uri in files:
            try:
                image = read_image(uri, options.max_pixels, bit_depth=bit_depth)
                scores[image_id] = _compare(image_id, exported(image), original.predict(uri), comparison)
            except ImageError as error:
                comparison.errors.append({"image_id": image_id, "error": one_line(error)})
            stage.advance(1)
    report.errors(comparison.errors, "the result")
    if exported.seconds:
        comparison.ms_per_image = round(1000 * float(np.median(exported.seconds)), 2)
    return scores


def _compare(
    image_id: str, outputs: dict[str, Any], prediction: Prediction, comparison: Comparison
) -> tuple[float, float]:
    """Add one image to a comparison; returns both scores; ImageError if mvad gives it none."""
    if prediction.score is None:
        raise ImageError(prediction.error)
    comparison.n_images += 1
    score, exported_score, image_map = prediction.score, float(outputs[SCORE]), prediction.anomaly_map
    difference = _difference(np.array(exported_score), np.array(score))
    if comparison.largest_image is None or difference > comparison.largest_difference:
        comparison.largest_difference, comparison.largest_image = difference, image_id
    if image_map is not None:
        before = comparison.largest_map_difference or 0.0
        comparison.largest_map_difference = max(before, _difference(outputs[MAP], image_map))
    verdicts = prediction.is_anomaly, bool(outputs[IS_ANOMALY]) if IS_ANOMALY in outputs else None
    if verdicts[0] != verdicts[1]:
        facts = {"image_id": image_id, "score": score, "exported_score": exported_score}
        comparison.verdicts.append({**facts, "is_anomaly": verdicts[0], "exported_is_anomaly": verdicts[1]})
    return score, exported_score


def _difference(values: NDArray[Any], others: NDArray[Any]) -> float:
    """The largest difference of two arrays, relative to their largest value; infinite where one is not finite."""
    is_seen = ~np.isnan(others)
    if values.shape != others.shape or not np.isfinite(values[is_seen]).all() or not np.isnan(values[~is_seen]).all():
        return float("inf")
    values, others = values[is_seen].astype(np.float64), others[is_seen].astype(np.float64)
    largest = max(np.abs(values).max(initial=0.0), np.abs(others).max(initial=0.0))
    return float(np.abs(values - others).max(initial=0.0) / largest) if largest else 0.0
