"""What `stats` says of a table: counts add up, agreement is what its definition says."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from edgetag.contract.errors import InputError
from edgetag.contract.taxonomy import SONYC_UST
from edgetag_train.data.annotations import Votes, presence_columns
from edgetag_train.data.stats import alpha, majority, render, stats

INDEX = {id: k for k, id in enumerate(SONYC_UST.ids)}


def write_table(path: Path, rows: list[tuple[str, str, str, int, dict[str, int]]]) -> Path:
    """Rows of split, sensor, file, annotator, votes by tag id (others 0)."""
    lines = [",".join(("split", "sensor_id", "audio_filename", "annotator_id", *presence_columns(SONYC_UST)))]
    for split, sensor, name, annotator, votes in rows:
        cells = [str(votes.get(id, 0)) for id in SONYC_UST.ids]
        lines.append(",".join((split, sensor, name, str(annotator), *cells)))
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Three volunteers on two recordings of `train`; the second of them verified in `validate` alone."""
    rows = [
        ("train", "1", "a.wav", 1, {"1": 1, "7": 1}),
        ("train", "1", "a.wav", 2, {"1": 1, "7": -1}),
        ("train", "1", "a.wav", 3, {"1": 0, "7": -1}),
        ("train", "2", "b.wav", 1, {"1": 0, "7": -1}),
        ("train", "2", "b.wav", 2, {"1": 0, "7": -1}),
        ("validate", "3", "c.wav", 0, {"8": 1}),
        ("validate", "3", "c.wav", 1, {"8": 0}),
    ]
    return write_table(tmp_path / "annotations.csv", rows)


def test_counts_per_split_and_tag(table: Path) -> None:
    """Present, absent and unknown add up to the split's recordings, for every tag."""
    found = stats(table, 0.5)
    assert found["splits"] == {
        "train": {"recordings": 2, "sensors": 2, "verified": 0},
        "validate": {"recordings": 1, "sensors": 1, "verified": 1},
    }
    assert found["tags"]["1"]["splits"]["train"] == {"present": 1, "absent": 1, "unknown": 0}
    assert found["tags"]["7"]["splits"]["train"] == {"present": 1, "absent": 0, "unknown": 1}
    assert found["tags"]["8"]["splits"]["validate"] == {"present": 1, "absent": 0, "unknown": 0}
    for tag in found["tags"].values():
        for split, counts in tag["splits"].items():
            assert sum(counts.values()) == found["splits"][split]["recordings"]


def test_a_higher_threshold_finds_fewer(table: Path) -> None:
    """Two of three are more than a half and not more than three quarters."""
    assert stats(table, 0.75)["tags"]["1"]["splits"]["train"]["present"] == 0


def test_volunteers_are_held_against_what_was_verified(tmp_path: Path) -> None:
    """Two of the three tags verified as present were named by one of two, one by both; one was invented."""
    rows = [
        ("validate", "1", "a.wav", 0, {"1": 1, "5": 1, "7": 1}),
        ("validate", "1", "a.wav", 1, {"1": 1, "5": 1, "8": 1}),
        ("validate", "1", "a.wav", 2, {"1": 1, "8": 1}),
        ("train", "2", "b.wav", 1, {"6": 1}),
    ]
    path = write_table(tmp_path / "annotations.csv", rows)
    assert stats(path, 0.25)["volunteers"]["coarse"] == {"precision": 0.6667, "recall": 0.6667, "f1": 0.6667}
    assert stats(path, 0.5)["volunteers"]["coarse"] == {"precision": 0.5, "recall": 0.3333, "f1": 0.4}
    assert stats(path, 0.5)["volunteers"]["fine"] is None


def test_agreement_is_the_mean_share_with_the_majority(table: Path) -> None:
    """Two of three, then two of two; recordings that one volunteer heard say nothing."""
    found = stats(table)["tags"]
    assert found["1"]["majority"] == round((2 / 3 + 1) / 2, 4)
    assert found["7"]["majority"] is None
    assert found["8"] == {
        "name": "dog",
        "majority": 1.0,
        "alpha": None,
        "splits": found["8"]["splits"],
    }


