"""The comparison is of the same work on the same audio, and says what it found; no test looks at a time."""

import hashlib
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.side_by_side import report
from bench.side_by_side.goals import Goal, judged
from bench.side_by_side.results import Machine, Memory, Middle, Results, Windows, ratio
from bench.side_by_side.serving import Stages
from bench.side_by_side.sides import (
    EDGETAG,
    EDGETAG_CNN,
    EDGETAG_VGGISH,
    PAPER,
    PAPER_VGGISH,
    YAMNET,
    Player,
    Side,
    line_up,
)
from bench.side_by_side.street import WINDOW_SAMPLES, Street, write_street
from bench.side_by_side.weights import paper_system
from conftest import SHARED

N_WINDOWS = 2
MODEL = SHARED / "peers" / "yamnet.tflite"
needs_yamnet = pytest.mark.skipif(
    not (MODEL.is_file() and find_spec("ai_edge_litert")),
    reason="needs EDGETAG_SHARED's YAMNet, and LiteRT (tests/bench/requirements.txt)",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("side-by-side")


@pytest.fixture(scope="module")
def players(folder: Path) -> dict[str, Player]:
    """Everybody by name; the paper's nets in fp32 only, which takes a third of the time to make."""
    cnn, vggish = (
        paper_system(folder / "cache", ("fp32",), has_vggish=has_vggish) for has_vggish in (False, True)
    )
    street = write_street(folder / "street.pcm")
    return {player.name: player for player in line_up(street, cnn, vggish, MODEL)}


@pytest.fixture(scope="module")
def with_vggish(players: dict[str, Player]) -> Iterator[Side]:
    """edgetag, whose every kind of window goes on from its own place in the street."""
    with players[f"{EDGETAG_VGGISH}, fp32"].start() as side:
        yield side


# -- the same work -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "tolerance"),
    [
        (f"{EDGETAG_CNN}, fp32", PAPER, 1e-5),
        (f"{EDGETAG_VGGISH}, fp32", PAPER_VGGISH, 1e-3),  # an embedding's value of eight bits may tip
    ],
)
def test_the_papers_stack_says_what_edgetag_says(
    players: dict[str, Player], with_vggish: Side, ours: str, theirs: str, tolerance: float
) -> None:
    """Of the same windows, by all seven nets, from log-mels within 1e-3 dB; and not the same of each."""
    own_side = nullcontext(with_vggish) if ours == with_vggish.player.name else players[ours].start()
    with own_side as edgetag, players[theirs].start() as paper:
        roots = []
        for _ in range(N_WINDOWS):
            own, other = edgetag.ask("say", kind="busy"), paper.ask("say", kind="busy")
            assert own["heard"] == other["heard"]
            np.testing.assert_allclose(edgetag.ask("logmel"), paper.ask("logmel"), rtol=0, atol=1e-3)
            assert len(own["said"]) == 7
            assert own["said"].keys() == other["said"].keys()
            for net, probabilities in own["said"].items():
                np.testing.assert_allclose(
                    probabilities, other["said"][net], rtol=0, atol=tolerance, err_msg=net
                )
            roots.append(own["said"]["root"])
    assert np.ptp(roots, axis=0).max() > 5 * tolerance


@needs_yamnet
def test_yamnet_hears_the_same_windows(players: dict[str, Player]) -> None:
    """In order; ten or nineteen frames of them, of which every score is a probability."""
    with players[f"{EDGETAG}, int8"].start() as edgetag, players[YAMNET].start() as yamnet:
        for kind in ("no overlap", "half overlap"):
            heard = yamnet.ask("say", kind=kind)
            assert (
                heard["heard"]
                == edgetag.ask("say", kind="quiet" if kind == "no overlap" else "busy")["heard"]
            )
            scores = np.array(heard["said"]["yamnet"])
            assert scores.shape == (521,)
            assert ((scores >= 0) & (scores <= 1)).all()
            assert scores.max() > 0.1, "it hears nothing at all"


def test_kinds_hear_what_they_are_called(with_vggish: Side) -> None:
    """Quiet: the root alone; busy: all branches; windows that share half are 4.8 s apart."""
    side = with_vggish
    street = Street(Path(side.player.arguments[-1]))
    assert side.ask("say", kind="quiet")["said"].keys() == {"root"}
    assert len(side.ask("say", kind="busy")["said"]) == 7
    side.ask("windows", kind="reuse", n=1)
    reused = side.ask("say", kind="reuse")
    first, second = (cost["stages"] for cost in side.ask("windows", kind="quiet", n=2))
    assert reused["heard"] == digest(street.read(round(4.8 * 44_100), WINDOW_SAMPLES))
    assert (
        first.keys()
        == second.keys()
        == {"windows", "level", "log-mel", "embedding", "root", "event", "outbox"}
    )


def digest(samples: NDArray[np.float32]) -> str:
    return hashlib.sha256(samples.tobytes()).hexdigest()


