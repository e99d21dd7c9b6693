"""Protocol-buffer messages read without their definitions, as far as tensors in files need it.

Source: developers.google.com/protocol-buffers/docs/encoding
"""

from collections.abc import Iterator

_MAX_VARINT_BYTES = 10  # 64 bits, seven a byte


class Message:
    """The fields of one message by number; what is absent reads as 0, as nothing, as an empty message.

    Raises `ValueError`, here and in every method, when the bytes are no message or a field has another type.
    """

    def __init__(self, data: memoryview) -> None:
        self._fields: dict[int, list[int | memoryview]] = {}
        for number, value in _fields(data):
            self._fields.setdefault(number, []).append(value)

    def __contains__(self, number: int) -> bool:
        return number in self._fields

    def integer(self, number: int) -> int:
        """An integer, as its 64 bits unsigned."""
        value = self._fields.get(number, [0])[-1]
        if not isinstance(value, int):
            raise ValueError(f"field {number} is no integer")
        return value

    def data(self, number: int) -> memoryview:
        """A string, bytes or packed numbers."""
        return _checked_data(self._fields.get(number, [memoryview(b"")])[-1], number)

    def text(self, number: int) -> str:
        """A string."""
        return str(self.data(number), "utf-8")

    def message(self, number: int) -> "Message":
        """A message inside this one."""
        return Message(self.data(number))

    def messages(self, number: int) -> list["Message"]:
        """All values of a repeated message."""
        return [Message(_checked_data(value, number)) for value in self._fields.get(number, [])]


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number that begins at byte `at`, and where the next byte is.

    >>> varint(memoryview(bytes([0xAC, 0x02])), 0)
    (300, 2)
    """
    value = 0
    for k, byte in enumerate(data[at : at + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * k
        if byte < 0x80:
            return value, at + k + 1
    raise ValueError("a number does not end")


def cut(data: memoryview, start: int, size: int) -> memoryview:
    """`size` bytes from `start`, all of which must be there."""
    if start < 0 or size < 0 or start + size > len(data):
        raise ValueError(f"{size} bytes at {start} of {len(data)}")
    return data[start : start + size]


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        match tag & 7:
            case 0:
                value, at = varint(data, at)
                yield tag >> 3, value
                continue
            case 1:
                size = 8
            case 2:
                size, at = varint(data, at)
            case 5:
                size = 4
            case wire_type:
                raise ValueError(f"a field has wire type {wire_type}")
        yield tag >> 3, cut(data, at, size)
        at += size


def _checked_data(value: int | memoryview, number: int) -> memoryview:
    if isinstance(value, int):
        raise ValueError(f"field {number} is an integer")
    return value
