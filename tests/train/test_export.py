"""A bundle is the model that was evaluated: its fp32 nets to the digit, its int8 nets within limits."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgetag import Tagger
from edgetag.contract.errors import EdgetagError, InputError, OutputError
from edgetag.contract.manifest import EMBEDDING_INPUT, EMBEDDING_SHAPE, LOGMEL_INPUT, LOGMEL_SHAPE, OUTPUT
from edgetag.contract.taxonomy import SONYC_UST
from edgetag.tagging.bundle import OnnxNet
from edgetag_train.calibration import Calibration, draw
from edgetag_train.data.features import Windows
from edgetag_train.data.training import prepare
from edgetag_train.deploy import Deployed, Products
from edgetag_train.evaluate import Scored
from edgetag_train.export import check_fp32, export_run
from edgetag_train.fit.run import load_net, read_run
from edgetag_train.fit.system import fit_system
from edgetag_train.folder import check_room, replaced
from edgetag_train.models.cnn import Fusion, TaggingNet
from edgetag_train.onnx_net import OPSET, Feed, quantise, save_onnx
from edgetag_train.parity import measure
from edgetag_train.recipe import read_recipe
from fakes_dataset import write_streets

N_TAGS = len(SONYC_UST.ids)
ABOUT = {"version": "1", "licence": "MIT", "summary": "tiny"}
TINY = (
    *("root.table=2", "root.precision=float32", "root.epochs=1", "branch.epochs=1"),
    *("root.batch=4", "branch.batch=4", "data.augmentation.variants=0"),
)
FINE = ("1-1", "1-2", "1-3", "1-X")


# -- the graph ---------------------------------------------------------------------------------------------


def trained(fusion: Fusion) -> TaggingNet:
    """A Table 2 net that has seen a few windows, so that its batch norms do something."""
    torch.manual_seed(0)
    net = TaggingNet(2, 4, fusion=fusion, conv_dropout=0, fc_dropout=0)
    for feed in feeds(8, fusion):
        net(*(torch.from_numpy(value).repeat(2, 1, 1, 1)[:, : value.shape[1]] for value in feed.values()))
    return net.eval()


def feeds(n: int, fusion: Fusion) -> list[Feed]:
    rng = np.random.default_rng(0)
    found: list[dict[str, np.ndarray]] = []
    for _ in range(n):
        found.append({LOGMEL_INPUT: rng.normal(-40, 15, LOGMEL_SHAPE).clip(-80, 0).astype(np.float32)})
        if fusion != "none":
            found[-1][EMBEDDING_INPUT] = rng.integers(0, 256, EMBEDDING_SHAPE).astype(np.float32)
    return list(found)


def write_both(net: TaggingNet, folder: Path) -> tuple[Path, Path]:
    shapes = {LOGMEL_INPUT: LOGMEL_SHAPE}
    if net.fusion != "none":
        shapes[EMBEDDING_INPUT] = EMBEDDING_SHAPE
    fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
    save_onnx(Deployed(net, np.zeros(4, np.float32)), shapes, OUTPUT, fp32)
    quantise(fp32, int8, feeds(8, net.fusion), n_first=1, n_last=1)
    return fp32, int8


@pytest.fixture(scope="module", params=["none", "concat"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_both(trained(request.param), tmp_path_factory.mktemp("nets"))


def optimised(path: Path, folder: Path) -> onnx.GraphProto:
    """The graph that onnxruntime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx").graph


def test_a_file_has_fixed_shapes_and_names_and_no_history(written: tuple[Path, Path]) -> None:
    """Named float inputs, one output, one opset; nothing tells where it was made."""
    for path in written:
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)]
        net = OnnxNet(path.read_bytes(), path.name)
        known = {LOGMEL_INPUT: LOGMEL_SHAPE, EMBEDDING_INPUT: EMBEDDING_SHAPE}
        assert net.inputs == {name: known[name] for name in net.inputs}
        assert LOGMEL_INPUT in net.inputs
        assert net.outputs == {OUTPUT: (1, 4)}
        assert not model.metadata_props
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
        assert b".py" not in path.read_bytes()
        assert str(Path.cwd()).encode() not in path.read_bytes()


