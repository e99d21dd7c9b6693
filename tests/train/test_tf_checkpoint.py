"""TensorFlow's first checkpoint format: one that TensorFlow wrote, and damaged ones."""

import contextlib
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetag.contract.errors import InputError
from edgetag_train.data.crc32c import crc32c
from edgetag_train.data.protobuf import Message
from edgetag_train.data.tf_checkpoint import is_checkpoint, read_checkpoint

WRITTEN_BY_TENSORFLOW = Path(__file__).parent / "data" / "tf_v1.ckpt"
WHOLE = WRITTEN_BY_TENSORFLOW.read_bytes()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place to write to, again and again."""
    return tmp_path_factory.mktemp("checkpoint") / "damaged.ckpt"


def count(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def test_what_tensorflow_wrote() -> None:
    """Whole tensors, a scalar, an empty one, and two that were saved in slices. The integer is left out."""
    tensors = read_checkpoint(WRITTEN_BY_TENSORFLOW)
    expected = {
        "net/conv/weights": count(3, 3, 1, 2) / 8,
        "net/conv/biases": np.array([-1.5, 2.25], np.float32),
        "net/scalar": np.float32(0.1),
        "net/empty": np.zeros((0, 3), np.float32),
        "net/large": count(40, 50),
        "net/rows": count(5, 4),
        "net/columns": count(2, 6),
    }
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, expected[name], strict=True, err_msg=name)


def test_its_end_tells_a_checkpoint(file: Path) -> None:
    assert is_checkpoint(WRITTEN_BY_TENSORFLOW)
    for other in (b"", b"W\xfb", WHOLE[:-1]):
        file.write_bytes(other)
        assert not is_checkpoint(file)


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(InputError, match=f"{path} cannot be read"):
            read_checkpoint(path)


# -- damage ------------------------------------------------------------------------------------------------


@given(st.integers(0, len(WHOLE) - 1))
def test_a_truncated_file_is_refused(file: Path, n_bytes: int) -> None:
    file.write_bytes(WHOLE[:n_bytes])
    with pytest.raises(InputError, match="not a whole TensorFlow checkpoint"):
        read_checkpoint(file)


@given(st.integers(0, 8 * len(WHOLE) - 1))
def test_a_flipped_bit_is_refused(file: Path, bit: int) -> None:
    """But where nothing depends on it: the footer has room to spare."""
    damaged = bytearray(WHOLE)
    damaged[bit // 8] ^= 1 << bit % 8
    file.write_bytes(damaged)
    try:
        tensors = read_checkpoint(file)
    except InputError:
        return
    assert bit // 8 >= len(WHOLE) - 48
    np.testing.assert_array_equal(tensors["net/large"], count(40, 50))


# -- files with right checksums and wrong content -------------------------------------------------------


def varint(number: int) -> bytes:
    return bytes([number & 0x7F | 0x80]) + varint(number >> 7) if number > 0x7F else bytes([number])


def field(number: int, value: int | bytes) -> bytes:
    """One field of a protocol-buffer message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def block(values: list[bytes], compression: int = 0) -> bytes:
    content = b"".join(varint(0) + varint(0) + varint(len(value)) + value for value in values)
    content += struct.pack("<II", 0, 1) + bytes([compression])
    crc = crc32c(content)
    return content + struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def table(values: list[bytes], compression: int = 0, n_times: int = 1) -> bytes:
    """A table of one block of values, which its index names `n_times`."""
    data = block(values, compression)
    index = block([varint(0) + varint(len(data) - 5)] * n_times)
    footer = varint(0) + varint(0) + varint(len(data)) + varint(len(index) - 5)
    return data + index + footer.ljust(40, b"\0") + WHOLE[-8:]


def listed(shape: tuple[int, ...]) -> bytes:
    """The entry that says of tensor `t` which shape it has."""
    dims = b"".join(field(2, field(1, n)) for n in shape)
    return field(1, field(1, field(1, b"t") + field(2, dims) + field(3, 1)))


