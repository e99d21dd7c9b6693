"""From a run to a bundle: ONNX nets (fp32, int8), golden window, manifest.

The exporter folds batch norm into the layer before it. The sigmoid is inside the graph, so that a net's
output is a probability. Static int8 quantisation (QDQ, signed activations, one scale per output channel
of the weights) is calibrated on training scenes.
"""

import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np
import structlog
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from edgetag.contract.errors import InputError
from edgetag.contract.frontend import LOGMEL, SAMPLE_RATE_HZ, WINDOW_SAMPLES
from edgetag.contract.manifest import (
    EMBEDDING_INPUT,
    EMBEDDING_SHAPE,
    FORMAT,
    LOGMEL_INPUT,
    LOGMEL_SHAPE,
    MANIFEST_NAME,
    OUTPUT,
    Cascade,
    File,
    Golden,
    Manifest,
    Net,
    Policy,
    Variant,
)
from edgetag.contract.manifest import Embedding as ManifestEmbedding
from edgetag.contract.taxonomy import SONYC_UST
from edgetag.demo.scene import street_scene
from edgetag.dsp.logmel import LogMel
from edgetag.tagging.bundle import OnnxNet
from edgetag.tagging.embedding import Embedder
from edgetag.tagging.tagger import Tagger
from edgetag_train.data.dataset import open_dataset, read_labels
from edgetag_train.data.features import Windows
from edgetag_train.data.sounds import INDEX, describe
from edgetag_train.data.training import hears_clips, prepare
from edgetag_train.embedding import Embedding
from edgetag_train.evaluate import score_bundle, score_scenes
from edgetag_train.files import file_entry, writing
from edgetag_train.fit.run import (
    ROOT,
    Run,
    branches_of,
    check_embedding,
    chosen_root,
    coarse_id,
    load_net,
    outputs,
    read_run,
)
from edgetag_train.models.cnn import TaggingNet
from edgetag_train.onnx_net import Feed, quantise, save_onnx

log = structlog.get_logger("edgetag.train")
N_CALIBRATION_WINDOWS = 200
PRIOR_RECORDINGS = 10
GOLDEN_START_S = (20, 40)
GOLDEN_ATTENUATION = (1.0, 0.01)
GOLDEN_TOLERANCE: dict[Variant, float] = {"fp32": 0.001, "int8": 0.02}
VARIANTS: tuple[Variant, ...] = ("fp32", "int8")


class _Probability(nn.Module):
    """A net with its logits moved to the street's class priors, and its sigmoid."""

    def __init__(self, net: TaggingNet, shift: NDArray[np.float32]) -> None:
        super().__init__()
        self.net = net
        self.shift = nn.Buffer(torch.from_numpy(shift))

    def forward(self, logmel: Tensor, embedding: Tensor | None = None) -> Tensor:
        return torch.sigmoid(self.net(logmel, embedding) + self.shift)


def export_fp32(net: TaggingNet, shift: NDArray[np.float32], path: Path) -> None:
    """Write an ONNX net of fixed shapes: `logmel` [1, 1, 128, 862] (and `embedding` [1, 10, 128], where the
    net takes one) -> `probability` [1, c]."""
    shapes = {LOGMEL_INPUT: LOGMEL_SHAPE}
    if net.fusion != "none":
        shapes[EMBEDDING_INPUT] = EMBEDDING_SHAPE
    save_onnx(_Probability(net, shift), shapes, OUTPUT, path)


def _first_and_last(layers: list[str]) -> list[str]:
    """The layers with weights that stay in float: they are small, and rounding hurts most there."""
    return [layers[0], layers[-1]]


def prior_shift(
    scenes: NDArray[np.float32], street: NDArray[np.float32], ids: tuple[str, ...]
) -> NDArray[np.float32]:
    """What to add to each logit so that it speaks for the street's class priors, not for the scenes'.

    Bayes' rule for a change of prior: logit(street) − logit(scenes), per category, the same for its fine
    tags (Saerens, Latinne & Decaestecker 2002, equation 2.4). The street's share of a category is counted
    as if ten more recordings had been heard there with the scenes' share.

    Shape: scenes [n, 37], street [m, 37] labels -> [len(ids)]
    """
    heard, known = np.nansum(scenes, axis=0), np.sum(~np.isnan(scenes), axis=0)
    share = np.clip(heard / np.maximum(known, 1), 1e-3, 1 - 1e-3)
    heard, known = np.nansum(street, axis=0), np.sum(~np.isnan(street), axis=0)
    prior = (heard + PRIOR_RECORDINGS * share) / (known + PRIOR_RECORDINGS)
    shift = np.log(prior / (1 - prior)) - np.log(share / (1 - share))
    return np.array([shift[INDEX[id.split("-")[0]]] for id in ids], np.float32)


