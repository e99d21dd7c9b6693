"""CRC-32C (Castagnoli; RFC 3720, appendix B.4), fast enough in numpy for hundreds of megabytes."""

import math

import numpy as np

_POLYNOMIAL = 0x82F63B78  # bits reversed

_TABLE = np.arange(256, dtype=np.uint32)
for _ in range(8):
    _TABLE = (_TABLE >> 1) ^ (_TABLE & 1) * np.uint32(_POLYNOMIAL)
_BYTE_TABLE: list[int] = _TABLE.tolist()
_words = np.arange(1 << 16, dtype=np.uint32)
_first = _TABLE[_words & 0xFF]
_WORD_TABLE = _TABLE[(_first ^ (_words >> 8)) & 0xFF] ^ (_first >> 8)


def crc32c(data: bytes | memoryview) -> int:
    """The checksum of some bytes.

    The bytes are cut into rows that numpy moves on side by side, two bytes a step: about 0.1 GB/s.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    n_rows = math.isqrt(len(data)) or 1
    n_words = len(data) // (2 * n_rows)
    n_head = len(data) - 2 * n_rows * n_words
    head = 0xFFFFFFFF
    for byte in data[:n_head]:
        head = _BYTE_TABLE[(head ^ byte) & 0xFF] ^ (head >> 8)
    # Rows but the first begin with a state of zero, which is what makes them independent. Below them, 32
    # rows of zeros that begin with one bit each: they end as the matrix that moves a state over one row.
    columns = np.zeros((n_words, n_rows + 32), np.uint16)
    columns[:, :n_rows] = np.frombuffer(data[n_head:], "<u2").reshape(n_rows, n_words).T
    states = np.zeros(n_rows + 32, np.uint32)
    states[0] = head
    states[n_rows:] = 1 << np.arange(32)
    for column in columns:
        states = (states >> 16) ^ _WORD_TABLE[(states ^ column) & 0xFFFF]
    return _join(states[:n_rows].tolist(), states[n_rows:].tolist()) ^ 0xFFFFFFFF


def _join(rows: list[int], over_one_row: list[int]) -> int:
    """The state after all rows, from each row's own."""
    state = 0
    for row in rows:
        moved = row
        for bit, moved_bit in enumerate(over_one_row):
            if state >> bit & 1:
                moved ^= moved_bit
        state = moved
    return state
