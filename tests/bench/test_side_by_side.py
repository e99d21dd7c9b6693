"""The comparison is of the same work on the same audio, and says what it found; no test looks at a time."""

import hashlib
from importlib.util import find_spec
from itertools import count, pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from bench.side_by_side import __main__ as program
from bench.side_by_side import report
from bench.side_by_side.goals import Goal, judged
from bench.side_by_side.parts import PARTS, Bench, Effort
from bench.side_by_side.results import Machine, Memory, Middle, Results, Windows, ratio
from bench.side_by_side.serving import Stages
from bench.side_by_side.sides import EDGETAG, EDGETAG_VGGISH, PAPER, PAPER_VGGISH, YAMNET, Player, line_up
from bench.side_by_side.street import WINDOW_SAMPLES, Street, write_street
from bench.side_by_side.weights import System, vggish_system, write_nets
from conftest import SHARED
from edgetag.tagging.bundle import starter_path

N_WINDOWS = 3
MODEL = SHARED / "peers" / "yamnet.tflite"
needs_yamnet = pytest.mark.skipif(
    not (MODEL.is_file() and find_spec("ai_edge_litert")),
    reason="needs EDGETAG_SHARED's YAMNet, and LiteRT (tests/bench/requirements.txt)",
)
TINY = Effort(
    turns=2,
    windows=1,
    memory_windows=3,
    starts=1,
    replay_s=40,
    replay_turns=1,
    live_windows=3,
    hops_s=(2.5, 10),
    growth_s=30,
    files=(1, 2),
    hours=0.1,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("side-by-side")


@pytest.fixture(scope="module")
def players(folder: Path) -> dict[str, Player]:
    """Everybody by name; with VGGish in fp32 only, which takes a third of the time to make."""
    starter = System(starter_path(), write_nets(starter_path(), folder / "starter.pt"))
    vggish = vggish_system(folder / "cache", ("fp32",))
    street = write_street(folder / "street.pcm")
    return {player.name: player for player in line_up(street, starter, vggish, MODEL)}


# -- the same work -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "tolerance"),
    [
        (f"{EDGETAG}, fp32", PAPER, 1e-5),
        (f"{EDGETAG_VGGISH}, fp32", PAPER_VGGISH, 1e-3),  # an embedding's value of eight bits may tip
    ],
)
def test_the_papers_stack_says_what_edgetag_says(
    players: dict[str, Player], ours: str, theirs: str, tolerance: float
) -> None:
    """Of the same windows, by all seven nets, from log-mels within 1e-3 dB; and not the same of each."""
    with players[ours].start() as edgetag, players[theirs].start() as paper:
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


def test_kinds_hear_what_they_are_called(players: dict[str, Player]) -> None:
    """Quiet: the root alone; busy: all branches; windows that share half are 4.8 s apart."""
    player = players[f"{EDGETAG_VGGISH}, fp32"]
    street = Street(Path(player.arguments[-1]))
    with player.start() as side:
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
    memory = {f"{EDGETAG}, int8": Memory(10, 10, 0, 0), f"{EDGETAG}, fp32": Memory(50, 50, 0, 0)}
    memory[PAPER] = Memory(100, 100, 0, 0)
    both = results(memory=memory)
    found = {goal.what: found for goal, found in judged(both)}
    assert found["peak memory / the paper's stack"] == 0.1
    both.variant = "fp32"
    assert {goal.what: found for goal, found in judged(both)}["peak memory / the paper's stack"] == 0.5


# -- the whole of it, tiny ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Results:
    """Every part, of everybody who can take part here; VGGish is heard above."""
    found = results()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STATE_DIRECTORY", str(folder))
        bench = Bench(found, TINY, folder, folder / "cache", SHARED, has_vggish=False)
        for measure in PARTS.values():
            measure(bench)
    return found


def test_every_side_and_kind_is_measured(tiny: Results, players: dict[str, Player]) -> None:
    taking_part = [
        player for name, player in players.items() if "VGGish" not in name and name not in tiny.left_out
    ]
    kinds = [f"{player.name}, {kind}" for player in taking_part for kind in player.kinds]
    assert list(tiny.windows) == kinds
    assert list(tiny.memory) == [player.name for player in taking_part]
    assert set(tiny.memory) <= set(tiny.start)
    n_windows = TINY.turns * TINY.windows
    for found in tiny.windows.values():
        assert len(found.wall_ms) == n_windows
        assert all(len(ms) == n_windows and min(ms) >= 0 for ms in found.stages.values())
    assert 0 < tiny.logmel_difference_db < 1e-3


def test_replays_hear_all_of_their_audio(tiny: Results) -> None:
    """A window every 5 s and one that ends with the recording, whatever it is decoded from or cut into."""
    assert {run.n_windows for run in tiny.replay.values()} == {7}
    assert {hop_s: run.n_windows for hop_s, run in tiny.hops.items()} == {"2.5": 9, "10": 3}
    assert {n: run.n_windows for n, run in tiny.files.items()} == {"1": 5, "2": 4}
    assert tiny.replay_jobs["1"].n_windows == tiny.replay_jobs["2"].n_windows == 6
    assert all(run.cpu_s.median > 0 and run.peak_mb > 50 for run in tiny.replay.values())


def test_an_endless_recording_is_watched_to_its_end(tiny: Results) -> None:
    assert tiny.length is not None
    hours, cpu_s = tiny.length.hours, tiny.length.cpu_s
    assert len(hours) == len(cpu_s) == len(tiny.length.resident_mb) >= 2
    assert all(a <= b for values in (hours, cpu_s) for a, b in pairwise(values))
    assert TINY.hours / 4 < hours[-1] <= TINY.hours


def test_the_daemons_events_come_after_their_windows(tiny: Results) -> None:
    if "the daemon's latency and memory" in tiny.left_out:
        pytest.skip(tiny.left_out["the daemon's latency and memory"])
    for live in tiny.live.values():
        assert live.n_windows >= 3
        assert 0 < live.p50_ms <= live.p99_ms <= live.max_ms < 60_000
        assert live.steady_mb <= live.peak_mb


def test_tables_and_figures_agree(tiny: Results, tmp_path: Path) -> None:
    """What is written is what was measured: figures read back are equal, and tables show them."""
    program.write(tiny, tmp_path)
    read = msgspec.json.decode((tmp_path / "results.json").read_bytes(), type=Results)
    assert read == tiny
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (tmp_path / "results.md").read_text().splitlines()
        if line.startswith("|")
    ]
    rows = {row[0]: row for row in cells}
    columns = next(row for row in cells if row[0] == "ms")
    for name, found in read.windows.items():
        shown = dict(zip(columns, rows[name], strict=True))
        assert shown["total"] == f"{found.total().median:.1f}"
        for stage in found.stages:
            assert shown[stage] == f"{found.stage(stage).median:.1f}"
    goals = {goal.what: found for goal, found in judged(read) if found is not None}
    assert len(goals) >= 10
    for what, found in goals.items():
        value = found.median if isinstance(found, Middle) else found
        assert float(rows[what][3].split()[0]) == pytest.approx(value, rel=0.01)
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_a_part_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["--only", "windows,colours"])
    assert "there is no part colours" in capsys.readouterr().err


def test_a_side_that_ends_says_why(players: dict[str, Player], tmp_path: Path) -> None:
    """Not a question that waits for ever."""
    player = Player("broken", "paper_side", (str(tmp_path / "none.pt"), "street"), ("quiet",))
    with pytest.raises(SystemExit, match=r"broken has ended: [\s\S]*No such file"), player.start():
        pass
