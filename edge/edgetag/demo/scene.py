"""A street made of numbers: the demo's sound, because nobody else's recording may ship with us.

Every generator draws one kind of sound as its physics goes: pulses at the rate at which a cylinder
fires or vocal folds close, resonances for what they excite, air and house fronts for the way to the
microphone. `street_scene` lays them over street noise and says in `Scene.parts` what sounds when.

```
s    0         10        20        30        40        50        60
7-1   [talk---]                                  [talk--]
8-1         [dog---]
5-3               [siren--]
5-1                      [horn-]
1-3                          [truck----]
5-4                              [beeps]
2-2                                    [hammer-]
3-1                                         [impact]
6-1                                                 [music--]
4-1                                                       [saw---]
```
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from edgetag.contract.frontend import SAMPLE_RATE_HZ

Signal: TypeAlias = NDArray[np.float32]
Generator: TypeAlias = Callable[[np.random.Generator, float], Signal]
_Array: TypeAlias = NDArray[np.floating]
_Gains: TypeAlias = NDArray[np.inexact]  # by frequency, with a phase or without
_Response: TypeAlias = Callable[[_Array], _Gains]

MIN_DURATION_S = 0.1
FULL_SCALE = 0.95
"""The peak every generator gives its sound."""
SCENE_PEAK = 0.5
STREET_GAIN_DB = -18.0
"""Of the street noise, as `Part.gain_db`."""
SCRIPT_S = 60.0
MIN_PART_S = 2.0  # what is left of a part at the scene's end must be long enough to be recognised
FADE_S = 0.3  # parts come and go, they do not click

_BLOCK = 2048
_HOP = _BLOCK // 2
_BLOCK_HZ: Signal = np.fft.rfftfreq(_BLOCK, 1 / SAMPLE_RATE_HZ).astype(np.float32)  # the bins of a block


@dataclass(frozen=True)
class Part:
    """One line of the script.

    Attributes:
        tag_ids: SONYC-UST ids that are true while it sounds, coarse and fine, e.g. `("5", "5-3")`.
        start_s: where it begins, seconds from the scene's start.
        duration_s: how long it sounds.
        gain_db: what the generator's full-scale sound is scaled by before the scene is brought to its peak.
    """

    tag_ids: tuple[str, ...]
    start_s: float
    duration_s: float
    gain_db: float

    @property
    def end_s(self) -> float:
        """Where it ends, seconds from the scene's start."""
        return self.start_s + self.duration_s


@dataclass(frozen=True)
class Scene:
    """What a microphone heard, and the truth about it: `samples` [T], 44.1 kHz, and the script."""

    samples: Signal
    parts: tuple[Part, ...]


SCRIPT = (
    Part(("7", "7-1"), 1.0, 8.0, -4.0),
    Part(("8", "8-1"), 7.0, 7.0, 0.0),
    Part(("5", "5-3"), 13.0, 8.0, -8.0),
    Part(("5", "5-1"), 20.0, 6.0, -6.0),
    Part(("1", "1-3"), 24.0, 10.0, -2.0),
    Part(("5", "5-4"), 28.0, 6.0, -12.0),
    Part(("2", "2-2"), 34.0, 7.0, 0.0),
    Part(("3", "3-1"), 39.0, 7.0, 0.0),
    Part(("7", "7-1"), 43.0, 7.0, -4.0),
    Part(("6", "6-1"), 47.0, 8.0, -10.0),
    Part(("4", "4-1"), 53.0, 7.0, 0.0),
)


def street_scene(seed: int = 0, duration_s: float = SCRIPT_S) -> Scene:
    """A street with everything in it, the same for the same seed.

    Args:
        seed: draws the sounds, the script stays: the street by `default_rng((seed, 0))`, the script's
            first line by `(seed, 1)` and so on, so that no sound depends on those before it.
        duration_s: length in seconds; the script repeats every 60 s, and a part of which less than 2 s
            would be heard is left out.

    Returns:
        float32 mono at 44.1 kHz, peak 0.5, with its script.

    Raises:
        ValueError: `duration_s` is shorter than 0.1 s, or `seed` is negative.
    """
    samples = street_noise(np.random.default_rng((seed, 0)), duration_s) * _gain(STREET_GAIN_DB)
    parts = script(duration_s)
    for number, part in enumerate(parts, start=1):
        sound = GENERATORS[part.tag_ids[-1]](np.random.default_rng((seed, number)), part.duration_s)
        _add(samples, _faded(sound) * _gain(part.gain_db), part.start_s)
    return Scene(_at_peak(samples, SCENE_PEAK), parts)


def script(duration_s: float) -> tuple[Part, ...]:
    """What a scene of this length holds, in order of start: `SCRIPT` repeated, its last parts cut short."""
    rounds = np.arange(0.0, duration_s, SCRIPT_S)
    starts = [(float(offset) + part.start_s, part) for offset in rounds for part in SCRIPT]
    return tuple(
        Part(part.tag_ids, start_s, min(part.duration_s, duration_s - start_s), part.gain_db)
        for start_s, part in starts
        if duration_s - start_s >= MIN_PART_S
    )


# -- the background ------------------------------------------------------------------------------------


def street_noise(rng: np.random.Generator, duration_s: float) -> Signal:
    """Distant traffic, wind, ventilation, tyres that pass: falls 6.5 dB an octave from 45 Hz on.

    Shape: [T], T = duration × 44.1 kHz

    Raises:
        ValueError: shorter than 0.1 s.
    """
    n = _n_samples(duration_s)
    hum = _slope(_BLOCK_HZ, 45, 6.2) * _slope(_BLOCK_HZ, 6000, 6)
    for fan_hz in rng.choice([120, 240, 300, 480, 900], 2, replace=False):
        hum *= 1 + 0.8 * _line(_BLOCK_HZ, fan_hz)
    colour_db = np.interp(_BLOCK_HZ, np.geomspace(40, 10_000, 16), rng.uniform(-3, 3, 16))  # walls and yards
    hum *= 10 ** (colour_db / 20)
    wind = _slope(_BLOCK_HZ, 60, 18)
    tyres = 0.05 * _slope(_BLOCK_HZ, 1100, 9) * _high_pass(_BLOCK_HZ, 250)
    microphone = _gain(-66)
    magnitude = (
        np.outer(_wander(rng, n, 0.7, 2.0), hum)
        + np.outer(_wander(rng, n, 1.5, 6.0), wind)
        + np.outer(_pass_bys(rng, n), tyres)
        + microphone
    )
    return _at_peak(_noise(rng, n, magnitude))


def _wander(rng: np.random.Generator, n: int, rate_hz: float, spread_db: float) -> _Array:
    """A gain per noise block that wanders by ±`spread_db`."""
    return np.float32(10) ** (_curve(rng, _n_blocks(n), rate_hz, -spread_db, spread_db, _HOP) / 20)


