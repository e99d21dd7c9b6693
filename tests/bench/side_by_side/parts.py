"""The parts of a run: each measures something, and puts it into the results."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from bench.side_by_side import daemon, replays, windows
from bench.side_by_side.results import Results
from bench.side_by_side.sides import EDGETAG, EDGETAG_VGGISH, PAPER, YAMNET, Player, line_up
from bench.side_by_side.street import write_street
from bench.side_by_side.weights import System, paper_system
from edgetag.contract.manifest import VARIANTS, Variant

N_LOGMELS = 3
N_JOB_FILES = 6


@dataclass(frozen=True)
class Effort:
    """How long everything goes on: numbers of turns, windows and starts; seconds and hours of audio."""

    turns: int = 30
    windows: int = 2
    memory_windows: int = 30
    starts: int = 5
    replay_s: int = 1200
    replay_turns: int = 3
    live_windows: int = 120
    live_vggish_windows: int = 20
    hops_s: tuple[float, ...] = (1, 2.5, 5, 10)
    growth_s: int = 600
    files: tuple[int, ...] = (1, 10, 60)
    hours: float = 2


QUICK = Effort(
    turns=3,
    memory_windows=4,
    starts=1,
    replay_s=120,
    replay_turns=1,
    live_windows=10,
    live_vggish_windows=5,
    growth_s=120,
    files=(1, 4),
    hours=0.1,
)


@dataclass
class Bench:
    """What parts have in common; what only some of them need is made when it is asked for.

    Attributes:
        results: what they fill in.
        effort: how long they may take.
        folder: for what is only needed meanwhile.
        cache: where the bundles of the paper's shape are kept.
        shared: where YAMNet is, as peers/yamnet.tflite.
        has_vggish: whether those take part that hear with it.
        variants: of the bundles of the paper's shape.
    """

    results: Results
    effort: Effort
    folder: Path
    cache: Path
    shared: Path
    has_vggish: bool = True
    variants: tuple[Variant, ...] = VARIANTS

    @cached_property
    def vggish(self) -> System | None:
        return paper_system(self.cache, self.variants, has_vggish=True) if self.has_vggish else None

    @cached_property
    def players(self) -> list[Player]:
        """Everybody who takes part."""
        cnn = paper_system(self.cache, self.variants, has_vggish=False)
        yamnet = self.shared / "peers" / "yamnet.tflite"
        if not yamnet.is_file():
            self.leave_out(YAMNET, "EDGETAG_SHARED has no peers/yamnet.tflite")
        elif not find_spec("ai_edge_litert"):
            self.leave_out(YAMNET, "LiteRT is not installed (tests/bench/requirements.txt)")
        takes_part = YAMNET not in self.results.left_out
        street = write_street(self.folder / "street.pcm")
        return line_up(street, cnn, self.vggish, yamnet if takes_part else None)

    @property
    def variant(self) -> list[str]:
        """Arguments of `edgetag`."""
        return ["--variant", self.results.variant]

    @property
    def bundles(self) -> dict[str, list[str]]:
        """Arguments of `edgetag` by side."""
        found = {EDGETAG: self.variant}
        if self.vggish is not None:
            found[EDGETAG_VGGISH] = [*self.variant, "--bundle", str(self.vggish.bundle)]
        return found

    def leave_out(self, what: str, why: str) -> None:
        self.results.left_out[what] = why


def measure_windows(bench: Bench) -> None:
    bench.results.windows = windows.take_turns(bench.players, bench.effort.turns, bench.effort.windows)
    ours, theirs = (
        _logmels(player) for player in bench.players if player.name in (f"{EDGETAG}, fp32", PAPER)
    )
    bench.results.logmel_difference_db = round(float(np.abs(ours - theirs).max()), 7)


def _logmels(player: Player) -> np.ndarray:
    """Of the street's first windows. Shape: [n, 128, 862]"""
    with player.start() as side:
        found = []
        for _ in range(N_LOGMELS):
            side.ask("say", kind="quiet")
            found.append(side.ask("logmel"))
    return np.array(found)


def measure_memory(bench: Bench) -> None:
    bench.results.memory = windows.memory(bench.players, bench.effort.memory_windows)


def measure_start(bench: Bench) -> None:
    if why := daemon.missing_for_start():
        bench.leave_out("the daemon's start", why)
    else:
        names = {
            f"`edgetag run`{name.removeprefix(EDGETAG)}, {bench.results.variant}": name
            for name in bench.bundles
        }
        arguments = {name: bench.bundles[bundle] for name, bundle in names.items()}
        bench.results.start = daemon.starts(arguments, bench.effort.starts)
    bench.results.start |= windows.starts(bench.players, bench.effort.starts)


def measure_replay(bench: Bench) -> None:
    effort = bench.effort
    with tempfile.TemporaryDirectory(dir=bench.folder) as name:
        folder = Path(name)
        bench.results.replay = replays.formats(folder, effort.replay_s, bench.variant, effort.replay_turns)
        if not replays.can_have_jobs():
            bench.leave_out("replay by two processes", "this `edgetag replay` has no --jobs")
            return
        piece = replays.write_recording(folder / "piece.flac", effort.replay_s // 4)
        bench.results.replay_jobs = replays.jobs(piece, N_JOB_FILES, bench.variant, effort.replay_turns)


def measure_latency(bench: Bench) -> None:
    if why := daemon.missing_for_live():
        bench.leave_out("the daemon's latency and memory", why)
        return
    effort = bench.effort
    lives = {EDGETAG: (0.5, effort.live_windows), EDGETAG_VGGISH: (0.96, effort.live_vggish_windows)}
    bench.results.live = {name: daemon.live(bundle, *lives[name]) for name, bundle in bench.bundles.items()}


def measure_growth(bench: Bench) -> None:
    effort = bench.effort
    with tempfile.TemporaryDirectory(dir=bench.folder) as name:
        folder = Path(name)
        recording = replays.write_recording(folder / "street.flac", effort.growth_s)
        bench.results.hops = replays.hops(recording, effort.hops_s, bench.variant)
        bench.results.files = replays.files(folder, effort.growth_s, effort.files, bench.variant)
    bench.results.length = replays.length(effort.hours, bench.variant)


PARTS: dict[str, Callable[[Bench], None]] = {
    "windows": measure_windows,
    "memory": measure_memory,
    "start": measure_start,
    "replay": measure_replay,
    "latency": measure_latency,
    "growth": measure_growth,
}
