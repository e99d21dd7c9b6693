"""The SONYC-UST annotation table as labels: fractions of votes, the verified truth, refusals."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetag.contract.errors import InputError
from edgetag.contract.taxonomy import SONYC_UST
from edgetag_train.data.annotations import Labels, presence_columns, read_annotations

SHARED = Path(os.environ.get("EDGETAG_SHARED", Path(__file__).parents[3] / "shared"))
TABLES = {
    "dataset": SHARED / "sonyc-ust" / "annotations.csv",
    "audio": SHARED / "audio" / "sonyc" / "annotations.csv",
}
PRESENCE_COLUMNS = presence_columns(SONYC_UST)
COLUMN = {tag_id: column for column, tag_id in enumerate(SONYC_UST.ids)}
HUMAN = COLUMN["7"]


def row(filename: str, annotator: int, votes: dict[str, float], **home: str) -> dict[str, object]:
    """One annotator's row: `votes` by tag id, all other tags 0."""
    presence = dict.fromkeys(PRESENCE_COLUMNS, 0) | {
        PRESENCE_COLUMNS[COLUMN[tag_id]]: vote for tag_id, vote in votes.items()
    }
    place = {"split": "train", "sensor_id": "3"} | home
    return {**place, "audio_filename": filename, "annotator_id": annotator, **presence}


def read(folder: Path, *rows: dict[str, object]) -> Labels:
    pd.DataFrame(rows).to_csv(folder / "annotations.csv", index=False)
    return read_annotations(folder / "annotations.csv")


# -- votes ------------------------------------------------------------------------------------------------


def test_fraction_of_those_who_voted(tmp_path: Path) -> None:
    """One of two who voted is a half; who did not vote (-1) counts on neither side; nobody is NaN."""
    labels = read(
        tmp_path,
        row("a.wav", 1, {"7": 1, "8": -1, "1": -1}),
        row("a.wav", 2, {"7": 0, "8": -1, "1": 1}),
        row("a.wav", 3, {"7": -1, "8": -1, "1": 1}),
    )
    assert labels.fraction.dtype == np.float32
    assert labels.fraction.shape == (1, 37)
    assert labels.fraction[0, [COLUMN["7"], COLUMN["1"], COLUMN["2-X"]]].tolist() == [0.5, 1.0, 0.0]
    assert np.isnan(labels.fraction[0, COLUMN["8"]])


def test_columns_follow_the_taxonomy(tmp_path: Path) -> None:
    """Columns come out in the order of the taxonomy's ids, wherever they stand in the file."""
    votes = row("a.wav", 1, {"1-X": 1, "8": 1})
    labels = read(tmp_path, dict(reversed(votes.items())))
    assert [SONYC_UST.ids[column] for column in np.flatnonzero(labels.fraction[0])] == ["8", "1-X"]


@pytest.mark.parametrize(
    ("n_yes", "n_no", "threshold", "expected"),
    [
        (2, 1, 0.5, 1),
        (1, 1, 0.5, 0),  # half is not more than half
        (1, 2, 0.5, 0),
        (1, 3, 0.25, 0),
        (1, 2, 0.25, 1),
        (3, 1, 0.75, 0),
        (1, 2, 1 / 3, 0),  # a third is not above a third, whatever its rounding
        (1, 9, 0.1, 0),
        (1, 9, 0.0, 1),
    ],
)
def test_binary_is_strictly_above(
    tmp_path: Path, n_yes: int, n_no: int, threshold: float, expected: float
) -> None:
    """A tag is present when strictly more than `threshold` of the voters say so."""
    votes = [1] * n_yes + [0] * n_no
    labels = read(tmp_path, *(row("a.wav", 1 + i, {"7": vote}) for i, vote in enumerate(votes)))
    binary = labels.binary(threshold)
    assert binary.dtype == np.float32
    assert binary[0, HUMAN] == expected


def test_binary_keeps_the_unknown(tmp_path: Path) -> None:
    """What nobody voted on is NaN, neither present nor absent."""
    binary = read(tmp_path, row("a.wav", 1, {"7": -1, "8": 1})).binary()
    assert np.flatnonzero(np.isnan(binary[0])).tolist() == [HUMAN]


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_binary_refuses_a_threshold_that_is_no_fraction(tmp_path: Path, threshold: float) -> None:
    """A threshold outside [0, 1) would make everything, or nothing, present."""
    with pytest.raises(InputError, match="fraction"):
        read(tmp_path, row("a.wav", 1, {})).binary(threshold)