def _pass_bys(rng: np.random.Generator, n: int) -> _Array:
    """Gain per noise block of cars that pass: one in eight seconds or so, 1 to 2 s long."""
    now_s = np.arange(_n_blocks(n)) * _HOP / SAMPLE_RATE_HZ
    gain = np.full(now_s.shape, 0.05)
    for _ in range(rng.poisson(now_s[-1] / 8)):
        distance = (now_s - rng.uniform(0, now_s[-1])) / rng.uniform(0.6, 1.2)
        gain += rng.uniform(0.3, 1.0) / (1 + distance**2)
    return gain.astype(np.float32)


# -- 1: engines ----------------------------------------------------------------------------------------


class _Motor(NamedTuple):
    """What distinguishes one engine from another: revolutions, cylinders, the pipe, its noise."""

    idle_rpm: float
    top_rpm: float
    cylinders: int
    pipe_hz: tuple[float, ...]
    clatter: float
    revs_hz: float  # how often the throttle moves


_TRUCK = _Motor(650, 1500, 6, (55, 110, 230, 420, 800), 1.0, 0.25)
_CAR = _Motor(800, 2600, 4, (60, 140, 300, 650, 1300), 0.6, 0.35)
_MOTORCYCLE = _Motor(1300, 4500, 2, (80, 180, 400, 900, 1900), 0.6, 0.5)


def truck(rng: np.random.Generator, duration_s: float) -> Signal:
    """1-3: a diesel that idles, clatters and pulls away. Shape: [T]. Raises ValueError below 0.1 s."""
    return _engine(rng, duration_s, _TRUCK)


def car(rng: np.random.Generator, duration_s: float) -> Signal:
    """1-2: a four-cylinder petrol engine. Shape: [T]. Raises ValueError below 0.1 s."""
    return _engine(rng, duration_s, _CAR)


def motorcycle(rng: np.random.Generator, duration_s: float) -> Signal:
    """1-1: a twin that revs. Shape: [T]. Raises ValueError below 0.1 s."""
    return _engine(rng, duration_s, _MOTORCYCLE)


def _engine(rng: np.random.Generator, duration_s: float, motor: _Motor) -> Signal:
    """Engine orders below, and above them the noise of gas and valves, which pulses with every firing."""
    n = _n_samples(duration_s)
    throttle = _curve(rng, n, motor.revs_hz, -0.7, 1.0).clip(0)  # idle two fifths of the time
    turns_hz = (motor.idle_rpm + (motor.top_rpm - motor.idle_rpm) * throttle) / 60
    cycles = _phase(turns_hz / 2 * (1 + _curve(rng, n, 10, -0.012, 0.012)))  # a four-stroke's is two turns
    firings = cycles * motor.cylinders
    load = 0.4 + 0.6 * throttle
    thump = load * _curve(rng, n, 30, 0.7, 1.3) * _oscillate(cycles, _orders(rng, motor.cylinders))
    gas = load * (0.3 + _puffs(firings, 4)) * _noise(rng, n, _slope(_BLOCK_HZ, 150, 3))
    rattle = _noise(rng, n, _high_pass(_BLOCK_HZ, 1200) * _slope(_BLOCK_HZ, 5000, 6))
    valves = (0.5 + _puffs(2 * firings, 3)) * rattle
    lumps_hz = np.geomspace(250, 5000, 9) * rng.uniform(0.85, 1.15, 9)

    def exhaust(hz: _Array) -> _Gains:
        pipe = _bands(hz, motor.pipe_hz, 0.5, 0.3) + 0.65 * _bands(hz, lumps_hz, 0.15, 0.3)
        return pipe * _slope(hz, 1500, 6) + 0.03 * _slope(hz, 5000, 6)

    return _heard(rng, 0.45 * thump + gas + 0.25 * motor.clatter * valves, exhaust, distance_m=12)


def _orders(rng: np.random.Generator, cylinders: int, n_harmonics: int = 10) -> _Array:
    """Harmonics of an engine's cycle; firing stands out, the rest is what cylinders differ by."""
    orders = rng.uniform(0.05, 0.2, n_harmonics * cylinders)
    orders[cylinders - 1 :: cylinders] = 1.0
    return orders * (1 + np.arange(orders.size) / cylinders) ** -1.0


# -- 2: machinery impact, 3: other impacts -------------------------------------------------------------


def jackhammer(rng: np.random.Generator, duration_s: float) -> Signal:
    """2-2: some 20 blows a second of a ringing chisel on thudding ground, air hissing out at each, in bursts.

    Shape: [T]. Raises ValueError below 0.1 s.
    """
    n = _n_samples(duration_s)
    phase = _phase(rng.uniform(18, 24) * (1 + _curve(rng, n, 3, -0.02, 0.02)))
    on = _bursts(rng, n, on_s=(2.0, 4.0), off_s=(0.3, 0.8), edge_s=0.03)
    blows = _pulses(phase, rng.uniform(0.6, 1.0, _n_cycles(phase)))
    air = (0.1 + _puffs(phase, 5)) * _noise(rng, n, _slope(_BLOCK_HZ, 250, 2) * _slope(_BLOCK_HZ, 7000, 6))
    compressor = _noise(rng, n, _slope(_BLOCK_HZ, 150, 6))
    ground_hz = rng.uniform(0.85, 1.15, 3) * (110, 190, 340)
    chisel_hz = rng.uniform(0.92, 1.08, 4) * (1250, 2300, 3700, 6100)

    def tool(hz: _Array) -> _Gains:
        return 0.6 * _bands(hz, ground_hz, 0.5) + 0.7 * _bands(hz, chisel_hz, 0.08) + 0.6

    return _heard(rng, on * (3 * blows + air) + 0.08 * compressor, tool, distance_m=10)


class _Matter(NamedTuple):
    """What is struck: the lowest and highest mode, how long the lowest rings, how much it rattles."""

    low_hz: float
    high_hz: float
    ring_s: float
    rattle: float


_MATTER = (
    _Matter(60, 900, 0.05, 0.5),  # a door, a plank
    _Matter(110, 4000, 0.12, 1.0),  # a car body, a bin
    _Matter(500, 8000, 0.15, 1.0),  # a pole, a rail
    _Matter(900, 11000, 0.05, 2.0),  # glass, rubble
)


