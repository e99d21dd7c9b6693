"""Scenes and their labels: mixing adds sounds and never invents knowledge."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgetag.contract.errors import InputError
from edgetag.contract.taxonomy import SONYC_UST
from edgetag_train.data.scenes import SceneMixer, SceneSettings, merge
from edgetag_train.data.sounds import (
    Library,
    Sound,
    absent,
    clip_labels,
    complete,
    read_clips,
    read_manifest,
    split_of,
)

INDEX = SONYC_UST.index
NAN = np.nan
labels = arrays(np.float32, 37, elements=st.sampled_from([0.0, 1.0, NAN]))


def tone(hz: float, seconds: float = 2.0) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(round(44_100 * seconds)) / 44_100).astype(np.float32)


def of(labels: np.ndarray, *ids: str) -> list[float]:
    return [float(labels[INDEX[id]]) for id in ids]


@pytest.fixture
def library() -> Library:
    street = complete(np.where(np.arange(37) < 8, 0, NAN).astype(np.float32), SONYC_UST)
    street[INDEX["1"]] = 1
    street[[INDEX[tag.id] for tag in SONYC_UST.category("1").fine]] = NAN
    return Library(
        events=(
            Sound(tone(700), clip_labels(["5"], "siren", SONYC_UST), "a"),
            Sound(tone(300, 20), clip_labels(["6", "7"], "large-crowd", SONYC_UST), "b"),
            Sound(tone(900, 0.05), clip_labels(["8"], "dog-barking-whining", SONYC_UST), "c"),
        ),
        backgrounds=(Sound(tone(100, 3), absent(SONYC_UST), "d"),),
        recordings=(Sound(tone(60, 10), street, "sensor 1"),),
        taxonomy=SONYC_UST,
    )


def test_a_scene_is_a_function_of_its_seed(library: Library) -> None:
    """Same seed, same bits; another seed, another scene."""
    mixer = SceneMixer(library, SceneSettings())
    (a, a_labels), (b, b_labels), (other, _) = mixer.scene(3), mixer.scene(3), mixer.scene(4)
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(a_labels, b_labels)
    assert not np.array_equal(a, other)


def test_scenes_are_whole_windows_within_full_scale(library: Library) -> None:
    """441,000 finite float32 samples, peak at most 1, whatever was drawn."""
    mixer = SceneMixer(library, SceneSettings(snr_db=(60.0, 60.0)))
    for seed in range(20):
        samples, _ = mixer.scene(seed)
        assert samples.shape == (441_000,)
        assert samples.dtype == np.float32
        assert np.isfinite(samples).all()
        assert np.abs(samples).max() <= 1


def test_events_are_balanced_over_categories(library: Library) -> None:
    """Four categories have events (5; 6 and 7 by one clip; 8): none is drawn much more than another."""
    mixer = SceneMixer(library, SceneSettings(street_share=0.0, clip_events=(1.0,)))
    drawn = np.sum([mixer.scene(seed)[1] == 1 for seed in range(100)], axis=0)
    assert 12 <= drawn[INDEX["5"]] <= 38
    assert 12 <= drawn[INDEX["8"]] <= 38
    assert 35 <= drawn[INDEX["6"]] <= 65  # the clip of 6 and 7 stands under both


def test_a_street_keeps_what_was_heard_on_it(library: Library) -> None:
    """Its engine stays, of unknown kind; what a listener denied and no event brought stays absent."""
    mixer = SceneMixer(library, SceneSettings(street_share=1.0, street_events=(1.0,)))
    _, found = mixer.scene(0)
    assert of(found, "1", "2", "5") == [1, 0, 0]
    np.testing.assert_array_equal(of(found, "1-1", "5-3"), [NAN, 0])


@given(labels, labels)
def test_merging_knows_no_more_than_both(a: np.ndarray, b: np.ndarray) -> None:
    """Present wins; unknown hides absent; the order does not matter."""
    merged = merge(a, b)
    np.testing.assert_array_equal(merged, merge(b, a))
    np.testing.assert_array_equal(merged == 1, (a == 1) | (b == 1))
    np.testing.assert_array_equal(merged == 0, (a == 0) & (b == 0))


def test_a_clip_of_two_categories_knows_the_kind_of_one() -> None:
    """`large-crowd` is a kind of voice; which kind of music plays beside it nobody said."""
    found = clip_labels(["6", "7"], "large-crowd", SONYC_UST)
    assert of(found, "6", "7", "7-3", "7-1", "1-1") == [1, 1, 1, 0, 0]
    assert np.isnan(of(found, "6-1", "6-2", "6-3", "6-X")).all()


def test_coarse_labels_complete_the_fine_ones_that_follow() -> None:
    """No voice: no kind of it. Dog: the only kind there is. Engine: still not known which."""
    found = complete(np.array([1, 0, 0, 0, 0, 0, 0, 1] + [NAN] * 29, np.float32), SONYC_UST)
    assert of(found, "7-1", "3-1", "8-1") == [0, 0, 1]
    assert np.isnan(of(found, "1-1")).all()


def test_a_library_without_events_is_refused(library: Library) -> None:
    """There is nothing to tag in it."""
    with pytest.raises(ValueError, match="at least one event"):
        SceneMixer(Library((), library.backgrounds, library.recordings, SONYC_UST), SceneSettings())


@given(st.text())
def test_a_recording_is_in_one_split_for_ever(recording_id: str) -> None:
    """By its id alone; rare tags hold none out."""
    assert split_of(recording_id, 100) == split_of(recording_id, 1000)
    assert split_of(recording_id, 3) == "train"


@pytest.mark.shared
def test_no_recording_is_on_both_sides(shared: Path) -> None:
    """Splits of the real clips are disjoint by recording, and both have events."""
    manifest = read_manifest(shared / "audio" / "clips", SONYC_UST)
    train, validate = (set(manifest.recording_id[manifest.split == split]) for split in ("train", "validate"))
    assert train
    assert validate
    assert not train & validate


def test_a_missing_manifest_is_one_sentence(tmp_path: Path) -> None:
    """No data is no training."""
    with pytest.raises(InputError, match=r"manifest\.csv"):
        read_clips(tmp_path, "train", SONYC_UST)
