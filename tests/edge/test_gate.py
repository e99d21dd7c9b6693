"""The gate and the calibration: what a sensor's place adds to a window's analysis."""

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgetag import Tagger
from edgetag.capture.windows import Window
from edgetag.contract.event import Level, TagsEvent
from edgetag.contract.frontend import MIN_VALID, WINDOW_SAMPLES
from edgetag.dsp.level import calibrated
from edgetag.tagging.bundle import OnnxNet, load_bundle
from edgetag.tagging.conditions import Conditions
from edgetag.tagging.stream import EventStream
from edgetag.tagging.tagger import Analysis, Features
from fakes_bundle import write_bundle

NOISE = np.random.default_rng(0).normal(0, 0.01, WINDOW_SAMPLES).astype(np.float32)
FAINT = np.float32(0.01) * NOISE
SILENCE = np.zeros(WINDOW_SAMPLES, np.float32)


class CountedNet:
    """A net that notes each of its runs."""

    def __init__(self, net: OnnxNet, runs: list[str]) -> None:
        self._net, self._runs = net, runs

    def __call__(self, inputs: Features) -> NDArray[np.float32]:
        self._runs.append(self._net.name)
        return self._net(inputs)


RUNS: list[str] = []
"""The nets that have run in the present test, in order."""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Tagger:
    """Hears an engine in everything."""
    path = write_bundle(tmp_path_factory.mktemp("bundle"), [0.9] + [0.1] * 36, {"1": [0.7, 0.1, 0.1, 0.1]})
    bundle = load_bundle(path)
    root: Any = CountedNet(bundle.root, RUNS)
    branches: Any = {id: CountedNet(net, RUNS) for id, net in bundle.branches.items()}
    return Tagger(replace(bundle, root=root, branches=branches))


@pytest.fixture
def tagger(loaded: Tagger) -> Tagger:
    RUNS.clear()
    return loaded


def laeq_db(tagger: Tagger, samples: NDArray[np.float32]) -> float:
    return tagger.analyse(samples).level.laeq_db


def test_a_window_below_the_gate_reaches_no_net(tagger: Tagger) -> None:
    """Only its level is told: every list and table is empty."""
    level = tagger.analyse(NOISE).level
    assert len(RUNS) == 2
    found = tagger.analyse(NOISE, conditions=Conditions(min_laeq_db=level.laeq_db + 0.01))
    assert found == Analysis("quiet", level, {}, {}, [], [])
    assert len(RUNS) == 2


def test_a_window_at_the_gate_is_tagged(tagger: Tagger) -> None:
    """As loud as asked for is loud enough; the analysis is the one without a gate."""
    plain = tagger.analyse(NOISE)
    found = tagger.analyse(NOISE, conditions=Conditions(min_laeq_db=plain.level.laeq_db))
    assert found == plain
    assert found.verdict == "tagged"
    assert len(RUNS) == 4


def test_what_was_lost_does_not_close_the_gate(tagger: Tagger) -> None:
    """A second without audio makes no window quieter: the rest is as loud as it was."""
    lost = [(0, WINDOW_SAMPLES // 10)]
    left = NOISE.copy()
    left[: lost[0][1]] = 0
    gate = Conditions(min_laeq_db=laeq_db(tagger, NOISE) - 0.1)
    verdicts = [tagger.analyse(left, 0.9, lost=ranges, conditions=gate).verdict for ranges in (lost, [])]
    assert verdicts == ["tagged", "quiet"]


def test_without_a_gate_the_faintest_window_is_tagged(tagger: Tagger) -> None:
    """None is no gate, and not one at 0 dB."""
    assert tagger.analyse(FAINT).verdict == "tagged"


def test_the_gate_is_after_calibration(tagger: Tagger) -> None:
    """What is −60 dBFS(A) and 60 dB(A) passes a gate of 50 dB(A)."""
    below = Conditions(min_laeq_db=50.0)
    above = Conditions(min_laeq_db=50.0, calibration_db=120.0)
    verdicts = [tagger.analyse(NOISE, conditions=conditions).verdict for conditions in (below, above)]
    assert verdicts == ["quiet", "tagged"]


@pytest.mark.parametrize(
    ("samples", "valid", "verdict"),
    [
        (SILENCE, MIN_VALID - 0.01, "too_little_audio"),
        (FAINT, MIN_VALID - 0.01, "too_little_audio"),
        (SILENCE, 1.0, "silent"),
        (FAINT, MIN_VALID, "quiet"),
        (NOISE, MIN_VALID, "tagged"),
    ],
)
def test_the_first_reason_not_to_tag_is_told(
    tagger: Tagger, samples: NDArray[np.float32], valid: float, verdict: str
) -> None:
    """Too little audio before digital silence before the gate: a dead wire is not a quiet street."""
    gate = Conditions(min_laeq_db=laeq_db(tagger, NOISE) - 1)
    assert tagger.analyse(samples, valid, conditions=gate).verdict == verdict


@pytest.mark.parametrize(("samples", "valid"), [(NOISE, 1.0), (NOISE, 0.5), (SILENCE, 1.0)])
def test_every_verdicts_level_is_calibrated(
    tagger: Tagger, samples: NDArray[np.float32], valid: float
) -> None:
    """Tagged, too little audio, silent."""
    plain = tagger.analyse(samples, valid).level
    level = tagger.analyse(samples, valid, conditions=Conditions(calibration_db=120.0)).level
    assert level == calibrated(plain, 120.0)


@given(offset_db=st.floats(-300, 300), level=st.builds(Level, *[st.floats(-120, 20)] * 4))
def test_calibration_is_added_to_every_figure(offset_db: float, level: Level) -> None:
    """And says so."""
    shifted = calibrated(level, offset_db)
    assert figures(shifted) == pytest.approx([figure + offset_db for figure in figures(level)], abs=0.0051)
    assert (level.calibrated, shifted.calibrated) == (False, True)


def test_an_offset_of_nothing_is_a_calibration(tagger: Tagger) -> None:
    """0 dB is an answer, None is not."""
    level = tagger.analyse(NOISE, conditions=Conditions(calibration_db=0.0)).level
    assert figures(level) == figures(tagger.analyse(NOISE).level)
    assert level.calibrated


def test_the_event_says_quiet(tagger: Tagger) -> None:
    """And is one that the wire carries."""
    stream = EventStream(tagger, sensor="s")
    stream.conditions = Conditions(min_laeq_db=0.0)
    window = Window(0, NOISE, 1.0, 0, 0.0, 44_100, 0.0)
    event = stream.event(window, start_utc_s=0.0)
    assert (event.verdict, event.coarse, event.fine, event.active) == ("quiet", {}, {}, [])
    assert msgspec.json.decode(msgspec.json.encode(event), type=TagsEvent) == event


def figures(level: Level) -> tuple[float, ...]:
    return level.laeq_db, level.lafmax_db, level.la10_db, level.la90_db
