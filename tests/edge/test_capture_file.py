import io
import os
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgetag.capture.file import DamagedAudio, FileSource, StdinSource, open_recording
from edgetag.capture.source import Block, Source
from edgetag.contract.errors import InputError

FORMATS = {  # file name, container, encoding, rates
    "pcm8.wav": ("WAV", "PCM_U8", [8_000, 48_000]),
    "pcm16.wav": ("WAV", "PCM_16", [4_000, 44_100, 384_000]),
    "pcm24.wav": ("WAV", "PCM_24", [48_000]),
    "pcm32.wav": ("WAV", "PCM_32", [96_000]),
    "float.wav": ("WAV", "FLOAT", [22_050, 192_000]),
    "double.wav": ("WAV", "DOUBLE", [48_000]),
    "extensible.wav": ("WAVEX", "PCM_24", [48_000]),
    "adpcm.wav": ("WAV", "MS_ADPCM", [44_100]),
    "big.wav": ("RF64", "PCM_16", [48_000]),
    "flac.flac": ("FLAC", "PCM_24", [16_000, 96_000]),
    "vorbis.ogg": ("OGG", "VORBIS", [44_100]),
    "opus.ogg": ("OGG", "OPUS", [48_000]),
    "mp3.mp3": ("MP3", "MPEG_LAYER_III", [16_000, 44_100]),
}
PIPED = ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"]


def tones(rate_hz: int, n_channels: int, duration_s: float = 1.0) -> NDArray[np.float32]:
    """Another tone in every channel, and some noise, so that coders have something to do."""
    times_s = np.arange(int(rate_hz * duration_s)) / rate_hz
    sines = 0.3 * np.sin(2 * np.pi * times_s[:, None] * (200 + 100 * np.arange(n_channels)))
    return (sines + np.random.default_rng(0).normal(0, 0.02, sines.shape)).astype(np.float32)


def written(
    path: Path, frames: NDArray[np.float32], rate_hz: int = 48_000, subtype: str | None = None
) -> Path:
    soundfile.write(path, frames, rate_hz, subtype=subtype)
    return path


def joined(blocks: Iterable[Block]) -> NDArray[np.float32]:
    """All frames; each block must follow the one before."""
    parts: list[NDArray[np.float32]] = []
    for block in blocks:
        assert block.first_frame == sum(len(part) for part in parts)
        assert block.frames.dtype == np.float32
        parts.append(block.frames)
    return np.concatenate(parts)


def salvaged(source: Source) -> tuple[NDArray[np.float32], DamagedAudio]:
    """What comes before the damage, and the damage."""
    blocks: list[Block] = []
    with source, pytest.raises(DamagedAudio) as caught:
        blocks.extend(source.blocks())  # extend keeps what came before the error
    return joined(blocks), caught.value


def wav_bytes(
    frames: NDArray[np.float32], rate_hz: int = 48_000, subtype: str = "PCM_16", kind: str = "WAV"
) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, frames, rate_hz, format=kind, subtype=subtype)
    return file.getvalue()


def with_length(wav: bytes, n_data_bytes: int) -> bytes:
    """The same WAV with another length in its data chunk's header."""
    at = wav.index(b"data") + 4
    return wav[:at] + struct.pack("<I", n_data_bytes) + wav[at + 4 :]


# -- files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rate_hz"),
    [(name, rate_hz) for name, (_, _, rates_hz) in FORMATS.items() for rate_hz in rates_hz],
)
@pytest.mark.parametrize("n_channels", [1, 2])
def test_every_format(name: str, rate_hz: int, n_channels: int, tmp_path: Path) -> None:
    """A file's blocks are what libsndfile reads from it at once; rate and channels are the file's."""
    kind, subtype, _ = FORMATS[name]
    path = tmp_path / name
    soundfile.write(path, tones(rate_hz, n_channels), rate_hz, format=kind, subtype=subtype)
    with FileSource(path) as source:
        frames = joined(source.blocks())
        assert (source.name, source.rate_hz, source.n_channels) == (str(path), rate_hz, n_channels)
    whole, _ = soundfile.read(path, dtype="float32", always_2d=True)
    assert frames.shape == whole.shape
    assert np.abs(frames - whole).max() <= (1e-6 if kind == "MP3" else 0)