def impacts(rng: np.random.Generator, duration_s: float) -> Signal:
    """3-1: wood, sheet metal, poles, glass: struck, or dropped and bouncing, a second or so apart.

    Shape: [T]. Raises ValueError below 0.1 s.
    """
    n = _n_samples(duration_s)
    out = np.zeros(n, np.float32)
    at_s = rng.uniform(0.0, min(0.3, duration_s / 3))
    while at_s < duration_s:
        blow = _struck(rng, _MATTER[rng.integers(len(_MATTER))])
        gap_s, strength = rng.uniform(0.08, 0.35), rng.uniform(0.5, 1.0)
        for _ in range(rng.integers(1, 4)):
            _add(out, np.float32(strength) * blow, at_s)
            at_s += gap_s
            gap_s, strength = gap_s * rng.uniform(0.4, 1.1), strength * rng.uniform(0.2, 0.6)
        at_s += rng.uniform(0.5, 1.4)
    return _heard(rng, out, _flat, distance_m=12)


def _struck(rng: np.random.Generator, matter: _Matter) -> _Array:
    """One blow: thirty modes that ring, the high ones shorter, and a crash of many small contacts."""
    now_s = np.arange(int(0.6 * SAMPLE_RATE_HZ), dtype=np.float32) / SAMPLE_RATE_HZ
    modes_hz = matter.low_hz * (matter.high_hz / matter.low_hz) ** rng.random((30, 1), np.float32)
    ring_s = matter.ring_s * rng.uniform(0.5, 1.5, (30, 1)) * (modes_hz / matter.low_hz) ** -0.3
    levels = rng.uniform(0.2, 1, (30, 1)) * (modes_hz / matter.low_hz) ** -0.4
    ring = (levels * np.exp(-now_s / ring_s) * np.sin(2 * np.pi * modes_hz * now_s)).astype(np.float32).sum(0)
    colour = _high_pass(_BLOCK_HZ, matter.low_hz) * _slope(_BLOCK_HZ, matter.low_hz + matter.high_hz / 4, 6)
    envelope = np.exp(-now_s / (0.4 * matter.ring_s)) * np.clip(now_s / 0.001, 0, 1)
    return _at_peak(ring + 8 * matter.rattle * envelope * _noise(rng, now_s.size, colour))


# -- 4: saws -------------------------------------------------------------------------------------------


def chainsaw(rng: np.random.Generator, duration_s: float) -> Signal:
    """4-1: a two-stroke that fires every turn, idles at 60 Hz, screams at 120 to 190 and sags in the wood.

    Shape: [T]. Raises ValueError below 0.1 s.
    """
    n = _n_samples(duration_s)
    throttle = _bursts(rng, n, on_s=(1.0, 2.5), off_s=(0.2, 0.7), edge_s=0.35)
    fires_hz = (60 + (rng.uniform(120, 190) - 60) * throttle) * _curve(rng, n, 1.5, 0.85, 1.0)
    phase = _phase(fires_hz * (1 + _curve(rng, n, 30, -0.01, 0.01)))
    load = (0.3 + 0.7 * throttle) * _curve(rng, n, 40, 0.75, 1.25)
    tone = _oscillate(phase / 2, _orders(rng, 2, 24) * rng.uniform(0.2, 1.0, 48))
    buzz = (0.4 + _puffs(phase, 3)) * _noise(rng, n, _slope(_BLOCK_HZ, 400, 1))
    chain = _noise(rng, n, _high_pass(_BLOCK_HZ, 2000) * _slope(_BLOCK_HZ, 7000, 9))
    pipe_hz = rng.uniform(0.85, 1.15, 7) * (170, 330, 600, 1000, 1700, 2800, 4500)

    def muffler(hz: _Array) -> _Gains:
        return _high_pass(hz, 110) * (_bands(hz, pipe_hz, 0.35) + 0.1) * _slope(hz, 9000, 6)

    return _heard(rng, load * (tone + 0.5 * buzz + 0.1 * chain), muffler, distance_m=10)


# -- 5: alert signals ----------------------------------------------------------------------------------


def car_horn(rng: np.random.Generator, duration_s: float) -> Signal:
    """5-1: two diaphragms a third apart (some 400 and 500 Hz), rich to 8 kHz, pressed by an angry hand.

    Shape: [T]. Raises ValueError below 0.1 s.
    """
    n = _n_samples(duration_s)
    pressed = _bursts(rng, n, on_s=(0.25, 1.6), off_s=(0.12, 0.7), edge_s=0.012)
    low_hz = rng.uniform(370, 430)
    chord = np.zeros(n, np.float32)
    settling = 1 - 0.02 * np.exp(-6.0 * pressed.cumsum() / SAMPLE_RATE_HZ)  # the first blow starts flat
    for hz in (low_hz, low_hz * rng.uniform(1.22, 1.27)):
        chord += _oscillate(_phase(hz * settling), _harmonics(40, 0.35) * rng.uniform(0.5, 1, 40))

    def bell(hz: _Array) -> _Gains:
        return _high_pass(hz, 280) * (0.6 + 1.4 * _band(hz, 2600, 1800)) * _slope(hz, 5000, 12)

    return _heard(rng, pressed * chord, bell, distance_m=15)


def car_alarm(rng: np.random.Generator, duration_s: float) -> Signal:
    """5-2: a piezo's tunes, 1.5 s each: yelp, whoop, two-tone. Shape: [T]. Raises ValueError below 0.1 s."""
    n = _n_samples(duration_s)
    now_s = np.arange(n) / SAMPLE_RATE_HZ
    tunes_hz = (
        1700 + 500 * _triangle(now_s * 5),
        1200 + 1400 * (now_s * 2.5 % 1),
        np.where(now_s * 4 % 1 < 0.5, 1350.0, 1800.0),
    )
    turn = (now_s / 1.5 + rng.integers(3)).astype(int) % 3
    tone = _oscillate(_phase(np.choose(turn, tunes_hz)), _harmonics(7, 1.0) * (1, 0.3, 1, 0.3, 1, 0.3, 1))
    return _heard(rng, tone, lambda hz: 0.2 + _band(hz, 2200, 1500), distance_m=20)


def siren(rng: np.random.Generator, duration_s: float) -> Signal:
    """5-3: an electronic siren that drives by: wail (a sweep in 4 s), yelp (three a second), wail.

    Shape: [T]. Raises ValueError below 0.1 s.
    """
    n = _n_samples(duration_s)
    now_s = np.arange(n) / SAMPLE_RATE_HZ
    yelps = np.abs(now_s - duration_s * rng.uniform(0.5, 0.7)) < duration_s * 0.17
    turns = _phase(np.where(yelps, rng.uniform(2.8, 3.6), rng.uniform(0.2, 0.3)))
    height = np.sin(np.pi / 2 * _ramp_up_and_down(turns % 1, 0.45))
    passed = np.tanh((now_s - duration_s * rng.uniform(0.4, 0.8)) / 1.5)
    hz = (rng.uniform(560, 700) + rng.uniform(750, 900) * height) * (1 - 0.03 * passed)  # Doppler at 10 m/s
    tone = _oscillate(_phase(hz), _harmonics(11, 0.9) * (1, 0.5, 0.9, 0.3, 0.8, 0.3, 0.7, 0.2, 0.5, 0.2, 0.4))
    loudness = (1 / (1 + 0.8 * passed**2)).astype(np.float32)

    def loudspeaker(hz: _Array) -> _Gains:
        return _high_pass(hz, 450) * (0.5 + _band(hz, 1400, 1200)) * _slope(hz, 4500, 12)

    return _heard(rng, loudness * tone, loudspeaker, distance_m=40)


