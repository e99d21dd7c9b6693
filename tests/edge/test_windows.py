import itertools
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgetag.capture.clock import kernel_clock_synced
from edgetag.capture.source import Block, Source
from edgetag.capture.windows import CLIP_LEVEL, Window, Windower
from edgetag.contract.frontend import SAMPLE_RATE_HZ, WINDOW_SAMPLES
from edgetag.dsp.resample import n_resampled, resample
from fakes_capture import ListSource, all_windows, cut

W = 20  # samples of a short window, so that schedules of many windows are cheap


def ramp(n_frames: int, first_frame: int = 0) -> NDArray[np.float32]:
    """Each frame holds its own absolute index, plus one: zero is what was not delivered.

    In units of 2⁻¹⁶, so that up to 65,000 of them stay exact and below clipping.
    """
    return (np.arange(first_frame + 1, first_frame + n_frames + 1) * 2.0**-16).astype(np.float32)


def noise(n_frames: int, n_channels: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(n_frames).uniform(-1, 1, (n_frames, n_channels)).astype(np.float32)


def windower(rate_hz: int = SAMPLE_RATE_HZ, hop: int = W, window: int = W) -> Windower:
    return Windower(rate_hz, hop_samples=hop, window_samples=window, clock=lambda: 0.0)


def facts(window: Window) -> tuple[object, ...]:
    """All that must not depend on chunking."""
    return (
        window.start_sample,
        window.samples.tobytes(),
        window.valid,
        window.overruns,
        window.clipped,
        window.rate_hz,
        window.lost,
    )


def spans(windows: list[Window]) -> list[tuple[int, float, int]]:
    return [(window.start_sample, window.valid, window.overruns) for window in windows]


@dataclass(frozen=True)
class Segment:
    """Some frames after a gap; every two segments have one between them."""

    gap: int
    n_frames: int
    sizes: tuple[int, ...]


def schedules(max_frames: int = 130) -> st.SearchStrategy[list[Segment]]:
    gaps = st.integers(1, 60) | st.sampled_from([W, 2 * W, 10 * W, 1_000])
    sizes = st.lists(st.integers(0, 30), max_size=6).map(tuple)
    first = st.builds(Segment, st.just(0), st.integers(1, max_frames), sizes)
    later = st.builds(Segment, gaps, st.integers(1, max_frames), sizes)
    return st.tuples(first, st.lists(later, max_size=5)).map(lambda parts: [parts[0], *parts[1]])


def play(schedule: list[Segment]) -> list[Block]:
    """The blocks of a schedule, each frame holding its own index."""
    blocks: list[Block] = []
    frame = 0
    for segment in schedule:
        frame += segment.gap
        blocks += cut(ramp(segment.n_frames, frame), segment.sizes, frame)
        frame += segment.n_frames
    return blocks


def offline(blocks: list[Block]) -> NDArray[np.float32]:
    """The obvious way: the whole stream in one array, zeros where nothing was delivered."""
    whole = np.zeros(max(block.first_frame + len(block.frames) for block in blocks), np.float32)
    for block in blocks:
        whole[block.first_frame : block.first_frame + len(block.frames)] = block.frames[:, 0]
    return whole


# -- the grid ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_frames", "hop", "starts"),
    [
        (0, 20, []),
        (1, 20, [0]),  #  |-                                 padded
        (20, 20, [0]),  # |------------------|
        (39, 20, [0, 19]),  #                |------------------| ends with the stream
        (40, 20, [0, 20]),
        (40, 10, [0, 10, 20]),
        (45, 10, [0, 10, 20, 25]),
        (29, 10, [0, 9]),
        (49, 50, [0]),  # the grid leaves 20 … 49 out on purpose,
        (51, 50, [0, 31]),  # but means to cover 50 … 69
        (70, 50, [0, 50]),
    ],
)
def test_windows_stand_on_the_grid_and_the_last_ends_with_the_stream(
    n_frames: int, hop: int, starts: list[int]
) -> None:
    """A window every hop; audio at the end that the grid meant to cover gets one off the grid."""
    windows = all_windows(windower(hop=hop), cut(ramp(n_frames)))
    assert [window.start_sample for window in windows] == starts


