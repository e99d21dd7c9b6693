"""Loading a bundle: whatever is not exactly what the manifest states is refused with one sentence."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from edgetag import Tagger
from edgetag.contract.errors import BundleError
from edgetag.contract.manifest import VARIANTS, Variant
from edgetag.tagging.bundle import OnnxNet, load_bundle
from fakes_bundle import constant_net, edit_manifest, file_entry, write_bundle

ROOT_37 = [0.9] + [0.1] * 36
BRANCH_1 = [0.7, 0.1, 0.1, 0.1]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", ROOT_37, {"1": BRANCH_1})


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def swap_root(path: Path, data: bytes) -> None:
    """Another root net, with its true hash in the manifest."""
    (path / "root.onnx").write_bytes(data)
    edit_manifest(path, root={"outputs": 37, "variants": {"fp32": file_entry(path / "root.onnx")}})


def test_a_whole_bundle_loads(bundle: Path) -> None:
    """The base of every case below is accepted."""
    loaded = load_bundle(bundle)
    assert loaded.variant == "fp32"
    assert loaded.model.startswith("constant@sha256:")
    assert set(loaded.branches) == {"1"}


def test_a_net_keeps_no_copy_of_its_file() -> None:
    data = constant_net(ROOT_37)
    n_references = sys.getrefcount(data)
    net = OnnxNet(data, "net")
    assert sys.getrefcount(data) == n_references
    assert net.outputs == {"probability": (1, 37)}


def test_a_bundle_that_has_passed_needs_no_golden_windows(bundle: Path) -> None:
    """They are its greatest part in memory but for the nets; all else stays."""
    loaded = Tagger.load(bundle).bundle
    lean = loaded.without_windows()
    assert lean.golden.pcm.base is None
    assert lean.golden.pcm.shape == (0, 441_000)
    assert (lean.model, lean.nets, lean.golden.expected) == (
        loaded.model,
        loaded.nets,
        loaded.golden.expected,
    )


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped byte in the root": (
        lambda p: flip_a_byte(p / "root.onnx"),
        "root.onnx is damaged or was altered",
    ),
    "a flipped byte in a branch": (lambda p: flip_a_byte(p / "branch-1.onnx"), "branch-1.onnx is damaged"),
    "a flipped byte in the golden": (lambda p: flip_a_byte(p / "golden.npz"), "golden.npz is damaged"),
    "a truncated net": (lambda p: (p / "root.onnx").write_bytes(b"\x08"), "root.onnx is truncated: 1 of"),
    "a missing branch file": (lambda p: (p / "branch-1.onnx").unlink(), "branch-1.onnx is missing"),
    "no manifest": (lambda p: (p / "bundle.yaml").unlink(), "bundle.yaml is missing"),
    "an empty manifest": (lambda p: (p / "bundle.yaml").write_text(""), "format 'NoneType'"),
    "a manifest that is no YAML": (lambda p: (p / "bundle.yaml").write_text("{"), "is not YAML"),
    "a binary manifest": (lambda p: (p / "bundle.yaml").write_bytes(b"\xff\xfe\x00"), "is not YAML"),
    "an unknown format version": (lambda p: edit_manifest(p, format="edgetag.bundle/2"), "edgetag.bundle/2"),
    "an unknown key": (lambda p: edit_manifest(p, colour="red"), "colour"),
    "a wrong label count": (
        lambda p: edit_manifest(
            p, root={**yaml.safe_load((p / "bundle.yaml").read_text())["root"], "outputs": 36}
        ),
        "36 outputs",
    ),
    "a label count the net does not have": (
        lambda p: edit_manifest(
            p, root={**yaml.safe_load((p / "bundle.yaml").read_text())["root"], "outputs": 8}
        ),
        "'probability' 1×8",
    ),
    "a net that is no ONNX": (lambda p: swap_root(p, b"not a net"), "not an ONNX net"),
    "a net of 8 outputs behind 37": (lambda p: swap_root(p, constant_net([0.1] * 8)), "'probability' 1×37"),
    "a net that wants an embedding": (
        lambda p: swap_root(p, constant_net(ROOT_37, embedding=True)),
        "takes 'embedding'",
    ),
    "a path that leaves the directory": (
        lambda p: edit_manifest(
            p, golden={"file": "../golden.npz", "size": 1, "sha256": "0" * 64, "tolerance": {"fp32": 0.001}}
        ),
        "plain file name",
    ),
    "a golden that is none": (
        lambda p: (
            (p / "golden.npz").write_bytes(b"PK")
            and edit_manifest(p, golden=file_entry(p / "golden.npz") | {"tolerance": {"fp32": 0.001}})
        ),
        "no golden windows",
    ),
}


@pytest.mark.parametrize(("damage", "sentence"), CASES.values(), ids=CASES.keys())
def test_a_damaged_bundle_is_refused_with_one_sentence(
    bundle: Path, damage: Callable[[Path], object], sentence: str
) -> None:
    """Never a traceback, never half a bundle."""
    damage(bundle)
    with pytest.raises(BundleError) as refusal:
        load_bundle(bundle)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_symbolic_link_is_refused(bundle: Path) -> None:
    """A bundle holds plain files only."""
    (bundle / "root.onnx").rename(bundle.parent / "elsewhere.onnx")
    (bundle / "root.onnx").symlink_to(bundle.parent / "elsewhere.onnx")
    with pytest.raises(BundleError, match="symbolic link"):
        load_bundle(bundle)


def test_a_file_is_no_bundle(tmp_path: Path) -> None:
    """A bundle is a folder, or an archive that was packed from one."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="no archive of a bundle"):
        load_bundle(tmp_path / "file")


