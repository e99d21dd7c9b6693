"""The learning rate as a series drawn from what the epochs came to: + a better epoch, - a worse one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetag_train.fit.schedule import Schedule
from edgetag_train.recipe import Constant, Cosine, Fit, Plateau, Restarts


def schedule(kind: Restarts | Plateau | Constant | Cosine, rate: float = 1.0) -> Schedule:
    return Schedule(Fit(table=2, schedule=kind, epochs=10, rate=rate))


def series(kind: Restarts | Plateau | Constant | Cosine, epochs: str) -> str:
    """`.` the rate stays, `v` it is reduced, `^` it is restarted."""
    automaton, loss, drawn = schedule(kind), 100.0, ""
    for epoch in epochs:
        loss += -1 if epoch == "+" else 1
        best = loss = min(loss, 100.0) if epoch == "+" else loss
        event = automaton.end_epoch(improved=epoch == "+", loss=best)
        drawn += {None: ".", "reduced": "v", "restarted": "^"}[event]
    return drawn


def test_stagnation_reduces_and_too_low_a_rate_restarts() -> None:
    """Three worse epochs in a row reduce; below the minimum the rate is the initial one again."""
    kind = Restarts(stagnation=3, reduce=0.1, milder=0.1, minimum_rate=0.05)
    assert series(kind, "+--+---+--") == "......v..."
    assert series(kind, "---------") == "..v..^..v"


def test_each_restart_is_milder() -> None:
    """Reduced by 0.1, then by 0.2 after the restart, then by 0.3: the paper's modification."""
    automaton = schedule(Restarts(stagnation=1, reduce=0.1, milder=0.1, minimum_rate=0.05))
    rates = []
    for _ in range(6):
        automaton.end_epoch(improved=False, loss=1.0)
        rates.append(round(automaton.rate(0.0), 6))
    assert rates == [0.1, 1.0, 0.2, 1.0, 0.3, 0.09]


@given(st.lists(st.booleans(), max_size=200), st.floats(0, 0.99), st.floats(0, 0.99))
def test_a_restarting_rate_stays_between_its_ends(better: list[bool], reduce: float, milder: float) -> None:
    """Never above the initial rate, never below the minimum."""
    automaton = schedule(Restarts(stagnation=2, reduce=reduce, milder=milder, minimum_rate=1e-3))
    for improved in better:
        automaton.end_epoch(improved=improved, loss=0.0)
        assert 1e-3 <= automaton.rate(0.5) <= 1.0


def test_a_plateau_reduces_and_ends() -> None:
    """The loss rose twice: a tenth of the rate. Below the minimum training ends."""
    automaton = schedule(Plateau(patience=2, gamma=0.1, minimum_rate=0.05))
    events = []
    for loss in (5.0, 4.0, 6.0, 5.0, 3.0, 3.0, 3.0):
        assert not automaton.finished
        events.append(automaton.end_epoch(improved=False, loss=loss))
    assert events == [None, None, None, "reduced", None, None, "reduced"]
    assert automaton.finished


def test_a_cosine_falls_to_zero() -> None:
    """All of the rate at first, half of it halfway, none in the end."""
    automaton = schedule(Cosine(), rate=2.0)
    assert [round(automaton.rate(done), 6) for done in (0.0, 0.5, 1.0)] == [2.0, 1.0, 0.0]
    part = schedule(Cosine(part=0.5), rate=2.0)
    assert [round(part.rate(done), 6) for done in (0.0, 1.0)] == [2.0, 1.0]
    assert series(Constant(), "+---------") == series(Cosine(), "+---------") == ".........."


@pytest.mark.parametrize("kind", [Restarts(stagnation=2, minimum_rate=0.05), Plateau(patience=2, gamma=0.5)])
@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(0, 29))
def test_a_restored_schedule_goes_on_alike(
    kind: Restarts | Plateau, better: list[bool], interrupted: int
) -> None:
    """Its state, taken at any epoch, changes nothing of what follows."""
    whole, resumed = schedule(kind), schedule(kind)
    for epoch, improved in enumerate(better):
        if epoch == interrupted:
            state = resumed.state()
            resumed = schedule(kind)
            resumed.restore(state)
        loss = 0.0 if improved else 1.0
        events = [one.end_epoch(improved=improved, loss=loss) for one in (whole, resumed)]
        assert events[0] == events[1]
        assert whole.rate(0.0) == resumed.rate(0.0)