def feeds(windows: Windows, rows: NDArray[np.intp]) -> Iterator[Feed]:
    """What a net is fed for each of these windows."""
    for row in rows:
        feed = {LOGMEL_INPUT: windows.logmel[row : row + 1].astype(np.float32)[None]}
        if windows.embedding is not None:
            feed[EMBEDDING_INPUT] = windows.embedding[row : row + 1]
        yield feed


def write_bundle(
    run: Run,
    out: Path,
    windows: Windows,
    street: NDArray[np.float32],
    variants: tuple[Variant, ...],
    about: dict[str, str],
    embedding: Embedding | None = None,
    policy: Policy = "threshold",
) -> Manifest:
    """Export the nets of a run into the directory `out`, with `about` (version, licence, …) in the manifest.

    Branches that the run does not hold are not in the bundle.

    Args:
        windows: what the nets were trained on: for calibration.
        embedding: the embedding net of the run, if its nets take one.
        policy: when a branch fires on the sensor; the recipe's own is what it was evaluated under.

    Shape: street [m, 37], labels of the recordings whose class priors the root shall speak for; m may be 0

    Raises:
        InputError: the run lacks its root, or `out` holds other files than a bundle's.
    """
    root = chosen_root(run.recipe)
    sources = {ROOT: root} | {name: name for name in branches_of(run)}
    for source in sources.values():
        load_net(run, source)  # before anything is removed
    _empty(out)
    rng = np.random.default_rng(run.recipe.seed)
    chosen = np.sort(rng.choice(len(windows), min(len(windows), N_CALIBRATION_WINDOWS), replace=False))
    calibration = list(feeds(windows, chosen))
    pcm = golden_windows()
    stated = _copy_embedding(embedding, out, variants)
    golden = {variant: _golden_feeds(pcm, embedding, variant) for variant in variants}
    nets: dict[str, Net] = {}
    expected: dict[str, NDArray[np.float32]] = {}
    for name, source in sources.items():
        net = load_net(run, source)
        shift = np.zeros(len(outputs(name)), np.float32)
        if name == ROOT and len(street):  # a branch speaks of windows that its category is in
            shift = prior_shift(windows.labels, street, outputs(name))
        files = _export_net(net, shift, out / name, calibration, variants)
        nets[name] = Net(len(outputs(name)), files)
        for variant, file in files.items():
            session = OnnxNet((out / file.file).read_bytes(), name)
            expected[f"{name}_{variant}"] = np.stack([session(feed)[0] for feed in golden[variant]])
    np.savez_compressed(out / "golden.npz", pcm=pcm, **expected)
    manifest = Manifest(
        format=FORMAT,
        name=run.recipe.name,
        created=datetime.now(UTC).strftime("%Y-%m-%d"),
        taxonomy=SONYC_UST,
        frontend=LOGMEL,
        embedding=stated,
        fusion=run.recipe.fusion,
        cascade=Cascade(policy, run.recipe.cascade.threshold),
        root=nets.pop(ROOT),
        branches={coarse_id(name): net for name, net in nets.items()},
        golden=Golden(
            **msgspec.structs.asdict(file_entry(out / "golden.npz")),
            tolerance={variant: GOLDEN_TOLERANCE[variant] for variant in variants},
        ),
        thresholds=dict.fromkeys(SONYC_UST.ids, 0.5),
        **about,
    )
    manifest.check()
    write_manifest(manifest, out)
    return manifest


def _copy_embedding(
    embedding: Embedding | None, out: Path, variants: tuple[Variant, ...]
) -> ManifestEmbedding | None:
    if embedding is None:
        return None
    files: dict[Variant, File] = {}
    for variant in variants:
        target = out / f"embedding.{variant}.onnx"
        shutil.copyfile(embedding.paths[variant], target)
        files[variant] = file_entry(target)
    return ManifestEmbedding(embedding.kind, files)


