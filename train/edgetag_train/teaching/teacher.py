"""The teacher: YAMNet on LiteRT. Its 521 scores of each patch are what an embedding net learns to tell.

Its frame is 15,600 samples at 16 kHz, exactly what a patch of 96 log-mel frames stands on, and frames here
begin where patches do; so teacher and pupil hear the same. Weights and scores of the teacher reach no bundle.

Which of its classes speak for which coarse tag is told in `yamnet.yaml`, for SONYC-UST's tags only.

Source: Plakal & Ellis, YAMNet (github.com/tensorflow/models, research/audioset/yamnet); the classes are
AudioSet's.
"""

import csv
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgetag.contract.errors import InputError, install
from edgetag.contract.frontend import (
    VGGISH_HOP_SAMPLES,
    VGGISH_N_PATCHES,
    VGGISH_PATCH_FRAMES,
    VGGISH_WINDOW_SAMPLES,
)
from edgetag.contract.strict_yaml import load_yaml
from edgetag.contract.taxonomy import SONYC_UST

N_SCORES = 521
FRAME_SAMPLES = 15_600
PATCH_SAMPLES = VGGISH_PATCH_FRAMES * VGGISH_HOP_SAMPLES
CLASS_MAP = "yamnet_class_map.csv"
_CLASSES = Path(__file__).with_name("yamnet.yaml")
_LEAST = 1e-5


class Teacher:
    """YAMNet's TensorFlow Lite file, the class map beside it.

    Attributes:
        columns: which of its scores speak for each coarse tag of SONYC-UST.
        sha256: of the file.

    Raises:
        InputError: a file is missing or is not YAMNet's, or LiteRT is not installed.
    """

    def __init__(self, model: Path) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            raise InputError(f"LiteRT is not installed: {install('teach')}") from None
        self.columns = _columns(model.with_name(CLASS_MAP))
        try:
            self.sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
            self._net = Interpreter(str(model), num_threads=1)
        except (OSError, ValueError) as error:
            raise InputError(f"{model} cannot be read as a TensorFlow Lite model ({error})") from error
        given, found = self._net.get_input_details(), self._net.get_output_details()
        if [tuple(one["shape"]) for one in (*given, *found)] != [(FRAME_SAMPLES,), (1, N_SCORES)]:
            raise InputError(f"{model} is not YAMNet: 15,600 samples in and 521 scores out are expected")
        self._net.allocate_tensors()
        self._given, self._found = given[0]["index"], found[0]["index"]

    @property
    def digest(self) -> str:
        """sha256 over the net and what its classes mean here."""
        return hashlib.sha256(self.sha256.encode() + _CLASSES.read_bytes()).hexdigest()

    def __call__(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of a window's ten patches. Shape: [160000] at 16 kHz -> [10, 521]"""
        assert samples.shape == (VGGISH_WINDOW_SAMPLES,)
        scores = np.empty((VGGISH_N_PATCHES, N_SCORES), np.float32)
        for number in range(VGGISH_N_PATCHES):
            start = number * PATCH_SAMPLES
            self._net.set_tensor(self._given, samples[start : start + FRAME_SAMPLES])
            self._net.invoke()
            scores[number] = self._net.get_tensor(self._found)[0]
        return np.log((scores + _LEAST) / (1 - scores + _LEAST))

    def evidence(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """For each coarse tag of SONYC-UST the largest logit of its classes, over all patches.

        Shape: [160000] -> [8]
        """
        logits = self(samples).max(axis=0)
        return np.array([logits[columns].max() for columns in self.columns], np.float32)


def _columns(class_map: Path) -> tuple[NDArray[np.intp], ...]:
    """
    Raises:
        InputError: there is no such table, or it is not YAMNet's.
    """
    names, stated = _names(class_map), load_yaml(_CLASSES.read_bytes())
    try:
        return tuple(np.array([names.index(name) for name in stated[id]]) for id in SONYC_UST.coarse_ids)
    except ValueError as error:
        raise InputError(f"{class_map} is not YAMNet's: {error}") from error


def _names(path: Path) -> list[str]:
    """Classes in the order of the scores.

    Raises:
        InputError: there is no such table, or it is not YAMNet's.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            names = [row["display_name"] for row in csv.DictReader(file)]
    except (OSError, KeyError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {error}; YAMNet's table of classes is expected beside it") from error
    if len(names) != N_SCORES:
        raise InputError(f"{path} has {len(names)} classes; YAMNet has {N_SCORES}")
    return names