BALLOTS = st.lists(
    st.tuples(st.sampled_from(["a.wav", "b.wav", "c.wav"]), st.sampled_from([-1, 0, 1])),
    min_size=1,
    max_size=12,
)


@given(BALLOTS, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_votes_are_counted_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, ballots: list, random: object
) -> None:
    """Fractions equal a count by hand, in file name order, whatever the order of the file's rows."""
    rows = [row(name, annotator, {"7": vote}) for annotator, (name, vote) in enumerate(ballots, 1)]
    random.shuffle(rows)
    labels = read(tmp_path_factory.mktemp("table"), *rows)
    assert labels.filenames == tuple(sorted({name for name, _ in ballots}))
    for name, fraction in zip(labels.filenames, labels.fraction[:, HUMAN], strict=True):
        votes = [vote for other, vote in ballots if other == name and vote >= 0]
        expected = np.float32(sum(votes) / len(votes)) if votes else np.nan
        np.testing.assert_equal(fraction, np.float32(expected))


# -- the verified truth -------------------------------------------------------------------------------------


def test_verified_rows_are_the_truth_of_validate(tmp_path: Path) -> None:
    """In `validate` annotator 0 alone decides, voted or not; recordings without him keep their votes."""
    labels = read(
        tmp_path,
        row("a.wav", 5, {"7": 1, "8": 1}, split="validate"),
        row("a.wav", 6, {"7": 1, "8": 1}, split="validate"),
        row("a.wav", 0, {"7": 0, "8": -1}, split="validate"),
        row("b.wav", 5, {"7": 1}, split="validate"),
    )
    assert labels.fraction[:, HUMAN].tolist() == [0.0, 1.0]
    assert np.isnan(labels.fraction[0, COLUMN["8"]])


@pytest.mark.parametrize("split", ["validate", "test"])
def test_verified_rows_decide_in_every_split_but_train(tmp_path: Path, split: str) -> None:
    """`verified` names the recordings whose labels are annotator 0's; all votes stay countable."""
    labels = read(
        tmp_path,
        row("a.wav", 5, {"7": 1}, split=split),
        row("a.wav", 0, {"7": 0}, split=split),
        row("b.wav", 5, {"7": 1}, split=split),
        row("c.wav", 0, {"7": 1}, split="train"),
    )
    assert labels.verified == (True, False, False)
    assert labels.fraction[:, HUMAN].tolist() == [0.0, 1.0, 1.0]
    assert labels.volunteers.cast[:, HUMAN].tolist() == [1, 1, 0]
    assert labels.votes.cast[:, HUMAN].tolist() == [1, 1, 1]


def test_evaluation_is_on_verified_recordings(tmp_path: Path) -> None:
    """Where some are verified, on them alone; where none is, on all; `verified` tells which it was."""
    labels = read(
        tmp_path,
        row("a.wav", 5, {}, split="validate"),
        row("b.wav", 0, {}, split="validate"),
        row("c.wav", 5, {}, split="test"),
    )
    verified = labels.of_split("validate").for_evaluation()
    assert (verified.filenames, verified.verified) == (("b.wav",), (True,))
    crowd = labels.of_split("test").for_evaluation()
    assert (crowd.filenames, crowd.verified) == (("c.wav",), (False,))


def test_soft_labels_are_the_fraction(tmp_path: Path) -> None:
    """Two of three is two thirds; nobody is NaN."""
    labels = read(tmp_path, *(row("a.wav", k, {"7": int(k < 3), "8": -1}) for k in (1, 2, 3)))
    np.testing.assert_array_equal(labels.soft(), labels.fraction)
    assert labels.soft()[0, HUMAN] == np.float32(2 / 3)
    assert np.isnan(labels.soft()[0, COLUMN["8"]])


def test_the_second_version_reads_as_the_first(tmp_path: Path) -> None:
    """v2's time and place, and proximity, are read past; its third split is a split."""
    place = {"borough": 1, "block": 547, "latitude": 40.72951, "longitude": -73.99388}
    time = {"year": 2017, "week": 44, "day": 2, "hour": 16}
    far = {"1-1_small-sounding-engine_proximity": "near", "8-1_dog-barking-whining_proximity": -1}
    rows = [row("a.wav", 1, {"7": 1}), row("b.wav", 0, {"8": 1}, split="test")]
    first = read(tmp_path, *rows)
    second = read(tmp_path, *(one | place | time | far for one in rows))
    assert second.splits() == ("test", "train")
    assert second.filenames == first.filenames
    np.testing.assert_array_equal(second.soft(), first.soft())


