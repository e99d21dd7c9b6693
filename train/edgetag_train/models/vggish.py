"""VGGish (Hershey et al. 2017) with its post-processing: published weights or, to rehearse, random ones.

Published are Google's TensorFlow checkpoint with an .npz of PCA parameters, and a PyTorch port of both
(harritaylor/torchvggish). The state dict here has the port's keys.
"""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgetag.contract.errors import InputError, first_line
from edgetag.contract.frontend import VGGISH_EMBEDDING_SIZE, VGGISH_N_MELS, VGGISH_PATCH_FRAMES
from edgetag_train.data.patches import street_patches
from edgetag_train.data.tf_checkpoint import is_checkpoint, read_checkpoint

_POOL = "pool"
_LAYERS = (64, _POOL, 128, _POOL, 256, 256, _POOL, 512, 512, _POOL)
_N_HALVINGS = _LAYERS.count(_POOL)
_N_FLAT = (VGGISH_PATCH_FRAMES >> _N_HALVINGS) * (VGGISH_N_MELS >> _N_HALVINGS) * 512
_N_HIDDEN = 4096
_CLIP = 2.0
_PCA_KEYS = ("pca_eigen_vectors", "pca_means")

_TENSORFLOW_LAYERS = {
    "vggish/conv1": "features.0",
    "vggish/conv2": "features.3",
    "vggish/conv3/conv3_1": "features.6",
    "vggish/conv3/conv3_2": "features.8",
    "vggish/conv4/conv4_1": "features.11",
    "vggish/conv4/conv4_2": "features.13",
    "vggish/fc1/fc1_1": "embeddings.0",
    "vggish/fc1/fc1_2": "embeddings.2",
    "vggish/fc2": "embeddings.4",
}


class Vggish(nn.Module):
    """Log-mel patches to embeddings, 72.1 M parameters.

    Six 3×3 convolutions and four max-pools, flattened in (time, mel, channel) order, three fully connected
    layers with ReLU after each (as in the port; Google's present `vggish_slim.py` leaves the last ReLU
    out), PCA whitening, clip to ±2, eight bits.

    The eight bits are Google's: `vggish_postprocess.py` truncates (`astype(uint8)`). The PyTorch port rounds
    instead, and so differs by one in half of the values.

    Shape: [N, 96, 64] -> [N, 128], whole numbers 0…255
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*_convolutions())
        self.embeddings = nn.Sequential(
            nn.Linear(_N_FLAT, _N_HIDDEN),
            nn.ReLU(),
            nn.Linear(_N_HIDDEN, _N_HIDDEN),
            nn.ReLU(),
            nn.Linear(_N_HIDDEN, VGGISH_EMBEDDING_SIZE),
            nn.ReLU(),
        )
        self.pca_eigen_vectors = nn.Buffer(torch.eye(VGGISH_EMBEDDING_SIZE))
        self.pca_means = nn.Buffer(torch.zeros(VGGISH_EMBEDDING_SIZE))

    def forward(self, patches: Tensor) -> Tensor:
        whitened = functional.linear(self.raw(patches) - self.pca_means, self.pca_eigen_vectors)
        return torch.floor((whitened.clamp(-_CLIP, _CLIP) + _CLIP) * (255 / (2 * _CLIP)))

    def raw(self, patches: Tensor) -> Tensor:
        """Embeddings before the post-processing. Shape: [N, 96, 64] -> [N, 128], not negative"""
        maps = self.features(patches.unsqueeze(1))
        return self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))


def _convolutions() -> list[nn.Module]:
    layers: list[nn.Module] = []
    n_in = 1
    for layer in _LAYERS:
        if isinstance(layer, int):
            layers += [nn.Conv2d(n_in, layer, 3, padding=1), nn.ReLU()]
            n_in = layer
        else:
            layers.append(nn.MaxPool2d(2))
    return layers


# -- published weights -----------------------------------------------------------------------------------


def read_vggish(weights: Path, pca: Path) -> Vggish:
    """The net with published weights. What kind of file each is, its content says, not its name.

    Args:
        weights: the port's `vggish-10086976.pth` or Google's `vggish_model.ckpt`.
        pca: the port's `vggish_pca_params-970ea276.pth` or Google's `vggish_pca_params.npz`.

    Raises:
        InputError: a file cannot be read or is damaged, or a tensor is missing, has another shape or holds
            values that are not finite.
    """
    net = _without_values()
    shapes = {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()}
    state = _chosen(pca, {key: shapes[key] for key in _PCA_KEYS})
    state |= _chosen(weights, {key: shapes[key] for key in shapes if key not in _PCA_KEYS})
    net.load_state_dict(state, assign=True)
    return net.requires_grad_(False).eval()


def _without_values() -> Vggish:
    """The net's shapes alone: 288 MB that are about to be replaced need not be drawn first."""
    with torch.device("meta"):
        return Vggish()


