"""NumPy arrays from a `.npz` that nobody vouches for: memory is taken for what is there, not for its claims.

`numpy.load` allocates whatever shape a header states, and lets the errors of five modules through.
"""

import io
import math
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAX_HEADER_BYTES = 1024


def read_npz(data: bytes, wanted: Mapping[str, type[np.generic]], limit: int) -> dict[str, NDArray[Any]]:
    """The arrays of these names and types.

    Args:
        data: what `numpy.savez` or `savez_compressed` wrote.
        wanted: element type by name; other arrays are not looked at.
        limit: bytes that all members may have, unpacked.

    Raises:
        ValueError: an array is missing, of another type, or not what its header states; in one sentence.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if (size := sum(member.file_size for member in archive.infolist())) > limit:
                raise ValueError(f"unpacked it has {size} bytes, more than {limit}")
            return {name: _array(archive, name, kind, limit) for name, kind in wanted.items()}
    except ValueError:
        raise
    except KeyError as error:
        raise ValueError(f"{error.args[0]}") from error
    except Exception as error:  # zipfile, zlib, struct and tokenize have no common base of their own errors
        raise ValueError(f"it is damaged: {error}") from error


def _array(archive: zipfile.ZipFile, name: str, kind: type[np.generic], limit: int) -> NDArray[Any]:
    with archive.open(f"{name}.npy") as member:
        stream = io.BytesIO(member.read(limit + 1))
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"{name!r} is of NumPy's format {version}, not (1, 0)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a header of Python 2 is none of ours
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, _MAX_HEADER_BYTES)
    if dtype != kind:
        raise ValueError(f"{name!r} is {dtype}, not {np.dtype(kind)}")
    if fortran:
        raise ValueError(f"{name!r} is stored by column")
    content = stream.getbuffer()[stream.tell() :]
    if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(content):
        raise ValueError(f"{name!r} states the shape {shape}, and has {len(content)} bytes")
    return np.frombuffer(bytes(content), dtype).astype(kind).reshape(shape)
