"""An archive of ten-second recordings: by one process, by several, and by the workers of a cluster.

The ways take turns, round after round, so that what slows the machine down for a while slows down all of
them. CPU time is that of all processes that are busy with it; on a machine that does other things, too, it
says more than the clock does.

    python tests/bench/archive.py --recordings sonyc-ust/audio --n 600 --rounds 5
"""

import argparse
import itertools
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import psutil
import soundfile

sys.path.insert(0, str(Path(__file__).parents[1]))

from edgetag.contract.frontend import SAMPLE_RATE_HZ, WINDOW_S, WINDOW_SAMPLES
from edgetag.demo.scene import street_scene
from edgetag.tagging.machine import this_machine
from system.test_cluster import Cluster

N_SYNTHETIC = 60


class Cost(NamedTuple):
    """Seconds by the clock and of CPU; the scheduler's are of the latter."""

    wall_s: float
    cpu_s: float
    scheduler_s: float = 0.0


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recordings", type=Path, help="FLAC files of ten seconds; synthetic ones if absent")
    parser.add_argument("--n", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most", type=int, default=2, help="processes, and workers")
    options = parser.parse_args()
    sizes = sorted({1, options.most})
    costs: dict[str, list[Cost]] = defaultdict(list)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        archive = write_archive(folder / "archive", options.recordings, options.n)
        clusters = {n: stack.enter_context(Cluster(folder / f"dask-{n}", n)) for n in sizes}
        for k in range(options.rounds):
            for n in sizes:
                costs[f"--jobs {n}"].append(by_jobs(archive, n))
                costs[f"--cluster, workers: {n}"].append(
                    by_cluster(archive, clusters[n], folder / f"{k}-{n}")
                )
            costs["--cluster, all done before"].append(by_cluster(archive, clusters[n], folder / f"{k}-{n}"))
    report(costs, options.n)


def write_archive(folder: Path, recordings: Path | None, n: int) -> Path:
    """Copies of what there is, in turn."""
    folder.mkdir()
    found = sorted(recordings.glob("*.flac")) if recordings else [*synthetic(folder.parent)]
    if not found:
        raise SystemExit(f"{recordings} holds no .flac")
    for k, file in zip(range(n), itertools.cycle(found), strict=False):
        shutil.copy(file, folder / f"{k:06}.flac")
    return folder


def synthetic(folder: Path) -> Iterator[Path]:
    """The demo's street, cut into pieces."""
    samples = street_scene(duration_s=N_SYNTHETIC * WINDOW_S).samples
    for k in range(N_SYNTHETIC):
        soundfile.write(
            folder / f"{k}.flac", samples[k * WINDOW_SAMPLES : (k + 1) * WINDOW_SAMPLES], SAMPLE_RATE_HZ
        )
        yield folder / f"{k}.flac"


def by_jobs(archive: Path, n: int) -> Cost:
    """`edgetag replay --jobs`, whose events go nowhere."""
    return replay("--jobs", str(n), *map(str, sorted(archive.iterdir())))


def by_cluster(archive: Path, cluster: Cluster, out: Path) -> Cost:
    """The client, the scheduler and its workers, which run already."""
    scheduler = psutil.Process(cluster.scheduler.pid)
    busy = [scheduler, *cluster.workers()]
    before_s = [cpu_s(process) for process in busy]
    client = replay("--cluster", cluster.address, "--out", str(out), str(archive))
    spent_s = [cpu_s(process) - before for process, before in zip(busy, before_s, strict=True)]
    return Cost(client.wall_s, client.cpu_s + sum(spent_s), client.cpu_s + spent_s[0])


def replay(*arguments: str) -> Cost:
    """Of the command and all that it starts."""
    began_s, before = time.perf_counter(), psutil.Process().cpu_times()
    command = [sys.executable, "-m", "edgetag", "replay", "--variant", "int8", *arguments]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = psutil.Process().cpu_times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(time.perf_counter() - began_s, cpu)


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def report(costs: dict[str, list[Cost]], n: int) -> None:
    """Medians; a way's speed is beside that of the same way with one process, round by round."""
    lines = [
        str(this_machine(1)),
        f"{n} recordings of {WINDOW_S} s, {len(next(iter(costs.values())))} rounds, medians",
        "",
        "| | recordings a second | CPU, ms a recording | of it client and scheduler | speed |",
        "|---|---|---|---|---|",
    ]
    for way, those in costs.items():
        alone = next(found for name, found in costs.items() if name.split()[0] == way.split()[0])
        speed = statistics.median(one.wall_s / cost.wall_s for one, cost in zip(alone, those, strict=True))
        rate = n / statistics.median(cost.wall_s for cost in those)
        cpu_ms = 1e3 * statistics.median(cost.cpu_s for cost in those) / n
        central_ms = 1e3 * statistics.median(cost.scheduler_s for cost in those) / n
        lines.append(f"| `{way}` | {rate:.1f} | {cpu_ms:.1f} | {central_ms:.2f} | {speed:.2f} |")
    print(*lines, sep="\n")  # noqa: T201


if __name__ == "__main__":
    main()
