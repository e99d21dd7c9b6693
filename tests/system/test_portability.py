"""The same graph gives the same answer on every processor, within the tolerance that its bundle states.

Run by `make test-system` on an x86-64 Debian, as root; a plain `make test` leaves these tests out.
QEMU runs instructions of processors that are not here (see `emulation`): x86-64 without AVX, x86-64 with
AVX2 but without VNNI, arm64 without and with the dot-product instructions. These are what ONNX Runtime
chooses its eight-bit kernels by, NumPy and its BLAS theirs. On each of them `portability_probe` loads
the bundle that ships, every variant (which is its self-test), computes the features of six windows, and asks
root and branches twice: for this machine's features, so that only the nets can differ, and for its own.
Every test compares with this machine's own processor, prints the largest difference, and refuses one above
the tolerance. Emulation proves values, not speed: the seconds printed are QEMU's. It is as exact as QEMU,
which computes floating point in software by IEEE 754; it knows no AVX-512 and no VNNI, and no caches.
"""

import platform
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgetag import Tagger
from edgetag.contract.frontend import SAMPLE_RATE_HZ, WINDOW_SAMPLES
from edgetag.contract.manifest import LOGMEL_INPUT
from edgetag.demo.scene import street_scene
from system.emulation import QEMU_X86, Arm64, Here, arm64_root, missing_for_arm64

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="compares with an x86-64 processor"),
    pytest.mark.skipif(not shutil.which(QEMU_X86), reason=f"{QEMU_X86} is not installed"),
]

REPOSITORY = Path(__file__).parents[2]
PROBE = Path(__file__).with_name("portability_probe.py")
MACHINES = {
    "x86-64 Nehalem (SSE4.2)": "Nehalem",
    "x86-64 Haswell (AVX2, no VNNI)": "Haswell",
    "arm64 Cortex-A72 (no dot product)": "cortex-a72",
    "arm64 max (dot product)": "max",
}
STREETS = ((0, 0), (0, 36), (2, 24), (3, 12))  # seed, start in seconds
LOGMEL_TOLERANCE_DB = 1e-3

Answer = dict[str, NDArray[np.generic]]


def windows() -> NDArray[np.int16]:
    """Four places of synthetic streets, one of them 60 dB quieter, and white noise. Shape: [6, 441000]"""
    streets = [
        street_scene(seed).samples[start * SAMPLE_RATE_HZ :][:WINDOW_SAMPLES] for seed, start in STREETS
    ]
    noise = np.random.default_rng(0).normal(0, 0.05, WINDOW_SAMPLES)
    pcm: NDArray[np.int16] = np.round(np.stack([*streets, streets[0] * 1e-3, noise]) * 32767).astype(np.int16)
    return pcm


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return Tagger.load()


@pytest.fixture(scope="module")
def question(tagger: Tagger, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The windows, and what this machine's front end makes of them."""
    pcm = windows()
    heard = [
        {name: feature.copy() for name, feature in tagger.features(window).items()}
        for window in pcm.astype(np.float32) * np.float32(1 / 32768)
    ]
    path = tmp_path_factory.mktemp("portability") / "question.npz"
    np.savez(path, pcm=pcm, **{f"feature_{name}": np.stack([h[name] for h in heard]) for name in heard[0]})
    return path


@pytest.fixture(scope="module")
def here(question: Path) -> Answer:
    """This machine's answer."""
    answer = question.with_name("here.npz")
    Here().ask(PROBE, question, answer)
    return dict(np.load(answer))


@pytest.fixture(scope="module", params=MACHINES)
def there(request: pytest.FixtureRequest, question: Path) -> tuple[str, Answer]:
    """An emulated machine's name and answer."""
    name, cpu = request.param, MACHINES[request.param]
    answer = question.with_name(f"{cpu}.npz")
    if name.startswith("x86-64"):
        Here(cpu).ask(PROBE, question, answer)
    elif reason := missing_for_arm64():
        pytest.skip(reason)
    else:
        Arm64(arm64_root(REPOSITORY), cpu).ask(PROBE, question, answer)
    return name, dict(np.load(answer))


def differences(one: NDArray[np.generic], other: NDArray[np.generic]) -> tuple[float, float]:
    """The largest and the mean."""
    assert one.shape == other.shape
    found = np.abs(one.astype(np.float64) - other.astype(np.float64))
    return float(found.max()), float(found.mean())


def test_every_front_end_hears_the_same_decibels(here: Answer, there: tuple[str, Answer]) -> None:
    """Law: no log-mel value differs by more than a thousandth of a decibel between processors."""
    machine, answer = there
    found_db, mean_db = differences(here[f"own_{LOGMEL_INPUT}"], answer[f"own_{LOGMEL_INPUT}"])
    claim = f"differs by {found_db:.1e} dB at most ({mean_db:.0e} in the mean)"
    say(machine, "log-mel", f"{claim}, tolerance {LOGMEL_TOLERANCE_DB:g}")
    say(machine, "log-mel", f"takes {answer['frontend/seconds']:.1f} s a window, emulated")
    assert found_db <= LOGMEL_TOLERANCE_DB


def test_every_net_gives_the_same_probabilities(
    tagger: Tagger, here: Answer, there: tuple[str, Answer]
) -> None:
    """Law: for the same features, no probability of any net in any variant differs by more than the
    tolerance its bundle states for that variant."""
    check(tagger, here, there, "given", "for the same features")
    machine, answer = there
    for variant in tagger.bundle.manifest.variants:
        seconds = answer[f"{variant}/root/seconds"]
        say(machine, f"{variant} root", f"takes {seconds:.1f} s a window, emulated")


def test_the_whole_way_gives_the_same_probabilities(
    tagger: Tagger, here: Answer, there: tuple[str, Answer]
) -> None:
    """Law: for the same samples, every processor with its own features, the same holds."""
    check(tagger, here, there, "own", "for the same samples")


def check(tagger: Tagger, here: Answer, there: tuple[str, Answer], whose: str, what: str) -> None:
    machine, answer = there
    manifest = tagger.bundle.manifest
    excess = []
    for variant in manifest.variants:
        tolerance = manifest.golden.tolerance[variant]
        for net in tagger.bundle.nets:
            key = f"{variant}/{net}/{whose}"
            found, mean = differences(here[key], answer[key])
            claim = f"differs by {found:.1e} at most ({mean:.0e} in the mean) {what}"
            say(machine, f"{variant} {net}", f"{claim}, tolerance {tolerance:g}")
            if not found <= tolerance:
                excess.append(f"{variant} {net}: {found:.1e} > {tolerance:g}")
    assert not excess, f"{machine}, {what}: {'; '.join(excess)}"


def say(machine: str, part: str, claim: str) -> None:
    print(f"\n{machine}: {part} {claim}", end="")  # noqa: T201
