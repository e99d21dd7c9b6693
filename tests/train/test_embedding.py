"""An embedding folder holds what the sensor will run, and nothing that was altered since."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from edgetag.contract.errors import InputError, OutputError
from edgetag.demo.scene import street_scene
from edgetag.tagging.bundle import OnnxNet
from edgetag.tagging.embedding import Embedder
from edgetag_train.data.patches import recorded_patches, street_patches, to_patches
from edgetag_train.embedding import Embedding, export_embedding, export_vggish, read_embedding
from fakes_bundle import file_entry

RATE_HZ = 44_100


class Small(nn.Module):
    """VGGish in little: a convolution, a pool, the same flattening, a layer, the same eight bits."""

    def __init__(self, n_outputs: int = 128) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 8, 8, stride=8)
        self.hidden = nn.Linear(6 * 4 * 8, 64)
        self.whitening = nn.Linear(64, n_outputs, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        maps = torch.max_pool2d(torch.relu(self.convolution(patches.unsqueeze(1))), 2)
        hidden = torch.relu(self.hidden(maps.permute(0, 2, 3, 1).flatten(1)))
        return torch.floor((self.whitening(hidden).clamp(-2, 2) + 2) * (255 / 4))


@pytest.fixture(scope="module")
def net() -> Small:
    torch.manual_seed(0)
    return Small().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def calibration() -> NDArray[np.float32]:
    return street_patches(seed=0)


@pytest.fixture(scope="module")
def exported(
    net: Small, calibration: NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory
) -> Embedding:
    out = tmp_path_factory.mktemp("embedding") / "new"
    return export_embedding(net, out, kind="small", source="a test", calibration=calibration)


@pytest.fixture
def folder(exported: Embedding, tmp_path: Path) -> Path:
    """A copy to do harm to."""
    for file in exported.paths["fp32"].parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


# -- what is written ---------------------------------------------------------------------------------------


def test_what_was_exported_is_read(exported: Embedding) -> None:
    folder = exported.paths["fp32"].parent
    assert read_embedding(folder) == exported
    assert (exported.kind, exported.source) == ("small", "a test")
    assert sorted(file.name for file in folder.iterdir()) == [
        "embedding.fp32.onnx",
        "embedding.int8.onnx",
        "embedding.yaml",
    ]


@pytest.mark.parametrize(("variant", "tolerance"), [("fp32", 0.01), ("int8", 1)])
def test_the_sensor_runs_it(net: Small, exported: Embedding, variant: str, tolerance: float) -> None:
    """The sensor's embedder gives of a window what the net gives of its patches; int8 nearly."""
    window = street_scene(seed=1).samples[: 10 * RATE_HZ]
    embedder = Embedder(OnnxNet(exported.paths[variant].read_bytes(), variant))
    expected = net(torch.from_numpy(to_patches(window))[0]).numpy()[None]
    found = embedder(window)
    assert found.shape == (1, 10, 128)
    assert found.dtype == np.float32
    assert np.abs(found - expected).mean() < tolerance
    assert expected.std() > 5 * tolerance


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_each_patch_by_itself(exported: Embedding, calibration: NDArray[np.float32], variant: str) -> None:
    """Any number of patches goes in, and what comes out of one does not depend on the others."""
    net = OnnxNet(exported.paths[variant].read_bytes(), variant)
    whole = net({"patches": calibration[0]})
    for n in range(1, 10):
        np.testing.assert_allclose(net({"patches": calibration[0, -n:]}), whole[-n:], rtol=0, atol=1)
        assert (net({"patches": calibration[0, -n:]}) == whole[-n:]).mean() > 0.99


def test_int8_keeps_the_last_layer(exported: Embedding) -> None:
    """The others have weights of eight bits; the post-processing has floats, in and out."""
    graph = onnx.load(exported.paths["int8"]).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    weighted = [node for node in graph.node if node.op_type in {"Conv", "Gemm", "MatMul"}]
    assert [made_by.get(node.input[1]) for node in weighted] == ["DequantizeLinear", "DequantizeLinear", None]
    after = list(graph.node)[list(graph.node).index(weighted[-1]) :]
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in after}


def test_what_int8_costs_is_stated(exported: Embedding, calibration: NDArray[np.float32]) -> None:
    """In steps of 0…255, on the windows that it was calibrated on; without int8 there is nothing to state."""
    stated = yaml.safe_load((exported.paths["fp32"].parent / "embedding.yaml").read_bytes())
    nets = (OnnxNet(exported.paths[variant].read_bytes(), variant) for variant in ("fp32", "int8"))
    fp32, int8 = (np.stack([net({"patches": patches}) for patches in calibration]) for net in nets)
    assert stated["int8_difference"] == {
        "max": pytest.approx(np.abs(int8 - fp32).max(), abs=1e-3),
        "mean": pytest.approx(np.abs(int8 - fp32).mean(), abs=1e-3),
    }


def test_nothing_tells_where_it_was_made(exported: Embedding) -> None:
    for path in exported.paths.values():
        assert str(Path.cwd()).encode() not in path.read_bytes()
        assert b".py" not in path.read_bytes()


def test_an_older_embedding_makes_room(net: Small, calibration: NDArray[np.float32], folder: Path) -> None:
    """Nothing of it is left."""
    new = export_embedding(net, folder, kind="b", source="", calibration=calibration, int8=False)
    assert new.paths.keys() == {"fp32"}
    assert sorted(file.name for file in folder.iterdir()) == ["embedding.fp32.onnx", "embedding.yaml"]
    assert read_embedding(folder) == new


