"""Bundles whose nets say what a test wants: constant probabilities, optionally moved by an embedding."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

from edgetag.contract.frontend import LOGMEL, WINDOW_SAMPLES
from edgetag.contract.manifest import (
    EMBEDDING_INPUT,
    EMBEDDING_SHAPE,
    LOGMEL_INPUT,
    LOGMEL_SHAPE,
    OUTPUT,
)
from edgetag.contract.taxonomy import SONYC_UST
from edgetag.tagging.bundle import EMBEDDING_OUTPUT_SHAPE, PATCHES_INPUT, PATCHES_SHAPE

_OPSET = [helper.make_opsetid("", 18)]


def constant_net(probabilities: Sequence[float], *, embedding: bool = False) -> bytes:
    """`logmel` (and `embedding`) -> `probability`: logits as given, plus the embedding's mean."""
    p = np.clip(np.asarray(probabilities, np.float64), 1e-6, 1 - 1e-6)
    logits = numpy_helper.from_array(np.log(p / (1 - p)).astype(np.float32)[None], "logits")
    zero = numpy_helper.from_array(np.zeros(1, np.float32), "zero")
    nodes = [
        helper.make_node("ReduceMean", [LOGMEL_INPUT], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["logits", "nothing"], ["own"]),
    ]
    inputs = [helper.make_tensor_value_info(LOGMEL_INPUT, TensorProto.FLOAT, LOGMEL_SHAPE)]
    last = "own"
    if embedding:
        inputs.append(helper.make_tensor_value_info(EMBEDDING_INPUT, TensorProto.FLOAT, EMBEDDING_SHAPE))
        nodes += [
            helper.make_node("ReduceMean", [EMBEDDING_INPUT], ["heard"], keepdims=0),
            helper.make_node("Add", ["own", "heard"], ["moved"]),
        ]
        last = "moved"
    nodes.append(helper.make_node("Sigmoid", [last], [OUTPUT]))
    output = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, (1, len(p)))
    return _model(nodes, inputs, [output], [logits, zero])


def mean_embedding_net(n_patches: int | None = None) -> bytes:
    """`patches` -> `embedding`: every feature is its patch's mean. Takes any number of patches if absent."""
    n = n_patches or "n"
    size = PATCHES_SHAPE[1] * PATCHES_SHAPE[2]
    shape = numpy_helper.from_array(np.array([n_patches or -1, size], np.int64), "shape")
    weights = numpy_helper.from_array(
        np.full((size, EMBEDDING_OUTPUT_SHAPE[1]), 1 / size, np.float32), "weights"
    )
    nodes = [
        helper.make_node("Reshape", [PATCHES_INPUT, "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], [EMBEDDING_INPUT]),
    ]
    inputs = [helper.make_tensor_value_info(PATCHES_INPUT, TensorProto.FLOAT, (n, *PATCHES_SHAPE[1:]))]
    output = helper.make_tensor_value_info(
        EMBEDDING_INPUT, TensorProto.FLOAT, (n, *EMBEDDING_OUTPUT_SHAPE[1:])
    )
    return _model(nodes, inputs, [output], [shape, weights])


def write_bundle(
    path: Path,
    root: Sequence[float],
    branches: Mapping[str, Sequence[float]] | None = None,
    *,
    embedding: bool = False,
    n_patches: int | None = None,
    **changes: Any,
) -> Path:
    """A whole bundle of constant nets in `path`; `changes` replace keys of its manifest.

    `n_patches` is what its embedding net takes; any number if absent.
    With an embedding the golden window's probabilities depend on it and must be given as `golden_root`.
    """
    path.mkdir(parents=True, exist_ok=True)
    golden_root = changes.pop("golden_root", root)
    nets: dict[str, Any] = {}
    pcm = np.zeros((1, WINDOW_SAMPLES), np.int16)
    golden: dict[str, Any] = {"pcm": pcm, "root_fp32": np.float32([golden_root])}
    for name, p in {"root": root, **{f"branch-{id}": p for id, p in (branches or {}).items()}}.items():
        nets[name] = _net(path, name, constant_net(p, embedding=embedding and name == "root"), len(p))
        golden.setdefault(f"{name}_fp32", np.float32([p]))
    np.savez(path / "golden.npz", **golden)
    manifest = {
        "format": "edgetag.bundle/1",
        "name": "constant",
        "version": "1",
        "created": "2026-11-22",
        "licence": "MIT",
        "summary": "says the same of everything",
        "taxonomy": msgspec.to_builtins(SONYC_UST),
        "frontend": msgspec.to_builtins(LOGMEL),
        "root": nets.pop("root"),
        "branches": {name.removeprefix("branch-"): net for name, net in nets.items()},
        "thresholds": {},
        "golden": file_entry(path / "golden.npz") | {"tolerance": {"fp32": 0.001}},
    }
    if embedding:
        (path / "embedding.onnx").write_bytes(mean_embedding_net(n_patches))
        manifest["embedding"] = {"kind": "mean", "variants": {"fp32": file_entry(path / "embedding.onnx")}}
        manifest["fusion"] = "concat"
    (path / "bundle.yaml").write_text(yaml.safe_dump(manifest | changes, sort_keys=False))
    return path


def edit_manifest(path: Path, **changes: Any) -> None:
    """Replace keys of a bundle's manifest."""
    manifest = yaml.safe_load((path / "bundle.yaml").read_text())
    (path / "bundle.yaml").write_text(yaml.safe_dump(manifest | changes, sort_keys=False))


def file_entry(file: Path) -> dict[str, Any]:
    """How a manifest states a file."""
    data = file.read_bytes()
    return {"file": file.name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _net(path: Path, name: str, data: bytes, outputs: int) -> dict[str, Any]:
    (path / f"{name}.onnx").write_bytes(data)
    return {"outputs": outputs, "variants": {"fp32": file_entry(path / f"{name}.onnx")}}


def _model(nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any]) -> bytes:
    graph = helper.make_graph(nodes, "constant", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=_OPSET, ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