def test_a_short_stream_is_padded_and_says_so() -> None:
    """Five of twenty samples are a quarter of a window, at its beginning."""
    (window,) = all_windows(windower(), cut(ramp(5)))
    assert window.valid == 0.25
    assert type(window.valid) is type(window.clipped) is float  # not numpy's: it goes into an event
    assert np.array_equal(window.samples, np.concatenate([ramp(5), np.zeros(15, np.float32)]))


def test_a_window_comes_with_the_block_that_completes_it() -> None:
    """No window waits for more than its own samples; its time is that block's."""
    clock = itertools.count(100)
    cutter = Windower(SAMPLE_RATE_HZ, hop_samples=W, window_samples=W, clock=lambda: next(clock))
    counts = [[window.delivered_s for window in cutter.feed(block)] for block in cut(ramp(45), [19, 1, 15])]
    # frames  ···19···|1|···15···|···10···|
    # windows ----------|             ---|
    assert counts == [[], [101], [], [103]]
    assert [window.delivered_s for window in cutter.finish()] == [103]


def test_a_window_is_the_consumers_own() -> None:
    """What comes later does not change a window that was handed out."""
    cutter = windower()
    (window,) = cutter.feed(Block(0, ramp(W)[:, None]))
    before = window.samples.copy()
    cutter.feed(Block(W, ramp(10 * W, W)[:, None]))
    assert np.array_equal(window.samples, before)


def test_the_real_window() -> None:
    """25 seconds at 48 kHz are two whole windows of 441,000 samples and one that ends with the stream."""
    windows = all_windows(
        Windower(48_000, hop_samples=WINDOW_SAMPLES), cut(noise(25 * 48_000), [4_800] * 250)
    )
    assert spans(windows) == [(0, 1.0, 0), (441_000, 1.0, 0), (661_500, 1.0, 0)]
    assert all(
        window.samples.shape == (441_000,) and window.samples.dtype == np.float32 for window in windows
    )