def test_many_channels(tmp_path: Path) -> None:
    """Eight channels at 192 kHz keep their order."""
    frames = tones(192_000, 8, 0.1)
    with FileSource(written(tmp_path / "array.wav", frames, 192_000, "FLOAT")) as source:
        assert np.array_equal(joined(source.blocks()), frames)


@pytest.mark.parametrize(("rate_hz", "n_channels", "most"), [(8000, 1, 8000), (48_000, 8, 8192)])
def test_a_block_is_a_second_at_most(rate_hz: int, n_channels: int, most: int, tmp_path: Path) -> None:
    """And no more values than stay in the cache, however many channels there are."""
    path = tmp_path / "street.flac"
    soundfile.write(path, np.zeros((3 * rate_hz, n_channels)), rate_hz)
    with FileSource(path) as source:
        assert {len(block.frames) for block in list(source.blocks())[:-1]} == {most}


def test_flac_is_read_without_looking_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every seek would decode a frame twice."""
    path = tmp_path / "street.flac"
    soundfile.write(path, np.zeros(100_000), 8000)
    monkeypatch.setattr(soundfile.SoundFile, "seek", lambda *_: pytest.fail("it was sought"))
    with FileSource(path) as source:
        assert sum(len(block.frames) for block in source.blocks()) == 100_000


def test_a_file_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    """Forty megabytes of samples pass through less than one."""
    path = written(tmp_path / "long.flac", np.zeros((10_000_000, 1), np.float32), 48_000)
    tracemalloc.start()
    try:
        with FileSource(path) as source:
            assert sum(len(block.frames) for block in source.blocks()) == 10_000_000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_non_finite_samples_are_delivered(tmp_path: Path) -> None:
    """NaN and infinity in a float WAV are the windower's business, not a fault of the file."""
    frames = tones(48_000, 2, 0.2)
    frames[100:5_000] = np.nan
    frames[7_000, 1] = np.inf
    with FileSource(written(tmp_path / "nan.wav", frames, 48_000, "FLOAT")) as source:
        assert np.array_equal(joined(source.blocks()), frames, equal_nan=True)


def test_leaving_the_context_closes_the_file(tmp_path: Path) -> None:
    """No file descriptor stays behind, neither after use nor after a refusal."""
    good, bad = written(tmp_path / "good.wav", tones(48_000, 1, 0.1)), tmp_path / "bad.wav"
    bad.write_text("no audio")
    before = set(Path("/proc/self/fd").iterdir())
    with FileSource(good) as source:
        joined(source.blocks())
    with pytest.raises(InputError):
        FileSource(bad)
    assert set(Path("/proc/self/fd").iterdir()) == before


# -- what is not a recording ---------------------------------------------------------------------------


def _nothing(path: Path) -> None:
    pass


def _header_only(path: Path) -> None:
    soundfile.write(path, np.empty((0, 1), np.float32), 48_000)