def test_a_variant_that_is_not_there_is_refused(bundle: Path) -> None:
    """The sentence names those that are."""
    with pytest.raises(BundleError, match="no int8 variant, only fp32"):
        load_bundle(bundle, "int8")


def test_a_golden_mismatch_says_by_how_much(tmp_path: Path) -> None:
    """A net that no longer says what it said when the bundle was made is not trusted."""
    path = write_bundle(tmp_path, ROOT_37, golden_root=[0.5] + [0.1] * 36)
    with pytest.raises(BundleError, match=r"root differs by 0\.4000"):
        Tagger.load(path)


def test_an_embedding_bundle_hears_through_its_embedding(tmp_path: Path) -> None:
    """Patches reach the embedding net and its output the root: silence reads log(0.01) there."""
    logit = np.log(0.01)  # the golden window is silence: every patch is log(0.01), so is their mean
    silence = 1 / (1 + np.exp(-(np.log(np.float64(0.5) / 0.5) + logit)))
    path = write_bundle(tmp_path, [0.5] * 37, embedding=True, golden_root=[silence] * 37)
    tagger = Tagger.load(path)
    noise = np.random.default_rng(0).normal(0, 0.1, 441_000).astype(np.float32)
    assert tagger.analyse(noise).coarse["1"] > 2 * silence


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_bundle_that_ships_is_whole(variant: Variant) -> None:
    """Hashes, shapes, golden windows of both variants; 37 outputs, and a branch for all categories that have
    several kinds but one, of which there was too little to learn from."""
    tagger = Tagger.load(variant=variant)
    assert tagger.bundle.manifest.root.outputs == 37
    assert tuple(tagger.bundle.branches) == tuple(id for id in tagger.taxonomy.branch_ids if id != "2")
    assert set(tagger.golden_differences) == set(tagger.bundle.nets)


def test_the_bundle_that_ships_is_small() -> None:
    """Its int8 nets have at most 10 MB; they are taken unless somebody asks."""
    bundle = Tagger.load().bundle
    assert bundle.variant == "int8"
    assert sum(variants["int8"].size for variants in bundle.manifest.nets.values()) <= 10_000_000


def test_the_bundle_that_ships_says_what_eight_bits_cost() -> None:
    """Within the limits of an export: no limit was overridden."""
    parity = Tagger.load().bundle.manifest.parity
    assert parity is not None
    assert parity.exceeded == []
    for level, most in ("coarse", 0.005), ("fine", 0.01):
        micro_auprc = parity.levels[level].micro_auprc
        assert micro_auprc["fp32"] - micro_auprc["int8"] <= most


def test_the_bundle_that_ships_says_what_it_is() -> None:
    """Provenance, licence and the figures it scored, on what."""
    manifest = Tagger.load().bundle.manifest
    assert manifest.licence
    assert manifest.training["data"]["street_recordings"] > 0
    assert manifest.metrics["coarse_micro_auprc"] > 0.514  # the class prior's, on the same recordings
    assert manifest.metrics["recordings"] == 63