def test_a_city_writes_its_own_table(tmp_path: Path) -> None:
    """One annotator, two recordings, sensors with names, tags that were not asked for: enough."""
    unasked = dict.fromkeys(SONYC_UST.fine_ids, -1)
    labels = read(
        tmp_path,
        row("market square.wav", 1, unasked | {"7": 1}, sensor_id="town-hall"),
        row("bridge.flac", 1, unasked | {"1": 1}, sensor_id="bridge", split="validate"),
    )
    assert labels.of_split("train").sensor_id == ("town-hall",)
    assert np.nansum(labels.binary()) == 2


def test_of_several_splits(tmp_path: Path) -> None:
    """Both, in the order of the file names; one that is empty is refused by name."""
    rows = [row(f"{k}.wav", 1, {}, split=split) for k, split in enumerate(("validate", "train", "test"))]
    labels = read(tmp_path, *rows)
    assert labels.of_split("train", "validate").filenames == ("0.wav", "1.wav")
    with pytest.raises(InputError, match="'open'; the splits are test, train, validate"):
        labels.of_split("train", "open")


def test_verified_rows_of_train_are_votes(tmp_path: Path) -> None:
    """Elsewhere annotator 0 is one voter among others."""
    labels = read(tmp_path, row("a.wav", 0, {"7": 0}), row("a.wav", 5, {"7": 1}))
    assert labels.fraction[0, HUMAN] == 0.5


def test_one_annotator_may_hold_several_rows(tmp_path: Path) -> None:
    """Members of the team verified category by category: their rows add up, one vote a tag."""
    silent = dict.fromkeys(SONYC_UST.ids, -1)
    labels = read(
        tmp_path,
        row("a.wav", -1, silent | {"7": 1}),
        row("a.wav", -1, silent | {"8": 0}),
        row("a.wav", -2, silent | {"7": 0}),
    )
    assert labels.fraction[0, [HUMAN, COLUMN["8"]]].tolist() == [0.5, 0.0]


def test_of_split(tmp_path: Path) -> None:
    """A split keeps its recordings, their sensors and their fractions together, in order."""
    labels = read(
        tmp_path,
        row("c.wav", 1, {"7": 1}, split="validate", sensor_id="18"),
        row("b.wav", 1, {"7": 0}),
        row("a.wav", 1, {"7": 0}, split="validate", sensor_id="24"),
    )
    validate = labels.of_split("validate")
    assert validate.filenames == ("a.wav", "c.wav")
    assert validate.sensor_id == ("24", "18")
    assert set(validate.split) == {"validate"}
    assert validate.fraction[:, HUMAN].tolist() == [0.0, 1.0]
    with pytest.raises(InputError, match="'test'"):
        labels.of_split("test")


# -- refusals -----------------------------------------------------------------------------------------------


def test_missing_columns(tmp_path: Path) -> None:
    """A table of another schema is refused with the first missing columns and their number."""
    good = row("a.wav", 1, {})
    with pytest.raises(InputError, match="missing columns: 8_dog_presence \\("):
        read(tmp_path, {name: value for name, value in good.items() if name != "8_dog_presence"})
    fine = {name for name in PRESENCE_COLUMNS if "-1_" in name}
    with pytest.raises(InputError, match=r"1-1_small-.*, 2-1_rock-.*, 3-1_.* and 5 more \("):
        read(tmp_path, {name: value for name, value in good.items() if name not in fine})
    with pytest.raises(InputError, match="missing columns: split, sensor_id, audio_filename and 38 more"):
        read(tmp_path, {"some": 1, "other": 2})


def test_tags_of_another_taxonomy_are_refused_by_name(tmp_path: Path) -> None:
    """A misspelt or foreign tag would be lost without a word."""
    extra = {f"{name}_presence": 0 for name in ("9_owl", "1_motor", "9-1_barn-owl", "9-2_tawny-owl")}
    with pytest.raises(
        InputError, match="9_owl_presence, 1_motor_presence, 9-1_barn-owl_presence and 1 more"
    ):
        read(tmp_path, row("a.wav", 1, {}) | extra)


@pytest.mark.parametrize("vote", [2, 0.5, -2, "yes", "", "nan", "True"])
def test_votes_are_minus_one_zero_or_one(tmp_path: Path, vote: object) -> None:
    """Any other value is refused with its line, its column and itself."""
    with pytest.raises(InputError, match=f"line 3: 7_human-voice_presence is -1, 0 or 1, found '{vote}'"):
        read(tmp_path, row("a.wav", 1, {}), row("a.wav", 2, {"7": vote}))