def _golden_feeds(pcm: NDArray[np.int16], embedding: Embedding | None, variant: Variant) -> list[Feed]:
    """The golden windows as a sensor's nets get them."""
    logmel = LogMel()
    embedder = None
    if embedding is not None:
        embedder = Embedder(OnnxNet(embedding.paths[variant].read_bytes(), "the embedding"))
    found = []
    for window in pcm:
        samples = window.astype(np.float32) * np.float32(1 / 32768)
        feed = {LOGMEL_INPUT: logmel(samples)[None, None]}
        if embedder is not None:
            feed[EMBEDDING_INPUT] = embedder(samples)
        found.append(feed)
    return found


def export_run(
    path: Path,
    data: Path,
    out: Path,
    variants: tuple[Variant, ...],
    about: dict[str, str],
    *,
    cache: Path,
    embedding: Embedding | None = None,
    policy: Policy = "threshold",
    note: str = "",
    skip_bad: bool = False,
) -> None:
    """Export a run, score the bundle just written on the validate recordings, and state the figures in it.

    `note` is for whoever reads the manifest: what its figures do not say.

    Raises:
        InputError: the run is not complete, the embedding lacks a variant, or the data cannot be read.
        OutputError: `out` cannot be written.
    """
    run = read_run(path)
    check_embedding(run, embedding)
    if embedding and (missing := set(variants) - embedding.paths.keys()):
        raise InputError(f"the embedding has no {missing.pop()} variant; make it anew")
    open_dataset(data, ["validate"], skip_bad=skip_bad)  # nothing is written that could not be scored
    recipe = run.recipe
    prepared = prepare(
        recipe.data,
        data,
        cache,
        embedding=embedding and embedding.paths["fp32"],
        validated=False,
        skip_bad=skip_bad,
    )
    if prepared.about["digest"] != run.provenance["data"]["digest"]:
        log.warning("the run was fitted on other windows: calibration, priors and counts are of these")
    street = read_labels(data).of_split("train").binary()
    heard = street if recipe.data.n_scenes else street[:0]  # scenes have class priors of their own
    with writing(out):
        manifest = write_bundle(run, out, prepared.train, heard, variants, about, embedding, policy)
    tagger = Tagger.load(out)
    metrics = score_bundle(tagger, data, "validate", skip_bad=skip_bad)
    if recipe.data.n_scenes:
        seed = recipe.data.seed + recipe.data.n_scenes
        metrics["held_out_clips"] = score_scenes(tagger, data, recipe.data.scenes, seed)
    provenance = {
        "recipe": msgspec.to_builtins(recipe),
        "run": run.provenance,
        "data": describe(data, with_clips=hears_clips(recipe.data, data)),
        "note": note,
    }
    manifest = msgspec.structs.replace(manifest, metrics=metrics, training=provenance)
    with writing(out):
        write_manifest(manifest, out)
    log.info("bundle written", out=str(out), **metrics)


def write_manifest(manifest: Manifest, out: Path) -> None:
    """Write `bundle.yaml`."""
    text = yaml.safe_dump(msgspec.to_builtins(manifest), sort_keys=False, allow_unicode=True, width=100)
    (out / MANIFEST_NAME).write_text(text, encoding="utf-8")


def golden_windows() -> NDArray[np.int16]:
    """A busy and a quiet part of the project's own synthetic street. Shape: [2, 441000]"""
    street = street_scene(seed=1).samples
    windows = []
    for start_s, gain in zip(GOLDEN_START_S, GOLDEN_ATTENUATION, strict=True):
        start = start_s * SAMPLE_RATE_HZ
        windows.append(np.round(street[start : start + WINDOW_SAMPLES] * (gain * 32767)).astype(np.int16))
    return np.stack(windows)


def _export_net(
    net: TaggingNet,
    shift: NDArray[np.float32],
    stem: Path,
    calibration: Sequence[Feed],
    variants: tuple[Variant, ...],
) -> dict[Variant, File]:
    paths: dict[Variant, Path] = {v: stem.with_name(f"{stem.name}.{v}.onnx") for v in VARIANTS}
    export_fp32(net, shift, paths["fp32"])
    if "int8" in variants:
        quantise(paths["fp32"], paths["int8"], calibration, _first_and_last)
    if "fp32" not in variants:
        paths["fp32"].unlink()
    log.info("exported", net=stem.name, **{v: f"{paths[v].stat().st_size / 1e6:.2f} MB" for v in variants})
    return {v: file_entry(paths[v]) for v in variants}


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
