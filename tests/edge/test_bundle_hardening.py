"""Bundles that somebody made to do harm: nothing is run, waited for or allocated because a file says so."""

import io
import os
import resource
import socket
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgetag import Tagger
from edgetag.contract.errors import BundleError, printable
from edgetag.contract.frontend import WINDOW_SAMPLES
from edgetag.contract.manifest import LOGMEL_INPUT, LOGMEL_SHAPE, MAX_MANIFEST_BYTES, OUTPUT
from edgetag.contract.strict_yaml import dump_yaml, load_yaml
from edgetag.tagging.bundle import MAX_GOLDEN_BYTES, load_bundle
from edgetag.tagging.npz import read_npz
from edgetag.tagging.onnx_file import ForeignDataError, check_onnx
from fakes_bundle import constant_net, edit_manifest, file_entry, write_bundle

ROOT_8 = [0.9] + [0.1] * 7


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", ROOT_8)


def refusal(bundle: Path) -> str:
    """The one printable line that `load_bundle` refuses it with."""
    with pytest.raises(BundleError) as refused:
        load_bundle(bundle)
    assert str(refused.value).isprintable()
    return str(refused.value)


# -- ONNX ------------------------------------------------------------------------------------------------


def elsewhere(location: str) -> TensorProto:
    """Eight logits that lie in another file."""
    tensor = TensorProto(name="logits", data_type=TensorProto.FLOAT, dims=[1, 8])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "32")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def as_initializer(model: onnx.ModelProto, tensor: TensorProto) -> None:
    del model.graph.initializer[0]
    model.graph.initializer.append(tensor)


def as_constant(model: onnx.ModelProto, tensor: TensorProto) -> None:
    del model.graph.initializer[0]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["logits"], value=tensor))


def in_a_branch_of_if(model: onnx.ModelProto, tensor: TensorProto) -> None:
    body = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "body", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["unused"], then_branch=body, else_branch=body))


def in_a_function(model: onnx.ModelProto, tensor: TensorProto) -> None:
    node = helper.make_node("Constant", [], ["c"], value=tensor)
    model.functions.append(helper.make_function("d", "f", [], ["c"], [node], []))