def _at(rate_hz: int, n_channels: int = 1) -> Callable[[Path], object]:
    return lambda path: soundfile.write(
        path, np.zeros((9, n_channels)), rate_hz, subtype="PCM_16", format="WAV"
    )


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("missing.wav", _nothing, "there is no such file; give a WAV, FLAC, OGG or MP3 file"),
        ("folder", Path.mkdir, "this is a directory, a file is expected; give the files in it"),
        ("pipe.wav", os.mkfifo, "this is a pipe or device, a file is expected; read it from standard input"),
        ("empty.wav", Path.touch, "the file is empty, WAV, FLAC, OGG or MP3 is expected; copy it"),
        ("text.wav", lambda path: path.write_text("hello\n" * 99), "no audio is found in it"),
        ("text.mp3", lambda path: path.write_text("hello\n" * 99), "no audio is found in it"),
        (
            "noise.mp3",
            lambda path: path.write_bytes(np.random.default_rng(0).bytes(9_999)),
            "no audio is found",
        ),
        (
            "cut.wav",
            lambda path: path.write_bytes(wav_bytes(tones(48_000, 1))[:30]),
            "no audio is found in it",
        ),
        ("none.wav", _header_only, "its header is followed by no audio; at least one frame is expected"),
        ("slow.wav", _at(3_999), "the sample rate is 3999 Hz; 4000 to 384000 Hz are supported, resample"),
        ("fast.wav", _at(384_001), "the sample rate is 384001 Hz"),
        ("wide.wav", _at(48_000, 65), "there are 65 channels; 1 to 64 are supported, extract"),
    ],
)
def test_what_cannot_be_used_is_named(
    name: str, make: Callable[[Path], object], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each refusal is one sentence: the file, what was found, what was expected, what to do."""
    make(tmp_path / name)
    with pytest.raises(InputError, match=f"^{tmp_path / name}: {message}") as caught:
        FileSource(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_an_unreadable_file(tmp_path: Path) -> None:
    """What the system says is passed on."""
    path = written(tmp_path / "file.wav", tones(48_000, 1, 0.1))
    with pytest.raises(
        InputError, match=r"cannot be opened \(Not a directory\); a readable file is expected"
    ):
        FileSource(path / "below.wav")


# -- damaged recordings --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pcm16.wav", "flac.flac", "vorbis.ogg", "opus.ogg", "mp3.mp3"])
def test_a_cut_recording_gives_what_there_is_and_then_says_so(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Half of a file is half of its audio, bit for bit, and then an error with the seconds decoded."""
    kind, subtype, _ = FORMATS[name]
    path = tmp_path / name
    soundfile.write(path, tones(48_000, 1, 8.0), 48_000, format=kind, subtype=subtype)
    with FileSource(path) as source:
        whole = joined(source.blocks())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames, damage = salvaged(FileSource(path))
    assert 2.5 < len(frames) / 48_000 < 4.5
    assert damage.decoded_s == len(frames) / 48_000
    assert str(damage).startswith(f"{path}: only {damage.decoded_s:.2f} s could be decoded")
    n_same = len(frames) - 2_000  # a lossy coder's last frames lean on what follows
    assert np.array_equal(frames[:n_same], whole[:n_same])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["flac.flac", "vorbis.ogg", "mp3.mp3"])
