"""Nets laid out as a runtime computes them fastest: other steps, the same sums.

A convolution with a large kernel and strides is written as one without strides over blocks:

```
before   [C, H, W]                           kernel 16×128, strides 4×16: every value is gathered 32 times
after    [C·4·16, H/4, W/16]  blocks         kernel 4×8, no strides: the same products, the same sums
```

A runtime gathers what a kernel reaches before it multiplies, which for Table 1's third layer is 52 MB in
eight bits. Here a block of one stride in each direction becomes a column of channels, side by side in
memory: the kernel is 32 of these, and nothing needs to be gathered.

A float 1×1 convolution of one channel before an eight-bit layer is written as the product of a column and a
row: channels then lie last, as the eight-bit layer wants them, and are not reordered.

In eight bits the results are the same to the bit, in float to its rounding.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

_MIN_TAPS = 256
"""Of a kernel, in both directions: with fewer there is little to gather."""
_INTO_EIGHT_BITS = ("Relu", "QuantizeLinear", "DequantizeLinear")
_NHWC, _NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


class _Geometry(NamedTuple):
    """Numbers of a convolution, vertical first: kernel, strides, and what is added before and after."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]

    @property
    def is_worth_it(self) -> bool:
        divides = all(k % s == 0 for k, s in zip(self.kernel, self.strides, strict=True))
        return divides and self.strides != (1, 1) and self.kernel[0] * self.kernel[1] >= _MIN_TAPS


_POINTWISE = _Geometry((1, 1), (1, 1), (0, 0), (0, 0))


def lay_out(model: onnx.ModelProto) -> None:
    """Rewrite such convolutions of a net in place; in eight bits those between QDQ pairs of one scale each.

    Args:
        model: fixed sizes but for the batch, as `save_onnx` and `quantise` write it.
    """
    sizes = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    for node in list(model.graph.node):
        if node.op_type != "Conv":
            continue
        if (geometry := _geometry(node)).is_worth_it:
            _in_blocks(model.graph, node, geometry, sizes[node.input[0]][2:])
        elif geometry == _POINTWISE:
            _as_product(model.graph, node, sizes[node.output[0]])
    _drop_unused_constants(model.graph)
    onnx.checker.check_model(model)


