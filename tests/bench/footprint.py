"""What edgetag takes of a machine: room on its disk, memory, and time from its start to READY.

    python tests/bench/footprint.py                                   of this repository, installed for this
    python tests/bench/footprint.py --installed /opt/edgetag/current  as it lies on a sensor
    python tests/bench/footprint.py --archive dist/edgetag-….tar.gz   and what is to be carried there

The disk: what packages' own lists name, without the interpreter. Memory and time: `edgetag run` with a null
sink of PulseAudio's for a microphone, a synthetic street to hear, and a Mosquitto with TLS. A start is timed
from that of the process to each milestone:

```
process ── imported ── loaded ── opened ──── the first window, ten seconds of audio ──── READY
           all modules   the bundle, its self-test passed
```

Every variant starts several times; medians count, of peaks the highest. `auto` always starts with nothing
known of the machine: a process of its own, beside it, measures both variants first. Files are in the page
cache from the first start on.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import distributions
from pathlib import Path, PurePath
from typing import NamedTuple

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from certificates import Authority
from edgetag.contract.frontend import WINDOW_S
from edgetag.demo.scene import street_scene
from edgetag.tagging.machine import this_machine
from system import sound_server
from system.sensor import Sensor
from system.sound_server import SoundServer
from system.test_mosquitto import Mosquitto, find

REPOSITORY = Path(__file__).parents[2]
MILESTONES = Path(__file__).with_name("milestones.py")
VARIANTS = ("int8", "fp32", "auto")
BLOCK_BYTES = 512  # of `st_blocks`, whatever those of the file system are
PATIENCE_S = 300  # for a start and its windows, on a slow machine
SHOWN_BYTES = 1_000_000  # of a package: smaller ones share a line


class Size(NamedTuple):
    """Of files: bytes in them, and bytes that the file system takes for them."""

    held: int = 0
    taken: int = 0

    def plus(self, other: "Size") -> "Size":
        return Size(self.held + other.held, self.taken + other.taken)


class Start(NamedTuple):
    """One life of a sensor.

    seconds: from the process's start to each milestone.
    peak_kb, resident_kb, shared_out_kb: the most that was resident (VmHWM), what is in the end (VmRSS), and
        that with what several processes have divided among them (PSS).
    anonymous_kb: what is resident and in no file (RssAnon): the rest the system can drop and read again.
    beside_kb: the most that was resident of the process that measures for `auto`, before it has loaded.
    """

    seconds: dict[str, float]
    peak_kb: int
    resident_kb: int
    shared_out_kb: int
    anonymous_kb: int
    beside_kb: int


# -- the disk ------------------------------------------------------------------------------------------


@contextmanager
def installed() -> Iterator[Path]:
    """An environment with what a sensor gets of this repository, by the versions of constraints.txt."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:  # not /tmp, which may be memory
        venv = Path(name) / "venv"
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(venv)]
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
        subprocess.run(
            [*pip, "install", "--constraint", str(REPOSITORY / "constraints.txt"), str(REPOSITORY)],
            check=True,
        )
        yield venv


def sizes(venv: Path) -> dict[str, Size]:
    """By package, the largest first; `(no package)` is what none of their lists names."""
    (site,) = venv.glob("lib/python3*/site-packages")
    owners = {
        Path(os.path.normpath(file.locate())): package.name
        for package in distributions(path=[str(site)])
        for file in package.files or ()
    }
    found: dict[str, Size] = {}
    for file in venv.rglob("*"):
        if file.is_file() and not file.is_symlink():
            name = owners.get(file, "(no package)")
            found[name] = found.get(name, Size()).plus(size_of(file))
    return dict(sorted(found.items(), key=lambda item: -item[1].taken))


def size_of(file: Path) -> Size:
    status = file.stat()
    return Size(status.st_size, BLOCK_BYTES * status.st_blocks)


