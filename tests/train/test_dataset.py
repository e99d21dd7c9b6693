"""Finding and checking a dataset's recordings: every published layout, every fault at once."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from structlog.testing import capture_logs

from edgetag.contract.errors import InputError
from edgetag.contract.taxonomy import SONYC_UST
from edgetag_train.data.annotations import presence_columns
from edgetag_train.data.dataset import content_digests, open_dataset

PRESENCE_COLUMNS = presence_columns(SONYC_UST)
SPLITS = {"a.wav": "train", "b.wav": "train", "c.wav": "validate", "d.wav": "test"}


def write_table(folder: Path, splits: dict[str, str], annotator: int = 1, vote: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [",".join(("split", "sensor_id", "audio_filename", "annotator_id", *PRESENCE_COLUMNS))]
    for name, split in splits.items():
        lines.append(f"{split},{split},{name},{annotator}" + f",{vote}" * len(PRESENCE_COLUMNS))
    (folder / "annotations.csv").write_text("\n".join(lines))


def write_tone(path: Path, hz: float = 440, n: int = 4410, rate_hz: int = 44_100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.sin(2 * np.pi * hz * np.arange(n) / rate_hz), rate_hz)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four recordings of three splits in `audio/`."""
    write_table(tmp_path, SPLITS)
    for k, name in enumerate(SPLITS):
        write_tone(tmp_path / "audio" / name, 200 * (k + 1))
    return tmp_path


