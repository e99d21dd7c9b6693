"""TensorFlow's first checkpoint format (`SaverDef.V1`): one file, a table of tensor slices.

```
table   block* index-block footer
footer  handles of two blocks, zeros up to 40 bytes, magic (8 bytes)
block   entry* restart-offset* n-restarts, compression (1 byte), masked CRC-32C (4 bytes)
entry   n-shared n-unshared n-value (varints), the unshared end of the key, the value
```
The index block's values are handles (offset, size as varints) of the others; their values are
`SavedTensorSlices` messages, the first of which lists every tensor's name, shape and type.

Sources: tensorflow/core/lib/io/format.cc and table_builder.cc, tensorflow/core/util/tensor_slice_writer.cc,
saved_tensor_slice.proto, tensorflow/core/framework/tensor.proto, tensor_shape.proto, tensor_slice.proto.
"""

import math
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetag.contract.errors import InputError
from edgetag_train.data.crc32c import crc32c
from edgetag_train.data.protobuf import Message, cut, varint

_MAGIC = struct.pack("<Q", 0xDB4775248B80FB57)
_FOOTER_BYTES = 48
_UNCOMPRESSED = 0
_CRC_MASK = 0xA282EAD8
_DT_FLOAT = 1


def is_checkpoint(path: Path) -> bool:
    """Whether a file ends as a table does.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(_MAGIC)))
        return file.read() == _MAGIC


def read_checkpoint(path: Path) -> dict[str, NDArray[np.float32]]:
    """Every float32 tensor by its name, its slices put together; tensors of other types are left out.

    Raises:
        InputError: the file cannot be read, is no such checkpoint, or is damaged.
    """
    try:
        return _tensors(memoryview(np.memmap(path, np.uint8, "r")))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path} is not a whole TensorFlow checkpoint ({error})") from error


def _tensors(file: memoryview) -> dict[str, NDArray[np.float32]]:
    shapes: dict[str, tuple[int, ...]] = {}
    slices: dict[str, list[Message]] = defaultdict(list)
    for value in _values(file):
        saved = Message(value)
        if 1 in saved:
            shapes |= _shapes(saved.message(1))
        else:
            data = saved.message(2)
            slices[data.text(1)].append(data)
    return {name: _joined(name, shape, slices[name]) for name, shape in shapes.items()}


# -- the table ---------------------------------------------------------------------------------------


def _values(file: memoryview) -> Iterator[memoryview]:
    """The values of all data blocks, in order."""
    footer = cut(file, len(file) - _FOOTER_BYTES, _FOOTER_BYTES)
    if footer[-len(_MAGIC) :] != _MAGIC:
        raise ValueError("it does not end as one")
    _, _, at = _handle(footer, 0)
    offset, size, _ = _handle(footer, at)
    read_to = 0
    for handle in _entries(_block(file, offset, size)):
        offset, size, _ = _handle(handle, 0)
        if offset < read_to:
            raise ValueError("its blocks overlap")
        read_to = offset + size
        yield from _entries(_block(file, offset, size))


def _block(file: memoryview, offset: int, size: int) -> memoryview:
    checked = cut(file, offset, size + 1)
    (stored,) = struct.unpack("<I", cut(file, offset + size + 1, 4))
    crc = crc32c(checked)
    if stored != ((crc >> 15 | crc << 17) + _CRC_MASK) & 0xFFFFFFFF:
        raise ValueError(f"the block at byte {offset} does not have its checksum")
    if checked[size] != _UNCOMPRESSED:
        raise ValueError(f"the block at byte {offset} is compressed")
    return checked[:size]


def _entries(block: memoryview) -> Iterator[memoryview]:
    """The values of one block; the keys only repeat what the values say."""
    (n_restarts,) = struct.unpack("<I", cut(block, len(block) - 4, 4))
    entries = cut(block, 0, len(block) - 4 - 4 * n_restarts)
    at = 0
    while at < len(entries):
        _, at = varint(entries, at)
        n_key, at = varint(entries, at)
        n_value, at = varint(entries, at)
        yield cut(entries, at + n_key, n_value)
        at += n_key + n_value


def _handle(data: memoryview, at: int) -> tuple[int, int, int]:
    """Offset and size of a block, and where the next byte is."""
    offset, at = varint(data, at)
    size, at = varint(data, at)
    return offset, size, at


# -- the tensors ---------------------------------------------------------------------------------------


def _shapes(meta: Message) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the float32 tensors that a `SavedTensorSliceMeta` lists."""
    return {
        tensor.text(1): tuple(dim.integer(1) for dim in tensor.message(2).messages(2))
        for tensor in meta.messages(1)
        if tensor.integer(3) == _DT_FLOAT
    }


def _joined(name: str, shape: tuple[int, ...], slices: list[Message]) -> NDArray[np.float32]:
    """One tensor from its `SavedSlice` messages."""
    parts = [(_extents(part.message(2), shape), _floats(part.message(3))) for part in slices]
    # Before anything of a stated size is allocated: as many values as the file really has.
    if (n_values := sum(len(values) for _, values in parts)) != math.prod(shape):
        raise ValueError(f"tensor {name!r} of shape {shape} has {n_values} values")
    tensor = np.full(shape, np.nan, np.float32)
    for where, values in parts:
        if tensor[where].size != len(values):
            raise ValueError(f"a slice {tensor[where].shape} of tensor {name!r} has {len(values)} values")
        tensor[where] = values.reshape(tensor[where].shape)
    return tensor


def _extents(stated: Message, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """A `TensorSliceProto`: start and length in each dimension, all of it where there is no length."""
    extents = stated.messages(1)
    if len(extents) != len(shape):
        raise ValueError(f"a slice of {len(extents)} dimensions, of a tensor of {len(shape)}")
    return tuple(
        slice(start := extent.integer(1), start + extent.integer(2) if 2 in extent else n)
        for extent, n in zip(extents, shape, strict=True)
    )


def _floats(tensor: Message) -> NDArray[np.float32]:
    """The values of a `TensorProto`: packed `float_val`, or `tensor_content`."""
    return np.frombuffer(tensor.data(5) or tensor.data(4), "<f4")
