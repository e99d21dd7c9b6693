"""What an outbox writes in a day: SD cards wear.

A day of windows, one every five seconds, and some sounds, by durability; each is acknowledged at once, or the
broker is away all day and takes everything in the end.

    python tests/bench/outbox_wear.py              as fast as it goes: what the process writes, and its syncs
    python tests/bench/outbox_wear.py --live 10    ten minutes in real time, as root: what a card (ext4) gets

In real time the kernel gathers what is written for some seconds, and adds what the file system writes of its
own: only then is it known what reaches the card.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self, get_args

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1]))

from edgetag.delivery.outbox import FILE_NAME, Outbox
from edgetag.delivery.rows import Durability
from edgetag.delivery.sink import Settled
from fakes import sound_event, tags_event

DAY_S = 86_400
HOP_S = 5
WINDOWS_PER_SOUND = 9
CARD_BYTES = 256 * 2**20
SETTLING_S = 40  # until the kernel has written what was there before
DURABILITIES: tuple[Durability, ...] = get_args(Durability)


# -- a sensor's day ------------------------------------------------------------------------------------


def feed(outbox: Outbox, n_windows: int, *, hop_s: float = 0, is_online: bool = True) -> int:
    """The bytes of what was appended."""
    rng, n_bytes = random.Random(0), 0
    for seq in range(n_windows):
        time.sleep(hop_s)
        coarse = {str(k): round(rng.random(), 4) for k in range(1, 9)}
        fine = {id: round(rng.random(), 4) for id in tags_event().fine}
        messages = [msgspec.json.encode(tags_event(seq, coarse=coarse, fine=fine))]
        if seq % WINDOWS_PER_SOUND == 0:
            messages.append(msgspec.json.encode(sound_event(seq)))
        for payload in messages:
            outbox.append("tags", payload)
            n_bytes += len(payload)
        if is_online:
            drain(outbox)
    return n_bytes


def drain(outbox: Outbox) -> None:
    while (queued := outbox.next()) is not None:
        outbox.settle(Settled(queued.id))


# -- as fast as it goes --------------------------------------------------------------------------------


def a_day(durability: Durability, *, is_online: bool) -> str:
    """A line of the table."""
    command = [sys.executable, __file__, "--child", durability] + ["--offline"] * (not is_online)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:  # not /tmp, which may be memory
        trace = Path(name) / "trace"
        if shutil.which("strace"):
            calls = ["-e", "trace=fsync,fdatasync", "-o", str(trace)]
            command = ["strace", "-f", "--seccomp-bpf", *calls, *command]
        done = subprocess.run([*command, name], stdout=subprocess.PIPE, check=True)
        n_syncs = len(re.findall(r"sync\(\d", trace.read_text())) if trace.exists() else -1
    told = json.loads(done.stdout.splitlines()[-1])
    syncs = "?" if n_syncs < 0 else f"{n_syncs:,}"
    what = "online" if is_online else "offline, drained"
    mb = " ".join(f"{told[key] / 1e6:10.1f}" for key in ("payload", "written", "kept"))
    return f"{durability:14} {what:17} {mb} {syncs:>9}"


def child(durability: Durability, folder: Path, *, is_online: bool) -> None:
    """A day, and what it took, as JSON: bytes of the messages, of all writes, and of the files in the end."""
    before = _bytes_written()
    with Outbox(folder / FILE_NAME, durability=durability) as outbox:
        n_bytes = feed(outbox, DAY_S // HOP_S, is_online=is_online)
        drain(outbox)
    kept = sum(path.stat().st_size for path in folder.glob(f"{FILE_NAME}*"))
    told = {"payload": n_bytes, "written": _bytes_written() - before, "kept": kept}
    sys.stdout.write(json.dumps(told))


def _bytes_written() -> int:
    return int(Path("/proc/self/io").read_text().partition("wchar:")[2].split()[0])


# -- in real time --------------------------------------------------------------------------------------


class Card:
    """A new file system of its own, and what is written to its device."""

    def __init__(self, folder: Path) -> None:
        self._image, self.folder = folder / "card", folder / "mounted"

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        with self._image.open("wb") as file:
            file.truncate(CARD_BYTES)
        at_once = "lazy_itable_init=0,lazy_journal_init=0"
        subprocess.run(["mkfs.ext4", "-q", "-E", at_once, str(self._image)], check=True)
        self._device = _run("losetup", "--find", "--show", str(self._image))
        _run("mount", self._device, str(self.folder))
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _run("umount", str(self.folder))
        _run("losetup", "--detach", self._device)

    def written(self) -> tuple[int, int, int]:
        """Writes, bytes and flushes so far."""
        fields = Path(f"/sys/block/{Path(self._device).name}/stat").read_text().split()
        return int(fields[4]), 512 * int(fields[6]), int(fields[15])


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def live(durability: Durability, folder: Path, minutes: float) -> str:
    """A line of the table."""
    n_windows = round(60 * minutes / HOP_S)
    with (
        Card(folder / durability) as card,
        Outbox(card.folder / FILE_NAME, durability=durability) as outbox,
    ):
        feed(outbox, 2_500)  # the log has its final size
        os.sync()
        time.sleep(SETTLING_S)
        before = card.written()
        feed(outbox, n_windows, hop_s=HOP_S)
        time.sleep(SETTLING_S)
        n_writes, n_bytes, n_flushes = (b - a for a, b in zip(before, card.written(), strict=True))
    day = DAY_S / HOP_S / n_windows
    return f"{durability:14} {n_bytes * day / 1e6:10.1f} {n_writes * day:10,.0f} {n_flushes * day:10,.0f}"


def say(*cells: str) -> None:
    """A line of a table."""
    print(*cells, flush=True)  # noqa: T201


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--live", type=float, metavar="MINUTES")
    parser.add_argument("--child", choices=DURABILITIES)
    parser.add_argument("--offline", action="store_true")
    options = parser.parse_args()
    if options.child:
        child(options.child, options.folder, is_online=not options.offline)
    elif options.live:
        in_real_time(options.live)
    else:
        as_fast_as_it_goes()


def as_fast_as_it_goes() -> None:
    say(f"{'durability':14} {'a day':17} {'MB of':>10} {'MB':>10} {'MB left':>10}")
    say(f"{'':14} {'':17} {'messages':>10} {'written':>10} {'on disk':>10} {'syncs':>9}")
    for durability in DURABILITIES:
        for is_online in (True, False):
            say(a_day(durability, is_online=is_online))


def in_real_time(minutes: float) -> None:
    say(f"{'a day':14} {'MB':>10} {'writes':>10} {'flushes':>10}")
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name, ThreadPoolExecutor() as pool:
        for line in pool.map(lambda it: live(it, Path(name), minutes), DURABILITIES):
            say(line)


if __name__ == "__main__":
    main()
