"""Measure edgetag beside what people run today, and print the tables.

    make bench                                        all of it: some ten minutes
    make bench BENCH="--only windows,memory --quick"  a part of it, roughly
    make bench BENCH="--out tests/bench/results"      write results.json, results.md and results.png, too

It wants a machine that does nothing else. YAMNet takes part where EDGETAG_SHARED has peers/yamnet.tflite. A
bundle of VGGish's shape is made first, once, and kept in the user's cache.
"""

import argparse
import dataclasses
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from bench.footprint import REPOSITORY, machine
from bench.side_by_side import plot, report
from bench.side_by_side.parts import PARTS, QUICK, Bench, Effort
from bench.side_by_side.results import Machine, Results
from bench.side_by_side.weights import cache
from edgetag.contract.event import timestamp
from edgetag.log import configure
from edgetag.tagging.bundle import starter_path
from edgetag.tagging.choice import choose_variant

SHARED = Path(os.environ.get("EDGETAG_SHARED", REPOSITORY.parent / "shared"))
PACKAGES = ("edgetag", "onnxruntime", "numpy", "scipy", "librosa", "torch", "ai-edge-litert")
LONG_HOURS = 24


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for."""
    options = _options(arguments)
    configure(logging.WARNING)
    effort = QUICK if options.quick else Effort()
    if options.long:
        effort = dataclasses.replace(effort, hours=LONG_HOURS)
    results = measure(options.only, effort, options.cache, has_vggish=not options.no_vggish)
    sys.stdout.write(report.markdown(results))
    if options.out is not None:
        write(results, options.out)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", type=_parts, default=list(PARTS), metavar="PART,…", help=f"of {', '.join(PARTS)}"
    )
    parser.add_argument("--quick", action="store_true", help="every part roughly, in two minutes")
    parser.add_argument("--long", action="store_true", help=f"a stream of {LONG_HOURS} hours, not two")
    parser.add_argument("--no-vggish", action="store_true", help="without those that hear with VGGish")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="where to write tables, picture and figures"
    )
    parser.add_argument(
        "--cache", type=Path, default=cache(), metavar="FOLDER", help="where the bundle is kept"
    )
    return parser.parse_args(arguments)


def _parts(names: str) -> list[str]:
    found = names.split(",")
    if unknown := set(found) - set(PARTS):
        raise argparse.ArgumentTypeError(f"there is no part {', '.join(sorted(unknown))}")
    return found


def measure(parts: Sequence[str], effort: Effort, cache: Path, *, has_vggish: bool) -> Results:
    """Run some parts, in the order in which they are known."""
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench") as name:
        folder = Path(name)
        os.environ["STATE_DIRECTORY"] = name  # what is installed or known on this machine is left alone
        described = Machine(machine(), _versions(), (before, before))
        variant = choose_variant(starter_path(), folder)
        results = Results(measured=timestamp(time.time()), machine=described, variant=variant)
        bench = Bench(results, effort, folder, cache, SHARED, has_vggish)
        for part in (part for part in PARTS if part in parts):
            sys.stderr.write(f"{part} …\n")
            PARTS[part](bench)
    load = round(before, 2), round(os.getloadavg()[0], 2)
    results.machine = msgspec.structs.replace(described, load=load)
    return results


def write(results: Results, folder: Path) -> None:
    """Figures, tables and picture."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(as_json(results))
    (folder / "results.md").write_text(report.markdown(results) + "\n![](results.png)\n")
    plot.draw(results, folder / "results.png")


def as_json(results: Results) -> str:
    """For people, too: a series of numbers is one line."""
    text = msgspec.json.format(msgspec.json.encode(results), indent=1).decode()
    return re.sub(r"\[[\d.,\s]*\]", lambda series: re.sub(r"\s+", " ", series[0]), text) + "\n"


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
