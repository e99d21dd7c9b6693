"""What an ONNX file must not do: keep part of itself in another file.

Tensors of an ONNX file may lie in any file that it names. A bundle's hash says nothing of that file, and the
runtime looks for it beside the process. The few message types of `onnx.proto` that lead to a tensor are
followed here by their field numbers, so that a sensor needs no `onnx`.
"""

from collections.abc import Iterator, Mapping

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 64
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14

# By message, the fields that hold messages on the way to a tensor.
_FIELDS: Mapping[str, Mapping[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "SparseTensor",
        23: "SparseTensor",
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
}


class ForeignDataError(ValueError):
    """A tensor that is not in the file."""


def check_onnx(data: bytes) -> None:
    """Whether an ONNX file is complete in itself.

    Raises:
        ForeignDataError: a tensor's data is in another file.
        ValueError: it is no protocol buffer.
    """
    _check(memoryview(data), "Model", 0)


def _check(message: memoryview, kind: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError("its graphs are nested too deeply")
    for number, value in _fields(message):
        if kind == "Tensor":
            if number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0):
                raise ForeignDataError(
                    "keeps weights in another file; a bundle's nets are complete in themselves"
                )
        elif isinstance(value, memoryview) and (inner := _FIELDS[kind].get(number)):
            _check(value, inner, depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Field numbers and values: ints, or the bytes of what has a length."""
    position, end = 0, len(message)
    while position < end:
        key, position = _varint(message, position)
        if key >= 2**32:
            raise ValueError("it is no protocol buffer")
        wire_type = key & 7
        value: int | memoryview
        if wire_type == _VARINT:
            value, position = _varint(message, position)
        elif wire_type == _BYTES:
            size, start = _varint(message, position)
            position = start + size
            value = message[start:position]
        elif wire_type in (_FIXED64, _FIXED32):
            position += 8 if wire_type == _FIXED64 else 4
            value = 0
        else:
            raise ValueError("it is no protocol buffer")
        if position > end:
            raise ValueError("it is no protocol buffer, or truncated")
        yield key >> 3, value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 2**64 - 1, position
    raise ValueError("it is no protocol buffer, or truncated")