def reverse_beeper(rng: np.random.Generator, duration_s: float) -> Signal:
    """5-4: a buzzer at 1.0 to 1.4 kHz, about once a second, half a second long.

    Shape: [T]. Raises ValueError below 0.1 s.
    """
    n = _n_samples(duration_s)
    now_s = np.arange(n) / SAMPLE_RATE_HZ
    on = now_s % (1 / rng.uniform(0.9, 1.1))
    gate = np.clip(on / 0.006, 0, 1) * np.clip((0.5 - on) / 0.01, 0, 1)
    overtones = np.array([1, 0.12, 0.35, 0.05, 0.15, 0.03, 0.06])
    tone = _oscillate(_phase(np.full(n, rng.uniform(1000, 1400))), overtones)
    return _heard(rng, gate.astype(np.float32) * tone, lambda hz: _high_pass(hz, 600), distance_m=20)


# -- 6: music ------------------------------------------------------------------------------------------

_PROGRESSIONS = ((0, 9, 5, 7), (0, 7, 9, 5), (9, 5, 0, 7), (0, 5, 9, 7))  # roots in semitones above the key
_MINOR_ROOTS = (9,)
_PENTATONIC = (0, 2, 4, 7, 9, 12, 14, 16)


def music(rng: np.random.Generator, duration_s: float) -> Signal:
    """6-1: drums, bass, strummed chords and a lead from a loudspeaker, four bars over and over.

    Shape: [T]. Raises ValueError below 0.1 s.
    """
    n = _n_samples(duration_s)
    step_s = 60 / rng.uniform(92, 124) / 4  # a sixteenth
    key_hz = 55 * 2 ** (rng.integers(0, 8) / 12)
    n_steps = int(duration_s / step_s) + 1
    out = np.zeros(n, np.float32)
    for at_step, sound in [
        *_drum_part(rng, n_steps),
        *_harmony_part(rng, n_steps, key_hz, step_s),
        *_lead_part(rng, n_steps, key_hz, step_s),
    ]:
        _add(out, sound, at_step * step_s)
    return _heard(rng, np.tanh(0.4 * out), lambda hz: _high_pass(hz, 45) * _slope(hz, 150, 1.5), distance_m=8)


_Notes: TypeAlias = list[tuple[int, _Array]]


def _drum_part(rng: np.random.Generator, n_steps: int) -> _Notes:
    kick, snare, hat = _kick(), _snare(rng), _hat(rng)
    notes: _Notes = []
    for step in range(n_steps):
        if step % 8 in (0, 3) or (step % 16 == 10 and rng.random() < 0.5):
            notes.append((step, kick))
        if step % 8 == 4:
            notes.append((step, snare))
        if step % 2 == 0 or rng.random() < 0.25:
            notes.append((step, np.float32(rng.uniform(0.4, 1)) * hat))
    return notes


def _kick() -> _Array:
    now_s = np.arange(int(0.3 * SAMPLE_RATE_HZ), dtype=np.float32) / SAMPLE_RATE_HZ
    turns = 48 * now_s + 110 * 0.03 * (1 - np.exp(-now_s / 0.03))
    return 1.4 * np.exp(-now_s / 0.09) * np.sin(2 * np.pi * turns)


def _snare(rng: np.random.Generator) -> _Array:
    now_s = np.arange(int(0.25 * SAMPLE_RATE_HZ), dtype=np.float32) / SAMPLE_RATE_HZ
    rattle = _noise(rng, now_s.size, _high_pass(_BLOCK_HZ, 900) * _slope(_BLOCK_HZ, 8000, 6))
    return np.exp(-now_s / 0.06) * (0.5 * rattle + 0.6 * np.sin(2 * np.pi * 190 * now_s))


def _hat(rng: np.random.Generator) -> _Array:
    now_s = np.arange(int(0.12 * SAMPLE_RATE_HZ), dtype=np.float32) / SAMPLE_RATE_HZ
    return 0.4 * np.exp(-now_s / 0.025) * _noise(rng, now_s.size, _high_pass(_BLOCK_HZ, 7000) ** 2)