def test_batch_norm_is_folded(written: tuple[Path, Path], tmp_path: Path) -> None:
    for path in written:
        for graph in (onnx.load(path).graph, optimised(path, tmp_path)):
            assert "BatchNormalization" not in {node.op_type for node in graph.node}


def test_values_are_rounded_only_where_float_meets_int8(written: tuple[Path, Path], tmp_path: Path) -> None:
    """As the runtime executes it: whatever is quantised comes from a float layer or an input, whatever is
    dequantised goes to one, nothing is there and back again; eight-bit layers follow each other directly."""
    graph = optimised(written[1], tmp_path)
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    stems = {name: made_by.get(name, "input") for node in graph.node for name in node.input}
    eight_bit = {"DequantizeLinear", "QuantizeLinear", "QGemm", "QLinearConv", "NhwcMaxPool"}
    n_float = 0
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            assert stems[node.input[0]] not in eight_bit
        if node.op_type in {"Conv", "Gemm", "FusedConv", "FusedGemm"}:
            n_float += 1
        if node.op_type in {"Sigmoid", "Concat", "Conv", "Gemm", "FusedGemm"}:
            assert all(stems[name] not in eight_bit - {"DequantizeLinear"} for name in node.input)
    assert n_float == 2
    assert sum(node.op_type in {"QGemm", "QLinearConv"} for node in graph.node) == 7


def test_no_processor_saturates(written: tuple[Path, Path]) -> None:
    """Weights have seven bits: two products of eight-bit values fit the 16 bits in which AVX2 adds them."""
    quantised = [
        onnx.numpy_helper.to_array(constant)
        for constant in onnx.load(written[1]).graph.initializer
        if constant.name.endswith("weight_quantized")
    ]
    assert len(quantised) == 7
    assert 32 < max(np.abs(weights.astype(int)).max() for weights in quantised) <= 64
    assert 2 * 64 * 255 < 2**15


def test_the_layers_kept_are_named_as_in_the_model(tmp_path: Path) -> None:
    fp32, _ = write_both(trained("none"), tmp_path)
    some = feeds(1, "none")
    assert quantise(fp32, tmp_path / "a.onnx", some, n_first=1, n_last=2) == [
        "net.convolutions.0.0",
        "net.classifier.3",
        "net.classifier.7",
    ]
    assert quantise(fp32, tmp_path / "b.onnx", some) == []
    everything = quantise(fp32, tmp_path / "c.onnx", some, n_first=7, n_last=7)
    assert len(everything) == len(set(everything)) == 9


def test_a_bilinear_layer_is_quantised_and_means_the_same(tmp_path: Path) -> None:
    """Its weights, by far the largest, are eight bits in the file; batch norm is in them."""

    class Net(nn.Module):
        def __init__(self, fuse: nn.Module) -> None:
            super().__init__()
            self.fuse = fuse

        def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
            return torch.sigmoid(self.fuse(features, embedding))

    torch.manual_seed(0)
    bilinear, norm = nn.Bilinear(16, 80, 32), nn.BatchNorm1d(32)
    inputs = [(torch.rand(1, 16), torch.rand(1, 80) * 2 - 1) for _ in range(20)]
    norm.train()(bilinear(*(torch.cat(part) for part in zip(*inputs, strict=True))))
    norm.eval()
    fp32, int8 = tmp_path / "fp32.onnx", tmp_path / "int8.onnx"
    with torch.no_grad():
        save_onnx(Net(Products(bilinear, norm)), {"features": (1, 16), "embedding": (1, 80)}, OUTPUT, fp32)
        some = [{"features": a.numpy(), "embedding": b.numpy()} for a, b in inputs]
        quantise(fp32, int8, some)
        expected = [torch.sigmoid(norm(bilinear(a, b))).numpy() for a, b in inputs]
    for path, tolerance in ((fp32, 1e-5), (int8, 0.03)):
        net = OnnxNet(path.read_bytes(), path.name)
        np.testing.assert_allclose([net(feed) for feed in some], expected, atol=tolerance)
    assert int8.stat().st_size < fp32.stat().st_size / 3
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(fp32).graph.node}