def votes(*ballots: tuple[int, int]) -> Votes:
    """One tag: (cast, present) of each recording."""
    cast, present = np.array(ballots, np.int16).T[:, :, np.newaxis]
    return Votes(cast, present)


@pytest.mark.parametrize(
    ("ballots", "expected"),
    [
        ([(3, 3), (3, 0)], 1.0),
        ([(2, 1)] * 50, 1 - 99 / 100 / (2 * 50 * 50 / 100**2)),  # always split: worse than chance
        ([(2, 2), (2, 0), (2, 1), (1, 1)], 1 - 1 * 5 / 9),  # by hand: Do = 2/6, De = 2·3·3/(6·5)
        ([(2, 0), (3, 0)], np.nan),
        ([(1, 1), (0, 0)], np.nan),
    ],
)
def test_alpha_is_krippendorffs(ballots: list[tuple[int, int]], expected: float) -> None:
    """1 of full agreement, below 0 of systematic disagreement, undefined where all votes are alike."""
    np.testing.assert_allclose(alpha(votes(*ballots)), [expected], rtol=1e-6)


def test_random_votes_agree_by_chance() -> None:
    """Three listeners who flip coins: three quarters are with the majority, and alpha is 0."""
    present = np.random.default_rng(0).binomial(3, 0.5, (20_000, 1)).astype(np.int16)
    coins = Votes(np.full_like(present, 3), present)
    np.testing.assert_allclose(majority(coins), [1 / 4 * 1 + 3 / 4 * 2 / 3], atol=0.01)
    np.testing.assert_allclose(alpha(coins), [0.0], atol=0.02)


def test_it_fits_a_hundred_columns(tmp_path: Path) -> None:
    """Three splits of five-digit counts: no line is longer, no figure is cut."""
    rows = [(split, "1", f"{split}.wav", 1, {"7": 1}) for split in ("train", "validate", "test")]
    found = stats(write_table(tmp_path / "t.csv", rows))
    for split in found["splits"]:
        found["tags"]["7-2"]["splits"][split] = dict.fromkeys(("present", "absent", "unknown"), 13_538)
    console = Console(width=100, file=io.StringIO())
    console.print(*render(found), sep="\n")
    text = console.file.getvalue()
    assert text.count("13538") == 9
    assert "alpha" in text.partition("7-2")[0]
    assert "…" not in next(line for line in text.splitlines() if "13538" in line)[35:]


def test_it_is_json(table: Path) -> None:
    """No NaN, no numpy."""
    assert json.loads(json.dumps(stats(table), allow_nan=False)) == stats(table)


def test_a_dataset_folder_will_do(table: Path) -> None:
    """The table in a folder, or in its `sonyc`; a folder without one is one sentence."""
    assert stats(table.parent) == stats(table)
    (table.parent / "sonyc").mkdir()
    table.rename(table.parent / "sonyc" / "annotations.csv")
    assert stats(table.parent)["splits"]["train"]["recordings"] == 2
    (table.parent / "empty").mkdir()
    with pytest.raises(InputError, match=r"no annotations\.csv"):
        stats(table.parent / "empty")


@pytest.mark.shared
def test_the_published_table(shared: Path) -> None:
    """SONYC-UST v1: 2,351 and 443 recordings of 35 and 8 sensors; alerts are agreed on, engines less so."""
    found = stats(shared / "sonyc-ust" / "annotations.csv")
    assert found["splits"]["train"] == {"recordings": 2351, "sensors": 35, "verified": 0}
    assert found["splits"]["validate"] == {"recordings": 443, "sensors": 8, "verified": 443}
    assert found["tags"]["5"]["alpha"] > 0.5 > found["tags"]["1"]["alpha"]
    assert found["volunteers"]["coarse"] == {"precision": 0.9661, "recall": 0.5118, "f1": 0.6691}