@pytest.mark.shared
def test_the_papers_vggish_front_end_is_the_published_one(
    golden_front_end: dict[str, NDArray[np.generic]],
) -> None:
    """A real street recording at 16 kHz gives the reference's ten patches."""
    from bench.side_by_side.paper_side import vggish_filters_t, vggish_patches

    samples = golden_front_end["pcm16000"].astype(np.float64) / 32768
    found = vggish_patches(samples, vggish_filters_t())
    np.testing.assert_allclose(found, golden_front_end["vggish_examples"], rtol=0, atol=1e-5)


def test_the_street_goes_on_for_ever(folder: Path) -> None:
    """What is read across its end begins anew; nothing is left out."""
    street = Street(write_street(folder / "short.pcm", duration_s=1))
    second = street.read(0, 44_100)
    np.testing.assert_array_equal(
        street.read(3 * 44_100 + 100, 90_000), np.tile(second, 4)[100 : 100 + 90_000]
    )
    assert second.std() > 0.001


def test_a_side_that_ends_says_why(players: dict[str, Player], tmp_path: Path) -> None:
    """Not a question that waits for ever."""
    player = Player("broken", "paper_side", (str(tmp_path / "none.pt"), "street"), ("quiet",))
    with pytest.raises(SystemExit, match=r"broken has ended: [\s\S]*No such file"), player.start():
        pass


# -- the clocks --------------------------------------------------------------------------------------------


def test_what_is_timed_inside_is_not_counted_twice() -> None:
    """
    event   --         --   -
    level     ---
    root           ----      ; a stage that comes twice is added up
    """
    ticks = count()
    stages = Stages(cpu_s=lambda: next(ticks))
    level = stages.timed("level", lambda: 1)
    with stages.of("event"):
        assert level() == 1
        with stages.of("root"), stages.of("level"):
            pass
    assert stages.cpu_ms == {"level": 2000, "root": 2000, "event": 3000}
    assert sum(stages.cpu_ms.values()) == 1000 * (next(ticks) - 1)
    stages.clear()
    assert stages.cpu_ms == {}


def test_memory_of_a_window_is_the_most_that_it_takes_at_once(players: dict[str, Player]) -> None:
    """A window's own samples at least, and no more than some of them: buffers are kept."""
    with players[f"{EDGETAG}, int8"].start() as side:
        side.ask("windows", kind="quiet", n=2)
        costs = side.ask("traced", kind="quiet", n=2)
        assert all(4 * WINDOW_SAMPLES < cost["peak_bytes"] < 40 * WINDOW_SAMPLES for cost in costs)
        assert all(cost["peak_bytes"] == 0 for cost in side.ask("windows", kind="quiet", n=2))


# -- what is made of it ------------------------------------------------------------------------------------


def cost(**stages: list[float]) -> Windows:
    return Windows(stages, wall_ms=next(iter(stages.values())), n_faults=0)


def results(**found: object) -> Results:
    machine = Machine("a machine, with cores", {"edgetag": "0"}, (0.0, 1.0))
    return Results(measured="2026-11-25T10:00:00.000Z", machine=machine, variant="int8", **found)


def test_a_ratio_is_of_windows_that_were_heard_in_the_same_turn() -> None:
    """The machine is ten times as slow in the second turn: the ratio is not."""
    ours, theirs = cost(root=[1, 10, 1]), cost(resample=[5, 5, 5], yamnet=[2, 20, 2])
    assert ratio(ours, theirs, without=["resample"]) == Middle(0.5, 0.5, 0.5)
    assert ours.total() == Middle(1, 1, 5.5)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [(0.9, "not reached"), (0.8, "reached"), (Middle(0.7, 0.1, 0.9), "reached"), (0.5, "aim reached")],
)
def test_a_goal_is_reached_by_the_median(found: float | Middle, verdict: str) -> None:
    assert Goal("less", lambda _: None, 0.8, 0.5).verdict(found) == verdict


def test_more_may_be_better_and_some_figures_are_just_to_be_known() -> None:
    assert Goal("more", lambda _: None, 400, sense="≥").verdict(399.0) == "not reached"
    assert Goal("more", lambda _: None, 400, sense="≥").verdict(400.0) == "reached"
    assert Goal("known", lambda _: None).verdict(1.0) == ""


def test_what_was_not_measured_is_no_goal_that_is_missed() -> None:
    """Nothing measured: no table, and no figure. One side measured: nothing is said of the other."""
    assert list(report.tables(results())) == []
    assert {found for _, found in judged(results())} == {None}
    half = results(windows={f"{EDGETAG}, int8, quiet": cost(**{"log-mel": [4.0]})})
    assert {goal.what for goal, found in judged(half) if found is not None} == {"log-mel"}


def test_goals_are_of_the_variant_that_is_faster_here() -> None:
    memory = {f"{EDGETAG_CNN}, int8": Memory(10, 10, 0, 0), f"{EDGETAG_CNN}, fp32": Memory(50, 50, 0, 0)}
    memory[PAPER] = Memory(100, 100, 0, 0)
    both = results(memory=memory)
    found = {goal.what: found for goal, found in judged(both)}
    assert found["without embedding, peak memory / the paper's stack"] == 0.1
    both.variant = "fp32"
    assert {goal.what: found for goal, found in judged(both)}[
        "without embedding, peak memory / the paper's stack"
    ] == 0.5
