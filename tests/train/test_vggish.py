"""VGGish computes what was published, and takes no other weights for its own."""

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgetag.contract.errors import InputError
from edgetag_train.data.patches import street_patches
from edgetag_train.models.vggish import Vggish, from_tensorflow, random_vggish, read_vggish

PCA = ("pca_eigen_vectors", "pca_means")
PUBLISHED_LAYERS = [f"features.{k}" for k in (0, 3, 6, 8, 11, 13)] + [f"embeddings.{k}" for k in (0, 2, 4)]
TENSORFLOW_FIXTURE = Path(__file__).parent / "data" / "tf_v1.ckpt"


@pytest.fixture(scope="module")
def net() -> Vggish:
    return random_vggish(0)


@pytest.fixture(scope="module")
def patches() -> Tensor:
    """Ten patches of a street that `random_vggish` has not heard. Shape: [10, 96, 64]"""
    return torch.from_numpy(street_patches(seed=1)[2])


@pytest.fixture(scope="module")
def weights(net: Vggish, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The net's weights as the port's state dict: 288 MB."""
    path = tmp_path_factory.mktemp("vggish") / "weights"
    torch.save({key: tensor for key, tensor in net.state_dict().items() if key not in PCA}, path)
    return path


@pytest.fixture(scope="module")
def pca(net: Vggish) -> dict[str, NDArray[np.float64]]:
    """Its PCA parameters as Google's, in double precision and the means in a column."""
    return {
        "pca_eigen_vectors": net.pca_eigen_vectors.numpy().astype(np.float64),
        "pca_means": net.pca_means.numpy().astype(np.float64)[:, None],
    }


# -- the net ---------------------------------------------------------------------------------------------


def test_it_has_the_published_tensors(net: Vggish) -> None:
    """Keys of the state dict, and 72.1 million parameters."""
    expected = {f"{layer}.{kind}" for layer in PUBLISHED_LAYERS for kind in ("weight", "bias")}
    assert net.state_dict().keys() == expected | set(PCA)
    assert sum(parameter.numel() for parameter in net.parameters()) == 72_141_184


def test_maps_are_flattened_by_time_mel_and_channel(net: Vggish, patches: Tensor) -> None:
    """As TensorFlow's own order has it: the 12,288 inputs of the first layer are 6 × 4 × 512."""
    maps = net.features(patches[:2, None]).numpy()
    assert maps.shape == (2, 512, 6, 4)
    flat = np.empty((2, 12_288), np.float32)
    for time in range(6):
        for mel in range(4):
            start = (time * 4 + mel) * 512
            flat[:, start : start + 512] = maps[:, :, time, mel]
    torch.testing.assert_close(net.raw(patches[:2]), net.embeddings(torch.from_numpy(flat)))


def test_post_processing_is_googles(net: Vggish, patches: Tensor) -> None:
    """`vggish_postprocess.py`, in its own words: the last step truncates."""
    raw = net.raw(patches).numpy()
    assert raw.min() >= 0
    eigen_vectors, means = net.pca_eigen_vectors.numpy(), net.pca_means.numpy().reshape(-1, 1)
    whitened = np.dot(eigen_vectors, raw.T - means).T
    expected = ((np.clip(whitened, -2, 2) + 2) * (255 / 4)).astype(np.uint8)
    embedding = net(patches).numpy()
    assert embedding.dtype == np.float32
    assert np.abs(embedding - expected).max() <= 1  # a value on the edge may fall to either side
    assert (embedding == expected).mean() > 0.999


def test_tensorflows_orders(patches: Tensor) -> None:
    """Height, width, in, out for convolutions; in, out for the others. Computed here as TensorFlow does."""
    rng = np.random.default_rng(0)
    kernel, biases = rng.normal(size=(3, 3, 2, 5)).astype(np.float32), np.ones(5, np.float32)
    matrix = rng.normal(size=(7, 4)).astype(np.float32)
    state = from_tensorflow(
        {
            "vggish/conv3/conv3_2/weights": kernel,
            "vggish/conv3/conv3_2/biases": biases,
            "vggish/fc2/weights": matrix,
        }
    )
    assert state.keys() == {"features.8.weight", "features.8.bias", "embeddings.4.weight"}
    image = rng.normal(size=(1, 6, 4, 2)).astype(np.float32)
    ours = functional.conv2d(
        torch.from_numpy(image).permute(0, 3, 1, 2), state["features.8.weight"], state["features.8.bias"]
    )
    theirs = (
        sum(image[:, dy : dy + 4, dx : dx + 2] @ kernel[dy, dx] for dy in range(3) for dx in range(3))
        + biases
    )
    np.testing.assert_allclose(ours.permute(0, 2, 3, 1), theirs, rtol=1e-4, atol=1e-4)
    rows = rng.normal(size=(3, 7)).astype(np.float32)
    linear = functional.linear(torch.from_numpy(rows), state["embeddings.4.weight"])
    np.testing.assert_allclose(linear, rows @ matrix, rtol=1e-4, atol=1e-4)


# -- weights from a seed -----------------------------------------------------------------------------------


def spread(embedding: Tensor) -> tuple[float, float]:
    """Mean deviation of an output over the patches, and the share of values at either end."""
    assert torch.equal(embedding, embedding.round())
    ends = ((embedding == 0) | (embedding == 255)).float().mean()
    return float(embedding.std(0).mean()), float(ends)


def test_a_seed_gives_one_net(net: Vggish, patches: Tensor) -> None:
    """Whose outputs tell patches apart, and use the eight bits without sticking to their ends."""
    assert torch.equal(random_vggish(0).pca_eigen_vectors, net.pca_eigen_vectors)
    deviation, at_ends = spread(net(patches))
    assert deviation > 15
    assert at_ends < 0.1


@pytest.mark.shared
def test_it_tells_real_streets_apart(net: Vggish, golden_front_end: dict[str, NDArray[np.generic]]) -> None:
    deviation, at_ends = spread(net(torch.from_numpy(golden_front_end["vggish_examples"])))
    assert deviation > 15
    assert at_ends < 0.1


# -- published weights ---------------------------------------------------------------------------------------


def _torch(path: Path, tensors: dict[str, Any]) -> None:
    torch.save({key: torch.as_tensor(value) for key, value in tensors.items()}, path)


def _npz(path: Path, arrays: dict[str, Any]) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)