def test_a_file_that_is_not_the_trained_net_is_refused(tmp_path: Path) -> None:
    """Whatever an exporter may get wrong: it is asked before anything is built upon it."""
    net, shift, some = trained("none"), np.zeros(4, np.float32), feeds(2, "none")
    exported = OnnxNet(write_both(net, tmp_path)[0].read_bytes(), "it")
    check_fp32(net, shift, exported, some)
    with pytest.raises(EdgetagError, match=r"differs by 0\..* from the trained one"):
        check_fp32(net, shift + 1, exported, some)


def test_the_same_net_gives_the_same_bytes(tmp_path: Path) -> None:
    """In another process, too, whose sets have another order."""
    here = write_both(trained("none"), tmp_path)
    (tmp_path / "there").mkdir()
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import test_export as t; "
        "t.write_both(t.trained('none'), Path(sys.argv[2]))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "there")],
        check=True,
        capture_output=True,
        timeout=240,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[1]), "PATH": ""},
    )
    for path in here:
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes()


# -- calibration -------------------------------------------------------------------------------------------


def windows(n: int, seed: int = 0) -> Windows:
    """Window k is steadier than window k + 1. Every tag but 8-1 is somewhere, 1-1 in one window only."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, N_TAGS)) < 0.05).astype(np.float32)
    labels[:N_TAGS] = np.maximum(labels[:N_TAGS], np.eye(N_TAGS))
    labels[:, 8] = np.arange(n) == n // 2
    labels[:, -1] = np.nan
    logmel = np.full((n, 128, 862), np.linspace(-5, -70, n)[:, None, None], np.float16)
    return Windows(logmel, labels)


def test_calibration_knows_every_tag_and_every_kind_of_scene() -> None:
    """Four windows of each tag, all of a rarer one; from the steadiest to the peakiest, and each decile."""
    all_windows = windows(300)
    drawn = draw(all_windows, 1, SONYC_UST)
    present = np.nansum(all_windows.labels, axis=0)
    for id, n in zip(SONYC_UST.ids, present, strict=True):
        assert min(4, n) <= drawn.counts[id] <= n
    assert drawn.counts["1-1"] == 1
    assert drawn.counts["8-1"] == 0
    assert {0, 299} <= set(drawn.rows)
    assert set(drawn.rows // 30) == set(range(10))
    assert len(set(drawn.rows)) == len(drawn.rows) == len(list(drawn.feeds()))


def test_calibration_is_drawn_by_its_seed() -> None:
    first, again, other = (draw(windows(300), seed, SONYC_UST) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.rows, again.rows)
    assert not np.array_equal(first.rows, other.rows)


# -- what eight bits cost ----------------------------------------------------------------------------------


def scored(scores: np.ndarray, fine: bool) -> Scored:
    """Two engines, one loud voice, over four windows."""
    truth = np.zeros((4, N_TAGS), np.float32)
    truth[:2, 0] = truth[3, 6] = 1
    truth[:, 8:] = np.nan
    if fine:
        truth[:, 8:] = 0
        truth[:2, 8] = 1
    return Scored(tuple("abcd"), truth, scores.astype(np.float32), SONYC_UST)


RIGHT = np.full((4, N_TAGS), 0.1)
RIGHT[:2, [0, 8]] = RIGHT[3, 6] = 0.9
WRONG = RIGHT.copy()
WRONG[1, 0], WRONG[2, 0] = 0.1, 0.9
CALIBRATION = Calibration(windows(N_TAGS), np.arange(2), {})


def test_a_level_is_judged_where_it_can_be() -> None:
    """Fine tags on scenes where the split has no fine labels; not at all where neither has."""
    split, scenes = scored(RIGHT, fine=False), scored(RIGHT, fine=True)
    both = {"validate": split, "scenes": scenes}
    found = measure(both, both, 0.0, {}, CALIBRATION)
    assert {level: one.judged_on for level, one in found.levels.items()} == {
        "coarse": "validate",
        "fine": "scenes",
    }
    assert not found.exceeded
    alone = measure({"validate": split}, {"validate": split}, 0.0, {}, CALIBRATION)
    assert alone.levels.keys() == {"coarse"}


def test_limits_are_named_with_their_figures() -> None:
    """An AUPRC that falls, a golden probability that moves; what gets better is no loss."""
    right, wrong = ({"validate": scored(scores, fine=True)} for scores in (RIGHT, WRONG))
    found = measure(right, wrong, 0.2, {}, CALIBRATION)
    coarse = found.levels["coarse"]
    assert coarse.max_difference == pytest.approx(0.8)
    assert coarse.class_auprc["1"]["int8"] < coarse.class_auprc["1"]["fp32"]
    falls, moves = found.exceeded
    fp32, int8 = (coarse.micro_auprc[variant] for variant in ("fp32", "int8"))
    assert f"coarse micro AUPRC on validate falls from {fp32:.4f} to {int8:.4f}, by more than 0.005" in falls
    assert "0.2000, more than 0.1" in moves
    assert not measure(wrong, right, 0.0, {}, CALIBRATION).exceeded


def test_a_difference_that_is_no_number_exceeds() -> None:
    same = {"validate": scored(RIGHT, fine=False)}
    assert measure(same, same, float("nan"), {}, CALIBRATION).exceeded


# -- the bundle --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_streets(folder, ("train",) * 6 + ("validate",) * 4, fine=FINE)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def run(data: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = read_recipe("hierarchical2_cnn", TINY)
    out = tmp_path_factory.mktemp("run")
    fit_system(recipe, prepare(recipe.data, data, cache), out)
    return out


@pytest.fixture(scope="module")
def hurt(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, with huge weights in the root's fourth convolution, for a channel that is always 0. In
    float they do nothing; in eight bits they set the scale, and every other weight rounds to 0."""
    out = tmp_path_factory.mktemp("hurt") / "run"
    shutil.copytree(run, out)
    (out / "branch-1.pt").unlink()
    path = out / "root-coarse.pt"
    state = torch.load(path, weights_only=True)
    weights = state["weights"]
    weights["convolutions.2.1.weight"][0], weights["convolutions.2.1.bias"][0] = 0, -1
    weights["convolutions.3.0.weight"][:, 0] = 1e5
    weights["classifier.7.weight"] *= 100
    torch.save(state, path)
    return out


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_both_variants_lie_side_by_side_with_their_parity(
    run: Path, data: Path, cache: Path, tmp_path: Path
) -> None:
    """Each passes its self-test; float nets are torch's; the manifest says what int8 costs."""
    export_run(run, data, tmp_path / "b", ("fp32", "int8"), ABOUT, cache=cache, force=True)
    nets = {"root", "branch-1"}
    files = {f"{net}.{variant}.onnx" for net in nets for variant in ("fp32", "int8")}
    assert names(tmp_path / "b") == {*files, "golden.npz", "bundle.yaml"}
    assert names(tmp_path) == {"b"}
    fp32, _ = Tagger.load(tmp_path / "b", "fp32"), Tagger.load(tmp_path / "b", "int8")
    logmel = np.random.default_rng(0).uniform(-80, 0, LOGMEL_SHAPE).astype(np.float32)
    with torch.inference_mode():
        expected = torch.sigmoid(load_net(read_run(run), "root-coarse")(torch.from_numpy(logmel)))
    np.testing.assert_allclose(fp32.bundle.root({LOGMEL_INPUT: logmel}), expected.numpy(), atol=1e-5)
    parity = fp32.bundle.manifest.parity
    assert parity is not None
    assert parity.levels["coarse"].judged_on == parity.levels["fine"].judged_on == "validate"
    assert parity.levels["coarse"].windows == 4
    assert {"convolutions.0.0", "classifier.7"} <= set(parity.float_layers["root"])
    assert parity.float_layers.keys() == nets
    assert parity.calibration_windows == 6
    assert (parity.calibration["1"], parity.calibration["5"], parity.calibration["4"]) == (3, 3, 0)


