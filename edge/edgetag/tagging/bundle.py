"""Loading a bundle: every file's hash, every tensor's shape, every label count, then the golden window.

Whatever does not fit is refused with one sentence; nothing is repaired or guessed.
"""

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import yaml
from numpy.typing import NDArray

from edgetag.contract.errors import BundleError, first_line
from edgetag.contract.frontend import VGGISH_N_MELS, VGGISH_N_PATCHES, VGGISH_PATCH_FRAMES, WINDOW_SAMPLES
from edgetag.contract.manifest import (
    EMBEDDING_INPUT,
    EMBEDDING_SHAPE,
    FORMAT,
    LOGMEL_INPUT,
    LOGMEL_SHAPE,
    MANIFEST_NAME,
    OUTPUT,
    File,
    Manifest,
    Variant,
)

Shape = tuple[int, ...]
PATCHES_INPUT = "patches"
PATCHES_SHAPE = (VGGISH_N_PATCHES, VGGISH_PATCH_FRAMES, VGGISH_N_MELS)
EMBEDDING_OUTPUT_SHAPE = EMBEDDING_SHAPE[1:]


class OnnxNet:
    """One ONNX net: named float32 inputs of fixed shape, one output, one thread."""

    def __init__(self, data: bytes, name: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors reach us as exceptions
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no common base of its own errors
            raise BundleError(
                f"{name} is not an ONNX net this runtime can load ({first_line(error)})"
            ) from error
        self.inputs: dict[str, Shape] = {i.name: tuple(i.shape) for i in self._session.get_inputs()}
        self.outputs: dict[str, Shape] = {o.name: tuple(o.shape) for o in self._session.get_outputs()}

    def __call__(self, inputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """The net's only output for one window; inputs it does not have are left out."""
        result: NDArray[np.float32] = self._session.run(None, {name: inputs[name] for name in self.inputs})[0]
        return result


@dataclass(frozen=True, eq=False)
class Golden:
    """A stored window and what each net (`root`, `branch-1`, …) said of it when the bundle was made."""

    pcm: NDArray[np.int16]
    expected: dict[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle whose every file has been checked against its manifest."""

    manifest: Manifest
    sha256: str
    variant: Variant
    root: OnnxNet
    branches: dict[str, OnnxNet]
    embedding: OnnxNet | None
    golden: Golden

    @property
    def nets(self) -> dict[str, OnnxNet]:
        """Root and branches by the names that the golden file has for them."""
        return {"root": self.root} | {f"branch-{id}": net for id, net in self.branches.items()}

    @property
    def model(self) -> str:
        """How events name it: `starter@sha256:` and the first twelve digits of the manifest's hash."""
        return f"{self.manifest.name}@sha256:{self.sha256[:12]}"


def starter_path() -> Path:
    """Where the bundle that ships with edgetag lies."""
    return Path(str(files("edgetag") / "bundles" / "starter"))


def load_bundle(path: Path, variant: Variant | None = None) -> Bundle:
    """Read and check a bundle directory. The golden window is compared by whoever can compute it (`Tagger`).

    Args:
        path: the directory that holds `bundle.yaml`.
        variant: which nets to load; `int8` where there is one, if absent.

    Raises:
        BundleError: something is missing, altered, of another shape or of another format version.
    """
    text = _read(path, MANIFEST_NAME)
    manifest = _manifest(text, path)
    chosen = variant or ("int8" if "int8" in manifest.root.variants else "fp32")
    net_shapes: dict[str, Shape] = {LOGMEL_INPUT: LOGMEL_SHAPE}
    embedding = None
    if manifest.embedding is not None:
        net_shapes[EMBEDDING_INPUT] = EMBEDDING_SHAPE
        embedding = _net(path, "the embedding", manifest.embedding.variants, chosen)
        _check(
            embedding,
            "the embedding",
            {PATCHES_INPUT: PATCHES_SHAPE},
            EMBEDDING_INPUT,
            EMBEDDING_OUTPUT_SHAPE,
        )
    root = _net(path, "the root net", manifest.root.variants, chosen)
    _check(root, "the root net", net_shapes, OUTPUT, (1, manifest.root.outputs))
    branches = {}
    for id, net in manifest.branches.items():
        branches[id] = _net(path, f"branch {id}", net.variants, chosen)
        _check(branches[id], f"branch {id}", net_shapes, OUTPUT, (1, net.outputs))
    golden = _golden(path, manifest, chosen)
    return Bundle(manifest, hashlib.sha256(text).hexdigest(), chosen, root, branches, embedding, golden)


def _manifest(text: bytes, path: Path) -> Manifest:
    try:
        stated = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BundleError(f"{path / MANIFEST_NAME} is not YAML ({first_line(error)})") from error
    if not isinstance(stated, dict) or stated.get("format") != FORMAT:
        found = stated.get("format") if isinstance(stated, dict) else type(stated).__name__
        raise BundleError(f"{path} has format {found!r}; this edgetag reads {FORMAT!r}")
    try:
        manifest = msgspec.convert(stated, Manifest)
        manifest.check()
    except (msgspec.ValidationError, BundleError) as error:
        raise BundleError(f"{path / MANIFEST_NAME}: {error}") from error
    return manifest


def _net(path: Path, name: str, variants: Mapping[Variant, File], chosen: Variant) -> OnnxNet:
    if chosen not in variants:
        raise BundleError(f"{path}: {name} has no {chosen} variant, only {', '.join(variants)}")
    return OnnxNet(_verified(path, variants[chosen]), str(path / variants[chosen].file))


def _check(net: OnnxNet, name: str, inputs: Mapping[str, Shape], output: str, shape: Shape) -> None:
    for found, shape_found in net.inputs.items():
        if inputs.get(found) != shape_found:
            raise BundleError(f"{name} takes {found!r} of shape {shape_found}; expected {_shapes(inputs)}")
    if net.outputs != {output: shape}:
        raise BundleError(
            f"{name} gives {_shapes(net.outputs)}; the manifest states {_shapes({output: shape})}"
        )


def _golden(path: Path, manifest: Manifest, variant: Variant) -> Golden:
    data = _verified(path, manifest.golden)
    nets = {"root": manifest.root, **{f"branch-{id}": net for id, net in manifest.branches.items()}}
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as stored:
            golden = Golden(stored["pcm"], {name: stored[f"{name}_{variant}"] for name in nets})
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(
            f"{path / manifest.golden.file} holds no golden window for {variant} ({error})"
        ) from error
    if golden.pcm.shape != (WINDOW_SAMPLES,) or golden.pcm.dtype != np.int16:
        raise BundleError(
            f"the golden window is {golden.pcm.dtype} {golden.pcm.shape}, not int16 ({WINDOW_SAMPLES},)"
        )
    for name, net in nets.items():
        if golden.expected[name].shape != (net.outputs,):
            raise BundleError(f"the golden {name} is {golden.expected[name].shape}, not ({net.outputs},)")
    return golden


def _verified(path: Path, file: File) -> bytes:
    data = _read(path, file.file)
    if (digest := hashlib.sha256(data).hexdigest()) != file.sha256:
        raise BundleError(
            f"{path / file.file} is damaged or was altered: its sha256 is {digest[:12]}…, "
            f"bundle.yaml states {file.sha256[:12]}…"
        )
    return data


def _read(path: Path, name: str) -> bytes:
    file = path / name
    if file.is_symlink():
        raise BundleError(f"{file} is a symbolic link; a bundle holds plain files only")
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{file} is missing; is {path} a bundle directory?") from None
    except OSError as error:
        raise BundleError(f"{file} cannot be read ({error.strerror})") from error


def _shapes(tensors: Mapping[str, Shape]) -> str:
    return ", ".join(f"{name!r} {'×'.join(map(str, shape))}" for name, shape in tensors.items())