def parts(archive: Path) -> dict[str, int]:
    """Bytes of an archive, and of what is in it, by folder."""
    held: Counter[str] = Counter()
    with tarfile.open(archive) as tar:
        for member in tar:
            _, *inside = PurePath(member.name).parts
            held[inside[0] if len(inside) > 1 else "install.sh, SHA256SUMS"] += member.size
    return {archive.name: archive.stat().st_size, **dict(held.most_common())}


# -- memory and time -----------------------------------------------------------------------------------


def starts(venv: Path, n_starts: int, n_windows: int) -> dict[str, list[Start]]:
    """By variant; they take turns, so that what slows the machine down for a while slows down all of them."""
    found: dict[str, list[Start]] = {variant: [] for variant in VARIANTS}
    with tempfile.TemporaryDirectory(prefix="fp") as name:  # short: there are sockets in it
        folder = Path(name)
        ca_file, settings = authority(folder)
        with Mosquitto(folder, *settings) as broker:
            mqtt = {"url": f"mqtts://127.0.0.1:{broker.port}", "ca_file": str(ca_file)}
            for turn in range(n_starts):
                for variant in VARIANTS:
                    config = {"mqtt": mqtt, "runtime": {"variant": variant}}
                    found[variant].append(start(venv, folder / f"{variant}{turn}", config, n_windows))
    return found


def authority(folder: Path) -> tuple[Path, list[str]]:
    """Whom to trust, and a broker's settings for it."""
    ca = Authority(folder)
    certificate, key = ca.issue("broker")
    return ca.ca_file, [f"certfile {certificate}", f"keyfile {key}", "allow_anonymous true"]


def start(venv: Path, folder: Path, config: dict[str, object], n_windows: int) -> Start:
    """Start a sensor in a new folder, let it tag `n_windows` windows and look, then end it."""
    (folder / "sound").mkdir(parents=True)
    (folder / "edgetag.yaml").write_text(yaml.safe_dump(config))
    python = str(venv / "bin" / "python")
    with SoundServer(folder / "sound") as street:
        street.play(street_scene(duration_s=(n_windows + 6) * WINDOW_S).samples, wait=False)
        sensor = Sensor(
            folder / "sensor",
            street.environment(),
            *("--config", str(folder / "edgetag.yaml")),
            under=(python, str(MILESTONES)),
        )
        began_s = time.time()
        with sensor:
            is_through = sensor.wait_for(lambda: len(times(sensor, "WATCHDOG=1")) >= n_windows, PATIENCE_S)
            assert is_through, sensor.logged
            assert times(sensor, "STATUS=online: hearing"), "it is not well, or has no broker"
            found = _look(sensor, began_s)
            assert sensor.terminate()[0] == 0, sensor.logged
    return found


def times(sensor: Sensor, word: str) -> list[float]:
    """When it has said so to systemd, seconds since 1970."""
    return [line.at_s for line in list(sensor.notified) if line.text == word]


def _look(sensor: Sensor, began_s: float) -> Start:
    said = {name: f"X_MILESTONE={name}" for name in ("imported", "loaded", "opened")} | {"READY": "READY=1"}
    process = Path("/proc") / str(sensor.process.pid)
    return Start(
        {name: times(sensor, word)[0] - began_s for name, word in said.items()},
        kb(process / "status", "VmHWM"),
        kb(process / "status", "VmRSS"),
        kb(process / "smaps_rollup", "Pss"),
        kb(process / "status", "RssAnon"),
        max(int(line.text.partition("=")[2]) for line in sensor.notified if "X_BESIDE_KB" in line.text),
    )


def kb(file: Path, key: str) -> int:
    """Of a line `key: value kB` in a file of /proc."""
    lines = (line.split() for line in file.read_text().splitlines())
    return next(int(line[1]) for line in lines if line[0] == f"{key}:")


# -- what is found -------------------------------------------------------------------------------------


