"""Pillow's antialiased bilinear resizing in ONNX operators: the same bits, of floats but for rounding, for any size.

Pillow (``src/libImaging/Resample.c``) resizes one axis after the other, mostly the width first. Each pixel of the
result is a sum of a few pixels of a row, or column, times weights that it computes in double precision. For pixels of 8
bits it rounds the weights to `WEIGHT_BITS` bits after the point, adds whole numbers, and rounds each sum to 8 bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from mvad.onnx_export.writer import GraphWriter, Operand, Value

WEIGHT_BITS = 32 - 8 - 2  # PRECISION_BITS


class Taps(NamedTuple):
    """For each of n pixels of the result, the pixels that it is a weighted mean of."""

    indices: Value  # (taps, n) int64
    weights: Value  # (taps, n) float64; of each pixel they add up to 1
    n_taps: Value  # int64


def bilinear_taps(
    writer: GraphWriter, length: Value, target: Operand, begin: Operand = 0.0, end: Operand | None = None
) -> Taps:
    """The taps that resize ``length`` pixels to ``target``: ``precompute_coeffs`` with the bilinear filter.

    Lengths are int64. ``begin`` and ``end``, float32, are the part that is resized, in pixels; by default all of it.
    """
    target = writer.constant(target, np.int64)
    begin = writer.constant(begin, np.float32)
    end = length.cast(np.float32) if end is None else end
    scale = (end - begin).cast(np.float64) / target.cast(np.float64)
    support = writer.op("Max", scale, 1.0)  # half the width of the filter, in pixels
    centres = (writer.range(target).cast(np.float64) + 0.5) * scale + begin.cast(np.float64)
    first = (centres - support + 0.5).cast(np.int64).clip(low=0)
    last = writer.op("Min", (centres + support + 0.5).cast(np.int64), length)
    count = writer.op("Ceil", support).cast(np.int64) * 2 + 1
    pixels = first + writer.range(count).reshape(-1, 1)
    one = writer.constant(1.0, np.float64)
    distances = writer.op("Abs", (pixels.cast(np.float64) - centres + 0.5) * (one / support))
    weights = (1.0 - distances).clip(low=0.0)
    weights = writer.op(
        "Where", writer.op("Less", pixels, last, dtype=np.bool_), weights, writer.constant(0.0), dtype=float
    )
    totals = writer.op("CumSum", weights, writer.constant(0, np.int64)).take(count - 1)  # added in Pillow's order
    return Taps(writer.op("Min", pixels, length - 1), weights / totals, count)


def _weighted_sums(values: Value, taps: Taps, weights: Value, offset: Value) -> Value:
    """Sums along the first axis of (length, rows, channels) values: (n, rows, channels), of the type of the offset."""
    writer = values.writer

    def add(number: Value, total: Value) -> Value:
        pixels = values.take(taps.indices.take(number)).cast(offset.dtype)
        return total + pixels * weights.take(number).reshape(-1, 1, 1)

    shape = writer.op("Concat", taps.indices.length(1).reshape(1), values.shape_from(1), axis=0)
    return writer.loop(taps.n_taps, writer.op("Expand", offset, shape), add)


class Axis(NamedTuple):
    """What becomes of one axis: ``target`` pixels, of the part from ``begin`` to ``end``; see `bilinear_taps`."""

    target: Operand
    begin: Operand = 0.0
    end: Operand | None = None


def resize_bytes(image: Value, height: int, width: int) -> Value:
    """Resize a (rows, columns, channels) uint8 image: ``Image.resize`` with ``Resampling.BILINEAR``."""
    writer = image.writer

    def along_first(values: Value, axis: Axis) -> Value:
        taps = bilinear_taps(writer, values.length(0), *axis)
        weights = writer.op("Floor", taps.weights * 2.0**WEIGHT_BITS + 0.5).cast(np.int32)
        sums = _weighted_sums(values, taps, weights, writer.constant(1 << (WEIGHT_BITS - 1), np.int32))
        return (sums / (1 << WEIGHT_BITS)).clip(0, 255).cast(np.uint8)

    return _resize(image, Axis(height), Axis(width), along_first)


def resize_floats(values: Value, down: Axis, across: Axis) -> Value:
    """Resize (rows, columns, channels) float32 values: ``Image.resize`` of mode F, with a ``box``."""
    writer = values.writer

    def along_first(values: Value, axis: Axis) -> Value:
        taps = bilinear_taps(writer, values.length(0), *axis)
        return _weighted_sums(values, taps, taps.weights, writer.constant(0.0, np.float64)).cast(np.float32)

    return _resize(values, down, across, along_first)


def _resize(values: Value, down: Axis, across: Axis, along_first: Callable[[Value, Axis], Value]) -> Value:
    """Resize both axes, in Pillow's order, by a function that resizes the first one."""
    writer = values.writer
    less_high = values.length(0) - down.target
    less_wide = values.length(1) - across.target
    is_tall = writer.op("Greater", less_high, writer.op("Max", less_wide * 2, 0), dtype=np.bool_)
    if not rows_may_be_first():
        is_tall = writer.constant(False)
    values = writer.where(is_tall, lambda: along_first(values, down), lambda: values)
    wide = along_first(values.transpose(1, 0, 2), across).transpose(1, 0, 2)
    return writer.where(is_tall, lambda: wide, lambda: along_first(wide, down))


@functools.cache
def rows_may_be_first() -> bool:
    """Whether this Pillow resizes the height first where that shrinks by more than twice as many pixels as the width.

    Versions differ in that, and in bits of such images.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (64, 8, 3), np.uint8)
    image, how = Image.fromarray(pixels), Image.Resampling.BILINEAR
    columns_first = image.resize((5, 64), how).resize((5, 9), how)
    return image.resize((5, 9), how).tobytes() != columns_first.tobytes()