# -- chunking ------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    rate_hz=st.sampled_from([4_000, 8_000, 44_099, 44_100, 48_000, 192_000]) | st.integers(4_000, 384_000),
    n_frames=st.integers(0, 30_000),
    n_channels=st.integers(1, 9),
    sizes=st.lists(st.integers(0, 3_000), max_size=30),
    hop=st.integers(1_000, 9_000),
)
def test_chunking(rate_hz: int, n_frames: int, n_channels: int, sizes: list[int], hop: int) -> None:
    """Any chunking gives the same windows, to the bit."""
    frames = noise(n_frames, n_channels) * np.float32(1.2)
    frames[n_frames // 3 : n_frames // 3 + 5] = np.nan
    frames = np.where(np.abs(frames) > 1, np.sign(frames), frames)
    one = all_windows(windower(rate_hz, hop, 4_000), cut(frames))
    many = all_windows(windower(rate_hz, hop, 4_000), cut(frames, sizes))
    assert [facts(window) for window in many] == [facts(window) for window in one]


@settings(deadline=None)
@given(schedules(), st.integers(1, 50), st.sampled_from([8_000, 44_100, 48_000, 96_000]))
def test_chunking_with_gaps(schedule: list[Segment], hop: int, rate_hz: int) -> None:
    """Any chunking of the segments between gaps gives the same windows, to the bit."""
    whole = [Segment(segment.gap, segment.n_frames, ()) for segment in schedule]
    one = all_windows(windower(rate_hz, hop, 50), play(whole))
    many = all_windows(windower(rate_hz, hop, 50), play(schedule))
    assert [facts(window) for window in many] == [facts(window) for window in one]


# -- lost audio ----------------------------------------------------------------------------------------


def test_lost_frames_move_the_index_on() -> None:
    """A window knows what it lacks and how often it was interrupted; one without audio is left out."""
    # frames    0 ···· 29 | 30 … 34 | 35 ·· 44 | 45 … 49 | 50 · 59 | 60 … 119 | 120 ·· 139
    # windows   [--------------)[--------------)[--------------)               [---------)
    blocks = [
        *cut(ramp(30)),
        *cut(ramp(10, 35), (), 35),
        *cut(ramp(10, 50), (), 50),
        *cut(ramp(20, 120), (), 120),
    ]
    windows = all_windows(windower(), blocks)
    assert spans(windows) == [(0, 1.0, 0), (20, 0.75, 1), (40, 0.75, 1), (120, 1.0, 0)]


def test_a_window_counts_every_gap_it_touches() -> None:
    """Three gaps of one frame in a window are three overruns; one that spans two windows counts in both."""
    # frames    0 · 4 x 6 · 9 x 11 · 14 x 16 · 17 x x x x 22 ··· 39
    segments = [(0, 5), (6, 10), (11, 15), (16, 18), (22, 40)]
    blocks = [Block(start, ramp(end - start, start)[:, None]) for start, end in segments]
    assert spans(all_windows(windower(), blocks)) == [(0, 0.75, 4), (20, 0.9, 1)]


def test_audio_lost_before_the_first_block_is_lost_audio() -> None:
    """A stream begins at frame 0, whenever its first block comes."""
    assert spans(all_windows(windower(), cut(ramp(25, 15), (), 15))) == [(0, 0.25, 1), (20, 1.0, 0)]


@settings(deadline=None, max_examples=150)
@given(schedules(), st.integers(1, 70))
def test_nothing_is_spliced(schedule: list[Segment], hop: int) -> None:
    """Every sample of every window is the one of its own absolute index, or zero where none was delivered."""
    blocks = play(schedule)
    whole = offline(blocks)
    for window in all_windows(windower(hop=hop), blocks):
        truth = np.zeros(W, np.float32)
        part = whole[window.start_sample : window.start_sample + W]
        truth[: len(part)] = part
        assert np.array_equal(window.samples, truth)
        assert window.valid == np.count_nonzero(truth) / W


@settings(deadline=None, max_examples=100)
@given(schedules())
def test_every_delivered_sample_is_counted_once(schedule: list[Segment]) -> None:
    """With hop = window, the valid samples of all windows are the samples delivered."""
    windows = all_windows(windower(), play(schedule))
    on_grid = [window for window in windows if window.start_sample % W == 0]
    n_total = sum(segment.gap + segment.n_frames for segment in schedule)
    n_delivered = sum(segment.n_frames for segment in schedule)
    off_grid = offline(play(schedule))[n_total - n_total % W :]  # the last, partial cell of the grid
    n_tail = 0 if n_total < W else np.count_nonzero(off_grid)
    assert sum(window.valid * W for window in on_grid) == pytest.approx(n_delivered - n_tail)


@settings(deadline=None, max_examples=100)
@given(schedules(), st.integers(1, 70))
def test_overruns_are_gaps_touched(schedule: list[Segment], hop: int) -> None:
    """A window that overlaps k gaps has k overruns."""
    gaps = []
    frame = 0
    for segment in schedule:
        gaps += [(frame, frame + segment.gap)] if segment.gap else []
        frame += segment.gap + segment.n_frames
    for window in all_windows(windower(hop=hop), play(schedule)):
        start, end = window.start_sample, window.start_sample + W
        assert window.overruns == sum(first < end and start < last for first, last in gaps)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([8_000, 48_000, 47_999, 192_000]),
    st.lists(st.integers(1, 40_000), min_size=3, max_size=7),
)
def test_segments_at_other_rates_stand_at_their_own_index(rate_hz: int, lengths: list[int]) -> None:
    """After a gap the resampled audio goes on at the 44.1 kHz sample nearest to its first frame."""
    blocks: list[Block] = []
    edges = np.cumsum([0, *lengths]).tolist()
    truth = np.zeros(n_resampled(edges[-1], rate_hz, SAMPLE_RATE_HZ) + 1, np.float32)
    for first, end in itertools.islice(itertools.pairwise(edges), 0, None, 2):  # every other stretch is lost
        frames = noise(end - first)
        blocks.append(Block(first, frames))
        start, stop = (n_resampled(edge, rate_hz, SAMPLE_RATE_HZ) for edge in (first, end))
        samples = resample(frames[:, 0], rate_hz, SAMPLE_RATE_HZ)[: stop - start]
        truth[start : start + len(samples)] = samples
    for window in all_windows(windower(rate_hz, 700, 500), blocks):
        part = truth[window.start_sample : window.start_sample + 500]
        assert np.array_equal(window.samples[: len(part)], part)


def test_a_year_of_lost_audio_costs_nothing() -> None:
    """A long gap takes neither memory nor steps by its length; the grid stands where it stood."""
    year = 365 * 86_400 * SAMPLE_RATE_HZ + 7
    cutter = windower(hop=3)
    tracemalloc.start()
    try:
        windows = all_windows(cutter, [*cut(noise(30)), *cut(noise(50), (), year)])
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    after = [window for window in windows if window.start_sample > 100]
    assert all(window.start_sample % 3 == 0 for window in after[:-1])
    assert [after[0].valid, after[0].overruns] == [pytest.approx((after[0].start_sample + W - year) / W), 1]
    assert after[-1].start_sample == year + 50 - W
    assert peak_bytes < 100_000