def test_other_folders_are_left_alone(net: Small, calibration: NDArray[np.float32], tmp_path: Path) -> None:
    (tmp_path / "thesis.odt").touch()
    with pytest.raises(InputError, match=r"holds thesis\.odt, which no embedding does"):
        export_embedding(net, tmp_path, kind="", source="", calibration=calibration)
    with pytest.raises(OutputError, match="cannot be written"):
        export_embedding(net, tmp_path / "thesis.odt" / "x", kind="", source="", calibration=calibration)


# -- what is refused ---------------------------------------------------------------------------------------


def _other_shape(folder: Path) -> None:
    """A net of 64 values a patch, with its own hash."""
    torch.manual_seed(0)
    made = export_embedding(Small(64), folder, kind="", source="", calibration=np.empty(0), int8=False)
    assert made.paths.keys() == {"fp32"}


def _states(**changed: object) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        stated = yaml.safe_load((folder / "embedding.yaml").read_text()) | changed
        (folder / "embedding.yaml").write_text(yaml.safe_dump(stated))

    return write


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            lambda folder: (folder / "embedding.yaml").unlink(),
            "make an embedding with: edgetag train embedding",
        ),
        (lambda folder: (folder / "embedding.yaml").write_text("{"), "states no embedding"),
        (lambda folder: (folder / "embedding.yaml").write_bytes(b"\xff"), "states no embedding"),
        (lambda folder: (folder / "embedding.yaml").write_text("- 1"), "states no embedding"),
        (_states(format="edgetag.embedding/2"), "format"),
        (_states(variants={}), "length >= 1"),
        (_states(variants={"fp16": {}}), "fp16"),
        (
            _states(variants={"int8": {"file": "embedding.int8.onnx", "size": 1, "sha256": "0" * 64}}),
            "no fp32",
        ),
        (_states(variants={"fp32": {"file": "../x.onnx", "size": 1, "sha256": "0" * 64}}), "plain file name"),
        (lambda folder: (folder / "embedding.int8.onnx").unlink(), r"int8\.onnx cannot be read"),
        (lambda folder: (folder / "embedding.fp32.onnx").write_bytes(b""), r"fp32\.onnx is damaged"),
        (
            _states(variants={"fp32": {"file": "embedding.yaml", "size": 1, "sha256": "0" * 64}}),
            r"embedding\.yaml states 000000000000…",
        ),
        (_other_shape, r"'embedding' n×64; an embedding .* 'embedding' n×128 or .* 10×128"),
    ],
)
def test_a_folder_that_was_altered(folder: Path, harm: Callable[[Path], None], message: str) -> None:
    harm(folder)
    with pytest.raises(InputError, match=message) as raised:
        read_embedding(folder)
    assert "\n" not in str(raised.value)


def test_what_is_no_net(folder: Path) -> None:
    """Its hash is right, but no runtime can load it."""
    (folder / "note.onnx").write_bytes(b"no")
    _states(variants={"fp32": file_entry(folder / "note.onnx")})(folder)
    with pytest.raises(InputError, match=r"note\.onnx is not an ONNX net"):
        read_embedding(folder)


# -- calibration, and the command ----------------------------------------------------------------------------


def test_recordings_to_calibrate_on(tmp_path: Path) -> None:
    """The first ten seconds of files spread over the folder; shorter ones say nothing."""
    rng = np.random.default_rng(0)
    for k in range(5):
        soundfile.write(tmp_path / f"{k}.wav", rng.normal(0, 0.1, 11 * RATE_HZ), RATE_HZ)
    (tmp_path / "notes.txt").touch()
    soundfile.write(tmp_path / "short.flac", np.zeros(RATE_HZ), RATE_HZ)
    assert recorded_patches(tmp_path, 48).shape == (5, 10, 96, 64)
    assert recorded_patches(tmp_path, 3).shape == (3, 10, 96, 64)
    with pytest.raises(InputError, match="holds no recording of 10 s"):
        recorded_patches(tmp_path / "nowhere", 48)
    (tmp_path / "0.wav").write_text("no")
    with pytest.raises(InputError, match="cannot be read as audio"):
        recorded_patches(tmp_path, 48)


def test_windows_follow_each_other() -> None:
    """Two windows of 25 s; each has the patches it has alone."""
    samples = street_scene(seed=1).samples[: 25 * RATE_HZ]
    patches = to_patches(samples)
    assert patches.shape == (2, 10, 96, 64)
    np.testing.assert_array_equal(patches[1:], to_patches(samples[10 * RATE_HZ :]))


def test_weights_or_a_seed(tmp_path: Path) -> None:
    """Either both files, or a seed."""
    for weights, pca, seed in [(None, None, None), (tmp_path, None, None), (tmp_path, tmp_path, 0)]:
        with pytest.raises(InputError, match="--weights and --pca, or --random"):
            export_vggish(tmp_path / "out", weights, pca, seed=seed, calibrate=None)
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path: Path) -> None:
    """One sentence for files that are not there."""
    arguments = ["train", "embedding", str(tmp_path / "out"), "--weights", "a.pth", "--pca", "b.pth"]
    ended = subprocess.run(
        [sys.executable, "-m", "edgetag", *arguments], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == InputError.exit_code
    assert ended.stderr == "edgetag: b.pth cannot be read (No such file or directory)\n"
