"""Mixtures that nobody has labelled: always the same of one seed, always something that a net can hear."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from edgetag.contract.errors import InputError
from edgetag.contract.taxonomy import SONYC_UST
from edgetag_train.data import mixtures
from edgetag_train.data.mixtures import Mixer, Pool, at_16_khz, read_folder
from edgetag_train.data.sounds import Sound, absent

RATE_HZ, N = 16_000, 160_000
SEEDS = range(40)
"""Enough for streets as they are, every kind of background, and some fifty sounds laid over."""
Samples = NDArray[np.float32]
NOTHING = Pool.of([])


def noise(seconds: float, level: float = 0.1) -> Samples:
    samples = np.random.default_rng(0).normal(0, level, max(1, round(seconds * RATE_HZ)))
    return samples.astype(np.float32)


def tone(hz: float, seconds: float, rate_hz: int = RATE_HZ) -> Samples:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def pool(*sounds: Samples, even: bool = False) -> Pool:
    return Pool.of([(samples, str(number)) for number, samples in enumerate(sounds)], even=even)


def mixer(
    streets: Sequence[Samples] = (noise(10),),
    clips: Sequence[Samples] = (tone(400, 2), tone(900, 0.3)),
    further: Sequence[Samples] = (tone(2000, 4),),
) -> Mixer:
    return Mixer(pool(*streets, even=True), pool(*clips), pool(*further))


# -- mixtures ----------------------------------------------------------------------------------------------


def test_a_mixture_is_a_function_of_sounds_and_seed() -> None:
    """Whoever mixes it, and whatever was mixed before."""
    one, other = mixer(), mixer()
    other.mixture(0)
    for seed in (5, 3, 2**62):
        np.testing.assert_array_equal(one.mixture(seed), other.mixture(seed))
    assert not np.array_equal(one.mixture(5), one.mixture(6))
    elsewhere = mixer(streets=[noise(9)])
    assert not all(np.array_equal(one.mixture(seed), elsewhere.mixture(seed)) for seed in range(5))


@pytest.mark.parametrize(
    ("street", "clip"),
    [
        (noise(10), tone(400, 2)),
        (noise(25), noise(30)),
        (noise(0.01), noise(0.0005)),
        (noise(0), noise(0)),
        (np.zeros(N, np.float32), np.zeros(7, np.float32)),
        (np.full(N, 0.5, np.float32), np.full(N, 1e-7, np.float32)),
    ],
    ids=["usual", "long", "short", "one sample", "silence", "almost silence"],
)
def test_a_mixture_can_be_heard_by_a_net(street: Samples, clip: Samples) -> None:
    """Ten seconds, float32, finite, peak at most 1, whatever it is made of."""
    made = mixer([street], [clip], [clip])
    for seed in SEEDS:
        mixture = made.mixture(seed)
        assert mixture.shape == (N,)
        assert mixture.dtype == np.float32
        assert np.isfinite(mixture).all()
        assert np.abs(mixture).max() <= 1


def test_nothing_is_changed_that_is_mixed_from() -> None:
    """Pools are shared by thousands of mixtures and by processes."""
    street, clip = pool(noise(10), even=True), pool(tone(400, 12))
    before = [held.sounds[0].copy() for held in (street, clip)]
    made = Mixer(street, clip, NOTHING)
    for seed in SEEDS:
        made.mixture(seed)
    for held, samples in zip((street, clip), before, strict=True):
        np.testing.assert_array_equal(held.sounds[0], samples)


def test_what_a_pool_lacks_another_gives() -> None:
    """Clips alone, or further sounds alone, are enough: they stand for each other."""
    street, sounds = pool(noise(10), even=True), pool(tone(400, 2))
    one, other = Mixer(street, sounds, NOTHING), Mixer(street, NOTHING, sounds)
    for seed in SEEDS[:10]:
        np.testing.assert_array_equal(one.mixture(seed), other.mixture(seed))


def test_without_streets_or_sounds_there_is_no_mixture() -> None:
    for streets, clips in (NOTHING, pool(noise(1))), (pool(noise(1)), NOTHING):
        with pytest.raises(ValueError, match="needs street recordings, and clips"):
            Mixer(streets, clips, NOTHING)


# -- pools -------------------------------------------------------------------------------------------------


def test_many_sounds_of_one_group_do_not_drown_the_others() -> None:
    """A hundred sounds of one group are drawn ten times as often as one of another, not a hundred times."""
    crowd = [(noise(1), "speaker")] * 100
    weights = Pool.of([*crowd, (noise(1), "bell")]).weights
    assert weights.sum() == pytest.approx(1)
    assert weights[:100].sum() / weights[100] == pytest.approx(10)


def test_longer_sounds_are_drawn_more_often_up_to_four_seconds() -> None:
    weights = pool(noise(1), noise(4), noise(9)).weights
    assert weights[1] == pytest.approx(2 * weights[0])
    assert weights[2] == pytest.approx(weights[1])
    even = pool(noise(1), noise(4), noise(9), even=True).weights
    np.testing.assert_allclose(even, 1 / 3)


def test_a_sound_comes_out_as_it_went_in() -> None:
    """But for its sixteen bits."""
    held = pool(noise(0.1))
    np.testing.assert_allclose(held.draw(np.random.default_rng(0)), noise(0.1), atol=3e-4)
    assert len(NOTHING) == 0


def test_sounds_at_44100_hz_become_sounds_at_16000_hz() -> None:
    [(samples, group)] = at_16_khz([Sound(tone(400, 1, 44_100), absent(SONYC_UST), "a street")])
    assert group == "a street"
    assert samples.shape == (RATE_HZ,)
    middle = slice(2000, -2000)
    np.testing.assert_allclose(samples[middle], tone(400, 1)[middle], atol=2e-3)


# -- folders of further sounds -----------------------------------------------------------------------------


def write(path: Path, samples: Samples, rate_hz: int = RATE_HZ, subtype: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate_hz, subtype=subtype)


def test_a_folder_is_a_group_for_each_folder_in_it(tmp_path: Path) -> None:
    """However deep its files lie; stereo is averaged, rates and levels become one."""
    write(tmp_path / "bells" / "a.wav", tone(500, 1))
    write(tmp_path / "bells" / "deep" / "deeper" / "b.FLAC", tone(500, 2, 44_100), 44_100)
    write(tmp_path / "dogs" / "c.ogg", np.column_stack([tone(300, 1, 8000)] * 2), 8000)
    found = read_folder(tmp_path, seed=0)
    assert Counter(group for _, group in found) == {"bells": 2, "dogs": 1}
    assert sorted(round(len(samples) / RATE_HZ, 2) for samples, _ in found) == [1, 1, 2]
    for samples, _ in found:
        assert samples.dtype == np.float32
        assert np.abs(samples).max() == pytest.approx(0.5)


def test_a_folder_of_files_alone_is_one_group(tmp_path: Path) -> None:
    write(tmp_path / "bells" / "a.wav", tone(500, 1))
    write(tmp_path / "bells" / "b.wav", tone(600, 1))
    assert [group for _, group in read_folder(tmp_path / "bells", seed=0)] == ["bells", "bells"]


def test_what_is_no_sound_is_passed_over(tmp_path: Path) -> None:
    """Links (which would be heard twice), other files, damage, what is too short, silent or not finite."""
    group = tmp_path / "a"
    write(group / "sound.wav", tone(500, 1))
    (group / "link.wav").symlink_to(group / "sound.wav")
    (group / "nowhere.wav").symlink_to(tmp_path / "nothing.wav")
    (tmp_path / "again").symlink_to(group)
    (group / "folder.wav").mkdir()
    (group / "text.txt").write_text("no sound")
    (group / "damaged.wav").write_bytes(b"RIFF and nothing else")
    (group / "none.ogg").write_bytes(b"")
    write(group / "empty.wav", tone(500, 0))
    write(group / "click.wav", tone(500, 0.1))
    write(group / "silence.wav", np.zeros(RATE_HZ, np.float32))
    for name, value in ("infinite", np.inf), ("nan", np.nan):
        spoilt = tone(500, 1)
        spoilt[100] = value
        write(group / f"{name}.wav", spoilt, subtype="FLOAT")
    [(samples, group_name)] = read_folder(tmp_path, seed=0)
    assert group_name == "a"
    assert len(samples) == RATE_HZ


def test_of_a_long_file_twelve_seconds_are_read(tmp_path: Path) -> None:
    """Somewhere in it, by the seed."""
    rising = np.linspace(0.1, 1, 40 * 8000, dtype=np.float32)
    write(tmp_path / "long.wav", rising, 8000)
    heard = [read_folder(tmp_path, seed)[0][0] for seed in (1, 1, 2)]
    assert {len(samples) for samples in heard} == {12 * RATE_HZ}
    np.testing.assert_array_equal(heard[0], heard[1])
    assert not np.array_equal(heard[0], heard[2])


def test_of_many_files_some_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 500 of a group, the same of one seed, others of another."""
    assert mixtures.MAX_FILES == 500
    monkeypatch.setattr(mixtures, "MAX_FILES", 5)
    for k in range(12):
        write(tmp_path / "many" / f"{k:02}.wav", noise(0.2 + 0.01 * k))
    write(tmp_path / "few" / "a.wav", noise(1))

    def chosen(seed: int) -> list[tuple[str, int]]:
        return [(group, len(samples)) for samples, group in read_folder(tmp_path, seed)]

    assert Counter(group for group, _ in chosen(1)) == {"many": 5, "few": 1}
    assert len(set(chosen(1))) == 6
    assert chosen(1) == chosen(1)
    assert set(chosen(1)) != set(chosen(2))


def test_a_folder_without_a_sound_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty" / "group").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no sound; give folders of"):
        read_folder(tmp_path / "empty", seed=0)
    for absent_folder in tmp_path / "nowhere", tmp_path / "empty" / "file.wav":
        with pytest.raises(InputError, match="is no folder of sounds"):
            read_folder(absent_folder, seed=0)
