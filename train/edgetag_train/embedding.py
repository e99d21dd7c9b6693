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
import yaml
from numpy.typing import NDArray
from torch import nn

from edgetag.contract.errors import InputError
from edgetag.contract.manifest import EMBEDDING_INPUT, File, Variant
from edgetag.tagging.bundle import PATCHES_INPUT, PATCHES_SHAPE
from edgetag_train.data.patches import check_embedding_net, recorded_patches, street_patches
from edgetag_train.files import file_entry, sha256_of, writing
from edgetag_train.models.vggish import random_vggish, read_vggish
from edgetag_train.onnx_net import quantise, save_onnx

log = structlog.get_logger("edgetag.train")
MANIFEST_NAME = "embedding.yaml"
N_CALIBRATION_SCENES = 4
N_CALIBRATION_WINDOWS = 48
CALIBRATION_SEED = 100
VARIANTS: tuple[Variant, ...] = ("fp32", "int8")


class _Stated(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of `embedding.yaml`."""

    format: Literal["edgetag.embedding/1"]
    kind: str
    source: str
    variants: Annotated[dict[Variant, File], msgspec.Meta(min_length=1)]


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
    and quantisation to eight bits, where a rounded input would be rounded again.

    Args:
        net: VGGish, or another net of the same shapes.
        out: a folder that is empty or absent, or holds an older embedding.
        kind: as events' and manifests' readers shall know it.
        source: where the weights come from.
        calibration: patches that show the range of every activation.
        int8: whether an int8 variant is wanted beside the fp32 one, which training takes.

    Shape: net [10, 96, 64] -> [10, 128], calibration [n, 10, 96, 64]

    Raises:
        InputError: `out` holds something else.
        OutputError: `out` cannot be written.
    """
    _make_room(out)
    paths: dict[Variant, Path] = {variant: out / f"embedding.{variant}.onnx" for variant in VARIANTS}
    with writing(out):
        save_onnx(net, {PATCHES_INPUT: PATCHES_SHAPE}, EMBEDDING_INPUT, paths["fp32"])
        if int8:
            feeds = ({PATCHES_INPUT: patches} for patches in calibration)
            quantise(paths["fp32"], paths["int8"], feeds, lambda layers: layers[-1:])
        variants = VARIANTS if int8 else VARIANTS[:1]
        files = {variant: file_entry(paths[variant]) for variant in variants}
        stated = _Stated("edgetag.embedding/1", kind, source, files)
        text = yaml.safe_dump(msgspec.to_builtins(stated), sort_keys=False, allow_unicode=True, width=100)
        (out / MANIFEST_NAME).write_text(text, encoding="utf-8")
    log.info("embedding written", out=str(out), kind=kind, **_megabytes(paths, variants))
    return _embedding(out, stated)


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
        return msgspec.convert(yaml.safe_load(path.read_bytes()), _Stated)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); make an embedding with: edgetag train embedding"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path} states no embedding ({' '.join(str(error).split())})") from error


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


def _make_room(out: Path) -> None:
    """`out` is empty, or held an embedding and nothing else."""
    ours = {MANIFEST_NAME, *(f"embedding.{variant}.onnx" for variant in VARIANTS)}
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        if strangers := sorted(file.name for file in out.iterdir() if file.name not in ours):
            raise InputError(f"{out} holds {strangers[0]}, which no embedding does; choose an empty folder")
        for name in ours:
            (out / name).unlink(missing_ok=True)


def _megabytes(paths: dict[Variant, Path], variants: tuple[Variant, ...]) -> dict[Variant, str]:
    return {variant: f"{paths[variant].stat().st_size / 1e6:.2f} MB" for variant in variants}