def test_votes_may_be_written_as_floats(tmp_path: Path) -> None:
    """The published table writes 1.0 in some columns and 1 in others."""
    assert read(tmp_path, row("a.wav", 1, {"7": "1.0", "8": "-1.0"})).fraction[0, HUMAN] == 1


@pytest.mark.parametrize("annotator", ["x", "1.5", "", "inf"])
def test_annotators_are_whole_numbers(tmp_path: Path, annotator: str) -> None:
    """An annotator that is no whole number could hide a verified row."""
    with pytest.raises(InputError, match="line 2: annotator_id"):
        read(tmp_path, row("a.wav", annotator, {}))


def test_duplicate_rows(tmp_path: Path) -> None:
    """An annotator votes once on a tag of a recording: a table pasted twice is refused, the row is named."""
    with pytest.raises(InputError, match=r"annotator 2 voted twice on 1_engine_presence of b\.wav"):
        read(tmp_path, row("b.wav", 1, {}), row("b.wav", 2, {"7": 1}), row("b.wav", 2, {"7": 0}))


@pytest.mark.parametrize("home", [{"split": "validate"}, {"sensor_id": "4"}])
def test_one_home(tmp_path: Path, home: dict[str, str]) -> None:
    """A recording in two splits, or on two sensors, would leak from training into validation."""
    with pytest.raises(InputError, match=rf"a\.wav has more than one {next(iter(home))}"):
        read(tmp_path, row("a.wav", 1, {}), row("a.wav", 2, {}, **home))


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00\x81", b'split,"unclosed\nx,y\n'], ids=["empty", "binary", "broken"]
)
def test_unreadable_files(tmp_path: Path, content: bytes) -> None:
    """An empty or garbled file, a folder and a missing file end in one sentence that names the file."""
    path = tmp_path / "annotations.csv"
    path.write_bytes(content)
    for place in (path, tmp_path, tmp_path / "absent.csv"):
        with pytest.raises(InputError, match=place.name):
            read_annotations(place)


def test_header_alone(tmp_path: Path) -> None:
    """A table without rows is refused."""
    path = tmp_path / "annotations.csv"
    pd.DataFrame([row("a.wav", 1, {})]).head(0).to_csv(path, index=False)
    with pytest.raises(InputError, match="without rows"):
        read_annotations(path)


# -- the real tables ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=TABLES)
def table(request: pytest.FixtureRequest) -> Path:
    path = TABLES[request.param]
    if not path.is_file():
        pytest.skip(f"no real annotations: {path} is absent (set EDGETAG_SHARED)")
    return path


@pytest.mark.shared
def test_real_tables(table: Path) -> None:
    """SONYC-UST v1 holds 2,351 + 443 recordings; the audio table 89 + 63, with coarse labels only."""
    labels = read_annotations(table)
    dataset = table == TABLES["dataset"]
    sizes = {split: labels.split.count(split) for split in set(labels.split)}
    assert sizes == ({"train": 2351, "validate": 443} if dataset else {"train": 89, "validate": 63})
    assert not np.isnan(labels.fraction[:, : len(SONYC_UST.coarse_ids)]).any()
    assert np.isnan(labels.fraction[:, len(SONYC_UST.coarse_ids) :]).all() != dataset


@pytest.mark.shared
def test_real_validation_is_the_verified_rows(table: Path) -> None:
    """In `validate` the labels are annotator 0's values, row for row."""
    verified = pd.read_csv(table, low_memory=False).query("split == 'validate' and annotator_id == 0")
    verified = verified.sort_values("audio_filename")
    labels = read_annotations(table).of_split("validate")
    assert labels.filenames == tuple(verified["audio_filename"])
    expected = verified[list(PRESENCE_COLUMNS)].to_numpy(np.float32)
    np.testing.assert_array_equal(labels.binary(), np.where(expected < 0, np.float32(np.nan), expected))


@pytest.mark.shared
@pytest.mark.parametrize("table", ["dataset"], indirect=True)
def test_published_machinery_impact_holds_category_3(table: Path) -> None:
    """In the published table coarse 2 is present exactly where a fine tag of category 2 or 3 is."""
    labels = read_annotations(table).of_split("validate").binary()
    of = lambda *ids: labels[:, [COLUMN[tag.id] for i in ids for tag in SONYC_UST.category(i).fine]]  # noqa: E731
    np.testing.assert_array_equal(labels[:, COLUMN["2"]], of("2", "3").max(axis=1))
    assert (labels[:, COLUMN["2"]] > of("2").max(axis=1)).sum() == 72
