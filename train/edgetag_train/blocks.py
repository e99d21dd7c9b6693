"""A convolution with a large kernel and strides, written as one without strides over blocks.

```
before   [C, H, W]                           kernel 16×128, strides 4×16: every value is gathered 32 times
after    [C·4·16, H/4, W/16]  blocks         kernel 4×8, no strides: the same products, the same sums
```

A runtime gathers what a kernel reaches before it multiplies, which for Table 1's third layer is 52 MB in
eight bits. Here a block of one stride in each direction becomes a column of channels, side by side in
memory: the kernel is 32 of these, and nothing needs to be gathered. In eight bits the results are the same
to the bit, in float to its rounding.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

_MIN_TAPS = 256
"""Of a kernel, in both directions: with fewer there is little to gather."""
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


def in_blocks(model: onnx.ModelProto) -> None:
    """Rewrite such convolutions of a net in place; in eight bits those between QDQ pairs of one scale each.

    Args:
        model: fixed sizes but for the batch, as `save_onnx` and `quantise` write it.
    """
    sizes = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info
    }
    for node in list(model.graph.node):
        if node.op_type == "Conv" and (geometry := _geometry(node)).is_worth_it:
            _rewrite(model.graph, node, geometry, sizes[node.input[0]][2:])
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


def _rewrite(graph: onnx.GraphProto, conv: onnx.NodeProto, geometry: _Geometry, size: Sequence[int]) -> None:
    made_by = {output: node for node in graph.node for output in node.output}
    weight = made_by[conv.input[1]].input[0] if conv.input[1] in made_by else conv.input[1]
    constant = _constant(graph, weight)
    constant.CopyFrom(numpy_helper.from_array(_blocked(numpy_helper.to_array(constant), geometry), weight))
    _without_strides(conv, geometry)
    reader = made_by.get(conv.input[0], conv)
    if reader.op_type == "DequantizeLinear":
        zero = _unsigned(graph, made_by[reader.input[0]], reader)
    else:
        reader, zero = conv, np.float32(0)
    moves, constants = _moves(conv.name, reader.input[0], zero, geometry, size)
    reader.input[0] = moves[-1].output[0]
    at = list(graph.node).index(reader)
    nodes = [*graph.node[:at], *moves, *graph.node[at:]]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)


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


def _unsigned(graph: onnx.GraphProto, writer: onnx.NodeProto, reader: onnx.NodeProto) -> np.uint8:
    """The zero point of a pair, which is made unsigned: ONNX Runtime does that itself on processors that
    multiply unsigned by signed, but only where nothing is between the two.
    """
    zero = numpy_helper.to_array(_constant(graph, reader.input[2]))
    unsigned = np.uint8(int(zero) + 128 if zero.dtype == np.int8 else zero)
    name = f"{reader.input[2]}_unsigned"
    graph.initializer.append(numpy_helper.from_array(np.asarray(unsigned), name))
    writer.input[2] = reader.input[2] = name
    return unsigned


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


def _constant(graph: onnx.GraphProto, name: str) -> onnx.TensorProto:
    return next(constant for constant in graph.initializer if constant.name == name)
