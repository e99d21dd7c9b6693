"""Loading a bundle: signature, every file's length and hash, every tensor's shape, every label count.

Whatever does not fit is refused with one sentence; nothing is repaired or guessed. The golden windows are
compared by `Tagger`, which can compute them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Self

import msgspec
import numpy as np
import onnxruntime
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
    MAX_MANIFEST_BYTES,
    OUTPUT,
    SIGNATURE_NAME,
    File,
    Manifest,
    Variant,
    model_id,
)
from edgetag.contract.strict_yaml import load_yaml
from edgetag.tagging.container import Archive, Container, open_container
from edgetag.tagging.npz import read_npz
from edgetag.tagging.onnx_file import ForeignDataError, check_onnx
from edgetag.tagging.signature import check_signature

Shape = tuple[int | None, ...]
"""None is a first dimension of any size."""
MAX_GOLDEN_BYTES = 2**26
PATCHES_INPUT = "patches"
PATCHES_SHAPE = (VGGISH_N_PATCHES, VGGISH_PATCH_FRAMES, VGGISH_N_MELS)
EMBEDDING_OUTPUT_SHAPE = EMBEDDING_SHAPE[1:]
_EMBEDDING_NETS: tuple[tuple[dict[str, Shape], dict[str, Shape]], ...] = tuple(
    ({PATCHES_INPUT: (n, *PATCHES_SHAPE[1:])}, {EMBEDDING_INPUT: (n, *EMBEDDING_OUTPUT_SHAPE[1:])})
    for n in (None, VGGISH_N_PATCHES)
)


class OnnxNet:
    """One ONNX net: named float32 inputs, one output, of fixed shapes but perhaps for the first dimension.

    Memory is taken from the heap for a call and given back (no arena, no planned block). With the bundle that
    ships, a process that hears holds 171 to 195 MB instead of 238 (one arena for all sessions: 180), with
    VGGish 327 instead of 424, after eleven replacements 230 instead of 389, in the same CPU time.

    A branch net is made with the others, not at its first use: it costs 7 ms and 3 MB whenever it is made,
    the golden windows need it, and memory that does not suffice shows at the start, not at the first siren.

    Args:
        data: the ONNX file.
        name: what to call it in messages.
        threads: how many may work on one call; none of them spins between calls.

    Raises:
        BundleError: the runtime cannot load it, it keeps data in another file, or a tensor is not float32 of
            fixed shape; only the first dimension may be free.
    """

    def __init__(self, data: bytes, name: str, threads: int = 1) -> None:
        self.name = name
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.load_model_format", "ONNX")  # not what it looks like
        options.log_severity_level = 4  # errors reach us as exceptions
        try:
            check_onnx(data)
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except ForeignDataError as error:
            raise BundleError(f"{name} {error}") from error
        except Exception as error:  # onnxruntime has no common base of its own errors
            raise BundleError(
                f"{name} is not an ONNX net this runtime can load ({first_line(error)})"
            ) from error
        self._session._model_bytes = None  # kept to try other providers; there are none
        tensors = [*self._session.get_inputs(), *self._session.get_outputs()]
        for tensor in tensors:
            if tensor.type != "tensor(float)" or not all(isinstance(size, int) for size in tensor.shape[1:]):
                raise BundleError(
                    f"{name}: {tensor.name!r} is {tensor.type} {tensor.shape}, not float32 of fixed shape"
                )
        self.inputs = {tensor.name: _shape(tensor.shape) for tensor in self._session.get_inputs()}
        self.outputs = {tensor.name: _shape(tensor.shape) for tensor in self._session.get_outputs()}

    def __call__(self, inputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """The net's only output for one window; inputs it does not have are left out.

        Where the first dimension is free, the output has as many rows as the inputs.

        Raises:
            BundleError: the net cannot be run to its end, or gives another shape than it states.
        """
        feed = {name: inputs[name] for name in self.inputs}
        try:
            result: NDArray[np.float32] = self._session.run(None, feed)[0]
        except Exception as error:  # onnxruntime has no common base of its own errors
            raise BundleError(f"{self.name} fails ({first_line(error)})") from error
        n_rows = next(len(value) for value in feed.values())
        if result.shape not in [_sized(shape, n_rows) for shape in self.outputs.values()]:
            raise BundleError(f"{self.name} gives {result.shape}; it states {_shapes(self.outputs)}")
        return result


@dataclass(frozen=True, eq=False)
class Golden:
    """Stored windows and what each net (`root`, `branch-1`, …) said of them when the bundle was made.

    Shape: pcm [k, 441000], expected [k, the net's outputs]
    """

    pcm: NDArray[np.int16]
    expected: dict[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Bundle:
    """A bundle whose every file has been checked against its manifest. `path` is where it was read from."""

    path: Path
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
        """How events name it."""
        return model_id(self.manifest.name, self.sha256)

    def without_windows(self) -> Self:
        """The same, for who has compared its golden windows and needs them no more: 0.9 MB each."""
        return replace(self, golden=replace(self.golden, pcm=self.golden.pcm[:0].copy()))


def starter_path() -> Path:
    """Where the bundle that ships with edgetag lies."""
    return Path(str(files("edgetag") / "bundles" / "starter"))


def load_bundle(
    path: Path,
    variant: Variant | None = None,
    *,
    threads: int = 1,
    public_key: Path | None = None,
) -> Bundle:
    """Read and check a bundle. The golden windows are compared by whoever can compute them (`Tagger`).

    Args:
        path: the directory that holds `bundle.yaml`, or an archive.
        variant: which nets to load; `int8` where there is one, if absent.
        threads: how many work on one net.
        public_key: a PEM file; unless its owner signed the bundle, nothing of it is parsed or run.

    Raises:
        BundleError: something is missing, altered, unsigned, of another shape or of another format version.
        InputError: the key cannot be used.
    """
    container = open_container(path)
    text, manifest = read_manifest(container, public_key)
    chosen = variant or ("int8" if "int8" in manifest.variants else "fp32")
    if chosen not in manifest.variants:
        raise BundleError(f"{path} has no {chosen} variant, only {', '.join(manifest.variants)}")
    net_shapes: dict[str, Shape] = {LOGMEL_INPUT: LOGMEL_SHAPE}
    embedding = None
    if manifest.embedding is not None:
        net_shapes[EMBEDDING_INPUT] = EMBEDDING_SHAPE
        embedding = _net(container, manifest.embedding.variants[chosen], threads)
        check_embedding(embedding)
    root = _net(container, manifest.root.variants[chosen], threads)
    _check(root, "the root net", net_shapes, OUTPUT, (1, manifest.root.outputs))
    branches = {}
    for id, net in manifest.branches.items():
        branches[id] = _net(container, net.variants[chosen], threads)
        _check(branches[id], f"branch {id}", net_shapes, OUTPUT, (1, net.outputs))
    golden = _golden(container, manifest, chosen)
    sha256 = hashlib.sha256(text).hexdigest()
    return Bundle(container.path, manifest, sha256, chosen, root, branches, embedding, golden)


def check_embedding(net: OnnxNet) -> None:
    """Whether a net maps patches [n, 96, 64] to embeddings [n, 128], each by itself; n is free, or ten.

    Raises:
        BundleError: it has other tensors, or states that n is free and cannot be run on one patch.
    """
    if (net.inputs, net.outputs) not in _EMBEDDING_NETS:
        expected = " or ".join(f"{_shapes(i)} to {_shapes(o)}" for i, o in _EMBEDDING_NETS)
        raise BundleError(
            f"{net.name} maps {_shapes(net.inputs)} to {_shapes(net.outputs)}; an embedding {expected}"
        )
    if net.inputs[PATCHES_INPUT][0] is None:
        net({PATCHES_INPUT: np.zeros((1, *PATCHES_SHAPE[1:]), np.float32)})


def read_manifest(container: Container, public_key: Path | None = None) -> tuple[bytes, Manifest]:
    """`bundle.yaml`, as it lies there and as it reads; with a key, its signature is checked before.

    Raises:
        BundleError: it is missing, unsigned, not YAML, of another format version, or contradicts itself;
            or an archive holds what it does not state.
        InputError: the key cannot be used.
    """
    file = container.path / MANIFEST_NAME
    text = container.read(MANIFEST_NAME, MAX_MANIFEST_BYTES)
    if len(text) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{file} is longer than the {MAX_MANIFEST_BYTES} bytes a manifest may have")
    if public_key is not None:
        check_signature(container, text, public_key)
    try:
        stated = load_yaml(text)
    except ValueError as error:
        raise BundleError(f"{file} is not YAML a bundle may have ({error})") from error
    if not isinstance(stated, dict) or stated.get("format") != FORMAT:
        found = stated.get("format") if isinstance(stated, dict) else type(stated).__name__
        raise BundleError(f"{container.path} has format {found!r}; this edgetag reads {FORMAT!r}")
    try:
        manifest = msgspec.convert(stated, Manifest)
        manifest.check()
    except (msgspec.ValidationError, BundleError) as error:
        raise BundleError(f"{file}: {error}") from error
    if isinstance(container, Archive):
        refuse_unstated(container, manifest)
    return text, manifest


def refuse_unstated(container: Container, manifest: Manifest) -> None:
    """Whether a bundle holds what its manifest states, and nothing else.

    Raises:
        BundleError: an entry that the manifest does not state.
    """
    unstated = set(container.names()) - manifest.files.keys() - {MANIFEST_NAME, SIGNATURE_NAME}
    if unstated:
        raise BundleError(
            f"{container.path} holds {', '.join(map(repr, sorted(unstated)))}, "
            f"which {MANIFEST_NAME} does not state"
        )


def read_file(container: Container, file: File) -> bytes:
    """A stated file, whole and unaltered.

    Raises:
        BundleError: it is missing, of another length, or of another hash.
    """
    data = container.read(file.file, file.size)
    where = container.path / file.file
    if len(data) != file.size:
        found = (
            f"longer than {file.size}" if len(data) > file.size else f"truncated: {len(data)} of {file.size}"
        )
        raise BundleError(f"{where} is {found} bytes that {MANIFEST_NAME} states")
    if (digest := hashlib.sha256(data).hexdigest()) != file.sha256:
        raise BundleError(
            f"{where} is damaged or was altered: its sha256 is {digest[:12]}…, "
            f"{MANIFEST_NAME} states {file.sha256[:12]}…"
        )
    return data


def _net(container: Container, file: File, threads: int) -> OnnxNet:
    return OnnxNet(read_file(container, file), str(container.path / file.file), threads)


def _check(net: OnnxNet, name: str, inputs: Mapping[str, Shape], output: str, shape: Shape) -> None:
    for found, shape_found in net.inputs.items():
        if inputs.get(found) != shape_found:
            raise BundleError(f"{name} takes {_shapes({found: shape_found})}; expected {_shapes(inputs)}")
    if net.outputs != {output: shape}:
        raise BundleError(
            f"{name} gives {_shapes(net.outputs)}; the manifest states {_shapes({output: shape})}"
        )


def _golden(container: Container, manifest: Manifest, variant: Variant) -> Golden:
    data = read_file(container, manifest.golden)
    names = {name: f"{name}_{variant}" for name in manifest.outputs}
    try:
        arrays = read_npz(
            data, {"pcm": np.int16} | dict.fromkeys(names.values(), np.float32), MAX_GOLDEN_BYTES
        )
    except ValueError as error:
        raise BundleError(
            f"{container.path / manifest.golden.file} holds no golden windows for {variant} ({error})"
        ) from error
    golden = Golden(arrays["pcm"], {name: arrays[stored] for name, stored in names.items()})
    pcm = golden.pcm
    if pcm.ndim != 2 or pcm.shape[1] != WINDOW_SAMPLES or len(pcm) == 0:
        raise BundleError(f"the golden windows are {pcm.shape}, not (k, {WINDOW_SAMPLES})")
    for name, n_outputs in manifest.outputs.items():
        if golden.expected[name].shape != (len(pcm), n_outputs):
            raise BundleError(
                f"the golden {name} is {golden.expected[name].shape}, not ({len(pcm)}, {n_outputs})"
            )
    return golden


def _shape(stated: Sequence[int | str | None]) -> Shape:
    """As onnxruntime states it: a free dimension has a name or none."""
    return tuple(size if isinstance(size, int) else None for size in stated)


def _sized(shape: Shape, n_rows: int) -> Shape:
    return tuple(n_rows if size is None else size for size in shape)


def _shapes(tensors: Mapping[str, Shape]) -> str:
    sizes = {name: ["n" if size is None else str(size) for size in shape] for name, shape in tensors.items()}
    return ", ".join(f"{name!r} {'×'.join(shape)}" for name, shape in sizes.items())
