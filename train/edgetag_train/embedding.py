"""The embedding net in a folder of its own: `embedding.yaml` and ONNX nets, fp32 and int8.

A folder is made once and used by training, evaluation and export alike, so that the nets of a system are
fitted to the very embedding that its bundle ships.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray
from torch import nn

from edgetag.contract.errors import InputError
from edgetag.contract.manifest import EMBEDDING_INPUT, VARIANTS, File, Variant
from edgetag.contract.strict_yaml import dump_yaml, load_yaml
from edgetag.tagging.bundle import PATCHES_INPUT, PATCHES_SHAPE, OnnxNet
from edgetag_train.data.patches import check_embedding_net, recorded_patches, street_patches
from edgetag_train.files import file_entry, sha256_of
from edgetag_train.folder import check_room, replaced
from edgetag_train.models.vggish import random_vggish, read_vggish
from edgetag_train.onnx_net import quantise, save_onnx

log = structlog.get_logger("edgetag.train")
MANIFEST_NAME = "embedding.yaml"
N_CALIBRATION_SCENES = 4
N_CALIBRATION_WINDOWS = 48
CALIBRATION_SEED = 100
NAMES = {MANIFEST_NAME, *(f"embedding.{variant}.onnx" for variant in VARIANTS)}


class Difference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of int8 from fp32 on the windows that its ranges were taken from, in steps of the embedding's 0…255."""

    max: float
    mean: float