def machine() -> str:
    memory_gb = kb(Path("/proc/meminfo"), "MemTotal") * 1024 / 1e9
    return (
        f"{this_machine(1)}; {os.cpu_count()} cores, {memory_gb:.1f} GB; Linux {platform.release()}, "
        f"{platform.freedesktop_os_release()['PRETTY_NAME']}, Python {platform.python_version()}"
    )


def disk_table(found: dict[str, Size]) -> Iterator[str]:
    total = functools.reduce(Size.plus, found.values())
    yield f"{'disk, MB':24} {'in files':>9} {'on disk':>9}"
    rest = Size()
    for name, size in found.items():
        if size.taken < SHOWN_BYTES:
            rest = rest.plus(size)
        else:
            yield row(name, size.held / 1e6, size.taken / 1e6)
    yield row("others", rest.held / 1e6, rest.taken / 1e6)
    yield row("all", total.held / 1e6, total.taken / 1e6)


def archive_table(found: dict[str, int]) -> Iterator[str]:
    yield f"{'archive':45} {'MB':>9}"
    yield from (f"{name:45} {n_bytes / 1e6:9.1f}" for name, n_bytes in found.items())


def memory_table(found: dict[str, list[Start]]) -> Iterator[str]:
    yield f"{'memory, MB':24} {'peak':>9} {'resident':>9} {'PSS':>9} {'anonymous':>9} {'beside':>9}"
    for variant, lives in found.items():
        shown_kb = [
            max(life.peak_kb for life in lives),
            statistics.median(life.resident_kb for life in lives),
            statistics.median(life.shared_out_kb for life in lives),
            statistics.median(life.anonymous_kb for life in lives),
            *[max(life.beside_kb for life in lives)] * (variant == "auto"),
        ]
        yield row(variant, *(kb * 1024 / 1e6 for kb in shown_kb))


def time_table(found: dict[str, list[Start]]) -> Iterator[str]:
    names = [*found[VARIANTS[0]][0].seconds, f"- {WINDOW_S} s"]
    yield f"{'start, s':24} " + " ".join(f"{name:>9}" for name in names)
    for variant, lives in found.items():
        middle_s = [
            statistics.median(took_s)
            for took_s in zip(*(life.seconds.values() for life in lives), strict=True)
        ]
        yield f"{variant:24} " + " ".join(f"{took_s:9.2f}" for took_s in [*middle_s, middle_s[-1] - WINDOW_S])


def row(name: str, *values: float) -> str:
    return f"{name:24} " + " ".join(f"{value:9.1f}" for value in values)


def main() -> None:
    """Measure, and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--installed", type=Path, metavar="FOLDER", help="an environment with edgetag in it")
    parser.add_argument("--archive", type=Path, metavar="FILE", help="of `make archive`: how large is it?")
    parser.add_argument("--starts", type=int, default=5, metavar="N", help="of every variant")
    parser.add_argument(
        "--windows",
        type=int,
        default=14,
        metavar="N",
        help="that a sensor tags before it ends: memory is steady after its first minute, when it is trimmed",
    )
    parser.add_argument("--json", action="store_true", help="everything that was measured, for programs")
    options = parser.parse_args()
    if reason := sound_server.missing() or (None if find("mosquitto") else "mosquitto is not installed"):
        parser.error(f"{reason}; `make system-packages` does that, as root")
    with nullcontext(options.installed.resolve()) if options.installed else installed() as venv:
        disk, lives = sizes(venv), starts(venv, options.starts, options.windows)
    carried = parts(options.archive) if options.archive else {}
    if options.json:
        found = {
            "machine": machine(),
            "disk_bytes": {name: size._asdict() for name, size in disk.items()},
            "archive_bytes": carried,
            "starts": {variant: [life._asdict() for life in each] for variant, each in lives.items()},
        }
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        tables = [disk_table(disk), memory_table(lives), time_table(lives)]
        if carried:
            tables.insert(1, archive_table(carried))
        sys.stdout.write("\n".join([machine(), *("\n".join(["", *table]) for table in tables)]) + "\n")


if __name__ == "__main__":
    main()
