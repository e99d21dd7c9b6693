"""Recordings as sources: files through libsndfile, and WAV from standard input.

libsndfile takes a WAV from a pipe, but believes its header: length 0, as some programs write when they
cannot seek back, gives no audio, and any other placeholder ends an endless stream after some hours. So
standard input has a reader of its own, for the plain encodings that programs write to pipes.
"""

import contextlib
import io
import os
import stat
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import soundfile
from numpy.typing import NDArray

from edgetag.capture.source import Block, DamagedAudio, check_stream
from edgetag.capture.stderr import stderr_silenced
from edgetag.contract.errors import InputError

BLOCK_S, BLOCK_VALUES = 1.0, 2**16  # at most; every call costs as much as decoding some hundred frames
MP3_BLOCK_FRAMES = 2**12  # fixed: the decoder's last bit depends on how much is asked of it at once
PIPE_BLOCK_S = 0.1

_UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's SF_COUNT_MAX
_MP3_SLACK_FRAMES = 2 * 1152  # without a Xing header the length is an estimate, to two MPEG frames
_TAIL_BYTES = 2**16  # tags behind the audio: ID3v1, APE, Lyrics3
_OGG_PAGE_BYTES = 2**16  # no page is longer
_OGG_END_OF_STREAM = 0x04  # bit of the page's header type, RFC 3533 section 6

_STDIN_HELP = "pipe a WAV into it, as from `ffmpeg -i … -f wav -` or `sox … -t wav -`"


def open_recording(path: str) -> "FileSource | StdinSource":
    """The recording at `path`; `-` is a WAV from standard input. Raises `InputError`."""
    if path != "-":
        return FileSource(path)
    if sys.stdin is None:
        raise InputError(f"standard input is closed; {_STDIN_HELP}")
    return StdinSource(sys.stdin.buffer)


class _Forward(soundfile.SoundFile):  # type: ignore[misc]
    """Read from its beginning to its end.

    soundfile seeks after every read where a file lets it. In FLAC that decodes a frame again, for nothing;
    of a damaged OGG it saves more.
    """

    def seekable(self) -> bool:
        return bool(self.format != "FLAC" and super().seekable())