def _harmony_part(rng: np.random.Generator, n_steps: int, key_hz: float, step_s: float) -> _Notes:
    """Bass on the beat and a broken rhythm of strummed chords, a bar for each root of the progression."""
    roots = _PROGRESSIONS[rng.integers(len(_PROGRESSIONS))]
    strums = np.flatnonzero(rng.random(16) < 0.4) if rng.random() < 0.7 else np.arange(0, 16, 4)
    basses = {root: _plucked(key_hz * 2 ** (root / 12), 3 * step_s, 0.25) for root in roots}
    chords = {root: _chord(4 * key_hz, root, 5 * step_s) for root in roots}
    notes: _Notes = []
    for step in range(n_steps):
        root = roots[step // 16 % 4]
        if step % 4 in (0, 3):
            notes.append((step, 0.7 * basses[root]))
        if step % 16 in strums or step % 16 == 0:
            notes.append((step, 0.3 * chords[root]))
    return notes


def _chord(key_hz: float, root: int, duration_s: float) -> _Array:
    third = 3 if root in _MINOR_ROOTS else 4
    out = np.zeros(_n_samples(duration_s) + 2000, np.float32)
    for string, semitones in enumerate((root, root + third, root + 7, root + 12)):
        _add(out, _plucked(key_hz * 2 ** ((semitones % 14) / 12), duration_s, 0.15), 0.008 * string)
    return out


def _plucked(hz: float, duration_s: float, bright_s: float) -> _Array:
    """A string: the bright spectrum of the pluck dies in `bright_s`, the dark one below it slowly."""
    n = _n_samples(duration_s)
    now_s = np.arange(n, dtype=np.float32) / SAMPLE_RATE_HZ
    phase = _phase(np.full(n, hz))
    bright = np.exp(-now_s / (0.4 * bright_s)) * _oscillate(phase, _harmonics(30, 0.9))
    dark = np.exp(-now_s / (3 * bright_s)) * _oscillate(phase, _harmonics(6, 1.6))
    return (0.5 * bright + 0.6 * dark) * _ends(now_s, duration_s, 0.002)


def _lead_part(rng: np.random.Generator, n_steps: int, key_hz: float, step_s: float) -> _Notes:
    """A tune that walks along the pentatonic scale, with rests."""
    notes: _Notes = []
    step, degree = 0, 3
    while step < n_steps:
        length = int(rng.choice([2, 2, 3, 4, 6]))
        degree = int(np.clip(degree + rng.integers(-2, 3), 0, len(_PENTATONIC) - 1))
        if rng.random() < 0.75:
            notes.append((step, 0.3 * _blown(8 * key_hz * 2 ** (_PENTATONIC[degree] / 12), length * step_s)))
        step += length
    return notes


def _blown(hz: float, duration_s: float) -> _Array:
    """A reed or a flute: a soft start, then vibrato."""
    now_s = np.arange(_n_samples(duration_s)) / SAMPLE_RATE_HZ
    vibrato = 1 + 0.008 * np.sin(2 * np.pi * 5.5 * now_s) * np.clip(now_s / 0.3, 0, 1)
    return _oscillate(_phase(hz * vibrato), _harmonics(12, 1.1)) * _ends(now_s, duration_s, 0.03)


def ice_cream_truck(rng: np.random.Generator, duration_s: float) -> Signal:
    """6-3: a music box through a horn loudspeaker, a tine at a time.

    Shape: [T]. Raises ValueError below 0.1 s.
    """
    n = _n_samples(duration_s)
    step_s, key_hz = rng.uniform(0.16, 0.22), rng.uniform(500, 750)
    out = np.zeros(n, np.float32)
    tune = rng.integers(0, len(_PENTATONIC), 16)
    for step in range(int(duration_s / step_s) + 1):
        if step % 4 != 3 or rng.random() < 0.5:
            _add(out, _tine(key_hz * 2 ** (_PENTATONIC[tune[step % 16]] / 12)), step * step_s)
    return _heard(rng, out, lambda hz: _high_pass(hz, 500) * _slope(hz, 5000, 12), distance_m=30)


def _tine(hz: float) -> _Array:
    """A steel tine: its overtones are not whole multiples."""
    now_s = np.arange(int(0.7 * SAMPLE_RATE_HZ), dtype=np.float32) / SAMPLE_RATE_HZ
    partials = ((1.0, 1.0, 0.3), (2.0, 0.3, 0.2), (3.01, 0.35, 0.12), (6.27, 0.25, 0.04))
    return sum(
        (
            np.float32(level) * np.exp(-now_s / tau_s) * np.sin(np.float32(2 * np.pi * hz * ratio) * now_s)
            for ratio, level, tau_s in partials
        ),
        np.zeros_like(now_s),
    )


# -- 7: voices -----------------------------------------------------------------------------------------


class _Sound(NamedTuple):
    """A moment of the vocal tract: how much voice, how much noise and where, and three formants."""

    voice: float
    noise: float
    noise_hz: float
    f1_hz: float
    f2_hz: float
    f3_hz: float


# Formants of ten American vowels (Peterson and Barney 1952, men).
_VOWELS_HZ = (
    (270, 2290, 3010),
    (390, 1990, 2550),
    (530, 1840, 2480),
    (660, 1720, 2410),
    (730, 1090, 2440),
    (570, 840, 2410),
    (440, 1020, 2240),
    (300, 870, 2240),
    (640, 1190, 2390),
    (490, 1350, 1690),
)
# What opens a syllable: closure (s), length (s), and the sound between.
_CONSONANTS = (
    (0.00, 0.10, _Sound(0.0, 0.30, 6500, 320, 1700, 2600)),  # s
    (0.00, 0.10, _Sound(0.0, 0.35, 3300, 320, 1800, 2500)),  # sh
    (0.00, 0.08, _Sound(0.0, 0.08, 8000, 320, 1100, 2300)),  # f
    (0.00, 0.07, _Sound(0.4, 0.12, 6000, 300, 1700, 2600)),  # z
    (0.06, 0.03, _Sound(0.0, 0.50, 4500, 320, 1800, 2700)),  # t
    (0.06, 0.04, _Sound(0.0, 0.50, 2100, 320, 1900, 2300)),  # k
    (0.06, 0.02, _Sound(0.0, 0.25, 1000, 320, 900, 2300)),  # p
    (0.04, 0.02, _Sound(0.3, 0.20, 3800, 260, 1700, 2600)),  # d
    (0.04, 0.02, _Sound(0.3, 0.10, 1000, 260, 800, 2200)),  # b
    (0.00, 0.07, _Sound(0.35, 0.0, 3000, 270, 1100, 2200)),  # m
    (0.00, 0.06, _Sound(0.35, 0.0, 3000, 270, 1600, 2500)),  # n
    (0.00, 0.06, _Sound(0.60, 0.0, 3000, 360, 1100, 2600)),  # l
    (0.00, 0.06, _Sound(0.60, 0.0, 3000, 330, 1100, 1500)),  # r
    (0.00, 0.05, _Sound(0.60, 0.0, 3000, 300, 700, 2200)),  # w
    (0.00, 0.05, _Sound(0.05, 0.15, 1500, 500, 1500, 2500)),  # h
)


class _Talker(NamedTuple):
    """A person: mean pitch, length of the vocal tract (1 = a man's), and syllables per second."""

    pitch_hz: float
    tract: float
    syllables_hz: float


class _Moment(NamedTuple):
    """A knot of the articulation: when, what, at which pitch, by a tract of which size."""

    at_s: float
    sound: _Sound
    pitch_hz: float
    tract: float


def talking(rng: np.random.Generator, duration_s: float) -> Signal:
    """7-1: a man and a woman in conversation: syllables in phrases, vowels that glide, consonants, pauses.

    A glottal pulse train and noise through a cascade of formants that move (Klatt 1980, simplified).

    Shape: [T]. Raises ValueError below 0.1 s.
    """
    n = _n_samples(duration_s)
    talkers = (
        _Talker(rng.uniform(95, 130), rng.uniform(0.97, 1.03), rng.uniform(4.2, 5.2)),
        _Talker(rng.uniform(180, 225), rng.uniform(1.12, 1.2), rng.uniform(4.5, 5.5)),
    )
    moments: list[_Moment] = [_Moment(0.0, _Sound(0, 0, 3000, 500, 1500, 2500), 120.0, 1.0)]
    pause_s = rng.uniform(0.0, min(0.3, duration_s / 4))
    while moments[-1].at_s < duration_s:
        moments += _phrase(rng, talkers[rng.integers(len(talkers))], moments[-1].at_s + pause_s)
        pause_s = rng.uniform(0.1, 0.5)
    voice, hiss = _articulate(rng, n, moments)
    return _heard(rng, voice + hiss, lambda hz: _high_pass(hz, 90), distance_m=4)


def _phrase(rng: np.random.Generator, talker: _Talker, at_s: float) -> list[_Moment]:
    """Four to twelve syllables in one breath; the pitch falls, stressed syllables stand above it."""
    moments: list[_Moment] = []
    n_syllables = int(rng.integers(4, 13))
    for k in range(n_syllables):
        stressed = rng.random() < 0.4
        accent = rng.uniform(1.1, 1.3) if stressed else 1.0
        pitch_hz = accent * talker.pitch_hz * (1.15 - 0.3 * k / n_syllables)
        length_s = rng.uniform(0.7, 1.2) / talker.syllables_hz * (1.3 if stressed else 0.9)
        moments += _syllable(rng, talker, at_s, length_s, pitch_hz, 1.0 if stressed else 0.65)
        at_s = moments[-1].at_s
    last = moments[-1]
    return [*moments, last._replace(at_s=last.at_s + 0.06, sound=last.sound._replace(voice=0.0, noise=0.0))]


def _syllable(
    rng: np.random.Generator, talker: _Talker, at_s: float, length_s: float, pitch_hz: float, stress: float
) -> list[_Moment]:
    """A consonant, then a vowel that may glide into another."""
    closure_s, burst_s, consonant = _CONSONANTS[rng.integers(len(_CONSONANTS))]
    start, end = (_VOWELS_HZ[k] for k in rng.integers(len(_VOWELS_HZ), size=2))
    if rng.random() < 0.6:
        end = start
    closed = consonant._replace(voice=min(consonant.voice, 0.15), noise=0.0)
    onset_s = at_s + closure_s + burst_s
    end_s = max(at_s + length_s, onset_s + 0.08)
    sounds = [
        (at_s + 0.012, closed if closure_s else consonant),
        (at_s + closure_s, closed if closure_s else consonant),
        (at_s + closure_s + 0.004, consonant),
        (onset_s, consonant),
        (onset_s + 0.035, _Sound(stress, 0.01, 2500, *start)),
        (onset_s + 0.6 * (end_s - onset_s), _Sound(0.9 * stress, 0.01, 2500, *start)),
        (end_s, _Sound(0.45 * stress, 0.01, 2500, *end)),
    ]
    glide = np.linspace(1.0, rng.uniform(0.88, 1.04), len(sounds))
    return [
        _Moment(when_s, sound, pitch_hz * float(bend), talker.tract)
        for (when_s, sound), bend in zip(sounds, glide, strict=True)
    ]


def _articulate(rng: np.random.Generator, n: int, moments: list[_Moment]) -> tuple[_Array, _Array]:
    """Turn the knots into sound. Shape: -> [T], [T]: voice, and the noise of consonants and breath."""
    knots_s = np.array([moment.at_s for moment in moments])
    sounds = np.array([moment.sound for moment in moments])  # [knots, 6], columns as in _Sound

    def at(now_s: _Array, values: _Array) -> _Array:
        return np.interp(now_s, knots_s, values).astype(np.float32)

    now_s = np.arange(n) / SAMPLE_RATE_HZ
    pitch_hz = at(now_s, np.array([moment.pitch_hz for moment in moments]))
    glottis = _oscillate(_phase(pitch_hz * (1 + _curve(rng, n, 60, -0.01, 0.01))), _harmonics(60, 1.0))
    frame_s = np.arange(_n_frames(n)) * _FRAME_HOP / SAMPLE_RATE_HZ
    tract = at(frame_s, np.array([moment.tract for moment in moments]))
    formants_hz = tract * np.stack([at(frame_s, sounds[:, column]) for column in (3, 4, 5)])
    voice = _filter_moving(at(now_s, sounds[:, 0]) * glottis, _vocal_tract(formants_hz))
    block_s = np.arange(_n_blocks(n)) * _HOP / SAMPLE_RATE_HZ
    noise_hz = at(block_s, sounds[:, 2])[:, None]
    hiss = _noise(rng, n, np.abs(_band(_BLOCK_HZ, noise_hz, 0.7 * noise_hz)))
    return voice, at(now_s, sounds[:, 1]) * hiss


def _vocal_tract(formants_hz: _Array) -> _Gains:
    """A cascade of resonances, the lowest three moving. Shape: [3, frames] -> [frames, bins]"""
    poles = np.ones(1, np.complex64)
    for centre_hz in (3600, 4600, 5600, 6700, 7900):
        poles = poles * _resonance(_BLOCK_HZ, np.float32(centre_hz), np.float32(0.08 * centre_hz))
    for centres_hz, bandwidth_hz in zip(formants_hz, (80, 110, 170), strict=True):
        poles = poles * _resonance(_BLOCK_HZ, centres_hz[:, None], np.float32(bandwidth_hz))
    return 1 / poles


# -- 8: dogs -------------------------------------------------------------------------------------------


def dog(rng: np.random.Generator, duration_s: float) -> Signal:
    """8-1: two to five barks, a pause, and again: hoarse arches of pitch from a mouth that opens and shuts.

    Shape: [T]. Raises ValueError below 0.1 s.
    """
    n = _n_samples(duration_s)
    pitch_hz, bark_s = rng.uniform(350, 600), rng.uniform(0.14, 0.22)
    throat, mouth = np.zeros(n, np.float32), np.zeros(n, np.float32)
    at_s = rng.uniform(0.0, min(0.2, duration_s / 4))
    while at_s < duration_s:
        for _ in range(rng.integers(2, 6)):
            strength, length_s = np.float32(rng.uniform(0.5, 1)), bark_s * rng.uniform(0.85, 1.2)
            bark = _bark(rng, pitch_hz * rng.uniform(0.92, 1.08), length_s)
            _add(throat, strength * bark, at_s)
            _add(mouth, strength * np.hanning(bark.size).astype(np.float32) ** 0.35, at_s)
            at_s += length_s + rng.uniform(0.12, 0.35)
        at_s += rng.uniform(0.5, 1.3)
    size = rng.uniform(0.85, 1.15)
    barks = _filter_moving(throat, _muzzle(size, _at_frames(mouth)))
    return _heard(rng, barks, lambda hz: _high_pass(hz, 400) * _slope(hz, 2800, 12), distance_m=12)


def _muzzle(size: float, opening: _Array) -> _Gains:
    """Two cavities that rise as the mouth opens, and a fixed third. Shape: [frames] -> [frames, bins]"""
    low_hz, high_hz = (size * (hz + rise_hz * opening[:, None]) for hz, rise_hz in ((550, 500), (1200, 700)))
    return _band(_BLOCK_HZ, low_hz, 0.4 * low_hz) + _band(_BLOCK_HZ, high_hz, 0.3 * high_hz) + 0.05


def _bark(rng: np.random.Generator, pitch_hz: float, duration_s: float) -> _Array:
    n = _n_samples(duration_s)
    turn = np.linspace(0, 1, n)
    arch = np.interp(turn, (0, 0.25, 0.5, 1), (0.7, 1.0, 0.97, 0.65))
    phase = _phase(pitch_hz * arch * (1 + _curve(rng, n, 150, -0.15, 0.15)))
    hoarse = 1 + 0.6 * _noise(rng, n, _slope(_BLOCK_HZ, 150, 12))
    breath = 0.7 * _noise(rng, n, _slope(_BLOCK_HZ, 3000, 6))
    envelope = np.interp(turn, (0, 0.12, 0.5, 1), (0, 1, 0.8, 0)).astype(np.float32)
    return envelope * (hoarse * _oscillate(phase, _harmonics(25, 0.5)) + breath)


GENERATORS: dict[str, Generator] = {
    "1-1": motorcycle,
    "1-2": car,
    "1-3": truck,
    "2-2": jackhammer,
    "3-1": impacts,
    "4-1": chainsaw,
    "5-1": car_horn,
    "5-2": car_alarm,
    "5-3": siren,
    "5-4": reverse_beeper,
    "6-1": music,
    "6-3": ice_cream_truck,
    "7-1": talking,
    "8-1": dog,
}
"""Sound by SONYC-UST fine id. Each takes a random generator and seconds, and returns float32 mono at
44.1 kHz, peak at most 1; the same generator state gives the same sound."""


# -- the way to the microphone -------------------------------------------------------------------------


def _flat(hz: _Array) -> _Gains:
    return np.ones(hz.shape, np.complex64)


def _heard(rng: np.random.Generator, sound: _Array, response: _Response, distance_m: float) -> Signal:
    """The sound through `response`, air and an echoing street, at full scale. Shape: [T] -> [T]"""
    echoes = _echoes(rng, distance_m)
    n_fft = scipy.fft.next_fast_len(sound.size + echoes.size, real=True)
    hz = np.fft.rfftfreq(n_fft, 1 / SAMPLE_RATE_HZ).astype(np.float32)
    spectrum = scipy.fft.rfft(sound.astype(np.float32), n_fft) * scipy.fft.rfft(echoes, n_fft)
    spectrum *= response(hz) * _air(hz, distance_m)
    return _at_peak(scipy.fft.irfft(spectrum, n_fft)[: sound.size])


def _air(hz: _Array, distance_m: float) -> _Array:
    """Absorption of air at 20 °C, half humidity: 0.1 dB a metre at 8 kHz (ISO 9613-1), rising with f²."""
    return np.float32(10) ** (-distance_m * 0.1 * (hz / 8000) ** 2 / 20)


def _echoes(rng: np.random.Generator, distance_m: float) -> _Array:
    """The street's impulse response: the direct sound, six house fronts, a tail that dulls and dies."""
    n = int(0.5 * SAMPLE_RATE_HZ)
    tail_s = (0.8 / 6.9) * _slope(_BLOCK_HZ, 2500, 6)  # time to fall by e, per bin
    now_s = np.arange(_n_blocks(n))[:, None] * _HOP / SAMPLE_RATE_HZ
    echoes = _noise(rng, n, np.exp(-now_s / np.maximum(tail_s, 0.01)))
    echoes *= np.float32(0.0015 * distance_m**0.5)
    fronts = rng.integers(int(0.006 * SAMPLE_RATE_HZ), int(0.08 * SAMPLE_RATE_HZ), 6)
    echoes[fronts] += (rng.uniform(-1, 1, 6) * 0.06 * distance_m**0.5).astype(np.float32)
    echoes[0] = 1.0
    return echoes


# -- frequency responses; hz may be any shape that broadcasts with the rest ----------------------------


def _slope(hz: _Array, corner_hz: float, db_per_octave: float) -> _Array:
    """Gain 1 below the corner, then falling by so many decibels an octave."""
    return (1 + (hz / np.float32(corner_hz)) ** 2) ** np.float32(-db_per_octave / 12.04)


def _high_pass(hz: _Array, corner_hz: float) -> _Array:
    """Gain 1 above the corner, falling by 12 dB an octave below."""
    squared = (hz / np.float32(corner_hz)) ** 2
    return squared / (1 + squared)


def _bands(hz: _Array, centres_hz: Iterable[float], width: float, fall: float = 0.0) -> _Gains:
    """Band-passes side by side, each `width` of its centre wide; gains from 1 on as 1/centre**fall."""
    centres = np.array(list(centres_hz))
    total = np.zeros(hz.shape, np.complex64)
    for centre in centres:
        total += np.float32((centres[0] / centre) ** fall) * _band(hz, centre, width * centre)
    return total


def _line(hz: _Array, centre_hz: float) -> _Array:
    """Gain 1 in the nearest bin or two, 0 elsewhere: a hum."""
    near: _Array = (np.abs(hz - centre_hz) < SAMPLE_RATE_HZ / _BLOCK).astype(np.float32)
    return near


def _resonance(hz: _Array, centre_hz: _Array | np.float32, bandwidth_hz: _Array | np.float32) -> _Gains:
    """Denominator of a second-order resonance: 1 at 0 Hz, j·bandwidth/centre at the centre."""
    ratio = hz / centre_hz
    return 1 - ratio * ratio + np.complex64(1j) * (ratio * (bandwidth_hz / centre_hz))


def _band(hz: _Array, centre_hz: float | _Array, bandwidth_hz: float | _Array) -> _Gains:
    """A second-order band-pass, gain 1 at its centre."""
    centre, bandwidth = np.asarray(centre_hz, np.float32), np.asarray(bandwidth_hz, np.float32)
    return np.complex64(1j) * (hz * bandwidth / centre**2) / _resonance(hz, centre, bandwidth)


# -- sources -------------------------------------------------------------------------------------------


def _phase(hz: _Array) -> _Array:
    """Cycles since the start, at every sample. Shape: [T] -> [T]"""
    return np.cumsum(hz, dtype=np.float64) / SAMPLE_RATE_HZ


def _harmonics(n: int, exponent: float) -> _Array:
    """Amplitudes 1/k**exponent of the first n harmonics."""
    return np.arange(1, n + 1) ** -exponent


def _oscillate(phase: _Array, amplitudes: _Array) -> _Array:
    """A periodic wave with these harmonics, read from one period's table. Shape: [T], [harmonics] -> [T]"""
    size = 4096
    spectrum = np.zeros(size // 2 + 1, np.complex64)
    spectrum[1 : 1 + len(amplitudes)] = -0.5j * size * np.asarray(amplitudes)
    table: _Array = scipy.fft.irfft(spectrum)
    position = phase * size
    index = position.astype(np.int64)
    between = (position - index).astype(np.float32)
    here: _Array = table[index & (size - 1)]
    after: _Array = table[(index + 1) & (size - 1)]
    return here + between * (after - here)


def _n_cycles(phase: _Array) -> int:
    return int(phase[-1])


def _pulses(phase: _Array, heights: _Array) -> _Array:
    """An impulse at every whole cycle, between samples where it falls so. Shape: [T], [cycles] -> [T]"""
    at = np.interp(np.arange(1, len(heights) + 1), phase, np.arange(phase.size))
    index, between = at.astype(np.int64), at % 1
    train = np.bincount(index, heights * (1 - between), phase.size + 1)
    train += np.bincount(index + 1, heights * between, phase.size + 1)
    return train[: phase.size].astype(np.float32)


def _puffs(phase: _Array, sharpness: float) -> _Array:
    """An envelope that jumps to 1 at every cycle and falls by e**-sharpness until the next."""
    envelope: _Array = np.exp(np.float32(-sharpness) * (phase % 1).astype(np.float32))
    return envelope


def _n_blocks(n: int) -> int:
    return n // _HOP + 2


def _noise(rng: np.random.Generator, n: int, magnitude: _Array) -> _Array:
    """Gaussian noise of a spectrum that may change: random spectra, joined by half-overlapping sine windows.

    Shape: [1025] or [`_n_blocks(n)`, 1025] -> [n]; the root mean square is that of `magnitude`.
    """
    shape = (_n_blocks(n), _HOP + 1)
    spectra = rng.standard_normal((*shape, 2), np.float32).view(np.complex64)[..., 0]
    spectra *= (magnitude * np.sqrt(_HOP)).astype(np.float32)
    window = np.sin(np.pi * (np.arange(_BLOCK) + 0.5) / _BLOCK).astype(np.float32)
    blocks: _Array = scipy.fft.irfft(spectra, _BLOCK, overwrite_x=True) * window
    return (blocks[:-1, _HOP:] + blocks[1:, :_HOP]).ravel()[:n]


_FRAME_HOP = _BLOCK // 4  # frames are half a block long: the other half holds what still rings


def _n_frames(n: int) -> int:
    return n // _FRAME_HOP + 2


def _at_frames(values: _Array) -> _Array:
    """A signal's value at the middle of each frame. Shape: [T] -> [`_n_frames(T)`]"""
    middles = (np.arange(_n_frames(values.size)) * _FRAME_HOP).clip(0, values.size - 1)
    at_middles: _Array = values[middles]
    return at_middles


def _filter_moving(sound: _Array, responses: _Gains) -> _Array:
    """Filter each 23-ms frame on its own. Shape: [T], [`_n_frames(T)`, 1025] -> [T]"""
    n_frames = _n_frames(sound.size)
    padded = np.zeros((n_frames + 1) * _FRAME_HOP, np.float32)
    padded[_FRAME_HOP : _FRAME_HOP + sound.size] = sound
    window = np.sin(np.pi * (np.arange(_HOP) + 0.5) / _HOP).astype(np.float32) ** 2
    frames = np.lib.stride_tricks.sliding_window_view(padded, _HOP)[::_FRAME_HOP] * window
    rung = scipy.fft.irfft(scipy.fft.rfft(frames, _BLOCK) * responses, _BLOCK)
    out = np.zeros((n_frames + 3, _FRAME_HOP), np.float32)
    for quarter in range(4):
        out[quarter : quarter + n_frames] += rung.reshape(n_frames, 4, _FRAME_HOP)[:, quarter]
    return out.ravel()[_FRAME_HOP : _FRAME_HOP + sound.size]


# -- envelopes and levels ------------------------------------------------------------------------------


def _n_samples(duration_s: float) -> int:
    if not duration_s >= MIN_DURATION_S:
        raise ValueError(f"a sound of {duration_s} s is too short, ask for at least {MIN_DURATION_S} s")
    return round(duration_s * SAMPLE_RATE_HZ)


def _curve(rng: np.random.Generator, n: int, rate_hz: float, low: float, high: float, hop: int = 1) -> _Array:
    """n values, `hop` samples apart, that wander between low and high with so many turns a second."""
    knots = n * hop / SAMPLE_RATE_HZ * rate_hz
    values = rng.uniform(low, high, int(knots) + 2)
    return np.interp(np.linspace(0, knots, n), np.arange(values.size), values).astype(np.float32)


def _bursts(
    rng: np.random.Generator, n: int, on_s: tuple[float, float], off_s: tuple[float, float], edge_s: float
) -> _Array:
    """An envelope between 0 and 1: on and off for random times within these bounds. Shape: -> [n]"""
    times_s, gains = [0.0], [0.0]
    while times_s[-1] < n / SAMPLE_RATE_HZ:
        start_s = times_s[-1] + (rng.uniform(*off_s) if len(times_s) > 1 else 0.0)
        end_s = start_s + edge_s + rng.uniform(*on_s)
        times_s += [start_s, start_s + edge_s, end_s, end_s + edge_s]
        gains += [0.0, 1.0, 1.0, 0.0]
    return np.interp(np.arange(n) / SAMPLE_RATE_HZ, times_s, gains).astype(np.float32)


def _triangle(turns: _Array) -> _Array:
    return 2 * np.abs(2 * (turns % 1) - 1) - 1


def _ramp_up_and_down(turn: _Array, up: float) -> _Array:
    """0 to 1 in the part `up` of a turn, and back to 0 in the rest."""
    return np.where(turn < up, turn / up, (1 - turn) / (1 - up))


def _ends(now_s: _Array, duration_s: float, edge_s: float) -> _Array:
    """1, but for a straight rise and fall of `edge_s` at the ends."""
    gain: _Array = np.clip(np.minimum(now_s, duration_s - now_s) / np.float32(edge_s), 0, 1)
    return gain


def _faded(sound: _Array) -> _Array:
    duration_s = sound.size / SAMPLE_RATE_HZ
    return sound * _ends(np.arange(sound.size, dtype=np.float32) / SAMPLE_RATE_HZ, duration_s, FADE_S)


def _add(out: _Array, sound: _Array, at_s: float) -> None:
    """Mix `sound` into `out`; what would sound after its end is lost."""
    start = round(at_s * SAMPLE_RATE_HZ)
    heard = sound[: max(0, out.size - start)]
    out[start : start + heard.size] += heard


def _gain(db: float) -> np.float32:
    return np.float32(10 ** (db / 20))


def _at_peak(sound: _Array, peak: float = FULL_SCALE) -> Signal:
    return (sound * np.float32(peak / max(float(np.abs(sound).max()), 1e-9))).astype(np.float32)
