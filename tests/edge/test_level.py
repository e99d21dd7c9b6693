"""Levels: A-weighting and fast time weighting as IEC 61672-1 has them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from edgetag.contract.frontend import SAMPLE_RATE_HZ, WINDOW_SAMPLES
from edgetag.dsp.level import FLOOR_DBFS, LevelMeter

T = np.arange(WINDOW_SAMPLES) / SAMPLE_RATE_HZ
FULL_SCALE_SINE_DB = -3.01

# IEC 61672-1:2013, table 3: A-weighting at exact mid-band frequencies 1000 * 10**(n/10) Hz.
A_WEIGHTING_DB = {
    -15: -39.4,
    -12: -26.2,
    -9: -16.1,
    -6: -8.6,
    -3: -3.2,
    0: 0.0,
    3: 1.2,
    6: 1.0,
    9: -1.1,
    12: -6.6,
}


def tone(hz: float, start_s: float = 0, end_s: float = 10) -> NDArray[np.float32]:
    sounding = (start_s <= T) & (end_s > T)
    return (np.sin(2 * np.pi * hz * T) * sounding).astype(np.float32)


@pytest.mark.parametrize(("n", "weight_db"), A_WEIGHTING_DB.items())
def test_a_tone_reads_its_a_weighting(n: int, weight_db: float) -> None:
    """LAeq of a full-scale sine is −3.01 dB plus the standard's weighting (given to 0.1 dB)."""
    whole_cycles_hz = round(1000 * 10 ** (n / 10), 1)  # a tone cut mid-cycle clicks, and clicks weigh more
    level = LevelMeter()(tone(whole_cycles_hz))
    assert level.laeq_db == pytest.approx(FULL_SCALE_SINE_DB + weight_db, abs=0.06)


def test_a_steady_tone_reads_the_same_in_every_figure() -> None:
    """LAeq = LAFmax = LA10 = LA90 to 0.05 dB."""
    level = LevelMeter()(tone(1000))
    for figure in (level.laeq_db, level.lafmax_db, level.la10_db, level.la90_db):
        assert figure == pytest.approx(FULL_SCALE_SINE_DB, abs=0.05)


@pytest.mark.parametrize("start_s", [0.0, 4.5, 9.5])
def test_a_burst_counts_the_same_wherever_it_is(start_s: float) -> None:
    """Half a second of tone: LAeq 13.01 dB down, LAFmax 0.08 dB (1 − e^(−t/τ)), at start, middle, end."""
    level = LevelMeter()(tone(1000, start_s, start_s + 0.5))
    assert level.laeq_db == pytest.approx(FULL_SCALE_SINE_DB - 13.01, abs=0.02)
    assert level.lafmax_db == pytest.approx(FULL_SCALE_SINE_DB - 0.08, abs=0.05)


def test_a_short_burst_reads_the_standards_fast_response() -> None:
    """IEC 61672-1 table 4: a 50-ms burst of 4 kHz reads 4.8 dB below the steady tone."""
    steady, burst = LevelMeter()(tone(4000)), LevelMeter()(tone(4000, 5, 5.05))
    assert burst.lafmax_db - steady.lafmax_db == pytest.approx(-4.8, abs=0.1)


def test_percentiles_split_a_window_of_two_levels() -> None:
    """Loud for three seconds, 40 dB down for seven: LA10 is the loud level, LA90 the quiet one."""
    level = LevelMeter()(tone(1000, 0, 3) + np.float32(0.01) * tone(1000, 3, 10))
    assert level.la10_db == pytest.approx(FULL_SCALE_SINE_DB, abs=0.1)
    assert level.la90_db == pytest.approx(FULL_SCALE_SINE_DB - 40, abs=0.1)


def test_silence_is_the_floor_never_zero() -> None:
    """No audio is no loudness: −120 dBFS(A) in every figure."""
    level = LevelMeter()(np.zeros(WINDOW_SAMPLES, np.float32))
    assert (level.laeq_db, level.lafmax_db, level.la10_db, level.la90_db) == (FLOOR_DBFS,) * 4
    assert not level.calibrated


def test_another_length_is_refused() -> None:
    """The level is of exactly the tagged window."""
    with pytest.raises(ValueError, match="441000"):
        LevelMeter()(np.zeros(44_100, np.float32))