def _drop_unused_constants(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [constant for constant in graph.initializer if constant.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _geometry(conv: onnx.NodeProto) -> _Geometry:
    stated = {attribute.name: list(attribute.ints) for attribute in conv.attribute}
    pads = stated.get("pads", [0, 0, 0, 0])
    return _Geometry(
        _pair(stated["kernel_shape"]), _pair(stated.get("strides", [1, 1])), _pair(pads[:2]), _pair(pads[2:])
    )


def _pair(values: Sequence[int]) -> tuple[int, int]:
    vertical, horizontal = values
    return vertical, horizontal


def _in_blocks(
    graph: onnx.GraphProto, conv: onnx.NodeProto, geometry: _Geometry, size: Sequence[int]
) -> None:
    made_by = {output: node for node in graph.node for output in node.output}
    weight = made_by[conv.input[1]].input[0] if conv.input[1] in made_by else conv.input[1]
    _replace(graph, weight, _blocked(_value(graph, weight), geometry))
    _without_strides(conv, geometry)
    reader = made_by.get(conv.input[0], conv)
    zero: np.generic = np.float32(0)
    if reader.op_type == "DequantizeLinear":
        zero = _value(graph, reader.input[2])[()]
    else:
        reader = conv
    moves, constants = _moves(conv.name, reader.input[0], zero, geometry, size)
    _insert(graph, reader, moves, constants)
    reader.input[0] = moves[-1].output[0]


def _as_product(graph: onnx.GraphProto, conv: onnx.NodeProto, shape: Sequence[int]) -> None:
    """One of a single channel that goes through ReLU into a QDQ pair and nowhere else; others stay.

    Args:
        shape: of its output, [n, c, h, w].
    """
    chain = _chain(graph, conv)
    if [node.op_type for node in chain] != [*_INTO_EIGHT_BITS]:
        return
    row = _value(graph, conv.input[1])
    if row.shape[1] != 1:
        return
    reader = chain[-1]
    _, n_channels, height, width = shape
    at = f"{conv.name}/{{}}".format
    _replace(graph, conv.input[1], row.reshape(1, n_channels))
    column = helper.make_node(
        "Reshape", [conv.input[0], at("column")], [at("values")], name=at("Reshape_column")
    )
    _insert(graph, conv, [column], [numpy_helper.from_array(np.array([-1, 1]), at("column"))])
    conv.op_type = "Gemm"
    conv.input[0] = column.output[0]
    del conv.attribute[:]
    moves = [
        helper.make_node("Reshape", [reader.input[0], at("size")], [at("last")], name=at("Reshape_size")),
        helper.make_node("Transpose", [at("last")], [at("first")], name=at("Transpose_first"), perm=_NCHW),
    ]
    size = np.array([-1, height, width, n_channels])
    _insert(graph, reader, moves, [numpy_helper.from_array(size, at("size"))])
    reader.input[0] = moves[-1].output[0]


def _chain(graph: onnx.GraphProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """What follows a node, for as many steps as it takes into eight bits, and while nothing else does."""
    found: list[onnx.NodeProto] = []
    for _ in _INTO_EIGHT_BITS:
        followers = [other for other in graph.node if node.output[0] in other.input]
        if len(followers) != 1:
            break
        (node,) = followers
        found.append(node)
    return found


def _insert(
    graph: onnx.GraphProto,
    before: onnx.NodeProto,
    nodes: Sequence[onnx.NodeProto],
    constants: Sequence[onnx.TensorProto],
) -> None:
    at = list(graph.node).index(before)
    for offset, node in enumerate(nodes):
        graph.node.insert(at + offset, node)
    graph.initializer.extend(constants)
    del graph.value_info[:]


def _blocked(weight: NDArray[np.generic], geometry: _Geometry) -> NDArray[np.generic]:
    """Shape: [o, c, h, w] -> [o, sh·sw·c, h / sh, w / sw]"""
    (n_out, n_in, height, width), (rows, columns) = weight.shape, geometry.strides
    split = weight.reshape(n_out, n_in, height // rows, rows, width // columns, columns)
    blocked = split.transpose(0, 3, 5, 1, 2, 4).reshape(n_out, -1, height // rows, width // columns)
    return np.ascontiguousarray(blocked)


def _without_strides(conv: onnx.NodeProto, geometry: _Geometry) -> None:
    kernel = [k // s for k, s in zip(geometry.kernel, geometry.strides, strict=True)]
    kept = [attribute for attribute in conv.attribute if attribute.name in ("group", "dilations")]
    del conv.attribute[:]
    conv.attribute.extend([*kept, helper.make_attribute("kernel_shape", kernel)])


def _moves(
    name: str, value: str, zero: np.generic, geometry: _Geometry, size: Sequence[int]
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """From [n, c, h, w] to blocks [n, rows · columns · c, h / rows, w / columns], and the constants for it.

    What no kernel reaches is cut off. Between the two transpositions channels come last, as they lie in a
    runtime that computes in eight bits, where both of them cost nothing.
    """
    added_after, blocks = [], []
    for length, kernel, stride, before, after in zip(size, *geometry, strict=True):
        n_steps = (before + length + after - kernel) // stride
        reached = n_steps * stride + kernel
        added_after.append(reached - before - length)
        blocks.append(reached // stride)
    constants = {
        "pads": np.array([0, *geometry.before, 0, 0, *added_after, 0]),
        "zero": np.asarray(zero),
        "split": np.array([0, blocks[0], geometry.strides[0], blocks[1], -1]),
        "joined": np.array([0, *blocks, -1]),
    }
    node, at = helper.make_node, f"{name}/{{}}".format
    return [
        node("Transpose", [value], [at("last")], name=at("Transpose_last"), perm=_NHWC),
        node("Pad", [at("last"), at("pads"), at("zero")], [at("padded")], name=at("Pad")),
        node("Reshape", [at("padded"), at("split")], [at("parts")], name=at("Reshape_split")),
        node("Transpose", [at("parts")], [at("sorted")], name=at("Transpose_sort"), perm=[0, 1, 3, 2, 4]),
        node("Reshape", [at("sorted"), at("joined")], [at("blocks")], name=at("Reshape_join")),
        node("Transpose", [at("blocks")], [at("first")], name=at("Transpose_first"), perm=_NCHW),
    ], [numpy_helper.from_array(array, at(constant)) for constant, array in constants.items()]


def _value(graph: onnx.GraphProto, name: str) -> NDArray[np.generic]:
    (constant,) = (constant for constant in graph.initializer if constant.name == name)
    return numpy_helper.to_array(constant)


def _replace(graph: onnx.GraphProto, name: str, value: NDArray[np.generic]) -> None:
    (constant,) = (constant for constant in graph.initializer if constant.name == name)
    constant.CopyFrom(numpy_helper.from_array(value, name))