class FileSource:
    """A WAV, FLAC, OGG or MP3 file (or what else libsndfile reads) of any length, read block by block.

    Raises `InputError` when there is no such file, it holds no audio, or its rate or channels are not
    supported. Non-finite samples are delivered as they are.

    While libsndfile opens a file or decodes an MP3, what any thread of the process writes to stderr is lost.
    """

    def __init__(self, path: str | Path) -> None:
        self.name = str(path)
        self._file = _open_regular(Path(path))
        try:
            n_announced = _announced_wav_frames(self._file)
            self._sound = _open_decoder(self._file, self.name)
            self._check_sound()
        except BaseException:
            self._file.close()
            raise
        self.rate_hz: int = self._sound.samplerate
        self.n_channels: int = self._sound.channels
        self._n_expected: int = self._sound.frames if n_announced is None else n_announced

    @property
    def duration_s(self) -> float | None:
        """Length as the file states it; None where it does not."""
        return None if self._n_expected == _UNKNOWN_FRAMES else self._n_expected / self.rate_hz

    def blocks(self) -> Iterator[Block]:
        """All that can be decoded, in order; then, if that is not the whole recording, `DamagedAudio`."""
        n_decoded = 0
        while True:
            frames, ended = self._read()
            if len(frames):
                yield Block(n_decoded, frames)
                n_decoded += len(frames)
            if ended:
                break
        if reason := self._damage(n_decoded):
            raise DamagedAudio(self.name, n_decoded / self.rate_hz, reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._sound.close()
        self._file.close()

    def _check_sound(self) -> None:
        check_stream(self.name, self._sound.samplerate, self._sound.channels)
        if self._sound.frames == 0:
            raise InputError(
                f"{self.name}: its header is followed by no audio; at least one frame is expected "
                "(a WAV whose recorder was cut off may still be read from standard input, with `-`)"
            )

    def _read(self) -> tuple[NDArray[np.float32], bool]:
        """The next frames, and whether they are the last: the end, or the decoder failed after them."""
        is_mp3 = self._sound.format == "MP3"
        n_frames = min(int(BLOCK_S * self.rate_hz), BLOCK_VALUES // self.n_channels)
        if is_mp3:
            n_frames = MP3_BLOCK_FRAMES
        frames = np.full((n_frames, self.n_channels), np.nan, np.float32)
        with stderr_silenced() if is_mp3 else contextlib.nullcontext():
            try:
                read: NDArray[np.float32] = self._sound.read(out=frames)
            except soundfile.LibsndfileError:
                # Frames decoded before the failure are in place, and what was not reached is still NaN.
                untouched = np.isnan(frames).all(axis=1)
                return frames[: np.argmax(untouched) if untouched.any() else None], True
        return read, len(read) == 0

    def _damage(self, n_decoded: int) -> str | None:
        """Why what was decoded is not the whole recording; None if it is, as far as can be told."""
        container = self._sound.format
        slack_frames = _MP3_SLACK_FRAMES if container == "MP3" else 0
        if n_decoded + slack_frames < self._n_expected != _UNKNOWN_FRAMES:
            return f"where {self._n_expected / self.rate_hz:.2f} s are expected"
        if n_decoded == 0:
            return "where at least one frame is expected"
        if container in ("FLAC", "MP3") and self._n_undecoded_bytes() > _TAIL_BYTES:
            return f"with {self._n_undecoded_bytes()} bytes of the file to go"
        if container == "OGG" and not _has_ogg_end(self._file):
            return "and its end-of-stream page is missing"
        return None

    def _n_undecoded_bytes(self) -> int:
        """Bytes behind the decoder's position; 0 when it has opened the file a second time by its name."""
        position = self._file.tell()
        return os.fstat(self._file.fileno()).st_size - position if position else 0


class StdinSource:
    """A WAV from a pipe, of any length: unknown and endless ones, too. Nothing is kept, nothing is sought.

    Encodings: PCM of 8, 16, 24 and 32 bits, float of 32 and 64. Raises `InputError` for anything else.
    The stream stays open: it belongs to the caller.
    """

    def __init__(self, stream: BinaryIO, name: str = "standard input") -> None:
        self.name = name
        if stream.isatty():
            raise InputError(f"{name}: this is a terminal, a WAV stream is expected; {_STDIN_HELP}")
        self._stream = stream
        self._header = read_wav_header(stream, name)
        self.rate_hz, self.n_channels = self._header.rate_hz, self._header.n_channels
        check_stream(name, self.rate_hz, self.n_channels)

    @property
    def duration_s(self) -> float | None:
        """Length as the header states it; None where it leaves that open."""
        n_frames = self._header.n_frames
        return None if n_frames is None else n_frames / self.rate_hz

    def blocks(self) -> Iterator[Block]:
        """Blocks of 0.1 s until the stream ends.

        Raises `InputError` if it brought no audio at all, `DamagedAudio` if less than its header says.
        """
        n_read = 0
        while len(frames := self._read(n_read)):
            yield Block(n_read, frames)
            n_read += len(frames)
        self._check_end(n_read)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def _read(self, n_read: int) -> NDArray[np.float32]:
        """The next frames, after `n_read`; less than 0.1 s before the end, and none at it."""
        header, n_wanted = self._header, int(self.rate_hz * PIPE_BLOCK_S)
        if header.n_frames is not None:
            n_wanted = min(n_wanted, header.n_frames - n_read)
        raw = _read_exactly(self._stream, n_wanted * header.frame_bytes)
        return header.decode(raw[: len(raw) - len(raw) % header.frame_bytes])

    def _check_end(self, n_read: int) -> None:
        if n_read == 0:
            raise InputError(
                f"{self.name}: the WAV header is followed by no audio, at least one frame is expected; "
                "look whether the program that writes into the pipe has failed"
            )
        if self._header.n_frames is not None and n_read < self._header.n_frames:
            expected_s = self._header.n_frames / self.rate_hz
            raise DamagedAudio(self.name, n_read / self.rate_hz, f"where {expected_s:.2f} s are expected")


# -- WAV -----------------------------------------------------------------------------------------------

_PCM, _FLOAT, _EXTENSIBLE = 0x0001, 0x0003, 0xFFFE
_FMT_BYTES = 40  # of WAVE_FORMAT_EXTENSIBLE, the longest; even


@dataclass(frozen=True)
class WavHeader:
    """What comes before the samples. `n_frames` is None when the header leaves the length open."""

    rate_hz: int
    n_channels: int
    encoding: tuple[int, int]
    n_frames: int | None

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample in every channel."""
        return self.n_channels * self.encoding[1] // 8

    def decode(self, raw: bytes) -> NDArray[np.float32]:
        """Whole frames of little-endian samples to full scale ±1. Shape: -> [n_frames, n_channels]"""
        return _DECODERS[self.encoding](raw).reshape(-1, self.n_channels)


def read_wav_header(stream: BinaryIO, name: str) -> WavHeader:
    """Read up to the first sample, passing over what else there is. Raises `InputError`."""
    try:
        return _read_wav_header(stream, name)
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror}); {_STDIN_HELP}") from error


def _read_wav_header(stream: BinaryIO, name: str) -> WavHeader:
    riff = _read_exactly(stream, 12)
    if riff[:4] not in (b"RIFF", b"RF64") or riff[8:] != b"WAVE":
        found = f"it starts with {riff!r}" if riff else "nothing arrives"
        raise InputError(f"{name}: {found}, a WAV header is expected; {_STDIN_HELP}")
    fmt = b""
    while len(chunk := _read_exactly(stream, 8)) == 8:
        chunk_id, n_bytes = struct.unpack("<4sI", chunk)
        if chunk_id == b"data":
            return _parse_format(fmt, n_bytes, name)
        if chunk_id == b"fmt ":
            fmt = _read_exactly(stream, min(n_bytes, _FMT_BYTES))
            n_bytes -= len(fmt)
        _skip(stream, n_bytes + n_bytes % 2)  # chunks are padded to an even length
    raise InputError(f"{name}: the WAV ends before its audio, a data chunk is expected; {_STDIN_HELP}")


def _parse_format(fmt: bytes, n_data_bytes: int, name: str) -> WavHeader:
    if len(fmt) < 16:
        raise InputError(f"{name}: the WAV does not say its format before its audio; convert it first")
    tag, n_channels, rate_hz, _, frame_bytes, n_bits = struct.unpack_from("<HHIIHH", fmt)
    if tag == _EXTENSIBLE and len(fmt) >= 26:
        (tag,) = struct.unpack_from("<H", fmt, 24)  # the sub-format's GUID begins with the plain tag
    if (tag, n_bits) not in _DECODERS or frame_bytes != n_channels * n_bits // 8 or not n_channels:
        raise InputError(
            f"{name}: the WAV has format {tag:#06x} with {n_bits} bits in {frame_bytes} bytes a frame; "
            "PCM of 8, 16, 24 or 32 bits or float of 32 or 64 is expected, convert it first"
        )
    n_frames = None if _is_placeholder(n_data_bytes) else n_data_bytes // frame_bytes
    return WavHeader(rate_hz, n_channels, (tag, n_bits), n_frames)


def _is_placeholder(n_data_bytes: int) -> bool:
    """Whether a data length is one that programs write when they do not know it.

    0; just below 2³¹ (arecord 0x7FFFFF00, sox 0x7FFFF000 less headers) or 2³¹; just below 2³² (ffmpeg, RF64).
    """
    return n_data_bytes == 0 or 0x7FFF_0000 <= n_data_bytes <= 0x8000_0000 or n_data_bytes >= 0xFFFF_0000


def _from_integers(values: NDArray[np.integer], n_bits: int) -> NDArray[np.float32]:
    return values.astype(np.float32) * np.float32(2.0 ** (1 - n_bits))


def _decode_8(raw: bytes) -> NDArray[np.float32]:
    return _from_integers(np.frombuffer(raw, np.uint8).astype(np.int16) - 128, 8)


def _decode_24(raw: bytes) -> NDArray[np.float32]:
    widened = np.zeros((len(raw) // 3, 4), np.uint8)
    widened[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
    return _from_integers(widened.view("<i4").ravel(), 32)


def _decode_double(raw: bytes) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return np.frombuffer(raw, "<f8").astype(np.float32)


_DECODERS: dict[tuple[int, int], Callable[[bytes], NDArray[np.float32]]] = {
    (_PCM, 8): _decode_8,
    (_PCM, 16): lambda raw: _from_integers(np.frombuffer(raw, "<i2"), 16),
    (_PCM, 24): _decode_24,
    (_PCM, 32): lambda raw: _from_integers(np.frombuffer(raw, "<i4"), 32),
    (_FLOAT, 32): lambda raw: np.frombuffer(raw, "<f4").astype(np.float32),
    (_FLOAT, 64): _decode_double,
}


def _read_exactly(stream: BinaryIO, n_bytes: int) -> bytes:
    """`n_bytes` from a stream that may give less at once; fewer only at its end."""
    parts = []
    while n_bytes and (part := stream.read(n_bytes)):
        parts.append(part)
        n_bytes -= len(part)
    return b"".join(parts)


def _skip(stream: BinaryIO, n_bytes: int) -> None:
    while n_bytes and (part := stream.read(min(n_bytes, 2**16))):
        n_bytes -= len(part)


# -- files ---------------------------------------------------------------------------------------------


def _open_regular(path: Path) -> io.FileIO:
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            file = io.FileIO(path)
    except FileNotFoundError:
        raise InputError(
            f"{path}: there is no such file; give a WAV, FLAC, OGG or MP3 file, or `-`"
        ) from None
    except OSError as error:
        raise InputError(
            f"{path}: cannot be opened ({error.strerror}); a readable file is expected"
        ) from error
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a pipe or device"
        remedy = "give the files in it" if stat.S_ISDIR(mode) else "read it from standard input, with `-`"
        raise InputError(f"{path}: this is {kind}, a file is expected; {remedy}")
    return file


def _open_decoder(file: io.FileIO, name: str) -> soundfile.SoundFile:
    """libsndfile on the open file, so that its progress can be seen.

    An MP3 cut out of a stream starts inside a frame, and libsndfile knows it by its name only. Its mpg123
    prints notes on damaged ones.
    """
    targets = [file.fileno(), name] if name.lower().endswith(".mp3") else [file.fileno()]
    with stderr_silenced():
        for target in targets:
            file.seek(0)
            with contextlib.suppress(soundfile.LibsndfileError):
                return _Forward(target, closefd=False)
    file.seek(0)
    empty = os.fstat(file.fileno()).st_size == 0
    if empty:
        raise InputError(f"{name}: the file is empty, WAV, FLAC, OGG or MP3 is expected; copy it again")
    raise InputError(
        f"{name}: no audio is found in it that is WAV, FLAC, OGG or MP3; if it is another kind, "
        f"`ffmpeg -i {name} street.wav` makes a WAV of it"
    )


def _announced_wav_frames(file: io.FileIO) -> int | None:
    """What a plain WAV's header says; libsndfile silently makes that fit what there is."""
    try:
        return read_wav_header(file, "").n_frames
    except InputError:
        return None


def _has_ogg_end(file: io.FileIO) -> bool:
    """Whether the last page is marked as the stream's end (RFC 3533): it is missing when a file is cut."""
    file.seek(-min(_OGG_PAGE_BYTES, os.fstat(file.fileno()).st_size), os.SEEK_END)
    _, page, rest = file.read(_OGG_PAGE_BYTES).rpartition(b"OggS")
    return bool(page) and len(rest) > 1 and bool(rest[1] & _OGG_END_OF_STREAM)
