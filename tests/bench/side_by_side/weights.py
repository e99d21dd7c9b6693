"""The same weights for both: a bundle's nets as the paper's stack has them, and bundles of the paper's shape.

What is made takes a minute and a gigabyte, so it is kept in the user's cache, under a name that tells which
code has made it.
"""

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

import edgetag_train
from edgetag.contract.frontend import WINDOW_SAMPLES
from edgetag.contract.manifest import (
    EMBEDDING_INPUT,
    EMBEDDING_SHAPE,
    LOGMEL_INPUT,
    LOGMEL_SHAPE,
    OUTPUT,
    VARIANTS,
    Manifest,
    Variant,
)
from edgetag.contract.taxonomy import SONYC_UST
from edgetag.demo.scene import street_scene
from edgetag.tagging.bundle import read_manifest
from edgetag.tagging.container import open_container
from edgetag_train.data.patches import street_patches
from edgetag_train.deploy import Deployed
from edgetag_train.draft import Draft, golden_feeds
from edgetag_train.embedding import Embedding, export_embedding
from edgetag_train.fit.run import ROOT, outputs
from edgetag_train.models.cnn import Fusion, Table, TaggingNet
from edgetag_train.models.vggish import Vggish, random_vggish
from edgetag_train.onnx_net import Feed, hasten, quantise, save_onnx

SEED = 0
STATED: dict[str, Any] = {
    "version": "0",
    "licence": "MIT",
    "summary": "the paper's nets, of random weights: to measure what they cost",
}
SHAPES = {LOGMEL_INPUT: LOGMEL_SHAPE, EMBEDDING_INPUT: EMBEDDING_SHAPE}
NETS = (ROOT, *(f"branch-{id}" for id in SONYC_UST.branch_ids))


def cache() -> Path:
    """`$XDG_CACHE_HOME/edgetag/bench`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgetag" / "bench"


class System(NamedTuple):
    """One set of weights: edgetag's bundle, the paper's nets, and VGGish's where there is an embedding."""

    bundle: Path
    nets: Path
    vggish: Path | None = None
    variants: tuple[Variant, ...] = VARIANTS


# -- a bundle's nets, for PyTorch ------------------------------------------------------------------------


def write_nets(bundle: Path, file: Path) -> Path:
    """Write the nets of a bundle's fp32 variant as `TaggingNet` has them, for `torch.load`. Returns `file`.

    The exporter has folded batch norm into the layers before it: here each one is there again, and does
    nothing to the values.
    """
    _, manifest = read_manifest(open_container(bundle))
    nets = {name: variants["fp32"].file for name, variants in manifest.nets.items() if name != "embedding"}
    stated = {name: _net(bundle / nets[name], manifest, n) for name, n in manifest.outputs.items()}
    torch.save(stated, file)
    return file


def _net(file: Path, manifest: Manifest, n_classes: int) -> dict[str, object]:
    weights = {
        constant.name.removeprefix("net."): numpy_helper.to_array(constant)
        for constant in onnx.load(file).graph.initializer
    }
    table: Table = 1 if weights["convolutions.2.0.weight"].size == 32 * 16 * 16 * 128 else 2
    net = TaggingNet(table, n_classes, fusion=manifest.fusion)
    state = {name: _value(name, tensor, weights) for name, tensor in net.state_dict().items()}
    return {"table": table, "n_classes": n_classes, "fusion": manifest.fusion, "state": state}


def _value(name: str, tensor: Tensor, weights: dict[str, NDArray[np.float32]]) -> Tensor:
    if name not in weights:
        return _of_idle_batch_norm(name, tensor)
    found = weights[name]
    if found.shape != tuple(tensor.shape):
        found = unblocked(found, tuple(tensor.shape))
    return torch.from_numpy(found.copy())


def _of_idle_batch_norm(name: str, tensor: Tensor) -> Tensor:
    part = name.rpartition(".")[2]
    if part == "running_var":
        return torch.ones_like(tensor) - nn.BatchNorm1d(1).eps
    assert part in ("weight", "bias", "running_mean", "num_batches_tracked"), name
    return torch.ones_like(tensor) if part == "weight" else torch.zeros_like(tensor)