def _arrays_of_old(path: Path, arrays: dict[str, Any]) -> None:
    """numpy arrays in the file format of torch 1.0, under the name that numpy 1 had for its own."""
    torch.save(arrays, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))


@pytest.mark.parametrize("write", [_torch, _npz, _arrays_of_old])
def test_weights_survive_their_files(
    net: Vggish,
    patches: Tensor,
    weights: Path,
    pca: dict[str, NDArray[np.float64]],
    tmp_path: Path,
    write: Callable[[Path, dict[str, Any]], None],
) -> None:
    """The port's files or Google's .npz, told apart by what is in them: none has a suffix here."""
    write(tmp_path / "pca", pca)
    read = read_vggish(weights, tmp_path / "pca")
    torch.testing.assert_close(read(patches[:1]), net(patches[:1]), rtol=0, atol=1)
    assert not read.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pca: pca.pop("pca_means"), "holds no tensor 'pca_means'"),
        (lambda pca: pca.update(pca_means=np.zeros(127)), r"shape \(127,\); VGGish's has \(128,\)"),
        (lambda pca: pca.update(pca_eigen_vectors=np.eye(128)[:, :1]), r"shape \(128, 1\)"),
        (lambda pca: pca.update(pca_means=np.full(128, np.nan)), "not finite"),
        (lambda pca: pca.update(pca_means=np.zeros(128, int)), "holds int64; floating-point"),
        (lambda pca: pca.update(pca_means=np.full(128, 1e300)), "not finite"),
        (lambda pca: pca.update(pca_means=np.array(["a"] * 128)), "holds <U1"),
        (lambda pca: pca.update(pca_means=np.array([None] * 128)), r"damaged \.npz"),
    ],
)
def test_other_pca_parameters(
    weights: Path,
    pca: dict[str, NDArray[np.float64]],
    tmp_path: Path,
    change: Callable[[dict[str, Any]], object],
    message: str,
) -> None:
    changed = dict(pca)
    change(changed)
    _npz(tmp_path / "pca.npz", changed)
    with pytest.raises(InputError, match=message):
        read_vggish(weights, tmp_path / "pca.npz")


def _first_bytes(path: Path, n: int) -> bytes:
    with path.open("rb") as file:
        return file.read(n)


class _Code:
    """Runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.path,)


def test_other_weights(weights: Path, pca: dict[str, NDArray[np.float64]], tmp_path: Path) -> None:
    """What is no state dict of VGGish is refused in one sentence; nothing in it is run."""
    pca_path = tmp_path / "pca.npz"
    _npz(pca_path, pca)
    contents: dict[str, Callable[[Path], object]] = {
        "cannot be read": lambda path: path.mkdir(),
        "is no PyTorch state dict, TensorFlow V1 checkpoint or .npz": lambda path: path.write_text("no"),
        "checkpoint or .npz (": lambda path: path.write_bytes(_first_bytes(weights, 10_000)),
        "holds a list": lambda path: torch.save([1], path),
        "is a list": lambda path: torch.save({"features.0.weight": [1]}, path),
        "shape (64, 1, 5, 5); VGGish's has (64, 1, 3, 3)": lambda path: torch.save(
            {"features.0.weight": torch.zeros(64, 1, 5, 5)}, path
        ),
        "no tensor 'features.0.weight'": lambda path: path.write_bytes(TENSORFLOW_FIXTURE.read_bytes()),
        "whole TensorFlow checkpoint": lambda path: path.write_bytes(TENSORFLOW_FIXTURE.read_bytes()[9:]),
        "state dict": lambda path: path.write_bytes(pickle.dumps(_Code(tmp_path / "ran"))),
    }
    for number, (message, write) in enumerate(contents.items()):
        path = tmp_path / str(number)
        write(path)
        with pytest.raises(InputError) as raised:
            read_vggish(path, pca_path)
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="cannot be read"):
        read_vggish(tmp_path / "nothing", pca_path)
    assert not (tmp_path / "ran").exists()


def test_a_truncated_npz(weights: Path, pca: dict[str, NDArray[np.float64]], tmp_path: Path) -> None:
    """Cut off, or with an array that is shorter than it says."""
    _npz(tmp_path / "whole", pca)
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:-500])
    with zipfile.ZipFile(tmp_path / "whole") as whole, zipfile.ZipFile(tmp_path / "short", "w") as short:
        for name in whole.namelist():
            short.writestr(name, whole.read(name)[:300])
    for name in ("cut", "short"):
        with pytest.raises(InputError, match=f"{name} is"):
            read_vggish(weights, tmp_path / name)
