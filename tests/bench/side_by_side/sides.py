"""The sides, from without: which there are, each a process of its own that hears windows on request."""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.side_by_side.processes import one_thread, resident_mb
from bench.side_by_side.weights import System
from edgetag.contract.manifest import VARIANTS, Variant
from edgetag.tagging.bundle import starter_path

TESTS = Path(__file__).parents[2]
EDGETAG = "edgetag"
"""The bundle that ships; the next two are edgetag with the paper's nets (Hierarchical2) of random weights."""
EDGETAG_CNN, EDGETAG_VGGISH = "edgetag + CNN", "edgetag + VGGish"
PAPER, PAPER_VGGISH = "paper", "paper + VGGish"
YAMNET = "YAMNet"


@dataclass(frozen=True)
class Player:
    """Who takes part.

    Attributes:
        name: as tables have it.
        module: of this package, and its arguments.
        kinds: of windows that it hears.
        busiest: the kind that needs most memory.
        alone: what its arguments end with, where it hears nothing but its busiest kind.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    kinds: tuple[str, ...]
    busiest: str = "busy"
    alone: tuple[str, ...] = ()

    def start(self) -> "Side":
        return Side(self)

    def start_alone(self) -> "Side":
        return Side(replace(self, arguments=self.arguments + self.alone))


def line_up(street: Path, cnn: System, vggish: System | None, yamnet: Path | None) -> list[Player]:
    """Everybody whose weights are at hand, in the tables' order: the bundle that ships, the paper's systems
    by edgetag and by their own stack, YAMNet.

    Args:
        street: what is heard.
        cnn, vggish: the paper's nets, without an embedding and with one.
        yamnet: its file.
    """
    players = _edgetag(EDGETAG, starter_path(), VARIANTS, street, ("quiet", "reuse", "busy", "48 kHz"))
    players += _edgetag(EDGETAG_CNN, cnn.bundle, cnn.variants, street, ("quiet", "busy"))
    if vggish is not None:
        players += _edgetag(
            EDGETAG_VGGISH, vggish.bundle, vggish.variants, street, ("quiet", "reuse", "busy")
        )
    players += _paper(PAPER, cnn, street)
    players += [] if vggish is None else _paper(PAPER_VGGISH, vggish, street)
    if yamnet is not None:
        kinds = "no overlap", "half overlap"
        players.append(Player(YAMNET, "yamnet_side", (str(yamnet), str(street)), kinds, kinds[1]))
    return players


def _edgetag(
    name: str, bundle: Path, variants: tuple[Variant, ...], street: Path, kinds: tuple[str, ...]
) -> list[Player]:
    return [
        Player(
            f"{name}, {variant}", "edgetag_side", (str(bundle), variant, str(street)), kinds, alone=("busy",)
        )
        for variant in reversed(variants)
    ]


def _paper(name: str, system: System, street: Path) -> list[Player]:
    files = [system.nets, street] + ([] if system.vggish is None else [system.vggish])
    return [Player(name, "paper_side", tuple(map(str, files)), ("quiet", "busy"))]


class Side:
    """A player's process, while it is entered.

    Attributes:
        reached_s: seconds from its start to what it said on its way: `imported`, `ready`.
    """

    def __init__(self, player: Player) -> None:
        self.player = player
        self.reached_s: dict[str, float] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._log = stack.enter_context(tempfile.TemporaryFile("w+"))
            began_s = time.perf_counter()
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"bench.side_by_side.{self.player.module}", *self.player.arguments],
                env=one_thread(os.environ | {"PYTHONPATH": str(TESTS)}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
            )
            stack.enter_context(self._process)
            stack.callback(self._process.kill)
            while "ready" not in self.reached_s:
                milestone = self._answer()
                self.reached_s[milestone] = time.perf_counter() - began_s
            self._began_s, self._stack = began_s, stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def ask(self, do: str, **how: object) -> Any:
        """What `serving` has: `windows`, `traced`, `say`, `logmel`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do} | how) + "\n")
        self._process.stdin.flush()
        return self._answer()

    @property
    def age_s(self) -> float:
        """Since its start."""
        return time.perf_counter() - self._began_s

    def resident_mb(self, key: str) -> float:
        """`VmRSS`, or `VmHWM`: the most that there was."""
        return resident_mb(self._process.pid, key)

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise SystemExit(f"{self.player.name} has ended: {self._log.read()}")
        return json.loads(line)