def as_sparse(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(tensor)


def in_a_list(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("extra", [tensor]))


def with_net(bundle: Path, data: bytes) -> None:
    (bundle / "root.onnx").write_bytes(data)
    edit_manifest(bundle, root={"outputs": 8, "variants": {"fp32": file_entry(bundle / "root.onnx")}})


@pytest.mark.parametrize(
    "place", [as_initializer, as_constant, in_a_branch_of_if, in_a_function, as_sparse, in_a_list]
)
@pytest.mark.parametrize("location", ["weights.bin", "../../etc/passwd", "/etc/passwd", ""])
def test_a_net_that_reads_another_file_is_refused(
    bundle: Path,
    place: Callable[[onnx.ModelProto, TensorProto], None],
    location: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever in the net the tensor hides, and though the file is where the runtime would look for it."""
    np.zeros(8, np.float32).tofile(bundle.parent / "weights.bin")
    monkeypatch.chdir(bundle.parent)
    model = onnx.load_from_string(constant_net(ROOT_8))
    place(model, elsewhere(location))
    with_net(bundle, model.SerializeToString())
    assert refusal(bundle).endswith(
        "keeps weights in another file; a bundle's nets are complete in themselves"
    )


def test_a_complete_net_passes() -> None:
    """The check for foreign data accepts what has none."""
    check_onnx(constant_net(ROOT_8))


def test_a_field_number_of_more_than_32_bits_hides_nothing() -> None:
    """Readers that drop the upper bits would see a graph where another sees an unknown field."""
    model = onnx.load_from_string(constant_net(ROOT_8))
    as_initializer(model, elsewhere("x"))
    graph = model.graph.SerializeToString()
    size = (
        len(graph).to_bytes(2, "little")
        if len(graph) < 128
        else bytes([len(graph) & 0x7F | 0x80, len(graph) >> 7])
    )
    with pytest.raises(ValueError, match="no protocol buffer"):
        check_onnx(b"\xba\x80\x80\x80\x10" + size + graph)
    with pytest.raises(ForeignDataError):
        check_onnx(b"\x3a" + size + graph)


def deep_net() -> bytes:
    """Graphs within graphs, a thousand deep."""
    graph = b""
    for _ in range(1000):
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # attribute's graph, node's attribute, graph's node
            size, n = b"", len(graph)
            while n >= 0x80:
                size, n = size + bytes([n & 0x7F | 0x80]), n >> 7
            graph = tag + size + bytes([n]) + graph
    return b"\x3a\x02" + graph


@pytest.mark.parametrize(
    "data",
    [
        b"\x00",
        b"\xff" * 64,
        b"ORTM" * 16,
        b"\x08\x00\x00\x00ORTM" + bytes(64),
        b"\x3a\xff\xff\xff\xff\x0f",
        deep_net(),
    ],
    ids=["zero", "ones", "text", "ORT", "a length beyond the file", "deep"],
)
def test_a_net_that_is_none(bundle: Path, data: bytes) -> None:
    """Refused, and the runtime's own formats beside ONNX with it."""
    with_net(bundle, data)
    assert "is not an ONNX net this runtime can load" in refusal(bundle)


def test_a_net_of_another_kind(bundle: Path) -> None:
    """Doubles, or a shape that is open: nothing a sensor's buffers fit."""
    for kind, shape, said in (
        (TensorProto.DOUBLE, LOGMEL_SHAPE, "not float32 of fixed shape"),
        (TensorProto.FLOAT, (1, 1, 128, "n"), "not float32 of fixed shape"),
        (TensorProto.FLOAT, ("n", *LOGMEL_SHAPE[1:]), "takes 'logmel' n×1×128×862; expected 'logmel' 1×1×"),
    ):
        source = helper.make_tensor_value_info(LOGMEL_INPUT, kind, shape)
        output = helper.make_tensor_value_info(OUTPUT, kind, shape)
        node = helper.make_node("Identity", [LOGMEL_INPUT], [OUTPUT])
        graph = helper.make_graph([node], "g", [source], [output])
        opset = [helper.make_opsetid("", 18)]
        with_net(bundle, helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString())
        assert said in refusal(bundle)


def with_nodes(bundle: Path, *nodes: onnx.NodeProto) -> None:
    """A root net of these nodes from `logmel`, and `sixty` (60 numbers), to `probability`."""
    source = helper.make_tensor_value_info(LOGMEL_INPUT, TensorProto.FLOAT, LOGMEL_SHAPE)
    output = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, (1, 8))
    sixty = numpy_helper.from_array(np.ones(60, np.float32), "sixty")
    graph = helper.make_graph(nodes, "g", [source], [output], [sixty])
    opset = [helper.make_opsetid("", 18)]
    with_net(bundle, helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString())


def test_a_net_that_fails_when_it_is_run(bundle: Path) -> None:
    """A shape that is wrong only at run time, or is another one than the net states: one sentence."""
    places = [
        helper.make_node("ReduceMean", [LOGMEL_INPUT], ["mean"], keepdims=0),
        helper.make_node("Add", ["sixty", "mean"], ["heard"]),
        helper.make_node("NonZero", ["heard"], ["places"]),
    ]
    beyond = helper.make_node("Add", ["places", "places"], ["beyond"])
    with_nodes(bundle, *places, beyond, helper.make_node("Gather", ["heard", "beyond"], [OUTPUT]))
    with pytest.raises(BundleError, match=r"root\.onnx fails \("):
        Tagger.load(bundle)
    with_nodes(bundle, *places, helper.make_node("Gather", ["heard", "places"], [OUTPUT]))
    with pytest.raises(BundleError, match=r"root\.onnx gives \(1, 60\); it states 'probability' 1×8"):
        Tagger.load(bundle)


# -- entries of the folder ---------------------------------------------------------------------------------


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize("name", ["bundle.yaml", "root.onnx", "golden.npz"])
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (os.mkfifo, "a pipe or a device"),
        (Path.mkdir, "a folder"),
        (lambda path: path.symlink_to("/dev/zero"), "a symbolic link"),
        (lambda path: path.symlink_to("root.onnx"), "a symbolic link"),
        (a_socket, "a socket or a device"),
    ],
    ids=["pipe", "folder", "link to a device", "link to itself", "socket"],
)
def test_what_is_no_plain_file_is_not_opened(
    bundle: Path, name: str, make: Callable[[Path], object], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of the manifest, a net or the golden windows; a pipe that nobody writes holds nobody up."""
    monkeypatch.chdir(bundle)  # a socket's path is short
    (bundle / name).unlink()
    make(Path(name))
    assert f"{name} is {kind}" in refusal(bundle)


@pytest.mark.parametrize(
    "name", ["../root.onnx", "/etc/passwd", "a/b", ".", "..", "", "a\n", "a\0", "a\x1b[2J", "ä"]
)
def test_a_file_name_that_is_more_than_a_name(bundle: Path, name: str) -> None:
    """Neither another folder nor another line of the log."""
    stated = file_entry(bundle / "root.onnx") | {"file": name}
    edit_manifest(bundle, root={"outputs": 8, "variants": {"fp32": stated}})
    assert "is not a plain file name" in refusal(bundle)


def test_the_manifest_cannot_state_itself(bundle: Path) -> None:
    """A file that is its own hash's statement is none."""
    stated = file_entry(bundle / "root.onnx") | {"file": "bundle.yaml"}
    edit_manifest(bundle, root={"outputs": 8, "variants": {"fp32": stated}})
    assert "cannot be a bundle's" in refusal(bundle)


def test_a_stated_length_allocates_nothing(bundle: Path, little_memory: None) -> None:
    """Two gigabytes stated, a few hundred bytes there."""
    stated = file_entry(bundle / "root.onnx") | {"size": 2**31 - 1}
    edit_manifest(bundle, root={"outputs": 8, "variants": {"fp32": stated}})
    assert "root.onnx is truncated" in refusal(bundle)


# -- golden windows ------------------------------------------------------------------------------------------


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Half a gigabyte more than what is taken, and no further."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def npy(header: str, content: bytes = b"", version: bytes = b"\1\0") -> bytes:
    return b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header.encode() + content


def npz(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def with_golden(bundle: Path, data: bytes) -> None:
    (bundle / "golden.npz").write_bytes(data)
    edit_manifest(bundle, golden=file_entry(bundle / "golden.npz") | {"tolerance": {"fp32": 0.001}})


def with_entry(field: int, value: int) -> bytes:
    """One member, whose directory entry says `value` where it has zero."""
    data = bytearray(npz({"pcm.npy": npy(HEADER.format("<i2", "(1, 1)"), b"xx")}))
    at = data.rindex(b"PK\1\2") + field
    data[at : at + 2] = value.to_bytes(2, "little")
    return bytes(data)


def understated() -> bytes:
    """A member that unpacks to far more than its directory states."""
    data = bytearray(npz({"pcm.npy": bytes(2**28)}, zipfile.ZIP_DEFLATED))
    at = data.rindex(b"PK\1\2")
    data[at + 24 : at + 28] = (100).to_bytes(4, "little")
    return bytes(data)


HEADER = "{{'descr': '{}', 'fortran_order': False, 'shape': {}}}"
GIANTS: dict[str, bytes] = {
    "a shape of terabytes": npz({"pcm.npy": npy(HEADER.format("<i2", "(1000000, 441000)"))}),
    "a shape of gigabytes": npz({"pcm.npy": npy(HEADER.format("<i2", "(10000, 441000)"))}),
    "a shape beyond integers": npz({"pcm.npy": npy(HEADER.format("<i2", "(" + "9" * 400 + ",)"))}),
    "a negative shape": npz({"pcm.npy": npy(HEADER.format("<i2", "(-1, 441000)"))}),
    "more unpacked than allowed": npz({"pcm.npy": bytes(MAX_GOLDEN_BYTES + 1)}, zipfile.ZIP_DEFLATED),
    "more unpacked than stated": understated(),
    "objects": npz({"pcm.npy": npy(HEADER.format("|O", "(1,)"), b"cos\nsystem\n(S'true'\ntR.")}),
    "an item of gigabytes": npz({"pcm.npy": npy(HEADER.format("<U1000000000", "(1,)"))}),
    "Python 2's header": npz({"pcm.npy": npy("{'descr': '<i2', 'fortran_order': False, 'shape': (1L, 2L)}")}),
    "a header of parentheses": npz({"pcm.npy": npy("(" * 900)}),
    "a header that is cut": npz({"pcm.npy": b"\x93NUMPY\1\0\xff\xff{"}),
    "another version of NumPy's format": npz({"pcm.npy": npy("", version=b"\3\0")}),
    "no array": npz({"pcm.npy": b"hello"}),
    "no windows": npz({}),
    "an encrypted member": with_entry(8, 1),
    "an unknown compression": with_entry(10, 99),
    "LZMA of nothing": with_entry(10, 14),
}


@pytest.mark.parametrize("data", GIANTS.values(), ids=GIANTS.keys())
def test_golden_windows_that_are_none(bundle: Path, data: bytes, little_memory: None) -> None:
    """With their true hash in the manifest, and half a gigabyte to spare."""
    with_golden(bundle, data)
    assert "golden.npz holds no golden windows for fp32 (" in refusal(bundle)


def test_golden_windows_of_another_shape_or_type(bundle: Path) -> None:
    """Windows are int16 of ten seconds, probabilities float32 of the net's outputs; nothing is converted."""
    pcm, root = np.zeros((1, WINDOW_SAMPLES), np.int16), np.float32([ROOT_8])
    for wrong, sentence in (
        ({"pcm": pcm.astype(np.float32)}, "'pcm' is float32, not int16"),
        ({"pcm": pcm.astype(">i2")}, "'pcm' is >i2, not int16"),
        ({"pcm": pcm[:, :-1]}, "the golden windows are (1, 440999)"),
        ({"pcm": pcm[:0]}, "the golden windows are (0, 441000)"),
        ({"root_fp32": root.astype(np.float64)}, "'root_fp32' is float64, not float32"),
        ({"root_fp32": np.array([["0.9"] * 8])}, "'root_fp32' is <U3, not float32"),
        ({"root_fp32": root[:, :7]}, "the golden root is (1, 7), not (1, 8)"),
    ):
        stream = io.BytesIO()
        arrays: dict[str, Any] = {"pcm": pcm, "root_fp32": root, **wrong}
        np.savez_compressed(stream, **arrays)
        with_golden(bundle, stream.getvalue())
        assert sentence in refusal(bundle)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(save: Callable[..., None]) -> None:
    """Packed or not, the arrays come back as they were."""
    arrays: dict[str, Any] = {"a": np.arange(6, dtype=np.int16).reshape(2, 3), "b": np.float32([[0.5]])}
    stream = io.BytesIO()
    save(stream, **arrays)
    found = read_npz(stream.getvalue(), {"a": np.int16, "b": np.float32}, 1000)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


# -- the manifest --------------------------------------------------------------------------------------------

YAML: dict[str, tuple[bytes, str]] = {
    "an alias": (b"a: &a 1\nb: *a", "aliases are not allowed"),
    "aliases that stand for gigabytes": (
        b"a: &a [x, x, x, x]\nb: &b [*a, *a, *a, *a]\nc: [*b, *b, *b, *b]",
        "aliases are not allowed",
    ),
    "a merge": (b"a: &a {b: 1}\nc: {<<: *a}", "aliases are not allowed"),
    "a key twice": (b"a: 1\na: 2", "a key is there twice"),
    "a key twice, below": (b"a: {b: 1, b: 1}", "a key is there twice"),
    "a key twice by value": (b"a: {0.5: 1, .5: 2}", "a key is there twice"),
    "a Python object": (b"a: !!python/object/apply:os.system [true]", "tags are not allowed"),
    "binary": (b"a: !!binary aGVsbG8=", "tags are not allowed"),
    "a timestamp": (b"a: !!timestamp nonsense", "tags are not allowed"),
    "an int of nothing": (b"a: !!int ''", "tags are not allowed"),
    "a bool of nothing": (b"a: !!bool x", "tags are not allowed"),
    "a tag of its own": (b"a: !x y", "tags are not allowed"),
    "a set": (b"!!set {a, b}", "tags are not allowed"),
    "a list as a key": (b"? [a, b]\n: 1", "unhashable key"),
    "deep nesting": (b"[" * 10_000, "nested too deeply"),
    "deep maps": (b"{a: " * 10_000, "nested too deeply"),
    "a hundred thousand values": (b"[" + b"a," * 100_000 + b"]", "too many values"),
    "two documents": (b"a: 1\n---\nb: 2", "expected a single document"),
    "a control character": (b"a: \x1b[2J", "special characters are not allowed"),
    "a null byte": (b"a: \0", "special characters are not allowed"),
    "half a character": (b"a: \xc3", "unexpected end of data"),
    "a surrogate, escaped": (b'a: "\\ud800"', "half a character"),
    "a surrogate for a key": (b'"\\ud800": 1', "half a character"),
    "a character beyond Unicode": (b'a: "\\U00110000"', "not in range"),
    "a character far beyond Unicode": (b'a: "\\UFFFFFFFF"', "beyond Unicode"),
    "a surrogate": ("a: \ud800".encode("utf-8", "surrogatepass"), "invalid continuation byte"),
}


@pytest.mark.parametrize(("text", "sentence"), YAML.values(), ids=YAML.keys())
def test_yaml_that_is_more_than_data(bundle: Path, text: bytes, sentence: str) -> None:
    """Refused as YAML, before anybody asks what it states."""
    (bundle / "bundle.yaml").write_bytes(text)
    assert sentence in refusal(bundle)


def test_yaml_reads_what_it_writes() -> None:
    """Strings that look like dates, numbers, sexagesimals or nothing stay strings, numbers numbers."""
    value = {
        "strings": ["2026-11-22", "1:30", "0x10", "010", "1_000", "1e5", "1.5e5", "<<", "=", "null", ""],
        "numbers": [0, -1, 2**62, 0.5, 1e-10, -1e300, float("inf")],
        "others": [True, None, {}, []],
        "999999999999999999999": "digits",
    }
    assert load_yaml(dump_yaml(value)) == value


def test_numbers_are_read_as_they_look() -> None:
    """Decimal, and no more than a machine's word: `1:1:1…` is no work, `0x10` no sixteen, `010` no eight."""
    text = b"[1, -1, +1, 0, 1.5, .5, 1.0e-10, 0x10, 010, 1_000, 1:30, 2026-11-22, " + b"9" * 20 + b"]"
    assert load_yaml(text) == [
        1, -1, 1, 0, 1.5, 0.5, 1e-10, "0x10", "010", "1_000", "1:30", "2026-11-22", "9" * 20
    ]  # fmt: skip


def test_a_manifest_beyond_the_limit(bundle: Path) -> None:
    """Not read to its end, nor parsed."""
    with (bundle / "bundle.yaml").open("ab") as manifest:
        manifest.write(b"#" * MAX_MANIFEST_BYTES)
    assert "longer than the 1048576 bytes" in refusal(bundle)
    with (bundle / "bundle.yaml").open("wb") as manifest:
        manifest.truncate(2**40)  # a hole
    assert "longer than the 1048576 bytes" in refusal(bundle)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 1.1, 10**18, "0.5", True, None, [0.5]])