LAYOUTS = {
    "all in audio": "audio/{name}",
    "all beside the table": "{name}",
    "a folder a split": "{split}/{name}",
    "a folder a split in audio": "audio/{split}/{name}",
    "v1 development set": "audio-dev/{split}/{name}",
    "v1 evaluation set": "audio-eval/{name}",
    "v2 numbered": "audio-{number}/{name}",
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("root", ["", "sonyc"])
def test_layouts(tmp_path: Path, layout: str, root: str) -> None:
    """Each recording is found under its name, wherever an archive puts it; the table may be in `sonyc/`."""
    write_table(tmp_path / root, SPLITS)
    for k, (name, split) in enumerate(SPLITS.items()):
        write_tone(tmp_path / root / layout.format(name=name, split=split, number=7 * k))
    found = open_dataset(tmp_path, ["train", "validate", "test"])
    assert [path.name for path in found.audio] == list(SPLITS)
    assert found.labels.filenames == tuple(SPLITS)


@pytest.mark.parametrize(("named", "written"), [("a.wav", "a.flac"), ("a.flac", "a.wav"), ("a.wav", "a.WAV")])
def test_the_suffix_does_not_matter(tmp_path: Path, named: str, written: str) -> None:
    """A table says .wav, the archive was packed as .flac, and the reverse."""
    write_table(tmp_path, {named: "train"})
    write_tone(tmp_path / "audio" / written)
    assert open_dataset(tmp_path, ["train"]).audio == (tmp_path / "audio" / written,)


def test_the_named_file_comes_first(tmp_path: Path) -> None:
    """Where both are there, the one that the table names."""
    write_table(tmp_path, {"a.flac": "train"})
    for suffix in ("wav", "flac"):
        write_tone(tmp_path / "audio" / f"a.{suffix}")
    assert open_dataset(tmp_path, ["train"]).audio[0].suffix == ".flac"


def test_splits(folder: Path) -> None:
    """Only the splits asked for are looked for; one that is empty is refused with those there are."""
    (folder / "audio" / "d.wav").unlink()
    found = open_dataset(folder, ["validate", "train"])
    assert len(found) == 3
    assert found.of_split("validate").audio == (folder / "audio" / "c.wav",)
    with pytest.raises(InputError, match="'open'; the splits are test, train, validate"):
        open_dataset(folder, ["open"])


def test_every_fault_is_found_before_the_first_is_named(folder: Path) -> None:
    """Missing, no audio, empty, an absurd rate: one sentence with the count, the names and the way out."""
    (folder / "audio" / "a.wav").unlink()
    (folder / "audio" / "b.wav").write_bytes(b"not a recording")
    write_tone(folder / "audio" / "c.wav", n=0)
    write_tone(folder / "audio" / "d.wav", rate_hz=100)
    with pytest.raises(InputError) as refused:
        open_dataset(folder, ["train", "validate", "test"])
    sentence = str(refused.value)
    assert sentence.startswith("4 of 4 recordings")
    for fault in ("a.wav (missing)", "b.wav (not audio)", "c.wav (empty)", "d.wav (100 Hz)", "--skip-bad"):
        assert fault in sentence


def test_the_first_ten_are_named(tmp_path: Path) -> None:
    """Of a folder that was never extracted, not eighteen thousand lines."""
    write_table(tmp_path, {f"{k:02}.wav": "train" for k in range(12)})
    with pytest.raises(InputError, match=r"^12 of 12 .*09\.wav \(missing\) and 2 more; restore them"):
        open_dataset(tmp_path, ["train"])


def test_bad_recordings_can_be_left_out(folder: Path) -> None:
    """With a warning that names them; a split of which nothing is left is refused."""
    (folder / "audio" / "a.wav").unlink()
    with capture_logs() as logs:
        found = open_dataset(folder, ["train"], skip_bad=True)
    assert found.labels.filenames == ("b.wav",)
    assert [(log["log_level"], log["bad"], log["names"]) for log in logs] == [
        ("warning", 1, "a.wav (missing)")
    ]
    (folder / "audio" / "b.wav").unlink()
    with pytest.raises(InputError, match="'train'"), capture_logs():
        open_dataset(folder, ["train", "validate"], skip_bad=True)


@pytest.mark.parametrize("name", ["../a.wav", "/etc/passwd", "", "audio", "."])
def test_a_name_cannot_leave_the_folder(folder: Path, name: str) -> None:
    """A table is foreign data: only names of files that were listed are found."""
    write_tone(folder.parent / "a.wav")
    write_table(folder, {name: "train"})
    with pytest.raises(InputError, match="1 of 1 recordings"):
        open_dataset(folder, ["train"])


def test_a_folder_without_a_table(tmp_path: Path) -> None:
    """One sentence that says where it was looked for."""
    with pytest.raises(InputError, match=r"no annotations\.csv in .* or .*sonyc"):
        open_dataset(tmp_path, ["train"])


def test_verified_recordings_for_evaluation(folder: Path) -> None:
    """Recordings follow the labels they belong to."""
    header, *rows = (folder / "annotations.csv").read_text().splitlines()
    rows = [row.replace("test,", "validate,").replace("d.wav,1", "d.wav,0") for row in rows]
    (folder / "annotations.csv").write_text("\n".join((header, *rows)))
    found = open_dataset(folder, ["validate"]).for_evaluation()
    assert found.audio == (folder / "audio" / "d.wav",)


def test_the_digest_is_of_content(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Moved, touched, packed otherwise in the folder: the same. Another label or sample: another."""
    before = open_dataset(folder, ["train"]).digest()
    moved = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(folder / "annotations.csv", moved)
    shutil.copytree(folder / "audio", moved / "train")
    assert open_dataset(moved, ["train"]).digest() == before
    write_table(moved, SPLITS, vote=1)
    relabelled = open_dataset(moved, ["train"]).digest()
    assert relabelled != before
    write_tone(moved / "train" / "a.wav", 1000)
    assert open_dataset(moved, ["train"]).digest() not in (before, relabelled)


def test_remembered_digests_are_those_of_the_files(folder: Path) -> None:
    """A file that changed is read again; a memo that is damaged is none."""
    paths, memo = [folder / "audio" / "a.wav", folder / "audio" / "b.wav"], folder / "cache" / "content.json"
    assert content_digests(paths, memo) == content_digests(paths)
    assert content_digests(paths, memo) == content_digests(paths)
    write_tone(paths[0], 999, n=5000)
    assert content_digests(paths, memo) == content_digests(paths)
    memo.write_text("{")
    assert content_digests(paths, memo) == content_digests(paths)
    assert content_digests([*reversed(paths), paths[0]], memo) == content_digests(
        [*reversed(paths), paths[0]]
    )
    with pytest.raises(InputError, match="gone"):
        content_digests([folder / "gone.wav"], memo)


def test_folders_are_listed_once(tmp_path: Path) -> None:
    """Thousands of recordings in nineteen folders are found and checked in seconds."""
    names = {f"{k:05}.wav": "train" for k in range(3000)}
    write_table(tmp_path, names)
    write_tone(tmp_path / "one.wav", n=10)
    for k, name in enumerate(names):
        place = tmp_path / f"audio-{k % 19}" / name
        place.parent.mkdir(exist_ok=True)
        place.hardlink_to(tmp_path / "one.wav")
    started_s = time.monotonic()
    assert len(open_dataset(tmp_path, ["train"])) == 3000
    assert time.monotonic() - started_s < 10


@pytest.mark.shared
def test_the_real_recordings_are_found(shared: Path) -> None:
    """The table says .flac or .wav; all 152 are there."""
    assert len(open_dataset(shared / "audio", ["train", "validate"])) == 152
