"""Nets to ONNX files, and to eight bits."""

import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from torch import nn

from edgetag_train.layout import lay_out

OPSET = 18
REDUCE_RANGE = True
"""Weights of seven bits: for processors whose eight-bit products saturate (AVX2 without VNNI)."""
_WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
_QUANTISED = (*sorted(_WEIGHTED), "MaxPool", "Relu", "Reshape", "Transpose")

Feed = Mapping[str, NDArray[np.float32]]


def save_onnx(
    net: nn.Module,
    inputs: Mapping[str, tuple[int, ...]],
    output: str,
    path: Path,
    *,
    free: bool = False,
) -> None:
    """Export a net with named inputs and one output, without what tells where it was made.

    A layer with weights is named as in the net (`classifier.7`).

    Args:
        net: the net.
        inputs: shapes by name.
        output: its name.
        path: the file to write.
        free: whether the first dimension of all of them shall be free; all shapes are fixed otherwise.
    """
    dynamic = tuple({0: torch.export.Dim("n")} for _ in inputs) if free else None
    with _quiet_exporter():
        program = torch.onnx.export(
            net.eval(),
            tuple(torch.zeros(shape) for shape in inputs.values()),
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=dynamic,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    del model.metadata_props[:]  # the exporter notes local paths and stack traces
    for number, node in enumerate(model.graph.node):
        del node.metadata_props[:]
        node.doc_string = ""
        is_layer = node.op_type in _WEIGHTED and node.input[1].endswith(".weight")
        node.name = node.input[1].removesuffix(".weight") if is_layer else f"{node.op_type}_{number}"
    onnx.checker.check_model(model)
    onnx.save(model, path)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """It warns of libraries that are not needed, and of its own use of its own functions."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def quantise(
    fp32: Path, path: Path, calibration: Iterable[Feed], *, n_first: int = 0, n_last: int = 0
) -> list[str]:
    """Write an int8 variant: static QDQ, unsigned activations, one scale per output channel of the weights.

    ReLU and what only moves values around is quantised with its neighbours, so that no value is rounded
    twice and the range below zero, which ReLU never uses, is not paid for.

    Args:
        fp32: a file of `save_onnx`.
        path: the file to write.
        calibration: inputs that show the range of every activation.
        n_first, n_last: how many of the first and the last layers with weights stay in float.

    Returns:
        The names of the layers that stay in float, in order.
    """
    model = onnx.load(fp32)
    layers, products = _layers(model)
    kept = layers[:n_first] + layers[max(n_first, len(layers) - n_last) :]
    # The exporter has done what onnxruntime's own preparation does: shapes, constants, batch norm folded.
    add_pre_process_metadata(model)
    quantize_static(
        model,
        path,
        _Calibration(calibration),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=REDUCE_RANGE,
        op_types_to_quantize=list(_QUANTISED),
        nodes_to_exclude=kept + products,
    )
    quantised = onnx.load(path)
    del quantised.metadata_props[:]  # of its own preparation
    lay_out(quantised)
    onnx.save(quantised, path)
    return kept


def hasten(path: Path) -> None:
    """Rewrite a file of `save_onnx` to what runs faster (see `layout`); it cannot be quantised any more."""
    model = onnx.load(path)
    lay_out(model)
    onnx.save(model, path)


def _layers(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    """Names of the layers with weights, and of the products of two activations, which stay in float."""
    constants = {constant.name for constant in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in _WEIGHTED]
    layers = [node.name for node in nodes if node.input[1] in constants]
    return layers, [node.name for node in nodes if node.name not in layers]


class _Calibration(CalibrationDataReader):
    def __init__(self, feeds: Iterable[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feed | None:  # type: ignore[override]
        return next(self._feeds, None)