def test_a_threshold_that_is_no_probability(bundle: Path, value: Any) -> None:
    """Thresholds, the cascade's among them."""
    edit_manifest(bundle, thresholds={"1": value})
    assert "thresholds" in refusal(bundle)
    edit_manifest(bundle, thresholds={}, cascade={"policy": "threshold", "threshold": value})
    assert "cascade" in refusal(bundle)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0, 1, -1])
def test_a_tolerance_that_allows_everything(bundle: Path, value: Any) -> None:
    """NaN is above nothing, and would let any difference pass."""
    edit_manifest(bundle, golden=file_entry(bundle / "golden.npz") | {"tolerance": {"fp32": value}})
    assert "tolerance" in refusal(bundle)


@pytest.mark.parametrize("size", [0, -1, 2**31, 10**18, 1.5, float("nan"), "1"])
def test_a_length_that_is_none(bundle: Path, size: Any) -> None:
    """A length is what an ONNX file can have."""
    edit_manifest(
        bundle, golden=file_entry(bundle / "golden.npz") | {"size": size, "tolerance": {"fp32": 0.1}}
    )
    assert "golden.size" in refusal(bundle)


def test_every_error_is_one_printable_line() -> None:
    """Whatever it quotes: a terminal's escapes, line ends, half characters, text that runs backwards."""
    quoted = "a\x1b[2J\r\n\x9b\u202e\ud800\U000e0001é漢"
    assert str(BundleError(quoted)) == r"a\x1b[2J\r\n\x9b\u202e\ud800\U000e0001é漢"
    assert printable(str(BundleError(quoted))) == str(BundleError(quoted))
    assert len(str(BundleError("x" * 10**6))) < 5000
