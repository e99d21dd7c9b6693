"""The paper's own stack as a side: librosa's front end and PyTorch's float32, as its authors' code has it.

With VGGish, its front end is the published one: resampled (here by librosa's own choice, soxr), framed, and
transformed in float64 by NumPy; the mel matrix is made once, where the published code makes it each time.

Kinds: `quiet`, the root net alone, and `busy`, the six branch nets as well.

    python -m bench.side_by_side.paper_side NETS STREET [VGGISH]
"""

import sys
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import torch
from numpy.typing import NDArray

from bench.side_by_side.serving import Stages, serve
from bench.side_by_side.street import RATE_HZ, WINDOW_SAMPLES, Street
from edgetag.dsp.mel import htk_filters
from edgetag_train.models.cnn import TaggingNet
from edgetag_train.models.vggish import Vggish

VGGISH_RATE_HZ = 16_000
FRAME_SAMPLES, HOP_SAMPLES, N_FFT, N_MELS = 400, 160, 512, 64
MEL_RANGE_HZ = (125.0, 7500.0)
PATCH_FRAMES, LOG_OFFSET = 96, 0.01


class PaperSystem:
    """
    Args:
        nets: of `weights.write_nets`.
        vggish: its state, for nets that take an embedding.
    """

    def __init__(self, nets: Path, street: Path, stages: Stages, vggish: Path | None = None) -> None:
        torch.set_num_threads(1)
        self._nets = {name: _net(**stated) for name, stated in torch.load(nets, weights_only=True).items()}
        self._embed = None if vggish is None else Embedder(vggish)
        self._street, self._n_heard = Street(street), {"quiet": 0, "busy": 0}

    @torch.inference_mode()
    def hear(self, kind: str, stages: Stages) -> dict[str, list[float]]:
        self.samples = self._street.read(self._n_heard[kind] * WINDOW_SAMPLES, WINDOW_SAMPLES)
        self._n_heard[kind] += 1
        with stages.of("log-mel"):
            self.logmel = logmel(self.samples)
        inputs = [torch.from_numpy(self.logmel)[None, None]]
        if self._embed is not None:
            with stages.of("embedding"):
                inputs.append(self._embed(self.samples))
        said = {}
        for name, net in self._nets.items() if kind == "busy" else [("root", self._nets["root"])]:
            with stages.of("root" if name == "root" else "branches"):
                said[name] = torch.sigmoid(net(*inputs))[0].tolist()
        return said


def logmel(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Section 2 of the paper. Shape: [441000] -> [128, 862]"""
    power = librosa.feature.melspectrogram(y=samples, sr=RATE_HZ)
    return librosa.power_to_db(power, ref=np.max)


def _net(table: Any, n_classes: int, fusion: Any, state: dict[str, torch.Tensor]) -> TaggingNet:
    with torch.device("meta"):
        net = TaggingNet(table, n_classes, fusion=fusion)
    net.load_state_dict(state, assign=True)
    return net.eval()


class Embedder:
    """A window to its embedding. Shape: [441000] -> [1, 10, 128]"""

    def __init__(self, vggish: Path) -> None:
        with torch.device("meta"):
            self._net = Vggish()
        self._net.load_state_dict(torch.load(vggish, weights_only=True), assign=True)
        self._net.eval()
        self._filters_t = vggish_filters_t()

    def __call__(self, samples: NDArray[np.float32]) -> torch.Tensor:
        at_16_khz = librosa.resample(samples, orig_sr=RATE_HZ, target_sr=VGGISH_RATE_HZ)
        patches = vggish_patches(at_16_khz.astype(np.float64), self._filters_t)
        return self._net(torch.from_numpy(patches.astype(np.float32)))[None]


def vggish_filters_t() -> NDArray[np.float64]:
    """Shape: [257, 64]"""
    return htk_filters(VGGISH_RATE_HZ, N_FFT, N_MELS, *MEL_RANGE_HZ).T.astype(np.float64)


def vggish_patches(samples: NDArray[np.float64], filters_t: NDArray[np.float64]) -> NDArray[np.float64]:
    """`vggish_input.waveform_to_examples`. Shape: [n] at 16 kHz -> [m, 96, 64]"""
    frames = np.lib.stride_tricks.sliding_window_view(samples, FRAME_SAMPLES)[::HOP_SAMPLES]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi / FRAME_SAMPLES * np.arange(FRAME_SAMPLES))
    spectrum = np.abs(np.fft.rfft(frames * hann, N_FFT))
    log_mel = np.log(spectrum @ filters_t + LOG_OFFSET)
    n_patches = len(log_mel) // PATCH_FRAMES
    return log_mel[: n_patches * PATCH_FRAMES].reshape(n_patches, PATCH_FRAMES, N_MELS)


if __name__ == "__main__":
    nets, street, *vggish = map(Path, sys.argv[1:])
    serve(lambda stages: PaperSystem(nets, street, stages, *vggish))
