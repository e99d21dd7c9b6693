"""From a run to a bundle: ONNX nets (fp32, int8), golden window, manifest.

The exporter folds batch norm into the layer before it. The sigmoid is inside the graph, so that a net's
output is a probability. Static int8 quantisation (QDQ, signed activations, one scale per output channel
of the weights) is calibrated on training scenes.
"""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import onnx
import structlog
import torch
import yaml
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from edgetag.contract.errors import InputError
from edgetag.contract.frontend import LOGMEL, SAMPLE_RATE_HZ, WINDOW_SAMPLES
from edgetag.contract.manifest import (
    FORMAT,
    LOGMEL_INPUT,
    LOGMEL_SHAPE,
    MANIFEST_NAME,
    OUTPUT,
    File,
    Golden,
    Manifest,
    Net,
    Variant,
)
from edgetag.contract.taxonomy import SONYC_UST
from edgetag.demo.scene import street_scene
from edgetag.dsp.logmel import LogMel
from edgetag.tagging.bundle import OnnxNet
from edgetag.tagging.tagger import Tagger
from edgetag_train.data.annotations import read_annotations
from edgetag_train.data.features import Windows, mix_scenes
from edgetag_train.data.sounds import INDEX, describe
from edgetag_train.evaluate import score_bundle, score_scenes
from edgetag_train.fit.system import ROOT, load_net, net_names, outputs
from edgetag_train.models.cnn import TaggingNet
from edgetag_train.recipe import Recipe

log = structlog.get_logger("edgetag.train")
OPSET = 18
N_CALIBRATION_WINDOWS = 200
PRIOR_RECORDINGS = 10
GOLDEN_START_S = 20
VARIANTS: tuple[Variant, ...] = ("fp32", "int8")


class _Probability(nn.Module):
    """A net with its logits moved to the street's class priors, and its sigmoid."""

    def __init__(self, net: TaggingNet, shift: NDArray[np.float32]) -> None:
        super().__init__()
        self.net = net
        self.shift = nn.Buffer(torch.from_numpy(shift))

    def forward(self, logmel: Tensor) -> Tensor:
        return torch.sigmoid(self.net(logmel) + self.shift)