def _chosen(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The tensors of a file that are wanted, each checked."""
    tensors = _read(path)
    chosen = {}
    for key, shape in shapes.items():
        if key not in tensors:
            raise InputError(
                f"{path} holds no tensor {key!r}; is it VGGish's, and the right one of its two files?"
            )
        chosen[key] = _checked(tensors[key], shape, f"{path}: tensor {key!r}")
    return chosen


def _checked(value: object, shape: tuple[int, ...], name: str) -> Tensor:
    if not isinstance(value, Tensor | np.ndarray):
        raise InputError(f"{name} is a {type(value).__name__}")
    if tuple(value.shape) == (*shape, 1):  # the port stores means as a column
        value = value.reshape(shape)
    if tuple(value.shape) != shape:
        raise InputError(f"{name} has shape {tuple(value.shape)}; VGGish's has {shape}")
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what float32 cannot hold is found just below
            value = torch.from_numpy(value.astype(np.float32))
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise InputError(f"{name} holds {value.dtype}; floating-point numbers are expected")
    tensor = value.detach().to(torch.float32)
    if not tensor.isfinite().all():
        raise InputError(f"{name} holds values that are not finite")
    return tensor


def _read(path: Path) -> Mapping[str, Any]:
    """All tensors of a file by the port's keys."""
    try:
        if is_checkpoint(path):
            return from_tensorflow(read_checkpoint(path))
        return _read_npz(path) if _is_npz(path) else _read_torch(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from error


def from_tensorflow(tensors: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """TensorFlow's names and orders (height, width, in, out; in, out) to PyTorch's."""
    state = {}
    for theirs, ours in _TENSORFLOW_LAYERS.items():
        if (weights := tensors.get(f"{theirs}/weights")) is not None:
            order = (3, 2, 0, 1) if weights.ndim == 4 else tuple(reversed(range(weights.ndim)))
            state[f"{ours}.weight"] = torch.from_numpy(weights.transpose(order).copy())
        if (biases := tensors.get(f"{theirs}/biases")) is not None:
            state[f"{ours}.bias"] = torch.from_numpy(biases)
    return state


def _is_npz(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {key: stored[key] for key in _PCA_KEYS if key in stored}
    except (ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} is a damaged .npz file ({first_line(error)})") from error


def _read_torch(path: Path) -> dict[str, Any]:
    """A state dict, of tensors or of numpy arrays; nothing but those is unpickled."""
    reconstruct = np.empty(0).__reduce__()[0]
    arrays = [
        (reconstruct, "numpy.core.multiarray._reconstruct"),
        (reconstruct, "numpy._core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        type(np.dtype(np.float32)),
        type(np.dtype(np.float64)),
    ]
    try:
        with torch.serialization.safe_globals(arrays):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged pickle makes it raise
        raise InputError(
            f"{path} is no PyTorch state dict, TensorFlow V1 checkpoint or .npz ({first_line(error)})"
        ) from error
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, not a state dict")
    return state


# -- weights from a seed -----------------------------------------------------------------------------------


def random_vggish(seed: int) -> Vggish:
    """A net of the same shape whose weights are drawn, to rehearse with where the published ones are absent.

    Weights are drawn as He et al. (2015) have it, so that activations neither vanish nor explode. The
    "PCA" is a drawn rotation, scaled so that each output has a standard deviation of 1 on the project's
    synthetic street, which the clip to ±2 then leaves nearly whole.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        net = Vggish()
    net.to_empty(device="cpu")
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)
    net.requires_grad_(False).eval()
    raw = net.raw(torch.from_numpy(street_patches(seed=0)).flatten(0, 1))
    rotation = torch.linalg.qr(
        torch.randn(VGGISH_EMBEDDING_SIZE, VGGISH_EMBEDDING_SIZE, generator=generator)
    )[0]
    spread = ((raw - raw.mean(0)) @ rotation.T).std(0)
    net.pca_means = raw.mean(0)
    net.pca_eigen_vectors = rotation / spread[:, None]
    return net
