"""What a window costs each side, stage by stage, and how much memory that takes."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from bench.side_by_side.results import Memory, Middle, Start, Windows
from bench.side_by_side.sides import Player

N_FIRST = 2  # that a kind hears before it counts: buffers are made, pages come
N_TRACED = 3


def take_turns(players: Sequence[Player], n_turns: int, n_windows: int) -> dict[str, Windows]:
    """Every kind of every side hears `n_windows` in each turn; the order is reversed from turn to turn."""
    with ExitStack() as stack:
        sides = [stack.enter_context(player.start()) for player in players]
        kinds = [(side, kind) for side in sides for kind in side.player.kinds]
        for side, kind in kinds:
            side.ask("windows", kind=kind, n=N_FIRST)
        heard: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for turn in range(n_turns):
            for side, kind in kinds if turn % 2 else reversed(kinds):
                heard[f"{side.player.name}, {kind}"] += side.ask("windows", kind=kind, n=n_windows)
    names = [f"{side.player.name}, {kind}" for side, kind in kinds]
    return {name: _together(heard[name]) for name in names}


def _together(windows: Sequence[dict[str, Any]]) -> Windows:
    stages = {
        stage: [round(window["stages"][stage], 3) for window in windows] for stage in windows[0]["stages"]
    }
    wall_ms = [round(window["wall_ms"], 3) for window in windows]
    return Windows(stages, wall_ms, statistics.median(window["n_faults"] for window in windows))


def memory(players: Sequence[Player], n_windows: int) -> dict[str, Memory]:
    """Each in a process that hears nothing but its busiest windows."""
    return {player.name: _memory(player, n_windows) for player in players}


def _memory(player: Player, n_windows: int) -> Memory:
    with player.start_alone() as side:
        heard = side.ask("windows", kind=player.busiest, n=n_windows)
        peak_mb, steady_mb = side.resident_mb("VmHWM"), side.resident_mb("VmRSS")
        traced = side.ask("traced", kind=player.busiest, n=N_TRACED)
    return Memory(
        peak_mb,
        steady_mb,
        round(max(window["peak_bytes"] for window in traced) / 1e6, 2),
        statistics.median(window["n_faults"] for window in heard[N_FIRST:]),
    )


def starts(players: Sequence[Player], n_starts: int) -> dict[str, Start]:
    """They take turns here, too."""
    reached = [[_start(player) for player in players] for _ in range(n_starts)]
    return {
        player.name: Start(*map(Middle.of, zip(*own, strict=True)))
        for player, own in zip(players, zip(*reached, strict=True), strict=True)
    }


def _start(player: Player) -> tuple[float, float, float]:
    with player.start() as side:
        side.ask("windows", kind=player.kinds[0], n=1)
        return side.reached_s["imported"], side.reached_s["ready"], side.age_s
