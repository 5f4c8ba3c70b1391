"""Score images by a model in mvad and by its export in ONNX Runtime, and compare."""

from __future__ import annotations

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
from mvad.model_store import ModelInfo
from mvad.onnx_export.model import IMAGE, IS_ANOMALY, MAP, PREFIX, SCORE
from mvad.onnx_export.result import Comparison
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
        model_id = self._session.get_modelmeta().custom_metadata_map.get(PREFIX + "model_id")
        if model_id != model.model_id:
            found = "no export of mvad" if model_id is None else f"the export of another model ({model_id[:12]})"
            raise UsageError(f"{name} is {found}, not of {model.model_id[:12]}; remove it, or give another --out.")

    def __call__(self, image: Image.Image) -> dict[str, Any]:
        """The outputs by name."""
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, {IMAGE: np.asarray(image)}), strict=True))


def compare(exported: Exported, original: Model, options: ExportOptions, report: Reporter) -> Comparison:
    """Score all images below the folder ``options.check`` twice; UsageError if there is none that can be read."""
    assert options.check is not None
    folder, bit_depth = storage.to_uri(options.check), int(original.record.get("bit_depth", FULL_DEPTH))
    files = sorted(find_images(storage.list_files(folder)).images)
    comparison = Comparison()
    with report.stage("check", len(files)) as stage:
        for file in files:
            try:
                image = read_image(file.uri, options.max_pixels, bit_depth=bit_depth)
                _compare(file.path, exported(image), original.predict(file.uri), comparison)
            except ImageError as error:
                comparison.errors.append({"image_id": file.path, "error": one_line(error)})
            stage.advance(1)
    report.errors(comparison.errors, "the result")
    if not comparison.n_images:
        readable = storage.readable(folder)
        raise UsageError(f"no image below {readable} could be scored; give another folder with --check.")
    return comparison


def _compare(image_id: str, outputs: dict[str, Any], prediction: Prediction, comparison: Comparison) -> None:
    """Add one image to a comparison; ImageError if mvad gives it no score."""
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


def _difference(values: NDArray[Any], others: NDArray[Any]) -> float:
    """The largest difference of two arrays, relative to their largest value; infinite where one is not finite."""
    is_seen = ~np.isnan(others)
    if values.shape != others.shape or not np.isfinite(values[is_seen]).all() or not np.isnan(values[~is_seen]).all():
        return float("inf")
    values, others = values[is_seen].astype(np.float64), others[is_seen].astype(np.float64)
    largest = max(np.abs(values).max(initial=0.0), np.abs(others).max(initial=0.0))
    return float(np.abs(values - others).max(initial=0.0) / largest) if largest else 0.0