def test_damage_in_the_middle(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Garbage in the middle, whether the decoder stops there or skips it, is reported."""
    path = written(tmp_path / name, tones(48_000, 1, 8.0))
    raw = bytearray(path.read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 4_000] = np.random.default_rng(0).bytes(4_000)
    path.write_bytes(raw)
    frames, damage = salvaged(FileSource(path))
    assert 3.0 < damage.decoded_s < 8.0
    assert "where 8.00 s are expected" in str(damage)
    assert np.isfinite(frames).all()
    assert capfd.readouterr().err == ""


def test_a_flac_of_unknown_length(tmp_path: Path) -> None:
    """A FLAC written to a pipe does not say how long it is: all of it is read, and it is not damaged."""
    path = written(tmp_path / "pipe.flac", tones(48_000, 1, 2.0))
    whole, _ = soundfile.read(path, dtype="float32", always_2d=True)
    raw = bytearray(path.read_bytes())
    raw[8 + 13] &= 0xF0  # STREAMINFO begins at 8; its 36-bit total of samples ends at 18
    raw[8 + 14 : 8 + 18] = bytes(4)
    path.write_bytes(raw)
    with FileSource(path) as source:
        assert np.array_equal(joined(source.blocks()), whole)
    path.write_bytes(raw[:20_000] + bytes(4_000) + raw[24_000:])
    _, damage = salvaged(FileSource(path))
    assert "bytes of the file to go" in str(damage)


def test_a_flac_of_unknown_length_without_audio(tmp_path: Path) -> None:
    """A bare FLAC header, length left open, is not a recording of zero seconds."""
    path = written(tmp_path / "bare.flac", tones(48_000, 1, 0.1))
    raw = bytearray(path.read_bytes()[: 4 + 4 + 34])
    raw[4] |= 0x80  # STREAMINFO is the last metadata block
    raw[8 + 13] &= 0xF0
    raw[8 + 14 : 8 + 18] = bytes(4)
    path.write_bytes(raw)
    with pytest.raises(InputError), FileSource(path) as source:
        list(source.blocks())


def mp3(path: Path, mode: str) -> tuple[bytes, int]:
    """An MP3's bytes and the length of its first frame, which says how long the whole is."""
    with soundfile.SoundFile(
        path, "w", 48_000, 1, format="MP3", bitrate_mode=mode, compression_level=0.5
    ) as file:
        file.write(tones(48_000, 1, 20.0))
    raw = path.read_bytes()
    kilobits = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320]
    return raw, 144_000 * kilobits[raw[2] >> 4] // 48_000


def test_an_mp3_cut_out_of_a_stream(tmp_path: Path) -> None:
    """It starts inside a frame and has no length: what can be decoded is all there is."""
    path = tmp_path / "radio.mp3"
    raw, _ = mp3(path, "CONSTANT")
    path.write_bytes(raw[5_000:])
    with FileSource(path) as source:
        assert 19.0 < len(joined(source.blocks())) / 48_000 < 20.0


def test_an_mp3_whose_length_was_guessed_wrong_is_not_cut_in_silence(tmp_path: Path) -> None:
    """Without a length the decoder guesses from the first frames, and stops there: the rest is reported."""
    path = tmp_path / "variable.mp3"
    raw, n_header_bytes = mp3(path, "VARIABLE")
    path.write_bytes(raw[n_header_bytes:])
    frames, damage = salvaged(FileSource(path))
    assert len(frames) / 48_000 < 15.0
    assert "bytes of the file to go" in str(damage)


def test_tags_behind_an_mp3_are_not_audio(tmp_path: Path) -> None:
    """An ID3v1 tag at the end is no undecoded rest."""
    path = written(tmp_path / "tagged.mp3", tones(48_000, 1))
    path.write_bytes(path.read_bytes() + b"TAG" + bytes(125))
    with FileSource(path) as source:
        assert len(joined(source.blocks())) == 48_000


@pytest.mark.parametrize("n_data_bytes", [0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFF00])
def test_a_wav_saved_from_a_pipe(n_data_bytes: int, tmp_path: Path) -> None:
    """A placeholder for the length is no damage."""
    frames = tones(48_000, 1)
    path = tmp_path / "pipe.wav"
    path.write_bytes(with_length(wav_bytes(frames, subtype="FLOAT"), n_data_bytes))
    with FileSource(path) as source:
        assert np.array_equal(joined(source.blocks()), frames)


# -- WAV from a pipe -----------------------------------------------------------------------------------


@pytest.mark.parametrize("subtype", PIPED)
@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "RF64"])
@pytest.mark.parametrize("n_channels", [1, 3])
def test_every_encoding_from_a_pipe(subtype: str, kind: str, n_channels: int) -> None:
    """A piped WAV's frames are what libsndfile reads from the same bytes."""
    raw = wav_bytes(tones(44_100, n_channels, 0.35), 44_100, subtype, kind)
    with StdinSource(io.BytesIO(raw)) as source:
        frames = joined(source.blocks())
        assert (source.rate_hz, source.n_channels) == (44_100, n_channels)
    whole, _ = soundfile.read(io.BytesIO(raw), dtype="float32", always_2d=True)
    assert np.array_equal(frames[: len(whole)], whole)
    assert len(frames) == len(whole) or kind == "RF64"  # whose length is not read: chunks behind it count


