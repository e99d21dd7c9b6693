"""From a run to a bundle: ONNX nets (fp32, int8), golden windows, what eight bits cost, manifest.

The exporter folds batch norm into the layer before it. The sigmoid is inside the graph, so that a net's
output is a probability. The int8 nets are held against the fp32 nets they were made from, as a sensor runs
both; where too much is lost, more layers stay in float, and where that does not help, nothing is written.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import structlog
import torch
from numpy.typing import NDArray

from edgetag.contract.errors import EdgetagError, InputError
from edgetag.contract.manifest import (
    EMBEDDING_INPUT,
    EMBEDDING_SHAPE,
    LOGMEL_INPUT,
    LOGMEL_SHAPE,
    MANIFEST_NAME,
    OUTPUT,
    SIGNATURE_NAME,
    VARIANTS,
    Cascade,
    Manifest,
    Parity,
    Policy,
    Variant,
)
from edgetag.tagging.bundle import OnnxNet
from edgetag.tagging.tagger import Tagger
from edgetag_train.calibration import Calibration, draw
from edgetag_train.data.dataset import open_dataset, read_dataset_taxonomy, read_labels
from edgetag_train.data.features import Windows
from edgetag_train.data.sounds import describe
from edgetag_train.data.training import TrainingData, hears_clips, prepare
from edgetag_train.deploy import Deployed, prior_shift
from edgetag_train.draft import GOLDEN_TOLERANCE, Draft, golden_feeds, golden_windows
from edgetag_train.embedding import Embedding
from edgetag_train.evaluate import (
    Scored,
    bundle_scores,
    quiet_scores,
    report,
    scene_report,
    scene_scores,
)
from edgetag_train.fit.run import (
    ROOT,
    Run,
    branches_of,
    check_embedding,
    check_taxonomy,
    chosen_root,
    load_net,
    read_run,
)
from edgetag_train.folder import check_room, replaced
from edgetag_train.models.cnn import TaggingNet
from edgetag_train.onnx_net import Feed, hasten, quantise, save_onnx
from edgetag_train.parity import golden_difference, measure

log = structlog.get_logger("edgetag.train")
SPLIT = "validate"
SCENES = "scenes of held-out clips"
FLOAT_LAYERS = ((1, 1), (2, 1), (2, 2))
"""How many of the first and of the last layers stay in float: what is tried, from fast to near. The first
convolution and the last layer cost no time in float, and take a third off the difference. The second
convolution halves it for a tenth more time; one more last layer is 2.7 MB a system. With its third
convolution in float a Table 1 net is no faster than in fp32, so that is not tried."""


@dataclass(frozen=True)
class _Judges:
    """What a bundle is asked about: the recordings of the split `validate`, and held-out scenes."""

    run: Run
    data: Path
    skip_bad: bool

    def ask(self, bundle: Path, variant: Variant) -> dict[str, Scored]:
        """Truth and scores by what was asked about."""
        tagger = Tagger.load(bundle, variant)
        scored = {SPLIT: bundle_scores(tagger, self.data, SPLIT, skip_bad=self.skip_bad)}
        settings = self.run.recipe.data
        scenes = scene_scores(tagger, self.data, settings.scenes, settings.seed + settings.n_scenes)
        return scored if scenes is None else scored | {SCENES: scenes}


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
    force: bool = False,
) -> Manifest:
    """Export a run and state in the bundle how it scores on the validate recordings, and what int8 costs.

    Branches that the run does not hold are not in the bundle. Until all is well `out` stays as it was.

    Args:
        path: the run.
        data: what it was trained on, and is judged by.
        out: the bundle: absent, empty, or an older bundle.
        variants: which ones ship; int8 is held against fp32 even if it ships alone.
        about: version, licence and summary.
        cache: where features are kept.
        embedding: the embedding net of the run, if its nets take one.
        policy: when a branch fires on the sensor; the recipe's own is what it was evaluated under.
        note: for whoever reads the manifest: what its figures do not say.
        skip_bad: leave out recordings that are missing or unreadable.
        force: write the bundle even if int8 costs more than the limits of `parity`; it is stated then.

    Returns:
        What the bundle states, as a sensor reads it.

    Raises:
        InputError: the run is not complete or tells other tags than the data's, the embedding lacks a
            variant, the data cannot be read, `out` holds other files than a bundle's, or int8 costs too much.
        OutputError: `out` cannot be written.
    """
    run = read_run(path)
    check_taxonomy(run, read_dataset_taxonomy(data))
    check_embedding(run, embedding)
    needed = {*variants, "fp32"}
    if embedding and (missing := sorted(needed - embedding.paths.keys())):
        raise InputError(f"the embedding has no {missing[0]} variant; make it anew")
    check_room(out, "bundle", MANIFEST_NAME, _is_bundles)
    open_dataset(data, [SPLIT], skip_bad=skip_bad)  # what could not be scored is not begun
    nets = _nets(run)
    prepared = _prepared(run, data, cache, embedding, skip_bad=skip_bad)
    judges = _Judges(run, data, skip_bad)
    cascade = Cascade(policy, run.recipe.cascade.threshold)
    thresholds = run.recipe.thresholds_of(run.taxonomy)
    stated = {
        "name": run.recipe.name,
        "fusion": run.recipe.fusion,
        "cascade": cascade,
        "thresholds": thresholds,
        **about,
    }
    with replaced(out) as folder:
        draft = Draft(
            folder, {name: len(run.outputs(name)) for name in nets}, run.taxonomy, embedding, stated
        )
        _write_fp32(draft, run, nets, _shift(run, data, prepared.train))
        draft.state(("fp32",))
        scored = {"fp32": judges.ask(folder, "fp32")}
        parity = None
        if "int8" in variants:
            calibration = draw(prepared.train, run.recipe.seed, run.taxonomy)
            parity, scored["int8"] = _write_int8(draft, calibration, judges, scored["fp32"])
            _refuse_or_warn(parity, force=force)
        metrics = _metrics(scored[variants[-1]], thresholds)
        if quiet := _quiet_hour(folder, variants[-1], run, data):
            metrics["false_alarms_in_an_hour_of_background"] = quiet
        for net in nets:
            hasten(draft.path(net, "fp32"))  # till it is stated anew, nothing loads the bundle
        for variant in set(VARIANTS) - set(variants):
            draft.drop(variant)
        draft.state(variants, metrics=metrics, parity=parity, training=_training(run, data, note))
        for variant in variants:
            manifest = Tagger.load(folder, variant).bundle.manifest
    return manifest


def _nets(run: Run) -> dict[str, str]:
    """By name in the bundle, the checkpoint of each net that the run holds."""
    nets = {ROOT: chosen_root(run.recipe)} | {name: name for name in branches_of(run)}
    for checkpoint in nets.values():
        load_net(run, checkpoint)  # before anything is computed
    return nets


def _prepared(
    run: Run, data: Path, cache: Path, embedding: Embedding | None, *, skip_bad: bool
) -> TrainingData:
    prepared = prepare(
        run.recipe.data,
        data,
        cache,
        embedding=embedding and embedding.paths["fp32"],
        validated=False,
        skip_bad=skip_bad,
    )
    if prepared.about["digest"] != run.provenance["data"]["digest"]:
        log.warning("the run was fitted on other windows: calibration, priors and counts are of these")
    return prepared


def _shift(run: Run, data: Path, windows: Windows) -> NDArray[np.float32]:
    """Of the root's logits. A branch speaks of windows that its category is in, so it has none."""
    street = read_labels(data).of_split("train").binary()
    if not run.recipe.data.n_scenes or not len(street):  # only scenes have class priors of their own
        return np.zeros(len(run.outputs(ROOT)), np.float32)
    shift = prior_shift(windows.labels, street, run.outputs(ROOT), run.taxonomy)
    if run.recipe.data.teacher_share:  # which speaks for the street already
        shift[run.taxonomy.columns["coarse"]] = 0
    return shift


