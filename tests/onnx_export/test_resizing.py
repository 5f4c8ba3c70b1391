"""Resizing in a graph gives the same bits as Pillow."""

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from PIL import Image

from mvad.onnx_export import resizing
from mvad.onnx_export.resizing import Axis, resize_bytes, resize_floats
from mvad.onnx_export.writer import GraphWriter, Value, output_info

BILINEAR = Image.Resampling.BILINEAR
LENGTHS = st.one_of(st.integers(1, 9), st.integers(10, 400))


def session_of(write, dtype, scalars):
    """A graph of one image and several numbers, of int64 or float32, by name."""
    writer = GraphWriter("n")
    numbers = [Value(writer, name, kind) for name, kind in scalars.items()]
    writer.name(write(Value(writer, "image", dtype), *numbers), "resized")
    inputs = [output_info("image", dtype, ["h", "w", "c"])]
    inputs += [output_info(name, kind, []) for name, kind in scalars.items()]
    graph = helper.make_graph(writer.nodes, "test", inputs, [output_info("resized", dtype)], writer.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def images_session():
    return session_of(resize_bytes, np.uint8, {"height": np.int64, "width": np.int64})


@pytest.fixture(scope="module")
def of_bytes():
    return images_session()


@pytest.fixture(scope="module")
def of_floats():
    def write(values, height, width, *box):
        return resize_floats(values, Axis(height, *box[:2]), Axis(width, *box[2:]))

    numbers = dict.fromkeys(("height", "width"), np.int64) | dict.fromkeys("tblr", np.float32)
    return session_of(write, np.float32, numbers)


def resized(session, pixels, height, width):
    return session.run(None, {"image": pixels, "height": np.array(height), "width": np.array(width)})[0]


@settings(max_examples=200, deadline=None)
@given(LENGTHS, LENGTHS, LENGTHS, LENGTHS, st.integers(0, 2**32 - 1), st.booleans())
def test_images_have_the_same_bits_as_by_pillow(of_bytes, rows, columns, height, width, seed, extreme):
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), np.uint8)
    if extreme:
        pixels = 255 * (pixels > 127).astype(np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((width, height), BILINEAR))
    np.testing.assert_array_equal(resized(of_bytes, pixels, height, width), expected)


@pytest.mark.parametrize(
    ("size", "target"),
    [((1944, 2592), (256, 256)), ((3001, 97), (224, 224)), ((97, 3001), (224, 224)), ((1, 1), (256, 256))],
)
def test_large_tall_and_wide_images_have_the_same_bits(of_bytes, size, target):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize(target[::-1], BILINEAR))
    np.testing.assert_array_equal(resized(of_bytes, pixels, *target), expected)


def test_where_pillow_never_begins_with_the_height_the_graph_does_not_either(monkeypatch):
    monkeypatch.setattr(resizing, "rows_may_be_first", lambda: False)
    pixels = np.random.default_rng(0).integers(0, 256, (300, 40, 3), np.uint8)
    columns_first = Image.fromarray(pixels).resize((30, 300), BILINEAR).resize((30, 50), BILINEAR)
    rows_first = Image.fromarray(pixels).resize((40, 50), BILINEAR).resize((30, 50), BILINEAR)
    found = resized(images_session(), pixels, 50, 30)
    np.testing.assert_array_equal(found, np.asarray(columns_first))
    assert (found != np.asarray(rows_first)).any()


@settings(max_examples=200, deadline=None)
@given(st.integers(8, 64), st.integers(8, 64), LENGTHS, LENGTHS, st.data())
def test_maps_are_resized_as_by_pillow(of_floats, rows, columns, height, width, data):
    top, left = (data.draw(st.floats(0, 3, width=32)) for _ in range(2))
    bottom, right = (length - data.draw(st.floats(0, 3, width=32)) for length in (rows, columns))
    values = np.random.default_rng(rows).normal(size=(rows, columns)).astype(np.float32)
    expected = Image.fromarray(values).resize((width, height), BILINEAR, box=(left, top, right, bottom))
    numbers = {"height": np.array(height), "width": np.array(width)}
    numbers |= {
        name: np.array(value, np.float32) for name, value in zip("tblr", (top, bottom, left, right), strict=True)
    }
    (found,) = of_floats.run(None, {"image": values[:, :, None], **numbers})
    # Sums of float64 in another order may be rounded to the next float32, of the size of what is summed.
    np.testing.assert_allclose(found[:, :, 0], np.asarray(expected), rtol=0, atol=np.spacing(np.abs(values).max()))
