"""Too much to do: what is left out, in which order, and that every window is tagged or counted."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetag.capture.windows import Window
from edgetag.contract.frontend import SAMPLE_RATE_HZ
from edgetag.ladder import MAX_WAIT_S, MAX_WAITING, Ladder

HOP_S = 5.0
HOP = round(HOP_S * SAMPLE_RATE_HZ)
NOTHING = np.zeros(0, np.float32)


def window(k: int) -> Window:
    """The k-th of a stream, complete ten seconds after it starts."""
    return Window(k * HOP, NOTHING, 1.0, 0, 0.0, SAMPLE_RATE_HZ, delivered_s=k * HOP_S + 10)


@dataclass
class Day:
    """What a machine made of a stream of windows."""

    ladder: Ladder = field(default_factory=lambda: Ladder(HOP))
    tagged: list[int] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)


def live(cost_s: Callable[[int, int], float], n_windows: int) -> Day:
    """A machine that takes `cost_s(window, step)` for each; windows come in real time meanwhile."""
    day, now_s, n_come = Day(), 0.0, 0
    ladder = day.ladder
    while n_come < n_windows or len(ladder):
        while n_come < n_windows and window(n_come).delivered_s <= now_s:
            ladder.put([window(n_come)])
            n_come += 1
        taken = ladder.next(now_s)
        if taken is None:
            now_s = max(now_s, window(n_come).delivered_s)
            continue
        k = taken.start_sample // HOP
        cost = cost_s(k, ladder.step)
        now_s += cost
        while n_come < n_windows and window(n_come).delivered_s <= now_s:
            ladder.put([window(n_come)])
            n_come += 1
        ladder.took(cost)
        day.tagged.append(k)
        day.lags_s.append(now_s - taken.delivered_s)
        day.steps.append(ladder.step)
    return day


def test_a_machine_that_keeps_up_leaves_nothing_out() -> None:
    """Half of the time is enough for everything."""
    day = live(lambda k, step: 0.5 * HOP_S, 200)
    assert day.tagged == list(range(200))
    assert set(day.steps) == {0}
    assert day.ladder.reason == ""


def test_branches_go_first_then_windows() -> None:
    """A window takes 1.2 hops, 0.8 without branches: they are skipped, and every window is tagged."""
    day = live(lambda k, step: HOP_S * (1.2 if step == 0 else 0.8), 30)
    assert set(day.steps[2:]) == {1}
    assert day.ladder.reason == "inference cannot keep up: branches are skipped"
    slower = live(lambda k, step: HOP_S * (2.4 if step == 0 else 1.5), 40)
    assert slower.steps[-1] == 2
    assert np.diff(slower.tagged[-5:]).tolist() == [2, 2, 2, 2]
    assert slower.ladder.reason == "inference cannot keep up: a window every 10 s, branches are skipped"
    assert slower.ladder.health().hop_s == 10.0


@pytest.mark.parametrize("usual", [0.1, 0.6])
def test_a_machine_that_recovers_tags_everything_again(usual: float) -> None:
    """Slow for a minute or so, fast enough from then on: back to step 0 within the hour."""
    day = live(lambda k, step: HOP_S * (3.0 if k < 20 else usual), 700)
    assert max(day.steps) >= 3
    assert day.steps[-1] == 0
    assert day.tagged[-100:] == list(range(600, 700))


@given(
    costs=st.lists(st.sampled_from([0.01, 0.3, 0.6, 0.95, 1.1, 2.0, 5.0, 20.0]), min_size=1, max_size=20),
    n_windows=st.integers(1, 200),
)
@settings(max_examples=200, deadline=None)
def test_every_window_is_tagged_or_counted_and_none_waits_for_long(
    costs: list[float], n_windows: int
) -> None:
    """At any speed: in order, and the lag is at most a wait, a hop and two windows' costs."""
    day = live(lambda k, step: HOP_S * costs[k * len(costs) // n_windows], n_windows)
    assert len(day.tagged) + day.ladder.windows_skipped == n_windows
    assert day.tagged == sorted(set(day.tagged))
    assert max(day.lags_s) <= MAX_WAIT_S + HOP_S + 2 * max(costs) * HOP_S


def test_it_does_not_flap() -> None:
    """A load that only step 1 can bear: the tries to go back become rarer and rarer."""
    day = live(lambda k, step: HOP_S * (1.2 if step == 0 else 0.3), 10_000)
    n_tries = sum(a > b for a, b in zip(day.steps, day.steps[1:], strict=False))
    assert n_tries <= 20
    assert day.steps.count(0) < 100


def test_the_newest_wins() -> None:
    """
    complete at   10  15  20  25  30     the machine comes back at 33: those of 10 … 20 have waited too long
    tagged                     x   x
    """
    ladder = Ladder(HOP)
    for k in range(5):
        ladder.put([window(k)])
    assert len(ladder) == MAX_WAITING
    taken = [ladder.next(33.0), ladder.next(33.0), ladder.next(33.0)]
    assert [found and found.start_sample // HOP for found in taken] == [3, 4, None]
    assert ladder.windows_skipped == 3
    ladder.put([window(9)])
    assert ladder.next(1000.0) is not None


def test_branches_that_were_skipped_are_counted() -> None:
    """They are in the health message."""
    ladder = Ladder(HOP)
    ladder.took(0.1, n_branches_skipped=3)
    ladder.took(0.1, n_branches_skipped=1)
    assert ladder.health().branches_skipped == 4
