"""Log-mel patches for VGGish, by the sensor's own resampler and front end, and nets that take them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetag.contract.errors import BundleError, InputError
from edgetag.contract.frontend import (
    SAMPLE_RATE_HZ,
    VGGISH_N_MELS,
    VGGISH_N_PATCHES,
    VGGISH_PATCH_FRAMES,
    VGGISH_SAMPLE_RATE_HZ,
    WINDOW_S,
    WINDOW_SAMPLES,
)
from edgetag.demo.scene import street_scene
from edgetag.dsp.resample import resample
from edgetag.dsp.vggish_logmel import VggishLogMel
from edgetag.tagging.bundle import OnnxNet, check_embedding
from edgetag_train.data.sounds import read_mono

AUDIO_SUFFIXES = frozenset({".flac", ".mp3", ".ogg", ".wav"})


def to_patches(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """The whole ten-second windows of a recording, one after the other. What is left over is not used.

    Shape: [T] at 44.1 kHz -> [T // 441000, 10, 96, 64]
    """
    front_end = VggishLogMel()
    n_windows = len(samples) // WINDOW_SAMPLES
    patches = np.empty((n_windows, VGGISH_N_PATCHES, VGGISH_PATCH_FRAMES, VGGISH_N_MELS), np.float32)
    for k in range(n_windows):
        window = samples[k * WINDOW_SAMPLES : (k + 1) * WINDOW_SAMPLES]
        patches[k] = front_end(resample(window, SAMPLE_RATE_HZ, VGGISH_SAMPLE_RATE_HZ))
    return patches


def street_patches(seed: int, n_scenes: int = 1) -> NDArray[np.float32]:
    """The project's own synthetic street, six windows a scene. Shape: [6 * n_scenes, 10, 96, 64]"""
    return np.concatenate([to_patches(street_scene(seed + k).samples) for k in range(n_scenes)])


def recorded_patches(folder: Path, n_windows: int) -> NDArray[np.float32]:
    """The first window of recordings spread evenly over a folder and those in it.

    Shape: [at most n_windows, 10, 96, 64]

    Raises:
        InputError: there is no folder, a file that cannot be read, or no recording of ten seconds.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES)
    every = -(-len(files) // n_windows) or 1
    windows = [to_patches(read_mono(file)[:WINDOW_SAMPLES]) for file in files[::every]]
    if not sum(map(len, windows)):
        raise InputError(
            f"{folder} holds no recording of {WINDOW_S} s; give a folder of .wav, .flac, .ogg or .mp3"
        )
    return np.concatenate(windows)


def check_embedding_net(net: bytes, path: Path) -> None:
    """Whether a file's bytes are an embedding net: patches [n, 96, 64] -> embedding [n, 128], n free or ten.

    Raises:
        InputError: they are none.
    """
    try:
        check_embedding(OnnxNet(net, str(path)))
    except BundleError as error:
        raise InputError(str(error)) from error