@pytest.mark.system
def test_the_same_export_gives_the_same_bytes(run: Path, data: Path, cache: Path, tmp_path: Path) -> None:
    """Nets, golden windows and manifest."""
    for name in ("a", "b"):
        export_run(run, data, tmp_path / name, ("fp32", "int8"), ABOUT, cache=cache, force=True)
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_one_variant_may_ship_alone(run: Path, data: Path, cache: Path, tmp_path: Path, variant: str) -> None:
    """int8 is held against fp32 all the same; for fp32 there is nothing to hold."""
    export_run(run, data, tmp_path, (variant,), ABOUT, cache=cache, force=True)
    assert {name for name in names(tmp_path) if name.endswith(".onnx")} == {
        f"root.{variant}.onnx",
        f"branch-1.{variant}.onnx",
    }
    manifest = Tagger.load(tmp_path).bundle.manifest
    assert manifest.variants == (variant,)
    assert (manifest.parity is not None) == (variant == "int8")


def test_a_manifest_is_of_the_nets_as_they_ship(data: Path, cache: Path, tmp_path: Path) -> None:
    """Table 1's large convolution is written in blocks once it has been scored, which changes the file."""
    recipe = read_recipe("cnn", ("root.epochs=1", "root.batch=4", "data.augmentation.variants=0"))
    fit_system(recipe, prepare(recipe.data, data, cache), tmp_path / "run")
    export_run(tmp_path / "run", data, tmp_path / "b", ("fp32",), ABOUT, cache=cache)
    Tagger.load(tmp_path / "b", "fp32")
    kernels = [
        tuple(attribute.ints)
        for node in onnx.load(tmp_path / "b" / "root.fp32.onnx").graph.node
        for attribute in node.attribute
        if attribute.name == "kernel_shape"
    ]
    assert (4, 8) in kernels
    assert (16, 128) not in kernels


