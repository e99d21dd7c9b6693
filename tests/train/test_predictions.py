"""The challenge's submission format: exact round trips, one level, refusals, figures."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgetag.contract.errors import InputError, OutputError
from edgetag.contract.taxonomy import SONYC_UST
from edgetag_train.data.annotations import read_annotations
from edgetag_train.predictions import figures, read_predictions, write_predictions

SHARED = Path(os.environ.get("EDGETAG_SHARED", Path(__file__).parents[3] / "shared"))
N_TAGS = len(SONYC_UST.ids)
LABELS = SONYC_UST.labels
COARSE, FINE = slice(0, 8), slice(8, N_TAGS)
NAMES = ("00_000066.wav", "00_000118.wav", 'a, quoted "name".wav', "ночь.wav")


def drawn(n_recordings: int = len(NAMES), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n_recordings, N_TAGS))


def table(path: Path, header: list[str], *rows: list[object]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def whole_row(name: str = "a.wav", **changed: object) -> list[object]:
    return [name, *(changed.get(label.split("_")[0], 0.5) for label in LABELS)]


HEADER = ["audio_filename", *LABELS]


# -- round trip -------------------------------------------------------------------------------------------


@given(st.data(), st.sampled_from([np.float32, np.float64]))
@settings(deadline=None, max_examples=40)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, dtype: type) -> None:
    """What was written is read to the last bit, in the same order of recordings, subnormals and all."""
    names = data.draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    width = np.dtype(dtype).itemsize * 8
    scores = data.draw(arrays(dtype, (len(names), N_TAGS), elements=st.floats(0, 1, width=width)))
    path = tmp_path_factory.mktemp("round") / "predictions.csv"
    write_predictions(path, names, scores, SONYC_UST)
    found = read_predictions(path, SONYC_UST)
    assert found.filenames == tuple(names)
    np.testing.assert_array_equal(found.scores.astype(dtype), scores, strict=True)
    np.testing.assert_array_equal(found.scores, scores.astype(np.float64))


def test_fine_columns_come_first(tmp_path: Path) -> None:
    """The header is the challenge's: the name, 29 fine columns, 8 coarse ones."""
    write_predictions(tmp_path / "p.csv", NAMES, drawn(), SONYC_UST)
    header = (tmp_path / "p.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert header == ["audio_filename", *LABELS[FINE], *LABELS[COARSE]]


@pytest.mark.parametrize(("absent", "present"), [(COARSE, FINE), (FINE, COARSE)])
def test_one_level(tmp_path: Path, absent: slice, present: slice) -> None:
    """A level that is all NaN is not written, and comes back as NaN."""
    scores = drawn()
    scores[:, absent] = np.nan
    write_predictions(tmp_path / "p.csv", NAMES, scores, SONYC_UST)
    assert not set(LABELS[absent]) & set((tmp_path / "p.csv").read_text(encoding="utf-8").split(","))
    np.testing.assert_array_equal(read_predictions(tmp_path / "p.csv", SONYC_UST).scores, scores)


def test_columns_in_any_order(tmp_path: Path) -> None:
    """Columns are read by name; unknown ones, like the one pandas adds for its index, are ignored."""
    header = ["", *reversed(HEADER), "note"]
    path = table(tmp_path / "p.csv", header, ["0", *reversed(whole_row(**{"1-X": 0.25})), "loud"])
    found = read_predictions(path, SONYC_UST)
    assert found.filenames == ("a.wav",)
    assert dict(zip(SONYC_UST.ids, found.scores[0], strict=True))["1-X"] == 0.25


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    """Spreadsheets write one in front of the first column's name."""
    path = table(tmp_path / "p.csv", HEADER, whole_row())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_predictions(path, SONYC_UST).filenames == ("a.wav",)


# -- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ([], [], "without rows"),
        (HEADER, [], "without rows"),
        (["audio_filename"], [["a.wav"]], "missing columns: 1_engine, 2_machinery.* and 34 more"),
        (LABELS, [whole_row()[1:]], "missing columns: audio_filename"),
        (HEADER[:-1], [whole_row()[:-1]], "missing columns: 8-1_dog-barking-whining "),
        ([*HEADER, "8_dog"], [[*whole_row(), 0.5]], "column 8_dog occurs twice"),
        (HEADER, [whole_row()[:-1]], "a.wav has 37 values, the header 38 columns"),
        (HEADER, [whole_row(**{"8": "loud"})], "8_dog of a.wav is a number, found 'loud'"),
        (HEADER, [whole_row(**{"8": ""})], "8_dog of a.wav is a number, found ''"),
        (HEADER, [whole_row(**{"8": "nan"})], r"8_dog of a.wav is in \[0, 1\], found nan"),
        (HEADER, [whole_row(**{"1-X": 1.5})], r"1-X_engine.* of a.wav is in \[0, 1\], found 1.5"),
        (HEADER, [whole_row(**{"1-X": -0.1})], "found -0.1"),
        (HEADER, [whole_row("a.wav"), whole_row("a.wav")], "a.wav is predicted twice"),
    ],
)
def test_refusals(tmp_path: Path, header: list[str], rows: list[list[object]], message: str) -> None:
    """A table that cannot be judged is refused in one sentence that names the file and the value."""
    path = table(tmp_path / "bad.csv", header, *rows)
    with pytest.raises(InputError, match=f"bad.csv: .*{message}"):
        read_predictions(path, SONYC_UST)


def test_unreadable(tmp_path: Path) -> None:
    """A folder, a missing file and bytes that are no text are refused."""
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x81")
    for name in ("", "missing.csv", "binary.csv"):
        with pytest.raises(InputError, match="not a readable table"):
            read_predictions(tmp_path / name, SONYC_UST)


