"""A fitted model as one ONNX graph: from an image of any size to its score, map, p-value and verdict."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper

from mvad.calibration import DecisionRule
from mvad.data.image_size import FAST, ImageSize
from mvad.data.images.ignoring import FILL, decode_ignore
from mvad.detectors import METHODS, State
from mvad.errors import UsageError
from mvad.features.weights import Network
from mvad.model_store import ModelInfo, read_arrays, recorded_shape
from mvad.onnx_export.network import export_network
from mvad.onnx_export.resizing import Axis, resize_bytes, resize_floats
from mvad.onnx_export.result import FLOAT32, INT8
from mvad.onnx_export.writer import GraphWriter, Value, output_info
from mvad.version import VERSION

if TYPE_CHECKING:
    from mvad.onnx_export.int8 import Int8Model

IMAGE, SCORE, MAP, P_VALUE, THRESHOLD = "image", "score", "anomaly_map", "p_value", "threshold"
IS_ANOMALY, IS_UNCERTAIN = "is_anomaly", "is_uncertain"
PREFIX = "mvad."  # of the names of metadata
INT8_NOTE = "an INT8 file: its scores and its threshold are its own, and not those of the model"
MAX_IR_VERSION = 10  # that ONNX Runtime 1.20 reads
TYPES = {SCORE: np.float32, MAP: np.float32, P_VALUE: np.float64, THRESHOLD: np.float64}


def export_model(
    model: ModelInfo, network: Network, rule: DecisionRule, int8: Int8Model | None = None
) -> onnx.ModelProto:
    """A model with its backbone and decision rule as one ONNX model; all weights are inside.

    With ``int8``, the backbone, what was learnt and the decision rule are those of that.

    The input ``image`` is (height, width, 3) uint8 RGB of any size, upright. Outputs are ``score``, float32;
    ``anomaly_map``, (height, width) float32, NaN where the model does not see the image, of methods that localise;
    ``p_value``, float64, of calibrated models; and if there is a threshold, ``threshold``, float64, and ``is_anomaly``,
    bool. With an uncertain rate there is ``is_uncertain``, bool, too.

    Raises
    ------
    UsageError
        The model decodes JPEG files at a part of their size; or its method or backbone cannot be exported, or not with
        windows; or the file would be too large.
    """
    refuse(model)
    if int8 is None:
        state, backbone = State(model.settings, read_arrays(model, recorded_shape(model))), None
    else:
        state, backbone, rule = int8.fitted.state, int8.graph, int8.rule
    core = export_network(METHODS[model.method].from_state(state), network, model.size, backbone)
    writer = GraphWriter("mvad_")
    image = Value(writer, IMAGE, np.uint8)
    writer.name(_pixels(image, model.size), core.graph.input[0].name)
    score, *maps = (Value(writer, output.name, np.float32) for output in core.graph.output)
    before = len(writer.nodes)
    outputs = {SCORE: score.reshape()}
    for model_map in maps:
        outputs[MAP] = _map_on_image(model_map, image, model.size)
    outputs |= _decision(score, rule)
    for name, value in outputs.items():
        writer.name(value, name)
    facts = _metadata(model, rule) | ({} if int8 is None else _int8_metadata(int8))
    return _joined(writer, before, core, outputs, facts)


def refuse(model: ModelInfo) -> None:
    """UsageError if one file that gets a decoded image cannot do what a model does."""
    if model.size.decode == FAST:
        raise UsageError(
            f"the model of {model.category!r} decodes JPEG files at a part of their size (--decode fast), which an "
            "ONNX file that gets decoded images cannot do; fit it with --decode exact to export it."
        )
    if model.size.whole is not None:
        raise UsageError(
            f"the model of {model.category!r} sees images as a whole and through windows (--tile-levels whole,tiles), "
            "which an ONNX file cannot do; fit it with --tile-levels tiles to export it."
        )
    if model.size.window is not None and model.settings.get("position_weight"):
        raise UsageError(
            f"the model of {model.category!r} weighs places (--position-weight) and sees images through windows, "
            "which an ONNX file cannot do; fit it without one of the two to export it."
        )


def _pixels(image: Value, size: ImageSize) -> Value:
    """`data.images.resize_and_crop`: (1, height, width, 3)."""
    writer = image.writer
    if size.ignore is not None:
        image = _blanked(image, np.asarray(decode_ignore(size.ignore)) > 0)
    resized = resize_bytes(image, *size.resize)
    (top, left), (height, width) = size.margins, size.crop
    ends = np.array([top + height, left + width])
    cropped = writer.op("Slice", resized, *(writer.constant(part, np.int64) for part in ([top, left], ends, [0, 1])))
    return cropped.reshape(1, height, width, 3)


def _blanked(image: Value, mask: np.ndarray) -> Value:
    """`data.images.ignoring.blank`: the mask is brought to the image's size as Pillow does without interpolation."""
    writer, taken = image.writer, []
    for axis in (0, 1):
        length, count = image.length(axis), mask.shape[axis]
        step = writer.constant(float(count), np.float64) / length.cast(np.float64)
        steps = writer.op("Expand", step, length.reshape(1))
        # Pillow starts in the middle of the first pixel and adds the same step again and again.
        first = writer.op("Equal", writer.range(length), 0, dtype=np.bool_)
        positions = writer.op(
            "CumSum", writer.op("Where", first, step * 0.5, steps, dtype=np.float64), writer.constant(0)
        )
        taken.append(positions.cast(np.int64).clip(high=count - 1))
    on_image = writer.constant(mask).take(taken[0]).take(taken[1], axis=1)
    condition = writer.op("Unsqueeze", on_image, writer.constant([2], np.int64))
    return writer.op("Where", condition, writer.constant(FILL, np.uint8), image, dtype=np.uint8)


