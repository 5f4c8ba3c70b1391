"""A graph of ONNX operators, written like arithmetic on arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import DTypeLike, NDArray
from onnx import helper, numpy_helper

Operand = Any  # a `Value`, an array, or a number


class Value:
    """What a node of a graph gives: an array of known type, whose shape may depend on the input."""

    def __init__(self, writer: GraphWriter, name: str, dtype: DTypeLike) -> None:
        self.writer, self.name, self.dtype = writer, name, np.dtype(dtype)

    def __add__(self, other: Operand) -> Value:
        return self.writer.op("Add", self, other)

    def __sub__(self, other: Operand) -> Value:
        return self.writer.op("Sub", self, other)

    def __rsub__(self, other: Operand) -> Value:
        return self.writer.op("Sub", self.writer.constant(other, self.dtype), self)

    def __mul__(self, other: Operand) -> Value:
        return self.writer.op("Mul", self, other)

    def __truediv__(self, other: Operand) -> Value:
        """Of whole numbers, the whole part."""
        return self.writer.op("Div", self, other)

    def cast(self, dtype: DTypeLike) -> Value:
        """The same in another type; whole numbers are cut off, as in C."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.writer.op("Cast", self, dtype=dtype, to=kind)

    def take(self, indices: Operand, axis: int = 0) -> Value:
        """As of `numpy.take`; indices are int64."""
        return self.writer.op("Gather", self, self.writer.constant(indices, np.int64), axis=axis)

    def clip(self, low: Operand = None, high: Operand = None) -> Value:
        """As of `numpy.clip`; bounds are single numbers."""
        return self.writer.op("Clip", self, *(("" if bound is None else bound) for bound in (low, high)))

    def transpose(self, *axes: int) -> Value:
        return self.writer.op("Transpose", self, perm=axes)

    def reshape(self, *shape: int) -> Value:
        return self.writer.op("Reshape", self, self.writer.constant(shape, np.int64))

    def shape_from(self, axis: int) -> Value:
        """The lengths of an axis and all after it, int64."""
        return self.writer.op("Shape", self, dtype=np.int64, start=axis)

    def length(self, axis: int) -> Value:
        """The length of one axis, a single int64."""
        return self.writer.op("Shape", self, dtype=np.int64).take(axis)


class GraphWriter:
    """Collects the nodes and constants of a graph; all names start with ``prefix``."""

    def __init__(self, prefix: str) -> None:
        self.prefix, self._count = prefix, 0
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def _name(self) -> str:
        self._count += 1
        return f"{self.prefix}{self._count}"

    def constant(self, value: Operand, dtype: DTypeLike | None = None) -> Value:
        """A number or an array as a value of the graph; a value is returned as it is."""
        if isinstance(value, Value):
            return value
        array: NDArray[Any] = np.asarray(value, dtype)
        self.constants.append(numpy_helper.from_array(array, self._name()))
        return Value(self, self.constants[-1].name, array.dtype)

    def op(self, kind: str, first: Value, *others: Operand, dtype: DTypeLike | None = None, **attributes: Any) -> Value:
        """Write a node with one output, whose type is that of the first input unless it is given.

        Numbers and arrays become constants of the first input's type; an empty text is an input that is left out.
        """
        inputs = [first.name]
        inputs += [one if isinstance(one, str) else self.constant(one, first.dtype).name for one in others]
        name = self._name()
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return Value(self, name, first.dtype if dtype is None else dtype)

    def name(self, value: Value, name: str) -> None:
        """Give a value the name of an output of the model, or of an input of another graph."""
        self.nodes.append(helper.make_node("Identity", [value.name], [name]))

    def joined(self, *values: Value) -> Value:
        """Single values as one vector."""
        parts = [value.reshape(1) for value in values]
        return self.op("Concat", *parts, axis=0)

    def range(self, count: Value) -> Value:
        """0, 1, ... up to ``count``, int64."""
        return self.op("Range", self.constant(0, np.int64), count, 1)

    def loop(self, count: Value, state: Value, step: Callable[[Value, Value], Value]) -> Value:
        """The state after ``step(number, state)`` for each number from 0, int64, up to ``count``."""
        number, before, go_on = (self._name() for _ in range(3))

        def write() -> list[Value]:
            still = self.op("Identity", Value(self, go_on, np.bool_))
            return [still, step(Value(self, number, np.int64), Value(self, before, state.dtype))]

        inputs = [output_info(number, np.int64, []), output_info(go_on, np.bool_, [])]
        body = self._inner(write, [*inputs, output_info(before, state.dtype)])
        name = self._name()
        inputs_of_node = [count.name, self.constant(True).name, state.name]
        self.nodes.append(helper.make_node("Loop", inputs_of_node, [name], body=body))
        return Value(self, name, state.dtype)

    def scan(self, items: Value, step: Callable[[Value], Sequence[Value]], graph: onnx.GraphProto) -> list[Value]:
        """What ``step`` gives for each item of the first axis, stacked; it may use the constants of ``graph``."""
        item = self._name()
        results: list[Value] = []

        def write() -> Sequence[Value]:
            results.extend(step(Value(self, item, items.dtype)))
            return results

        body = self._inner(write, [output_info(item, items.dtype)])
        body.initializer.extend(graph.initializer)
        names = [self._name() for _ in results]
        self.nodes.append(helper.make_node("Scan", [items.name], names, body=body, num_scan_inputs=1))
        return [Value(self, name, one.dtype) for name, one in zip(names, results, strict=True)]

    def where(self, condition: Value, then: Callable[[], Value], otherwise: Callable[[], Value]) -> Value:
        """One of two values of the same type, whichever a single bool says; the other one is not computed."""
        branches = []
        for write in (then, otherwise):
            branches.append(self._inner(functools.partial(self._copied, write), []))
        name, dtype = self._name(), branches[0].output[0].type.tensor_type.elem_type
        node = helper.make_node("If", [condition.name], [name], then_branch=branches[0], else_branch=branches[1])
        self.nodes.append(node)
        return Value(self, name, helper.tensor_dtype_to_np_dtype(dtype))

    def _copied(self, write: Callable[[], Value]) -> list[Value]:
        """A value that is an output of an inner graph, for which one of the outer graph has to be copied."""
        return [self.op("Identity", write())]

    def _inner(self, write: Callable[[], Sequence[Value]], inputs: Sequence[onnx.ValueInfoProto]) -> onnx.GraphProto:
        """A graph inside of this one, which may use the values of this one."""
        outer, self.nodes = self.nodes, []
        outputs = [output_info(value.name, value.dtype) for value in write()]
        inner = helper.make_graph(self.nodes, self._name(), inputs, outputs)
        self.nodes = outer
        return inner


def output_info(name: str, dtype: DTypeLike, shape: Sequence[str | int] | None = None) -> onnx.ValueInfoProto:
    """The description of an input or output of a graph; None: of any shape."""
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
