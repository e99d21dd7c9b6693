"""No accepted corruption: a bundle that was altered anywhere is refused with one line, or is what it says.

`EDGETAG_FUZZ_EXAMPLES=20000 pytest tests/edge/test_bundle_fuzz.py` looks longer.
"""

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from onnx import TensorProto, helper
from rich.console import Console

from edgetag.contract.errors import BundleError
from edgetag.contract.frontend import WINDOW_SAMPLES
from edgetag.tagging.bundle import Bundle, load_bundle, read_file
from edgetag.tagging.card import Card
from edgetag.tagging.container import open_container
from edgetag.tagging.onnx_file import ForeignDataError, check_onnx
from edgetag.tagging.packing import pack, put_signature
from edgetag.tagging.signature import create_keys, read_private_key, sign
from fakes_bundle import constant_net, edit_manifest, file_entry, write_bundle

fuzzed = settings(
    max_examples=int(os.environ.get("EDGETAG_FUZZ_EXAMPLES", "40")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole bundle of a few kilobytes."""
    path = write_bundle(tmp_path_factory.mktemp("fuzz") / "b", [0.9] + [0.1] * 7, {"1": [0.7, 0.1, 0.1, 0.1]})
    with np.load(path / "golden.npz") as stored:
        np.savez_compressed(path / "golden.npz", **dict(stored))
    metrics = {"coarse_micro_auprc": 0.5, "by": {"1": 0.1, "x": [1, {"y": None}]}}
    edit_manifest(
        path,
        golden=file_entry(path / "golden.npz") | {"tolerance": {"fp32": 0.001}},
        metrics=metrics,
        training={"note": "none", "data": {"clips": 1}},
        thresholds={"1": 0.4, "1-1": 0.6},
    )
    return path


@pytest.fixture(scope="module")
def altered(original: Path) -> Path:
    """A copy for each example to alter; `restored` undoes it."""
    path = original.with_name("altered")
    path.mkdir()
    return path


def restored(original: Path, altered: Path) -> Path:
    for file in original.iterdir():
        (altered / file.name).write_bytes(file.read_bytes())
    return altered


def outcome(path: Path, public_key: Path | None = None) -> Bundle | None:
    """The bundle, or None where it was refused as it must be; everything else is an error."""
    try:
        bundle = load_bundle(path, public_key=public_key)
    except BundleError as error:
        refusal = str(error)
    else:
        event("accepted")
        return bundle
    assert refusal
    assert refusal.isprintable()
    return None


# -- bytes -------------------------------------------------------------------------------------------------


Mutation = Callable[[bytes], bytes]
ENDS = (b"\0", b"\xff" * 4)


@st.composite
def mutations(draw: DrawFn, snippets: tuple[bytes, ...] = ENDS) -> Mutation:
    """One to four of: a bit flipped, bytes written, inserted, cut out, doubled elsewhere, the end cut off."""
    kinds = st.sampled_from(["flip", "write", "insert", "cut", "copy", "end"])
    places = st.floats(0, 1, exclude_max=True)
    contents = st.sampled_from(snippets) | st.binary(min_size=1, max_size=8)
    step = st.tuples(kinds, places, places, st.integers(1, 64), contents)
    steps = draw(st.lists(step, min_size=1, max_size=4))

    def mutate(data: bytes) -> bytes:
        for kind, place, other, size, content in steps:
            at, to = int(place * len(data)), int(other * len(data))
            match kind:
                case "flip":
                    data = (
                        data[:at] + bytes(byte ^ 1 << size % 8 for byte in data[at : at + 1]) + data[at + 1 :]
                    )
                case "write":
                    data = data[:at] + content + data[at + len(content) :]
                case "insert":
                    data = data[:at] + content + data[at:]
                case "cut":
                    data = data[:at] + data[at + size :]
                case "copy":
                    data = data[:to] + data[at : at + size] + data[to:]
                case _:
                    data = data[:at]
        return data

    return mutate


ZIP_HEADERS = {  # the bytes of each field
    b"PK\3\4": [2] * 5 + [4] * 3 + [2] * 2,
    b"PK\1\2": [2] * 6 + [4] * 3 + [2] * 5 + [4] * 2,
    b"PK\5\6": [2] * 4 + [4] * 2 + [2],
}


@st.composite
def header_edits(draw: DrawFn) -> Mutation:
    """A field of a ZIP header, local or central, or of the end record, set to something telling."""
    magic = draw(st.sampled_from(list(ZIP_HEADERS)))
    sizes = ZIP_HEADERS[magic]
    field, which = draw(st.integers(0, len(sizes) - 1)), draw(st.integers(0, 9))
    telling = st.sampled_from([0, 1, 2, 8, 65, 255, 65535, 2**31 - 1, 2**31, 2**32 - 1])
    value = draw(telling | st.integers(0, 2**32 - 1)) % 256 ** sizes[field]

    def edit(data: bytes) -> bytes:
        starts = [at for at in range(len(data)) if data.startswith(magic, at)]
        at = starts[which % len(starts)] + 4 + sum(sizes[:field])
        return data[:at] + value.to_bytes(sizes[field], "little") + data[at + sizes[field] :]

    return edit


@fuzzed
@given(mutate=mutations((b"PK\1\2", b"PK\5\6", b"\0", b"\xff" * 4, b"../", b"bundle.yaml")) | header_edits())
def test_an_altered_archive_is_refused(original: Path, archive: Path, mutate: Mutation) -> None:
    """Every byte of an archive counts: headers, content, and what lies behind or between them."""
    data = archive.read_bytes()
    changed = mutate(data)
    assume(changed != data)
    path = original.with_name("altered.zip")
    path.write_bytes(changed)
    assert outcome(path) is None


@pytest.fixture(scope="module")
def archive(original: Path) -> Path:
    return pack(original, original.with_name("original.zip"))


@fuzzed
@given(name=st.sampled_from(["root.onnx", "branch-1.onnx", "golden.npz"]), mutate=mutations())
def test_an_altered_file_is_refused(original: Path, altered: Path, name: str, mutate: Mutation) -> None:
    """The manifest states every byte of every other file."""
    restored(original, altered)
    data = (original / name).read_bytes()
    assume((changed := mutate(data)) != data)
    (altered / name).write_bytes(changed)
    assert outcome(altered) is None


@pytest.fixture(scope="module")
def signed(original: Path) -> tuple[Path, Path]:
    """A signed archive and the key it bears the signature of."""
    key, public = create_keys(original.with_name("key"))
    path = pack(original, original.with_name("signed.zip"))
    private = read_private_key(key, lambda: b"")
    put_signature(path, lambda text: sign(text, private))
    return path, public


@fuzzed
@given(mutate=mutations() | header_edits())
def test_an_altered_signed_archive_is_refused(signed: tuple[Path, Path], mutate: Mutation) -> None:
    """With its key, the signature's own bytes count, too."""
    data = signed[0].read_bytes()
    assume((changed := mutate(data)) != data)
    path = signed[0].with_name("altered-signed.zip")
    path.write_bytes(changed)
    assert outcome(path, signed[1]) is None


# -- the manifest ------------------------------------------------------------------------------------------

SYNTAX = (
    *rb"&a |*a|!!python/name:os.system |!!int |<<: |? |- |: |{|}|[|]|'|\x1b|#|%|~|.nan|.inf".split(b"|"),
    *(b"\n---\n", b"\n...\n", b'"', b"\t", b"\0", b"\r", b"\xc2\x85", b"\xef\xbb\xbf"),
)


def speaks_the_truth(path: Path, original: Path) -> None:
    """The law of manifests: what loads is another model unless it is the very same, states the files as they
    are, and can be shown."""
    text = (path / "bundle.yaml").read_bytes()
    if (bundle := outcome(path)) is None:
        return
    assert bundle.sha256 == hashlib.sha256(text).hexdigest()
    stated = (original / "bundle.yaml").read_bytes()
    assert (bundle.sha256 == hashlib.sha256(stated).hexdigest()) is (text == stated)
    container = open_container(path)
    for file in bundle.manifest.files.values():
        assert read_file(container, file) == (original / file.file).read_bytes()
    assert all(0 <= threshold <= 1 for threshold in bundle.manifest.thresholds.values())
    card, console = Card(bundle.manifest, bundle.sha256, "none"), Console(file=io.StringIO(), width=80)
    console.print(card)
    shown = [*console.file.getvalue().splitlines(), *card.json().splitlines()]  # type: ignore[attr-defined]
    assert all(line.isprintable() for line in shown)


@fuzzed
@given(mutate=mutations(SYNTAX))
def test_a_manifest_with_other_bytes(original: Path, altered: Path, mutate: Mutation) -> None:
    """YAML's syntax strewn over it, or anything else."""
    text = (restored(original, altered) / "bundle.yaml").read_bytes()
    (altered / "bundle.yaml").write_bytes(mutate(text))
    speaks_the_truth(altered, original)


@fuzzed
@given(first=st.integers(0, 10**6), last=st.integers(0, 10**6), n=st.integers(1, 3))
def test_a_manifest_with_lines_twice_or_not_at_all(
    original: Path, altered: Path, first: int, last: int, n: int
) -> None:
    """Keys doubled, lost, and moved below others."""
    lines = (restored(original, altered) / "bundle.yaml").read_bytes().splitlines(keepends=True)
    first, last = first % len(lines), last % len(lines)
    for text in (
        lines[:last] + lines[first : first + n] + lines[last:],
        lines[:first] + lines[first + n :],
    ):
        (altered / "bundle.yaml").write_bytes(b"".join(text))
        speaks_the_truth(altered, original)


TELLING = [
    "",
    "\x1b[2J",
    "a\nb",
    "../x",
    "root.onnx",
    "bundle.yaml",
    "1",
    "1-1",
    "fp32",
    "int8",
    "\ud800",
    "0" * 64,
]
ODD_TEXT = st.text(max_size=8) | st.sampled_from(TELLING)
ODD_NUMBER = st.integers() | st.sampled_from([-1, 0, 8, 37, 2**31, 2**63, 2**64, 10**30]) | st.floats()
ODD_VALUE = st.none() | st.booleans() | ODD_NUMBER | ODD_TEXT | st.binary(max_size=4) | st.dates()
ODD_KEY = ODD_TEXT | ODD_NUMBER | st.none()
ODD = ODD_VALUE | st.dictionaries(ODD_KEY, ODD_VALUE | st.lists(ODD_VALUE, max_size=2), max_size=3)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every map and key, list and index, in a tree."""
    for key in (
        list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    ):
        yield value, key
        yield from places(value[key])


@st.composite
def edits(draw: DrawFn) -> list[tuple[str, int, int, Any]]:
    kinds = st.sampled_from(["replace", "delete", "rename", "add", "exchange"])
    steps: SearchStrategy[Any] = st.tuples(kinds, st.integers(0, 10**6), st.integers(0, 10**6), ODD)
    return draw(st.lists(steps, min_size=1, max_size=3))


@pytest.fixture(scope="module")
def statements(original: Path) -> Any:
    return yaml.safe_load((original / "bundle.yaml").read_bytes())


@fuzzed
@given(steps=edits())
def test_a_manifest_with_other_statements(
    original: Path, altered: Path, statements: Any, steps: list[tuple[str, int, int, Any]]
) -> None:
    """Values replaced, deleted, renamed, added and exchanged anywhere in it."""
    restored(original, altered)
    manifest = deepcopy(statements)
    for kind, one, other, value in steps:
        found = list(places(manifest))
        (parent, key), (parent2, key2) = found[one % len(found)], found[other % len(found)]
        match kind:
            case "replace":
                parent[key] = value
            case "delete":
                del parent[key]
            case "rename" if isinstance(parent, dict) and isinstance(value, str):
                parent[value] = parent.pop(key)
            case "add" if isinstance(parent[key], dict):
                parent[key][str(other)] = value
            case "exchange":
                parent[key] = deepcopy(parent2[key2])
    text = yaml.dump(manifest, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")
    (altered / "bundle.yaml").write_bytes(text)
    speaks_the_truth(altered, original)


# -- golden windows, with their true hash ------------------------------------------------------------------


@fuzzed
@given(mutate=mutations() | header_edits())
def test_golden_windows_of_other_bytes(original: Path, altered: Path, mutate: Mutation) -> None:
    """The archive around the arrays altered, and its hash stated as it is."""
    swap_golden(original, altered, mutate((original / "golden.npz").read_bytes()))


@fuzzed
@given(
    mutate=mutations((b"(", b")", b"1, ", b"'", b"L", b"<i2", b"|O", b"-", b"\n", b"True", b"{", b"9" * 30)),
    name=st.sampled_from(["pcm.npy", "root_fp32.npy"]),
    head=st.integers(8, 256),
)
def test_golden_windows_of_other_arrays(
    original: Path, altered: Path, mutate: Mutation, name: str, head: int
) -> None:
    """The arrays' own headers altered, in an archive that is right about them."""
    stream = io.BytesIO()
    with zipfile.ZipFile(original / "golden.npz") as archive, zipfile.ZipFile(stream, "w", 8) as changed:
        for member in archive.namelist():
            data = archive.read(member)
            changed.writestr(member, mutate(data[:head]) + data[head:] if member == name else data)
    swap_golden(original, altered, stream.getvalue())


def swap_golden(original: Path, altered: Path, data: bytes) -> None:
    """The law of golden windows: refused, or int16 and float32 of the shapes that the nets have."""
    assume(data)
    (restored(original, altered) / "golden.npz").write_bytes(data)
    stated, found = (file_entry(path / "golden.npz") for path in (original, altered))
    text = (original / "bundle.yaml").read_text().replace(stated["sha256"], found["sha256"])
    (altered / "bundle.yaml").write_text(text.replace(f"size: {stated['size']}\n", f"size: {len(data)}\n"))
    if (bundle := outcome(altered)) is None:
        return
    pcm, expected = bundle.golden.pcm, bundle.golden.expected
    assert (pcm.dtype, pcm.shape) == (np.int16, (len(pcm), WINDOW_SAMPLES))
    assert {name: (p.dtype, p.shape) for name, p in expected.items()} == {
        "root": (np.float32, (len(pcm), 8)),
        "branch-1": (np.float32, (len(pcm), 4)),
    }


# -- ONNX --------------------------------------------------------------------------------------------------


def has_foreign_data(message: Any) -> bool:
    """Whether any tensor of a parsed message is elsewhere, by protobuf's own account."""
    if isinstance(message, TensorProto):
        return bool(message.external_data) or message.data_location != TensorProto.DEFAULT
    return any(
        has_foreign_data(inner)
        for field, value in message.ListFields()
        if field.message_type is not None
        for inner in (value if isinstance(value, (list, tuple)) or hasattr(value, "add") else [value])
    )


def nets() -> list[bytes]:
    """A net complete in itself, and nets with a tensor elsewhere, at every place that holds tensors."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="x")
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    found = [onnx.load_from_string(constant_net([0.5] * 8)) for _ in range(4)]
    found[1].graph.initializer.append(tensor)
    found[2].graph.node.append(constant)
    body = helper.make_graph([constant], "body", [], [])
    found[3].graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=body, else_branch=body))
    return [net.SerializeToString() for net in found]


@fuzzed
@given(
    net=st.sampled_from(nets()),
    mutate=st.just(bytes) | mutations((b"\x72\x00", b"\x70\x01", b"\x3a", b"\x6a\x00")),
)
def test_foreign_data_is_found_wherever_protobuf_finds_it(net: bytes, mutate: Mutation) -> None:
    """The sensor's reader refuses what protobuf parses with a tensor elsewhere, and never breaks."""
    data = mutate(net)
    try:
        check_onnx(data)
    except ForeignDataError:
        return
    except ValueError:
        return
    try:
        model = onnx.load_from_string(data)
    except Exception:
        return
    assert not has_foreign_data(model)