def _map_on_image(model_map: Value, image: Value, size: ImageSize) -> Value:
    """`anomaly_maps.export.full_map`: the map in the image's own pixels."""
    writer = image.writer
    axes, pads = [], []
    for axis in (0, 1):
        length = image.length(axis)
        margin, seen, resized = size.margins[axis], size.crop[axis], size.resize[axis]
        begin, end = _seen(length, margin, seen, resized)
        ends = []
        for position in (begin, end):  # `_in_input`
            inside = position.cast(np.float64) * float(resized) / length.cast(np.float64) - float(margin)
            ends.append(inside.clip(0.0, float(seen)).cast(np.float32))
        axes.append(Axis(end - begin, *ends))
        pads.append((begin, length - end))
    values = resize_floats(model_map.reshape(size.height, size.width, 1), *axes).reshape(0, -1)
    if size.crop == size.resize:
        return values
    (top, bottom), (left, right) = pads
    return writer.op("Pad", values, writer.joined(top, left, bottom, right), writer.constant(np.float32(np.nan)))


def _seen(length: Value, margin: int, seen: int, resized: int) -> tuple[Value, Value]:
    """Begin and end of the part of an axis that the model sees, in pixels of the image: `geometry._extent`."""
    writer = length.writer

    def rounded(position: int) -> Value:
        scaled = length.cast(np.float64) * float(position) / float(resized)
        return writer.op("Round", scaled).cast(np.int64)

    begin = writer.op("Min", rounded(margin), length - 1)
    return begin, writer.op("Max", begin + 1, rounded(margin + seen))


def _decision(score: Value, rule: DecisionRule) -> dict[str, Value]:
    """`results.verdicts.decide`; a score that is not a number counts as an anomaly."""
    writer, value = score.writer, score.reshape().cast(np.float64)
    outputs: dict[str, Value] = {}
    if rule.calibration is not None:
        n = len(rule.calibration)
        scores = writer.constant(rule.calibration, np.float64)
        at_least = writer.op("GreaterOrEqual", scores, value, dtype=np.bool_).cast(np.float64)
        outputs[P_VALUE] = (writer.op("ReduceSum", at_least, keepdims=0) + 1.0) / (n + 1.0)
    if rule.threshold is not None:
        outputs[THRESHOLD] = writer.op("Identity", writer.constant(rule.threshold, np.float64))
        not_above = writer.op("LessOrEqual", value, outputs[THRESHOLD], dtype=np.bool_)
        outputs[IS_ANOMALY] = writer.op("Not", not_above)
        if rule.uncertain_threshold is not None:
            above = writer.op("Greater", value, rule.uncertain_threshold, dtype=np.bool_)
            outputs[IS_UNCERTAIN] = writer.op("And", not_above, above)
    return outputs


def _joined(
    writer: GraphWriter,
    before: int,
    core: onnx.ModelProto,
    outputs: dict[str, Value],
    facts: dict[str, str],
) -> onnx.ModelProto:
    """One model of the first nodes of a writer, an exported network, and the nodes after it."""
    shapes = {MAP: ["height", "width"]}
    graph = core.graph
    nodes = [*writer.nodes[:before], *graph.node, *writer.nodes[before:]]
    for part in (graph.node, graph.input, graph.output):
        del part[:]
    graph.name = "mvad"
    graph.node.extend(nodes)
    graph.initializer.extend(writer.constants)
    graph.input.append(output_info(IMAGE, np.uint8, ["height", "width", 3]))
    graph.output.extend(output_info(name, TYPES.get(name, np.bool_), shapes.get(name, [])) for name in outputs)
    core.ir_version = min(core.ir_version, MAX_IR_VERSION)
    core.producer_name, core.producer_version = "mvad", VERSION
    helper.set_model_props(core, facts)
    onnx.checker.check_model(core)
    return core


def _metadata(model: ModelInfo, rule: DecisionRule) -> dict[str, str]:
    """What a file says of the model that it is an export of."""
    facts = {
        "version": VERSION,
        "model_id": model.model_id,
        "category": model.category,
        "method": model.method,
        "backbone": model.backbone.name,
        "weights_sha256": model.weights_sha256,
        "input_size": str(model.size),
        "precision": FLOAT32,
        "threshold_rule": rule.rule,
        "false_alarm_rate": rule.rate,
    }
    return {PREFIX + name: str(value) for name, value in facts.items() if value is not None}


def _int8_metadata(int8: Int8Model) -> dict[str, str]:
    """What the file of a quantised backbone says besides."""
    facts = {"precision": INT8, "note": INT8_NOTE, "int8_images": int8.n_images, "int8_ranges": int8.n_range_images}
    return {PREFIX + name: str(value) for name, value in facts.items()}