def test_int8_that_costs_too_much_is_refused(hurt: Path, data: Path, cache: Path, tmp_path: Path) -> None:
    """The older bundle stays, byte for byte, and nothing lies beside it. By force it may go, and says so."""
    out = tmp_path / "bundle"
    out.mkdir()
    before = {"bundle.yaml": b"an older one", "root.int8.onnx": b"its net"}
    for name, content in before.items():
        (out / name).write_bytes(content)
    with pytest.raises(
        InputError, match=r"int8 costs too much: .* more than .*--only fp32.*--force"
    ) as raised:
        export_run(hurt, data, out, ("int8",), ABOUT, cache=cache)
    assert "\n" not in str(raised.value)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert names(tmp_path) == {"bundle"}
    export_run(hurt, data, out, ("fp32", "int8"), ABOUT, cache=cache, force=True)
    parity = Tagger.load(out, "int8").bundle.manifest.parity
    assert parity is not None
    assert parity.exceeded
    assert len(parity.float_layers["root"]) == 4  # as many as there were to try


def test_a_folder_that_holds_something_else_is_left_alone(
    run: Path, data: Path, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "thesis.odt").touch()
    with pytest.raises(InputError, match=r"thesis\.odt, which no bundle does"):
        export_run(run, data, tmp_path, ("int8",), ABOUT, cache=cache)
    with pytest.raises(OutputError, match="cannot be written"):
        export_run(run, data, tmp_path / "thesis.odt", ("int8",), ABOUT, cache=cache)
    assert names(tmp_path) == {"thesis.odt"}


def test_a_folder_changes_as_a_whole(tmp_path: Path) -> None:
    """What fails leaves the old one and nothing beside it; what succeeds leaves nothing of the old one."""
    out = tmp_path / "out"
    with replaced(out) as folder:
        (folder / "a.onnx").touch()
    with pytest.raises(ZeroDivisionError), replaced(out) as folder:
        (folder / "b.onnx").write_bytes(bytes(1 // 0))
    assert names(out) == {"a.onnx"}
    with replaced(out) as folder:
        (folder / "c.onnx").touch()
    assert names(out) == {"c.onnx"}
    assert names(tmp_path) == {"out"}
    with pytest.raises(InputError, match="holds no bundle"):
        check_room(out, "bundle", "bundle.yaml", lambda name: name.endswith(".onnx"))