def test_a_source_that_loses_blocks() -> None:
    """Ten blocks of ten frames, two of them lost: 80 frames arrive, at their own places."""
    source: Source = ListSource(cut(ramp(100), [10] * 9), SAMPLE_RATE_HZ, lost={3, 6})
    with source:
        windows = all_windows(windower(), source.blocks())
    assert spans(windows) == [(0, 1.0, 0), (20, 0.5, 1), (40, 1.0, 0), (60, 0.5, 1), (80, 1.0, 0)]


@pytest.mark.parametrize("first_frame", [0, 29])
def test_a_block_may_not_go_back(first_frame: int) -> None:
    """Frames that were taken cannot come again."""
    cutter = windower()
    cutter.feed(Block(0, ramp(30)[:, None]))
    with pytest.raises(ValueError, match=f"starts at frame {first_frame}, but frames up to 30"):
        cutter.feed(Block(first_frame, ramp(5)[:, None]))


def test_an_empty_block_says_nothing() -> None:
    """A block without frames is neither audio nor a gap."""
    cutter = windower()
    assert cutter.feed(Block(7, np.empty((0, 1), np.float32))) == []
    windows = cutter.feed(Block(0, ramp(W)[:, None])) + cutter.finish()
    assert spans(windows) == [(0, 1.0, 0)]


# -- damaged and clipped samples -----------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("rate_hz", [44_100, 48_000, 8_000])
def test_what_is_not_a_number_is_silence_and_not_valid(bad: float, rate_hz: int) -> None:
    """Non-finite frames, in any channel, are zeros that count as missing; the rest stays finite."""
    frames = noise(2 * rate_hz, 2) * np.float32(0.5)
    frames[100 : 100 + rate_hz // 4, 1] = bad
    (window,) = all_windows(windower(rate_hz, 88_200, 88_200), cut(frames))
    assert window.valid == 0.875
    assert np.isfinite(window.samples).all()
    assert np.abs(window.samples).max() < 1.0
    assert window.overruns == 0


def test_a_stream_of_nothing_but_nan_gives_no_window() -> None:
    """Windows without any real audio are left out."""
    assert all_windows(windower(), cut(np.full(50, np.nan, np.float32))) == []


@pytest.mark.parametrize(("level", "clipped"), [(1.0, 0.25), (-1.0, 0.25), (CLIP_LEVEL, 0.25), (0.99, 0.0)])
def test_clipping_is_seen_before_mixing(level: float, clipped: float) -> None:
    """One of eight channels at full scale is clipping, whatever the mean is."""
    frames = noise(W, 8) * np.float32(0.1)
    frames[3:8, 5] = level
    (window,) = all_windows(windower(), cut(frames))
    assert window.clipped == clipped


def test_clipping_is_a_share_of_the_audio_there_is() -> None:
    """Five of ten delivered frames clip: a half, though half of the window is missing too."""
    (window,) = all_windows(windower(), cut(np.repeat(np.float32([0, 1]), 5)))
    assert (window.valid, window.clipped) == (0.5, 0.5)


@settings(deadline=None, max_examples=150)
@given(
    schedule=schedules(),
    hop=st.integers(1, 50),
    spots=st.lists(st.tuples(st.integers(0, 300), st.sampled_from([1.0, np.nan])), max_size=3),
)
def test_what_is_rare_is_counted_wherever_it_is(
    schedule: list[Segment], hop: int, spots: list[tuple[int, float]]
) -> None:
    """A clipped frame here and one that is no number there, in a stream that is plain but for gaps."""
    blocks, end = play(schedule), sum(segment.gap + segment.n_frames for segment in schedule)
    real, clipped = np.zeros(end + W, bool), np.zeros(end + W, bool)
    for block in blocks:
        frames = slice(block.first_frame, block.first_frame + len(block.frames))
        for place, value in spots:
            block.frames[np.arange(frames.start, frames.stop) == place] = value
        real[frames], clipped[frames] = np.isfinite(block.frames[:, 0]), block.frames[:, 0] == 1
    for window in all_windows(windower(hop=hop), blocks):
        its = slice(window.start_sample, window.start_sample + W)
        n_real = np.count_nonzero(real[its])
        assert (window.valid, window.clipped) == (n_real / W, np.count_nonzero(clipped[its]) / n_real)
        lost = np.ones(W, bool)
        for first, last in window.lost:
            lost[first:last] = False
        assert np.array_equal(lost, real[its])


@settings(deadline=None, max_examples=100)
@given(st.integers(4_000, 384_000), st.integers(1, 4_000), st.integers(50, 300), st.integers(1, 400))
def test_an_unbroken_stream_is_valid_at_any_rate(rate_hz: int, n_frames: int, window: int, hop: int) -> None:
    """Without gaps every whole window is all audio, and none of it is counted twice or left out."""
    windows = all_windows(windower(rate_hz, hop, window), cut(noise(n_frames)))
    whole = [w for w in windows if w.start_sample + window <= n_resampled(n_frames, rate_hz, SAMPLE_RATE_HZ)]
    assert all(w.valid == 1.0 and w.overruns == 0 for w in whole)


# -- channels and rates --------------------------------------------------------------------------------


def test_eight_channels_at_192_khz() -> None:
    """A tone in each channel comes out as their mean, at 44.1 kHz, with its frequency and amplitude."""
    times_s = np.arange(192_000) / 192_000
    gains = np.linspace(0.1, 0.8, 8)
    frames = (np.sin(2 * np.pi * 440 * times_s)[:, None] * gains).astype(np.float32)
    (window,) = all_windows(windower(192_000, 44_100, 44_100), cut(frames, [1_920] * 99))
    truth = gains.mean() * np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100)
    assert np.abs(window.samples - truth)[2_000:-2_000].max() < 1e-5
    assert (window.valid, window.clipped, window.rate_hz) == (1.0, 0.0, 192_000)