@pytest.mark.parametrize(
    "n_data_bytes", [0, 0x7FFFFFFF, 0x7FFFFF00, 0x7FFFF000, 0x80000000, 0xFFFFFFFF, 0xFFFFFFDB]
)
def test_unknown_lengths_from_a_real_pipe(n_data_bytes: int, tmp_path: Path) -> None:
    """Whatever a program writes that does not know the length, all of the audio arrives."""
    frames = tones(48_000, 2, 0.77)
    path = tmp_path / "piped.wav"
    path.write_bytes(with_length(wav_bytes(frames, subtype="FLOAT"), n_data_bytes))
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        with StdinSource(writer.stdout) as source:
            assert np.array_equal(joined(source.blocks()), frames)


def test_an_endless_pipe_is_read_as_it_comes() -> None:
    """The first blocks arrive while the writer still writes, and memory does not grow."""
    program = (
        "import sys, soundfile, io\n"
        "file = io.BytesIO(); soundfile.write(file, [[0.25]] * 9, 48_000, format='WAV', subtype='FLOAT')\n"
        "out = sys.stdout.buffer; out.write(file.getvalue()[:-36].replace(b'data' + bytes([36, 0, 0, 0]), "
        "b'data' + bytes([255] * 4)))\n"
        "try:\n    while True: out.write(file.getvalue()[-36:] * 1000)\n"
        "except BrokenPipeError: pass\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as writer:
        assert writer.stdout is not None
        blocks = StdinSource(writer.stdout).blocks()
        first = [next(blocks) for _ in range(20)]
        assert writer.poll() is None  # still at it
        writer.kill()
    assert np.unique(joined(first)).tolist() == [0.25]


class Trickle(io.RawIOBase):
    """A stream that gives a few bytes at a time, as a raw pipe may."""

    def __init__(self, data: bytes, sizes: Iterable[int]) -> None:
        self._data, self._sizes = io.BytesIO(data), iter(sizes)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(size, next(self._sizes, size)))


@settings(deadline=None)
@given(st.lists(st.integers(1, 500), max_size=60))
def test_a_trickling_pipe(sizes: list[int]) -> None:
    """However the bytes arrive, the blocks are the same."""
    raw = wav_bytes(tones(8_000, 2, 0.5), 8_000, "PCM_24")
    stream: BinaryIO = Trickle(raw, sizes)  # type: ignore[assignment]
    want = [block.frames for block in StdinSource(io.BytesIO(raw)).blocks()]
    got = [block.frames for block in StdinSource(stream).blocks()]
    assert len(got) == len(want)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(got, want, strict=True))


def test_chunks_before_the_audio_are_passed_over() -> None:
    """ffmpeg puts a LIST chunk, of odd length and padded, before the data."""
    raw = wav_bytes(tones(48_000, 1, 0.3), subtype="FLOAT")
    at = raw.index(b"data")
    listed = raw[:at] + b"LIST" + struct.pack("<I", 5) + b"INFO!" + b"\0" + raw[at:]
    frames = joined(StdinSource(io.BytesIO(listed)).blocks())
    assert np.array_equal(frames, tones(48_000, 1, 0.3))


def test_chunks_behind_the_audio_are_not_audio() -> None:
    """A WAV that says its length is read to there and no further."""
    frames = tones(48_000, 1, 0.3)
    raw = wav_bytes(frames, subtype="FLOAT") + b"LIST" + struct.pack("<I", 4) + b"INFO"
    assert np.array_equal(joined(StdinSource(io.BytesIO(raw)).blocks()), frames)


