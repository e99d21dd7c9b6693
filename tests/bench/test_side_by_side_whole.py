"""The whole of the comparison, tiny: every part measures, and what is written is what was measured.

What the sides say is compared in `test_side_by_side.py`, with VGGish; here nobody hears with it.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from bench.side_by_side import __main__ as program
from bench.side_by_side.goals import judged
from bench.side_by_side.parts import PARTS, Bench, Effort
from bench.side_by_side.results import Machine, Middle, Results
from bench.side_by_side.sides import EDGETAG, PAPER, YAMNET
from conftest import SHARED

pytestmark = pytest.mark.system  # a minute of it

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
WAITS = "latency"  # for the street's audio, most of the time: it can do so beside the others


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Every part measured, of everybody who can take part here."""
    folder = tmp_path_factory.mktemp("whole")
    machine = Machine("a machine, with cores", {"edgetag": "0"}, (0.0, 1.0))
    found = Results(measured="2026-11-25T10:00:00.000Z", machine=machine, variant="int8")
    bench = Bench(found, TINY, folder, folder / "cache", SHARED, has_vggish=False, variants=("fp32",))
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor() as beside:
        patch.setenv("STATE_DIRECTORY", str(folder))
        waits = beside.submit(PARTS[WAITS], bench)
        for name, measure in PARTS.items():
            if name != WAITS:
                measure(bench)
        waits.result()
        yield bench


@pytest.fixture(scope="module")
def tiny(bench: Bench) -> Results:
    return bench.results


def test_every_side_and_kind_is_measured(bench: Bench, tiny: Results) -> None:
    names = [player.name for player in bench.players]
    assert {*names, *tiny.left_out} >= {f"{EDGETAG}, int8", f"{EDGETAG}, fp32", PAPER, YAMNET}
    assert list(tiny.windows) == [
        f"{player.name}, {kind}" for player in bench.players for kind in player.kinds
    ]
    assert list(tiny.memory) == names
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