@pytest.mark.parametrize("frames", [np.zeros(9, np.float32), np.zeros((9, 0), np.float32), np.zeros((9, 1))])
def test_wrong_blocks_are_refused(frames: NDArray[np.float32]) -> None:
    """A block of another shape or type is an error, not a guess."""
    with pytest.raises(ValueError, match=r"float32 of shape \[n_frames, n_channels\] is expected"):
        windower().feed(Block(0, frames))


def test_a_finished_stream_takes_no_more() -> None:
    """After finish() comes a new Windower."""
    cutter = windower()
    cutter.finish()
    with pytest.raises(ValueError, match="ended"):
        cutter.feed(Block(0, ramp(5)[:, None]))


@pytest.mark.parametrize(("hop", "window"), [(0, 20), (20, 0)])
def test_a_window_and_a_hop_have_a_length(hop: int, window: int) -> None:
    """Zero is refused with both numbers."""
    with pytest.raises(ValueError, match=f"hop is {hop} and window {window}"):
        windower(hop=hop, window=window)


def test_the_kernel_answers() -> None:
    """Whether the clock is in step is a yes or a no, without any privilege."""
    assert kernel_clock_synced() in (True, False)


@pytest.mark.parametrize("heard_s", [0.5, 10, 19.9, 30])
@pytest.mark.parametrize("lost_s", [1, 1.9, 2.1, 9.9, 10, 10.1, 25, 1e6])
def test_a_gap_of_any_length_is_crossed(heard_s: float, lost_s: float) -> None:
    """
    ~~~~~~~~~~............~~~~~~~~~~~~~~~~~    windows of real size, each with just its share of real audio
    """
    rate_hz, end = 8000, round((heard_s + lost_s) * 8000)
    sound = np.full((rate_hz * 30, 1), 0.5, np.float32)
    windower = Windower(rate_hz, hop_samples=5 * SAMPLE_RATE_HZ)
    blocks = [*cut(sound[: round(heard_s * rate_hz)], [800] * 400), *cut(sound, [800] * 400, end)]
    windows = all_windows(windower, [block for block in blocks if len(block.frames)])
    for window in windows:
        first_s = window.start_sample / SAMPLE_RATE_HZ
        lost = max(0.0, min(first_s + 10, heard_s + lost_s) - max(first_s, heard_s))
        assert window.valid == pytest.approx(1 - lost / 10, abs=1e-3)
        assert sum(b - a for a, b in window.lost) / SAMPLE_RATE_HZ == pytest.approx(lost, abs=1e-3)
        assert window.overruns == (lost > 0)
    assert len(windows) >= 5