def test_a_pipe_that_breaks_off() -> None:
    """Less than the header says is damage, after all whole frames there were."""
    raw = wav_bytes(tones(48_000, 1, 2.0), subtype="FLOAT")
    frames, damage = salvaged(StdinSource(io.BytesIO(raw[: len(raw) // 2 + 1])))
    assert np.array_equal(frames, tones(48_000, 1, 2.0)[: len(frames)])
    assert str(damage).startswith("standard input: only 1.00 s could be decoded, where 2.00 s are expected")


def _fmt(tag: int, n_bits: int, n_channels: int = 1, rate_hz: int = 48_000) -> bytes:
    frame_bytes = n_channels * n_bits // 8
    fmt = struct.pack("<HHIIHH", tag, n_channels, rate_hz, rate_hz * frame_bytes, frame_bytes, n_bits)
    return b"RIFF\0\0\0\0WAVEfmt " + struct.pack("<I", 16) + fmt + b"data" + struct.pack("<I", 4) + bytes(4)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "nothing arrives, a WAV header is expected; pipe a WAV into it"),
        (b"fLaC" + bytes(99), "it starts with b'fLaC"),
        (b"RIFX\0\0\0\0WAVE", "it starts with b'RIFX"),
        (_fmt(1, 16)[:40], "the WAV ends before its audio, a data chunk is expected"),
        (b"RIFF\0\0\0\0WAVEdata" + bytes(99), "the WAV does not say its format before its audio"),
        (_fmt(0x55, 16), "the WAV has format 0x0055 with 16 bits in 2 bytes a frame; PCM of 8, 16"),
        (_fmt(1, 12), "the WAV has format 0x0001 with 12 bits"),
        (_fmt(1, 16, n_channels=0), "in 0 bytes a frame"),
        (_fmt(1, 16, n_channels=65), "there are 65 channels"),
        (_fmt(1, 16, rate_hz=1), "the sample rate is 1 Hz"),
    ],
)
def test_what_is_no_wav_is_named(raw: bytes, message: str) -> None:
    """Each refusal is one sentence about standard input."""
    with pytest.raises(InputError, match=f"^standard input: .*{message}"):
        StdinSource(io.BytesIO(raw))


def test_a_pipe_without_audio() -> None:
    """A header and nothing else is an error, not a silent success."""
    source = StdinSource(io.BytesIO(with_length(wav_bytes(tones(48_000, 1, 0.1))[:44], 0)))
    with pytest.raises(
        InputError, match="followed by no audio, at least one frame is expected; look whether"
    ):
        list(source.blocks())


def test_a_terminal_is_not_a_pipe() -> None:
    """Nobody types a WAV."""
    controller, terminal = os.openpty()
    refused = pytest.raises(InputError, match="this is a terminal, a WAV stream is expected; pipe a WAV")
    with os.fdopen(controller, "rb"), os.fdopen(terminal, "rb") as stream, refused:
        StdinSource(stream)


@pytest.mark.parametrize("size", range(0, 60, 7))
def test_a_header_cut_anywhere_is_an_input_error(size: int) -> None:
    """No prefix of a WAV raises anything else."""
    raw = wav_bytes(tones(48_000, 1, 0.1), kind="WAVEX", subtype="PCM_16")[:size]
    with pytest.raises(InputError):
        StdinSource(io.BytesIO(raw))


def test_a_dash_is_standard_input(tmp_path: Path) -> None:
    """`-` reads the process's own standard input; anything else is a path."""
    path = written(tmp_path / "file.wav", tones(48_000, 1, 0.25))
    program = (
        "from edgetag.capture.file import open_recording\n"
        "with open_recording('-') as source: print(sum(len(block.frames) for block in source.blocks()))"
    )
    with path.open("rb") as stdin:
        done = subprocess.run([sys.executable, "-c", program], stdin=stdin, capture_output=True, check=True)
    assert done.stdout.split() == [b"12000"]
    with open_recording(str(path)) as source:
        assert isinstance(source, FileSource)