def _write_fp32(draft: Draft, run: Run, nets: dict[str, str], shift: NDArray[np.float32]) -> None:
    golden = golden_feeds(golden_windows(), draft.embedding, "fp32")
    for name, checkpoint in nets.items():
        net = load_net(run, checkpoint)
        shapes: dict[str, tuple[int, ...]] = {LOGMEL_INPUT: LOGMEL_SHAPE}
        if net.fusion != "none":
            shapes[EMBEDDING_INPUT] = EMBEDDING_SHAPE
        moved = shift if name == ROOT else np.zeros(len(run.outputs(name)), np.float32)
        save_onnx(Deployed(net, moved), shapes, OUTPUT, draft.path(name, "fp32"))
        check_fp32(net, moved, OnnxNet(draft.path(name, "fp32").read_bytes(), name), golden)
    if draft.embedding is not None:
        for variant, file in draft.embedding.paths.items():
            shutil.copyfile(file, draft.path("embedding", variant))


@torch.inference_mode()
def check_fp32(net: TaggingNet, shift: NDArray[np.float32], exported: OnnxNet, golden: list[Feed]) -> None:
    """Whether the exporter has written the net that was trained.

    Raises:
        EdgetagError: it says something else of a golden window.
    """
    for feed in golden:
        trained = torch.sigmoid(net(*map(torch.from_numpy, feed.values())) + torch.from_numpy(shift)).numpy()
        if not (difference := np.abs(exported(feed) - trained).max()) <= GOLDEN_TOLERANCE["fp32"]:
            raise EdgetagError(
                f"the exported net differs by {difference:.4f} from the trained one on a golden window; "
                "install the versions of torch, onnx and onnxruntime that constraints.txt names"
            )