class _Stated(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of `embedding.yaml`."""

    format: Literal["edgetag.embedding/1"]
    kind: str
    source: str
    variants: Annotated[dict[Variant, File], msgspec.Meta(min_length=1)]
    int8_difference: Difference | None = None


@dataclass(frozen=True)
class Embedding:
    """An embedding folder whose files have been checked.

    kind: what net it is: `vggish`, `vggish-random`, …
    source: where its weights come from, for people.
    paths, sha256: of each variant that there is.
    """

    kind: str
    source: str
    paths: dict[Variant, Path]
    sha256: dict[Variant, str]


def export_embedding(
    net: nn.Module,
    out: Path,
    *,
    kind: str,
    source: str,
    calibration: NDArray[np.float32],
    int8: bool = True,
) -> Embedding:
    """Write an embedding folder.

    In the int8 variant the last layer with weights and all after it stay in float: in VGGish that is PCA
    and quantisation to eight bits, where a rounded input would be rounded again. How far it is from fp32 is
    stated. The number of patches is free, so that a sensor need not compute one twice. Until all is well
    `out` stays as it was.

    Args:
        net: VGGish, or another net of the same shapes, each patch by itself.
        out: a folder that is empty or absent, or holds an older embedding.
        kind: as events' and manifests' readers shall know it.
        source: where the weights come from.
        calibration: patches that show the range of every activation.
        int8: whether an int8 variant is wanted beside the fp32 one, which training takes.

    Shape: net [n, 96, 64] -> [n, 128], calibration [n, 10, 96, 64]

    Raises:
        InputError: `out` holds something else.
        OutputError: `out` cannot be written.
    """
    check_room(out, "embedding", MANIFEST_NAME, NAMES.__contains__)
    with replaced(out) as folder:
        paths = {variant: folder / f"embedding.{variant}.onnx" for variant in VARIANTS[: 2 if int8 else 1]}
        save_onnx(net, {PATCHES_INPUT: PATCHES_SHAPE}, EMBEDDING_INPUT, paths["fp32"], free=True)
        difference = None
        if int8:
            feeds = ({PATCHES_INPUT: patches} for patches in calibration)
            quantise(paths["fp32"], paths["int8"], feeds, n_last=1)
            difference = _difference(paths, calibration)
        files = {variant: file_entry(path) for variant, path in paths.items()}
        stated = _Stated("edgetag.embedding/1", kind, source, files, difference)
        (folder / MANIFEST_NAME).write_bytes(dump_yaml(msgspec.to_builtins(stated)))
    found = _embedding(out, stated)
    sizes = {variant: f"{path.stat().st_size / 1e6:.2f} MB" for variant, path in found.paths.items()}
    log.info("embedding written", out=str(out), kind=kind, **sizes, **_said(difference))
    return found


def _difference(paths: dict[Variant, Path], calibration: NDArray[np.float32]) -> Difference:
    fp32, int8 = (OnnxNet(paths[variant].read_bytes(), variant) for variant in VARIANTS)
    feeds = [{PATCHES_INPUT: patches} for patches in calibration]
    found = np.abs(np.stack([int8(feed) - fp32(feed) for feed in feeds]))
    return Difference(round(float(found.max()), 4), round(float(found.mean()), 4))


def _said(difference: Difference | None) -> dict[str, float]:
    if difference is None:
        return {}
    return {"max_difference": difference.max, "mean_difference": difference.mean}


def export_vggish(
    out: Path, weights: Path | None, pca: Path | None, *, seed: int | None, calibrate: Path | None
) -> Embedding:
    """Write the embedding folder of VGGish, from both files of its weights or from a seed.

    Args:
        out: the folder to write.
        weights: PyTorch or TensorFlow, see `read_vggish`.
        pca: the PCA parameters that go with them.
        seed: of random weights instead.
        calibrate: a folder of recordings; the synthetic street if absent.

    Raises:
        InputError: neither files nor a seed, or both, or something that cannot be read.
        OutputError: `out` cannot be written.
    """
    if seed is not None and weights is None and pca is None:
        net, kind, source = random_vggish(seed), "vggish-random", f"random weights, seed {seed}: not trained"
    elif seed is None and weights is not None and pca is not None:
        net, kind, source = read_vggish(weights, pca), "vggish", f"{_origin(weights)}, {_origin(pca)}"
    else:
        raise InputError("give both files of VGGish, --weights and --pca, or --random SEED to rehearse")
    if calibrate is None:
        calibration = street_patches(CALIBRATION_SEED, N_CALIBRATION_SCENES)
    else:
        calibration = recorded_patches(calibrate, N_CALIBRATION_WINDOWS)
    return export_embedding(net, out, kind=kind, source=source, calibration=calibration)


def _origin(path: Path) -> str:
    return f"{path.name} (sha256 {sha256_of(path)})"


def read_embedding(folder: Path) -> Embedding:
    """Check an embedding folder: every file's hash, and the shapes of every net.

    Raises:
        InputError: no such folder, no fp32 net, or a file is missing, altered, or no embedding net.
    """
    stated = _read_stated(folder / MANIFEST_NAME)
    if "fp32" not in stated.variants:
        raise InputError(f"{folder / MANIFEST_NAME} states no fp32 net, which training takes")
    for file in stated.variants.values():
        _check_net(folder / file.file, file.sha256)
    return _embedding(folder, stated)


def _read_stated(path: Path) -> _Stated:
    try:
        return msgspec.convert(load_yaml(path.read_bytes()), _Stated)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); make an embedding with: edgetag train embedding"
        ) from error
    except ValueError as error:
        raise InputError(f"{path} states no embedding ({error})") from error


def _check_net(path: Path, sha256: str) -> None:
    try:
        data = path.read_bytes()
        if (found := hashlib.sha256(data).hexdigest()) != sha256:
            raise InputError(
                f"{path} is damaged or was altered: its sha256 is {found[:12]}…, "
                f"{MANIFEST_NAME} states {sha256[:12]}…"
            )
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    check_embedding_net(data, path)


def _embedding(folder: Path, stated: _Stated) -> Embedding:
    return Embedding(
        stated.kind,
        stated.source,
        {variant: folder / file.file for variant, file in stated.variants.items()},
        {variant: file.sha256 for variant, file in stated.variants.items()},
    )