@pytest.mark.parametrize(
    ("names", "change", "message"),
    [
        (NAMES[:3], {}, r"scores are \(3, 37\), found \(4, 37\)"),
        (("a.wav",) * 4, {}, "a.wav is predicted twice"),
        (NAMES, {(1, 0): 1.5}, "1_engine of 00_000118.wav is in .* found 1.5"),
        (NAMES, {(1, 0): np.nan}, "found nan"),
        (NAMES, {...: np.nan}, "needs a recording and a level"),
    ],
)
def test_nothing_wrong_is_written(tmp_path: Path, names: tuple[str, ...], change: dict, message: str) -> None:
    """What could not be read back is not written in the first place."""
    scores = drawn()
    for place, value in change.items():
        scores[place] = value
    with pytest.raises(InputError, match=message):
        write_predictions(tmp_path / "p.csv", names, scores, SONYC_UST)
    assert not (tmp_path / "p.csv").exists()


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """A folder that does not exist is an output error, not a trace."""
    with pytest.raises(OutputError, match="cannot be written"):
        write_predictions(tmp_path / "missing" / "p.csv", NAMES, drawn(), SONYC_UST)


# -- figures ----------------------------------------------------------------------------------------------


@pytest.fixture
def truth() -> np.ndarray:
    return (drawn(seed=1) < 0.4).astype(np.float32)


@given(st.permutations(range(len(NAMES))))
@settings(deadline=None, max_examples=20)
def test_matched_by_name(order: list[int]) -> None:
    """The order of the predictions does not matter, and predictions of other recordings only get counted."""
    truth, scores = (drawn(seed=1) < 0.4).astype(float), drawn()
    shuffled = [NAMES[row] for row in order]
    found = figures(
        ["else.wav", *shuffled],
        np.concatenate([np.ones((1, N_TAGS)), scores[order]]),
        NAMES,
        truth,
        SONYC_UST,
    )
    assert found.pop("left_out") == 1
    expected = figures(NAMES, scores, NAMES, truth, SONYC_UST)
    assert expected.pop("left_out") == 0
    assert found == expected
    assert found["recordings"] == len(NAMES)


def test_a_file_scores_what_its_array_scores(tmp_path: Path, truth: np.ndarray) -> None:
    """Single precision scores, 0.01 and its neighbours among them, give the same figures by way of a file."""
    scores = drawn().astype(np.float32)
    scores[:, ::3] = np.nextafter(np.float32(0.01), np.float32([[0], [1], [0], [0.01]]))
    write_predictions(tmp_path / "p.csv", NAMES, scores, SONYC_UST)
    read = read_predictions(tmp_path / "p.csv", SONYC_UST)
    assert figures(read.filenames, read.scores, NAMES, truth, SONYC_UST) == figures(
        NAMES, scores, NAMES, truth, SONYC_UST
    )


def test_missing_predictions(truth: np.ndarray) -> None:
    """Recordings without a prediction are counted, the first are named."""
    with pytest.raises(InputError, match=r"no prediction for 4 of the 4 .*'scenes': 00_.* and 1 more"):
        figures(["else.wav"], drawn(1), NAMES, truth, SONYC_UST, split="scenes")
    with pytest.raises(InputError, match="split 'scenes' holds no recording"):
        figures(NAMES, drawn(), [], truth[:0], SONYC_UST, split="scenes")


def test_absent_levels_say_why(truth: np.ndarray) -> None:
    """A level without labels, or without predictions, is null; the other one keeps its figures."""
    truth[:, FINE] = np.nan
    found = figures(NAMES, drawn(), NAMES, truth, SONYC_UST)
    assert found["fine"] is None
    assert found["reasons"] == {"fine": "no recording of split 'validate' has fine labels"}
    assert found["coarse"]["micro_auprc"] > 0
    scores = drawn()
    scores[:, COARSE] = np.nan
    assert (
        figures(NAMES, scores, NAMES, truth, SONYC_UST)["reasons"]["coarse"]
        == "the predictions have no coarse scores"
    )


def test_json_without_nan(truth: np.ndarray) -> None:
    """Figures that have no value, for want of a positive, are null in strict JSON."""
    found = figures(NAMES, drawn(), NAMES, np.zeros_like(truth), SONYC_UST)
    written = json.loads(json.dumps(found, allow_nan=False))
    assert written == found
    assert written["coarse"]["micro_auprc"] is None
    assert written["coarse"]["classes_without_positives"] == list(SONYC_UST.coarse_ids)


@pytest.mark.shared
def test_golden_file() -> None:
    """The golden submission is read whole and scores the official evaluator's F1 (which knows no ties)."""
    folder = SHARED / "golden" / "metrics"
    if not folder.is_dir():
        pytest.skip(f"no golden figures: {folder} is absent (set EDGETAG_SHARED)")
    labels = read_annotations(SHARED / "sonyc-ust" / "annotations.csv").of_split("validate")
    read = read_predictions(folder / "predictions_noisy.csv", SONYC_UST)
    found = figures(read.filenames, read.scores, labels.filenames, labels.binary(), SONYC_UST)
    expected = json.loads((folder / "expected_noisy.json").read_text())
    assert found["recordings"] == 443
    for level in ("coarse", "fine"):
        assert found[level]["micro_f1"] == pytest.approx(expected[level]["micro_f1"], abs=1e-12)
        assert found[level]["micro_auprc"] == pytest.approx(expected[level]["micro_auprc"], abs=5e-4)