def saved(values: np.ndarray, *extents: tuple[int, int], number: int = 5) -> bytes:
    """The entry that has a slice of tensor `t`: start and length in each dimension."""
    where = b"".join(field(1, field(1, start) + field(2, length)) for start, length in extents)
    data = field(number, values.astype("<f4").tobytes())
    return field(2, field(1, b"t") + field(2, where) + field(3, data))


def test_values_as_they_lie_in_memory(file: Path) -> None:
    """`tensor_content`, too, holds values."""
    for number in (4, 5):
        file.write_bytes(table([listed((2, 3)), saved(count(2, 3), (0, 2), (0, 3), number=number)]))
        np.testing.assert_array_equal(read_checkpoint(file)["t"], count(2, 3))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([listed((6,))], r"tensor 't' of shape \(6,\) has 0 values"),
        ([listed((1 << 40,)), saved(count(6), (0, 6))], "has 6 values"),
        ([listed((6,)), saved(count(6), (0, 5))], r"slice \(5,\) of tensor 't' has 6 values"),
        ([listed((6,)), saved(count(6), (3, 6))], r"slice \(3,\) of tensor 't' has 6 values"),
        ([listed((6,)), saved(count(6), (0, 6), (0, 1))], "2 dimensions, of a tensor of 1"),
        (
            [listed((6,)), field(2, field(1, b"t") + field(2, field(1, b"")) + field(3, field(5, b"odd")))],
            "buffer size",
        ),
        ([listed((6,)), field(2, field(1, b"\xff"))], "utf-8"),
        ([field(1, 7)], "field 1 is an integer"),
        ([field(1, field(1, field(3, b"text")))], "field 3 is no integer"),
        ([b"\x0b"], "wire type 3"),
        ([b"\x0a\xff"], "does not end"),
        ([b"\x0a\x09"], "9 bytes at 2 of 2"),
        ([b"\x80" * 11], "does not end"),
    ],
)
def test_content_that_cannot_be(file: Path, entries: list[bytes], message: str) -> None:
    """Nothing of a stated size is allocated before as much has been found."""
    file.write_bytes(table(entries))
    with pytest.raises(InputError, match=message):
        read_checkpoint(file)


def test_slices_leave_no_hole_unseen(file: Path) -> None:
    """Two slices of the same half are as many values as the tensor has; the other half is not a number."""
    half = saved(count(3), (0, 3))
    file.write_bytes(table([listed((6,)), half, half]))
    np.testing.assert_array_equal(read_checkpoint(file)["t"], [0, 1, 2, np.nan, np.nan, np.nan])


def test_a_compressed_block(file: Path) -> None:
    file.write_bytes(table([listed((0,))], compression=1))
    with pytest.raises(InputError, match="block at byte 0 is compressed"):
        read_checkpoint(file)


def test_no_block_is_read_twice(file: Path) -> None:
    """An index that names the same block a million times would have one wait for hours."""
    file.write_bytes(table([listed((0,))], n_times=2))
    with pytest.raises(InputError, match="overlap"):
        read_checkpoint(file)


@given(
    st.lists(
        st.binary(max_size=60) | st.integers(0, 60).map(lambda n: saved(count(6), (0, 6))[:n]), max_size=4
    )
)
def test_whatever_a_signed_file_holds(file: Path, entries: list[bytes]) -> None:
    """It is read or refused, and nothing else."""
    file.write_bytes(table([listed((6,)), *entries]))
    try:
        tensors = read_checkpoint(file)
    except InputError:
        return
    assert tensors["t"].shape == (6,)


@given(st.binary(max_size=100))
def test_whatever_a_message_holds(data: bytes) -> None:
    """Fields, or a ValueError."""
    with contextlib.suppress(ValueError):
        Message(memoryview(data))


# -- the checksum --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_crc_of_the_standard(data: bytes, crc: int) -> None:
    """RFC 3720, appendix B.4."""
    assert crc32c(data) == crc


@given(st.binary(max_size=3000))
def test_crc_is_the_slow_one(data: bytes) -> None:
    """Bit by bit, for every length."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    assert crc32c(data) == crc ^ 0xFFFFFFFF