def _write_int8(
    draft: Draft, calibration: Calibration, judges: _Judges, fp32: dict[str, Scored]
) -> tuple[Parity, dict[str, Scored]]:
    """Keep as many layers in float as it takes for the limits, or the most there are to try."""
    for n_first, n_last in FLOAT_LAYERS:
        kept = {
            net: quantise(
                draft.path(net, "fp32"),
                draft.path(net, "int8"),
                calibration.feeds(),
                n_first=n_first,
                n_last=n_last,
            )
            for net in draft.nets
        }
        expected = draft.state(VARIANTS)
        int8 = judges.ask(draft.folder, "int8")
        parity = measure(fp32, int8, golden_difference(expected, draft.nets), _named(kept), calibration)
        log.info("int8", float_layers=kept[ROOT], **_sizes(draft), **_losses(parity))
        if not parity.exceeded:
            break
    return parity, int8


def _named(kept: dict[str, list[str]]) -> dict[str, list[str]]:
    """Layers as the model's own code names them."""
    return {net: [layer.removeprefix("net.") for layer in layers] for net, layers in kept.items()}


def _sizes(draft: Draft) -> dict[str, str]:
    total = {v: sum(draft.path(net, v).stat().st_size for net in draft.nets) for v in VARIANTS}
    return {f"{variant}_nets": f"{size / 1e6:.2f} MB" for variant, size in total.items()}


def _losses(parity: Parity) -> dict[str, float]:
    losses = {
        f"{level}_loss": round(judged.micro_auprc["fp32"] - judged.micro_auprc["int8"], 6)
        for level, judged in parity.levels.items()
    }
    return losses | {"golden_difference": parity.golden_difference}


def _refuse_or_warn(parity: Parity, *, force: bool) -> None:
    if not parity.exceeded:
        return
    said = f"int8 costs too much: {', and '.join(parity.exceeded)}"
    if not force:
        raise InputError(f"{said}; ship fp32 alone with --only fp32, or write it all the same with --force")
    log.warning(said)


def _quiet_hour(bundle: Path, variant: Variant, run: Run, data: Path) -> dict[str, int] | None:
    scores = quiet_scores(Tagger.load(bundle, variant), data, run.recipe.data.scenes)
    if scores is None:
        return None
    thresholds = run.recipe.thresholds_of(run.taxonomy)
    n_active = (scores > np.array(list(thresholds.values()), np.float32)).sum(axis=0).tolist()
    return {id: n for id, n in zip(thresholds, n_active, strict=True) if n}


def _metrics(scored: dict[str, Scored], thresholds: dict[str, float]) -> dict[str, Any]:
    judged = scored[SPLIT]
    metrics = report(judged.truth, judged.scores, judged.taxonomy, thresholds)
    if SCENES in scored:
        metrics["held_out_clips"] = scene_report(scored[SCENES])
    return metrics


def _training(run: Run, data: Path, note: str) -> dict[str, Any]:
    return {
        "recipe": msgspec.to_builtins(run.recipe),
        "run": run.provenance,
        "data": describe(data, with_clips=hears_clips(run.recipe.data, data)),
        "note": note,
    }


def _is_bundles(name: str) -> bool:
    return name in (MANIFEST_NAME, SIGNATURE_NAME) or name.endswith((".onnx", ".npz"))
