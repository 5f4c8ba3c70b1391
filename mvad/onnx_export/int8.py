"""A model whose backbone computes with 8-bit integers, fitted again to the features of that backbone."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from mvad import storage
from mvad.calibration import DecisionRule
from mvad.data.image_size import ImageSize
from mvad.data.images import crop_centre
from mvad.data.sampling import evenly_spaced
from mvad.detectors import find_method
from mvad.errors import ImageError, UsageError
from mvad.features.specs import OnnxSpec, prepare
from mvad.features.weights import Network
from mvad.fitting.jobs import FitJob
from mvad.in_process.fitting import fit_with
from mvad.in_process.inputs import Reading, read_resized
from mvad.model_store import FittedModel, ModelInfo
from mvad.options import ExportOptions, FitOptions, build, option_names
from mvad.results.verdicts import decision_rule

METHODS = ("patchcore", "subspace", "knn")
MAX_RANGE_IMAGES = 64  # that ranges of activations are measured on
# Of nodes that compute with integers. The sums of residual blocks stay in float32: in 8 bits they cost 0.02 of AUROC.
OPERATORS = ("Conv", "Clip", "Relu")


@dataclass(frozen=True)
class Int8Model:
    """What was learnt from features of a quantised backbone, and how it decides."""

    graph: bytes  # of the backbone: (1, height, width, 3) uint8 to features
    fitted: FittedModel
    rule: DecisionRule
    n_range_images: int  # on which the ranges of activations were measured
    errors: list[dict[str, str]]  # image_id and error of images that could not be used

    @property
    def n_images(self) -> int:
        """Good images that the bank, the calibration scores and the threshold are of."""
        return int(self.fitted.record["n_train"])


def ensure_int8(model: ModelInfo, network: Network) -> None:
    """Make sure that a model can have a quantised backbone; else UsageError."""
    if model.method not in METHODS:
        raise UsageError(
            f"models of the method {model.method} cannot be exported with --int8, which {', '.join(METHODS)} can; "
            "export without it."
        )
    if model.size.window is not None:
        raise UsageError(
            f"the model of {model.category!r} looks through windows, which --int8 cannot do; export without it."
        )
    if network.spec.patch > 1:
        raise UsageError(
            f"{network.spec.name} is a transformer, and --int8 is for networks of convolutions; export without it."
        )


def fit_int8(model: ModelInfo, network: Network, images: Mapping[str, str], options: ExportOptions) -> Int8Model:
    """Quantise the backbone of a model, and fit the model again, with its recorded options, to what that computes.

    Parameters
    ----------
    images
        URIs of good images by name, in the order of a fit. At most ``MAX_RANGE_IMAGES`` of them, evenly spaced, give
        the ranges of activations; the memory bank, the calibration scores and the threshold are of all.

    Raises
    ------
    UsageError
        The model cannot have a quantised backbone, or nothing can be learnt from the images.
    """
    ensure_int8(model, network)
    kinds = [find_method(model.method).feature]
    spec = prepare(kinds, network, model.size, "onnx")
    assert isinstance(spec, OnnxSpec)
    recorded = {name: value for name, value in model.record["options"].items() if name in option_names(FitOptions)}
    fit_options = replace(build(FitOptions, recorded), max_pixels=options.max_pixels)
    reading = Reading(options.max_pixels, model.bit_depth, fit_options.first_page)
    uris = [*images.values()]
    inputs = _inputs([uris[number] for number in evenly_spaced(len(uris), MAX_RANGE_IMAGES)], model.size, reading)
    spec = replace(spec, graph=quantise(spec.graph, inputs))
    job = FitJob(model.category, fit_options, network, models="", size=model.size, bit_depth=model.bit_depth)
    fitted = fit_with(spec, job, images)
    errors = [{"image_id": name, "error": error} for name, error in fitted.errors.items()]
    learnt = fitted.model
    scores = learnt.calibration, options, learnt.record, learnt.map_peaks
    rule = decision_rule(model.model_id, model.method, model.category, *scores)
    return Int8Model(spec.graph, learnt, rule, len(inputs), errors)


def _inputs(uris: Sequence[str], size: ImageSize, reading: Reading) -> list[NDArray[np.uint8]]:
    """What the network gets of some images, (1, height, width, 3) each, but for those that cannot be read."""
    inputs = []
    for uri in uris:
        with suppress(ImageError):
            inputs.append(np.asarray(crop_centre(read_resized(uri, size, reading)[0], size))[None])
    if not inputs:
        raise UsageError(f"none of {len(uris)} images can be read, the first is {storage.readable(uris[0])}.")
    return inputs


def quantise(graph: bytes, inputs: Sequence[NDArray[np.uint8]]) -> bytes:
    """A graph of one uint8 input whose convolutions compute with integers of 8 bits, by the ranges of some inputs.

    Weights have a scale per channel, and 7 bits, so that sums of products do not overflow on any CPU.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    name = onnx.load_model_from_string(graph).graph.input[0].name

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.inputs = iter(inputs)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.inputs, None)
            return None if image is None else {name: image}

    with tempfile.TemporaryDirectory(prefix="mvad-") as folder:
        files = [Path(folder, file) for file in ("float32.onnx", "prepared.onnx", "int8.onnx")]
        files[0].write_bytes(graph)
        quant_pre_process(str(files[0]), str(files[1]), skip_symbolic_shape=True)
        quantize_static(
            str(files[1]),
            str(files[2]),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*OPERATORS],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        quantised = onnx.load(files[2])
    standard = [opset for opset in quantised.opset_import if not opset.domain]
    del quantised.opset_import[:]
    quantised.opset_import.extend(standard)  # ONNX Runtime lists all that it knows
    return quantised.SerializeToString()