def unblocked(weight: NDArray[np.float32], shape: Sequence[int]) -> NDArray[np.float32]:
    """Weights of a convolution over blocks, as they were before (see `edgetag_train.layout`).

    Shape: [o, sh·sw·c, h / sh, w / sw] -> [o, c, h, w], which is `shape`
    """
    n_out, n_in, height, width = shape
    _, _, n_rows, n_columns = weight.shape
    split = weight.reshape(n_out, height // n_rows, width // n_columns, n_in, n_rows, n_columns)
    return split.transpose(0, 3, 4, 1, 5, 2).reshape(shape)


# -- the paper's shape -----------------------------------------------------------------------------------


def paper_system(folder: Path, variants: tuple[Variant, ...] = VARIANTS, *, has_vggish: bool) -> System:
    """The paper's Hierarchical2 in `folder`, made if it is not there: weights from a seed.

    Args:
        has_vggish: whether its nets take VGGish's embedding, concatenated.
    """
    made = folder / f"{'vggish' if has_vggish else 'cnn'}-{_digest()}-{'-'.join(variants)}"
    vggish = made / "vggish.pt" if has_vggish else None
    system = System(made / "bundle", made / "nets.pt", vggish, variants)
    if not system.nets.exists():  # which is written last
        sys.stderr.write(f"a bundle of the paper's nets is made in {made}: that takes a minute or two\n")
        system.bundle.mkdir(parents=True, exist_ok=True)
        embedding = None
        if vggish is not None:
            net = random_vggish(SEED)
            torch.save(net.state_dict(), vggish)
            embedding = _embedding(made / "embedding", net, variants)
        _write_bundle(system.bundle, embedding, variants)
        write_nets(system.bundle, system.nets)
    return system


def _embedding(folder: Path, net: Vggish, variants: tuple[Variant, ...]) -> Embedding:
    return export_embedding(
        net,
        folder,
        kind="vggish-random",
        source=f"random weights, seed {SEED}: not trained",
        calibration=street_patches(SEED),
        int8="int8" in variants,
    )


def _write_bundle(folder: Path, embedding: Embedding | None, variants: tuple[Variant, ...]) -> None:
    stated = {"name": "paper-cnn"} if embedding is None else {"name": "paper-vggish", "fusion": "concat"}
    draft = Draft(
        folder, {name: len(outputs(name, SONYC_UST)) for name in NETS}, SONYC_UST, embedding, STATED | stated
    )
    if embedding is not None:
        for variant, file in embedding.paths.items():
            draft.path("embedding", variant).hardlink_to(file)
    feeds = golden_feeds(_windows(), embedding, "fp32")
    alike: dict[tuple[bool, int], str] = {}
    for name in NETS:
        first = alike.setdefault((name == ROOT, len(outputs(name, SONYC_UST))), name)
        if first == name:
            _write_net(draft, name, feeds, variants)
        else:  # the same weights from the same seed
            for variant in variants:
                draft.path(name, variant).hardlink_to(draft.path(first, variant))
    draft.state(variants)


def _windows() -> NDArray[np.int16]:
    """Shape: [6, 441000]"""
    return np.round(32767 * street_scene(SEED).samples).astype(np.int16).reshape(-1, WINDOW_SAMPLES)


def _write_net(draft: Draft, name: str, feeds: list[Feed], variants: tuple[Variant, ...]) -> None:
    shapes = {key: SHAPES[key] for key in feeds[0]}
    net = drawn_net(1 if name == ROOT else 2, len(outputs(name, SONYC_UST)), feeds)
    no_shift = np.zeros(len(outputs(name, SONYC_UST)), np.float32)
    save_onnx(Deployed(net, no_shift), shapes, OUTPUT, draft.path(name, "fp32"))
    if "int8" in variants:
        quantise(draft.path(name, "fp32"), draft.path(name, "int8"), feeds, n_first=1, n_last=1)
    hasten(draft.path(name, "fp32"))


def drawn_net(table: Table, n_classes: int, feeds: list[Feed]) -> TaggingNet:
    """A net of random weights that says different things of different windows: its batch norms know them."""
    torch.manual_seed(SEED)
    fusion: Fusion = "concat" if EMBEDDING_INPUT in feeds[0] else "none"
    net = TaggingNet(table, n_classes, fusion=fusion, conv_dropout=0, fc_dropout=0)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.momentum = None  # the mean of what it is shown
    with torch.no_grad():
        net(*(torch.from_numpy(np.concatenate([feed[key] for feed in feeds])) for key in feeds[0]))
    return net.eval()


def _digest() -> str:
    """Of the code that makes it."""
    package = Path(edgetag_train.__file__).parent
    makers = sorted([*package.glob("*.py"), *package.glob("models/*.py"), Path(__file__)])
    return hashlib.sha256(b"".join(file.read_bytes() for file in makers)).hexdigest()[:12]
