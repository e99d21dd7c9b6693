"""A dataset small enough to train on in seconds: tones for sounds, noise for streets."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from edgetag.contract.taxonomy import SONYC_UST

RATE_HZ = 44_100
CLIPS = [
    ("5_alert-signal", "siren", 900),
    ("1_engine", "large-sounding-engine", 80),
    ("8_dog", "dog-barking-whining", 400),
]


def write_clips(folder: Path) -> None:
    """A siren, an engine, a dog, and hiss behind them."""
    rng = np.random.default_rng(0)
    rows = []
    for coarse, fine, hz in CLIPS:
        rows.append((f"{fine}.wav", coarse, fine, fine))
        write_wav(folder / f"{fine}.wav", np.sin(2 * np.pi * hz * np.arange(2 * RATE_HZ) / RATE_HZ))
    rows.append(("hiss.wav", "background", "hiss", "hiss"))
    write_wav(folder / "hiss.wav", rng.normal(0, 0.1, 3 * RATE_HZ))
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "coarse", "fine", "recording_id", "licence", "source_repo"])
        writer.writerows([(*row, "CC0 1.0", "made here") for row in rows])


def write_streets(
    folder: Path,
    splits: Sequence[str] = ("train", "train", "validate", "validate"),
    *,
    fine: Sequence[str] = (),
) -> None:
    """Recording k: noise, with a tone of its own; engines in the even ones, alert signals in the odd.

    Args:
        fine: fine tags that are labelled; the two present ones are 1-3 and 5-3.
    """
    rng = np.random.default_rng(1)
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    t_s = np.arange(10 * RATE_HZ) / RATE_HZ
    with (folder / "annotations.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        labels = [f"{SONYC_UST.tags[id].label}_presence" for id in SONYC_UST.ids]
        writer.writerow(["split", "sensor_id", "audio_filename", "annotator_id", *labels])
        for k, split in enumerate(splits):
            present = (("1", "1-3"), ("5", "5-3"))[k % 2]
            votes = [int(id in present) if "-" not in id or id in fine else -1 for id in SONYC_UST.ids]
            writer.writerow([split, k, f"{k}.wav", 0, *votes])
            tone = 0.1 * np.sin(2 * np.pi * (80, 900)[k % 2] * t_s)
            write_wav(folder / "audio" / f"{k}.wav", rng.normal(0, 0.05, 10 * RATE_HZ) + tone)


def write_wav(path: Path, samples: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples.astype(np.float32), RATE_HZ)


HARBOUR = """\
name: harbour
coarse:
  1: ship
  2: gull
  quay: quay-work
fine:
  1: {1: horn, 2: engine, X: other-ship}
  2: {1: gull}
  quay: {crane: crane, chain: chain, X: other-quay-work}
"""
"""A city's own tags, as train/README.md has them: an id in letters, "X" tags, a category of a single kind."""

HARBOUR_KINDS = (("1", "1-1", 120), ("2", "2-1", 2500), ("quay", "quay-crane", 600))


def write_harbour(folder: Path, splits: Sequence[str] = ("train",) * 6 + ("validate",) * 3) -> None:
    """Recording k: hiss, with a horn, a gull or a crane in turn; annotated with the tags of `HARBOUR`."""
    rng = np.random.default_rng(2)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "taxonomy.yaml").write_text(HARBOUR)
    tags = {
        "1": "ship", "2": "gull", "quay": "quay-work", "1-1": "horn", "1-2": "engine", "1-X": "other-ship",
        "2-1": "gull", "quay-crane": "crane", "quay-chain": "chain", "quay-X": "other-quay-work",
    }  # fmt: skip
    t_s = np.arange(10 * RATE_HZ) / RATE_HZ
    with (folder / "annotations.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        columns = [f"{id}_{name}_presence" for id, name in tags.items()]
        writer.writerow(["split", "sensor_id", "audio_filename", "annotator_id", *columns])
        for k, split in enumerate(splits):
            *present, hz = HARBOUR_KINDS[k % len(HARBOUR_KINDS)]
            writer.writerow([split, f"pier-{k}", f"{k}.wav", 0, *(int(id in present) for id in tags)])
            sound = 0.1 * np.sin(2 * np.pi * hz * t_s) + rng.normal(0, 0.02, len(t_s))
            write_wav(folder / "audio" / f"{k}.wav", sound)
