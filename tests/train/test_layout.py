"""Convolutions over blocks: the same sums as with strides, and nothing to gather."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgetag.tagging.bundle import starter_path
from edgetag_train.layout import lay_out
from edgetag_train.onnx_net import quantise


def net(
    size: tuple[int, int],
    channels: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
) -> onnx.ModelProto:
    """A layer, ReLU, and the layer in question, with random weights.

    Shape: x [1, 1, h, w] -> y
    """
    rng = np.random.default_rng(0)
    n_in, n_out = channels
    constants = {
        "a.weight": rng.normal(0, 1, (n_in, 1, 1, 1)),
        "a.bias": rng.normal(0, 1, n_in),
        "b.weight": rng.normal(0, 1 / np.sqrt(n_in * np.prod(kernel)), (n_out, n_in, *kernel)),
        "b.bias": rng.normal(0, 1, n_out),
    }
    nodes = [
        helper.make_node("Conv", ["x", "a.weight", "a.bias"], ["a"], name="a", kernel_shape=[1, 1]),
        helper.make_node("Relu", ["a"], ["relu"], name="relu"),
        helper.make_node(
            "Conv",
            ["relu", "b.weight", "b.bias"],
            ["b"],
            name="b",
            kernel_shape=list(kernel),
            strides=list(strides),
            pads=list(pads),
        ),
        helper.make_node("Relu", ["b"], ["y"], name="last"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, *size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def says(model: onnx.ModelProto) -> NDArray[np.float32]:
    """Of a window of noise."""
    asked = session(model)
    (first,) = asked.get_inputs()
    x = np.random.default_rng(1).normal(0, 1, first.shape).astype(np.float32)
    return asked.run(None, {first.name: x})[0]


def strides(model: onnx.ModelProto) -> list[list[int]]:
    return [
        list(attribute.ints)
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.name == "strides"
    ]


def in_eight_bits(model: onnx.ModelProto, folder: Path, n_first: int = 0) -> onnx.ModelProto:
    """Quantised but for the first so many layers, which rewrites it."""
    onnx.save(model, folder / "fp32.onnx")
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    rng = np.random.default_rng(2)
    quantise(
        folder / "fp32.onnx",
        folder / "int8.onnx",
        [{"x": rng.normal(0, 1, shape).astype(np.float32)} for _ in range(4)],
        n_first=n_first,
    )
    return onnx.load(folder / "int8.onnx")


@settings(deadline=None, max_examples=40)
@given(
    blocks=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides_=st.tuples(st.integers(1, 5), st.integers(8, 16)),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 9)] * 4),
    more=st.tuples(st.integers(0, 40), st.integers(0, 40)),
)
def test_any_such_convolution_says_the_same(
    blocks: tuple[int, int],
    strides_: tuple[int, int],
    channels: tuple[int, int],
    pads: tuple[int, int, int, int],
    more: tuple[int, int],
) -> None:
    """Whatever size, strides and padding: one that is cut off, one that is added to."""
    kernel = (8 * blocks[0] * strides_[0], 4 * blocks[1] * strides_[1])
    before = net((kernel[0] + more[0], kernel[1] + more[1]), channels, kernel, strides_, pads)
    after = onnx.ModelProto()
    after.CopyFrom(before)
    lay_out(after)
    assert list(strides_) in strides(before)
    assert list(strides_) not in strides(after)
    np.testing.assert_allclose(says(after), says(before), rtol=0, atol=2e-5)


def test_in_eight_bits_it_says_the_same_to_the_bit_and_gathers_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layer stays one product of eight-bit values, and the moves before it are of eight bits, too."""
    model = net((32, 200), (4, 8), (16, 64), (4, 16), (8, 16, 8, 16))
    after = in_eight_bits(model, tmp_path)
    monkeypatch.setattr("edgetag_train.onnx_net.lay_out", lambda _: None)
    before = in_eight_bits(model, tmp_path)
    assert [4, 16] in strides(before)
    assert [4, 16] not in strides(after)
    np.testing.assert_array_equal(says(after), says(before))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(after.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert kinds.count("QLinearConv") == 2
    assert kinds.count("DequantizeLinear") == 1  # the output's


def test_a_first_layer_in_float_hands_channels_over_as_eight_bits_want_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a product, to the bit; in what the runtime makes of it nothing is transposed but blocks."""
    model = net((32, 200), (4, 8), (16, 64), (4, 16), (8, 16, 8, 16))
    after = in_eight_bits(model, tmp_path, n_first=1)
    monkeypatch.setattr("edgetag_train.onnx_net.lay_out", lambda _: None)
    np.testing.assert_array_equal(says(after), says(in_eight_bits(model, tmp_path, n_first=1)))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(after.SerializeToString(), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    kinds = [node.op_type for node in nodes]
    assert kinds.count("QLinearConv") == 1
    assert "Conv" not in kinds
    assert not {"ReorderInput", "ReorderOutput"} & set(kinds)
    assert {len(node.attribute[0].ints) for node in nodes if node.op_type == "Transpose"} <= {4, 5}


@pytest.mark.parametrize(
    ("kernel", "strides_"), [((5, 5), (2, 2)), ((3, 3), (3, 3)), ((16, 16), (1, 1)), ((17, 64), (4, 16))]
)
def test_others_are_left_alone(kernel: tuple[int, int], strides_: tuple[int, int]) -> None:
    """Small ones, such without strides, and such whose strides do not divide the kernel."""
    model = net((40, 100), (2, 2), kernel, strides_, (1, 1, 1, 1))
    before = [node.SerializeToString() for node in model.graph.node]
    lay_out(model)
    assert [node.SerializeToString() for node in model.graph.node] == before


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_the_bundle_that_ships_is_in_blocks(variant: str) -> None:
    assert [4, 16] not in strides(onnx.load(starter_path() / f"root.{variant}.onnx"))