def export_fp32(net: TaggingNet, shift: NDArray[np.float32], path: Path) -> None:
    """Write an ONNX net of fixed shapes: `logmel` [1, 1, 128, 862] -> `probability` [1, c]."""
    program = torch.onnx.export(
        _Probability(net, shift).eval(),
        (torch.zeros(LOGMEL_SHAPE),),
        input_names=[LOGMEL_INPUT],
        output_names=[OUTPUT],
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    del model.metadata_props[:]  # the exporter notes local paths and stack traces
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    onnx.checker.check_model(model)
    onnx.save(model, path)


class _Calibration(CalibrationDataReader):
    def __init__(self, logmel: NDArray[np.float16]) -> None:
        self._windows: Iterator[NDArray[np.float16]] = iter(logmel)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:  # type: ignore[override]
        window = next(self._windows, None)
        return None if window is None else {LOGMEL_INPUT: window.astype(np.float32)[None, None]}


def export_int8(fp32: Path, path: Path, calibration: NDArray[np.float16]) -> None:
    """Quantise an fp32 net, calibrated on windows. Shape: calibration [n, 128, 862]"""
    prepared = path.with_suffix(".prepared")
    quant_pre_process(fp32, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        path,
        _Calibration(calibration),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["Conv", "Gemm", "MatMul", "MaxPool"],
        nodes_to_exclude=_ends(prepared),
    )
    prepared.unlink()


def _ends(path: Path) -> list[str]:
    """The first and last layer with weights: they are small, and rounding hurts most there."""
    weighted = [
        node.name for node in onnx.load(path).graph.node if node.op_type in {"Conv", "Gemm", "MatMul"}
    ]
    return [weighted[0], weighted[-1]]


def prior_shift(
    scenes: NDArray[np.float32], street: NDArray[np.float32], ids: tuple[str, ...]
) -> NDArray[np.float32]:
    """What to add to each logit so that it speaks for the street's class priors, not for the scenes'.

    Bayes' rule for a change of prior: logit(street) − logit(scenes), per category, the same for its fine
    tags (Saerens, Latinne & Decaestecker 2002, equation 2.4). The street's share of a category is counted
    as if ten more recordings had been heard there with the scenes' share.

    Shape: scenes [n, 37], street [m, 37] labels -> [len(ids)]
    """
    share = np.clip(np.nanmean(scenes, axis=0), 1e-3, 1 - 1e-3)
    heard, known = np.nansum(street, axis=0), np.sum(~np.isnan(street), axis=0)
    prior = (heard + PRIOR_RECORDINGS * share) / (known + PRIOR_RECORDINGS)
    shift = np.log(prior / (1 - prior)) - np.log(share / (1 - share))
    return np.array([shift[INDEX[id.split("-")[0]]] for id in ids], np.float32)


def write_bundle(
    run: Path,
    out: Path,
    recipe: Recipe,
    windows: Windows,
    street: NDArray[np.float32],
    variants: tuple[Variant, ...],
    about: dict[str, str],
) -> Manifest:
    """Export every net of a run into the directory `out`, with `about` (version, licence, …) in the manifest.

    Shape: street [m, 37], labels of the recordings whose class priors the root shall speak for; m may be 0

    Raises:
        InputError: the run lacks its root, or `out` holds other files than a bundle's.
    """
    _empty(out)
    rng = np.random.default_rng(recipe.seed)
    chosen = np.sort(rng.choice(len(windows), min(len(windows), N_CALIBRATION_WINDOWS), replace=False))
    pcm = golden_window()
    logmel = LogMel()(pcm.astype(np.float32) / 32768)[None, None]
    nets: dict[str, Net] = {}
    expected: dict[str, NDArray[np.float32]] = {}
    for name in net_names():
        if name != ROOT and not (run / f"{name}.pt").exists():
            continue
        shift = np.zeros(len(outputs(name)), np.float32)
        if name == ROOT and len(street):  # a branch speaks of windows that its category is in
            shift = prior_shift(windows.labels, street, outputs(name))
        net = load_net(run, name, recipe.root if name == ROOT else recipe.branch)
        files = _export_net(net, shift, out / name, windows.logmel[chosen], variants)
        nets[name] = Net(len(outputs(name)), files)
        for variant, file in files.items():
            expected[f"{name}_{variant}"] = OnnxNet((out / file.file).read_bytes(), name)(
                {LOGMEL_INPUT: logmel}
            )[0]
    np.savez_compressed(out / "golden.npz", pcm=pcm, **expected)
    manifest = Manifest(
        format=FORMAT,
        name=recipe.name,
        created=datetime.now(UTC).strftime("%Y-%m-%d"),
        taxonomy=SONYC_UST,
        frontend=LOGMEL,
        cascade=recipe.cascade,
        root=nets.pop(ROOT),
        branches={name.removeprefix("branch-"): net for name, net in nets.items()},
        golden=Golden("golden.npz", _sha256(out / "golden.npz")),
        thresholds=dict.fromkeys(SONYC_UST.ids, 0.5),
        **about,
    )
    manifest.check()
    write_manifest(manifest, out)
    return manifest


def export_run(
    run: Path, data: Path, out: Path, variants: tuple[Variant, ...], about: dict[str, str], note: str = ""
) -> None:
    """Export a run, score the bundle just written on the validate recordings, and state the figures in it.

    `note` is for whoever reads the manifest: what its figures do not say.

    Raises:
        InputError: the run is not complete or the data cannot be read.
    """
    try:
        recipe = msgspec.json.decode((run / "recipe.json").read_bytes(), type=Recipe)
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"{run} is no run directory ({error}); make one with: edgetag train fit") from error
    windows = mix_scenes(data, run / "scenes", recipe.scenes, n_scenes=recipe.n_scenes, seed=recipe.seed)
    street = read_annotations(data / "sonyc" / "annotations.csv").of_split("train").binary()
    manifest = write_bundle(run, out, recipe, windows, street, variants, about)
    tagger = Tagger.load(out)
    metrics = score_bundle(tagger, data, "validate")
    metrics["held_out_clips"] = score_scenes(tagger, data, recipe.scenes, recipe.seed + recipe.n_scenes)
    provenance = {"recipe": msgspec.to_builtins(recipe), "data": describe(data), "note": note}
    manifest = msgspec.structs.replace(manifest, metrics=metrics, training=provenance)
    write_manifest(manifest, out)
    log.info("bundle written", out=str(out), **metrics)


def write_manifest(manifest: Manifest, out: Path) -> None:
    """Write `bundle.yaml`."""
    text = yaml.safe_dump(msgspec.to_builtins(manifest), sort_keys=False, allow_unicode=True, width=100)
    (out / MANIFEST_NAME).write_text(text, encoding="utf-8")


def golden_window() -> NDArray[np.int16]:
    """Ten seconds of the project's own synthetic street. Shape: [441000]"""
    start = GOLDEN_START_S * SAMPLE_RATE_HZ
    return np.round(street_scene(seed=1).samples[start : start + WINDOW_SAMPLES] * 32767).astype(np.int16)


def _export_net(
    net: TaggingNet,
    shift: NDArray[np.float32],
    stem: Path,
    calibration: NDArray[np.float16],
    variants: tuple[Variant, ...],
) -> dict[Variant, File]:
    paths: dict[Variant, Path] = {v: stem.with_name(f"{stem.name}.{v}.onnx") for v in VARIANTS}
    export_fp32(net, shift, paths["fp32"])
    if "int8" in variants:
        export_int8(paths["fp32"], paths["int8"], calibration)
    if "fp32" not in variants:
        paths["fp32"].unlink()
    log.info("exported", net=stem.name, **{v: f"{paths[v].stat().st_size / 1e6:.2f} MB" for v in variants})
    return {v: File(paths[v].name, _sha256(paths[v])) for v in variants}


def _empty(out: Path) -> None:
    """Make room for a bundle: `out` is empty, or holds an older bundle and nothing else."""
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()) and not (out / MANIFEST_NAME).exists():
        raise InputError(f"{out} is not empty and holds no bundle; choose an empty folder")
    if strangers := [
        p.name for p in out.iterdir() if p.suffix not in {".onnx", ".npz"} and p.name != MANIFEST_NAME
    ]:
        raise InputError(
            f"{out} holds {', '.join(sorted(strangers))}, which no bundle does; choose an empty folder"
        )
    for file in out.iterdir():
        file.unlink()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
