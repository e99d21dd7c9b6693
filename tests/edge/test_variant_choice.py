"""`runtime.variant: auto` and `edgetag bench`: the variant that is faster here, found once and kept."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from structlog.testing import capture_logs

from edgetag.contract.errors import BundleError, EdgetagError
from edgetag.contract.manifest import Variant
from edgetag.state import state_directory
from edgetag.tagging import choice, machine
from edgetag.tagging.choice import FINDINGS_NAME, MAX_FINDINGS, choose_variant, recall
from edgetag.tagging.machine import Machine, available_bytes, cpu_model, int8_instructions
from edgetag.tagging.measure import MIN_WINDOWS, Cost, Measurement, Window, faster, measure, summary
from fakes_bundle import edit_manifest, file_entry, write_bundle
from fakes_cli import run_python

BOTH: tuple[Variant, ...] = ("fp32", "int8")


def with_int8(path: Path, *, root_says: Sequence[float] | None = None) -> Path:
    """The bundle with its fp32 nets as int8 nets, too, of which the golden root says `root_says`."""
    manifest = yaml.safe_load((path / "bundle.yaml").read_text())
    stated = [manifest["root"], *manifest["branches"].values(), manifest.get("embedding", {"variants": {}})]
    for net in stated:
        if "fp32" in net["variants"]:
            file = path / net["variants"]["fp32"]["file"]
            copy = Path(shutil.copy(file, file.with_suffix(".int8.onnx")))
            net["variants"]["int8"] = file_entry(copy)
    with np.load(path / "golden.npz") as golden:
        arrays = dict(golden)
    arrays |= {name.replace("fp32", "int8"): array for name, array in arrays.items() if name != "pcm"}
    if root_says is not None:
        arrays["root_int8"] = np.float32([root_says])
    np.savez(path / "golden.npz", **arrays)
    golden_entry = file_entry(path / "golden.npz") | {"tolerance": {"fp32": 0.001, "int8": 0.001}}
    edit_manifest(path, **(manifest | {"golden": golden_entry}))
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return with_int8(write_bundle(tmp_path / "bundle", [0.9] + [0.1] * 36, {"1": [0.7, 0.1, 0.1, 0.1]}))


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def windows(*cpu_ms: float, branch_ms: float = 0.0) -> list[Window]:
    """Windows whose root costs so much."""
    branch = Cost(branch_ms, branch_ms)
    return [
        {"level": Cost(1, 1), "root": Cost(ms, ms), "branch-1": branch, "branch-2": branch} for ms in cpu_ms
    ]


class Stopwatch:
    """Measures what it is told, and counts how often."""

    def __init__(self, fp32: float = 1.0, int8: float = 1.0, unfit: dict[Variant, str] | None = None) -> None:
        costs: dict[Variant, float] = {"fp32": fp32, "int8": int8}
        self.unfit = unfit or {}
        self.windows = {v: windows(ms) for v, ms in costs.items() if v not in self.unfit}
        self.n = 0

    def __call__(self, *_: object, **__: object) -> Measurement:
        self.n += 1
        return Measurement(self.windows, self.unfit, 0)


def never(*_: object, **__: object) -> Measurement:
    raise AssertionError("nothing was to be measured")


# -- the choice ----------------------------------------------------------------------------------------------


def test_a_single_variant_needs_no_measurement(tmp_path: Path, state: Path) -> None:
    """And nothing is written."""
    bundle = write_bundle(tmp_path / "fp32", [0.1] * 37)
    assert choose_variant(bundle, state, measure=never) == "fp32"
    assert not state.exists()


@pytest.mark.parametrize("slow", BOTH)
def test_the_faster_variant_is_taken_and_kept(bundle: Path, state: Path, slow: Variant) -> None:
    """int8 is not faster everywhere. The next start measures nothing."""
    found = choose_variant(bundle, state, measure=Stopwatch(**{slow: 2.0}))
    assert found == ({"fp32", "int8"} - {slow}).pop()
    assert choose_variant(bundle, state, measure=never) == found


def test_the_finding_can_be_read_by_people(bundle: Path, state: Path) -> None:
    """Which bundle, where, when, by what figures: one entry, several lines."""
    choose_variant(bundle, state, measure=Stopwatch(fp32=2.0))
    text = (state / FINDINGS_NAME).read_text()
    (finding,) = json.loads(text)["findings"]
    assert finding["bundle"] == "constant"
    assert finding["faster"] == "int8"
    assert finding["machine"]["threads"] == 1
    assert finding["costs"]["fp32"]["quiet window"]["cpu_ms"] == 3.0
    assert len(text.splitlines()) > 10
    assert (state / FINDINGS_NAME).stat().st_mode & 0o777 == 0o644


def another(**changes: object) -> Callable[[int], Machine]:
    known: dict[str, Any] = {"cpu": "Z80", "architecture": "x86_64", "instructions": [], "onnxruntime": "1"}
    return lambda threads: Machine(**(known | changes), threads=threads)


@pytest.mark.parametrize(
    "changes", [{"cpu": "6502"}, {"architecture": "arm"}, {"instructions": ["avx2"]}, {"onnxruntime": "2"}]
)
def test_another_machine_is_measured_anew(
    bundle: Path, state: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Another processor, one of the same name with other instructions, another runtime; both are kept."""
    monkeypatch.setattr(choice, "this_machine", another())
    choose_variant(bundle, state, measure=Stopwatch(fp32=2.0))
    monkeypatch.setattr(choice, "this_machine", another(**changes))
    assert choose_variant(bundle, state, measure=Stopwatch(int8=2.0)) == "fp32"
    monkeypatch.setattr(choice, "this_machine", another())
    assert choose_variant(bundle, state, measure=never) == "int8"


def test_other_threads_and_other_bundles_are_measured_anew(bundle: Path, state: Path) -> None:
    """None takes another's place."""
    choose_variant(bundle, state, measure=Stopwatch(fp32=2.0))
    assert choose_variant(bundle, state, threads=2, measure=Stopwatch(int8=2.0)) == "fp32"
    edit_manifest(bundle, version="2")
    assert choose_variant(bundle, state, measure=Stopwatch(int8=2.0)) == "fp32"
    edit_manifest(bundle, version="1")
    assert choose_variant(bundle, state, measure=never) == "int8"
    assert len(recall(state)) == 3


def test_the_last_findings_are_kept(bundle: Path, state: Path) -> None:
    """A bounded number; the oldest goes."""
    for version in range(MAX_FINDINGS + 1):
        edit_manifest(bundle, version=str(version))
        choose_variant(bundle, state, measure=Stopwatch(int8=2.0))
    assert len(recall(state)) == MAX_FINDINGS
    assert choose_variant(bundle, state, measure=never) == "fp32"
    edit_manifest(bundle, version="0")
    assert choose_variant(bundle, state, measure=Stopwatch()) == "int8"


def finding_of(variant: object) -> Callable[[Path], object]:
    """Says another variant, of everything."""

    def damage(file: Path) -> None:
        kept = json.loads(file.read_text())
        kept["findings"][0]["faster"] = variant
        file.write_text(json.dumps(kept))

    return damage


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda f: f.write_bytes(b""),
    "torn": lambda f: f.write_bytes(f.read_bytes()[:100]),
    "binary": lambda f: f.write_bytes(b"\xff\x00\xfe"),
    "null": lambda f: f.write_text("null"),
    "of another format": lambda f: f.write_text('{"format":"edgetag.bench/2","findings":[]}'),
    "nested without end": lambda f: f.write_text("[" * 100_000),
    "too long": lambda f: f.write_text(" " * 2**20 + f.read_text()),
    "of no variant": finding_of("int4"),
    "of a number": finding_of(8),
    "a folder": lambda f: (f.unlink(), f.mkdir()),
    "a pipe": lambda f: (f.unlink(), os.mkfifo(f)),
    "a link to nowhere": lambda f: (f.unlink(), f.symlink_to("nowhere")),
    "gone": lambda f: f.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_finding_is_measured_anew(
    bundle: Path, state: Path, damage: Callable[[Path], object]
) -> None:
    """Never an error, never a wait; the file is whole again afterwards, unless it is a folder."""
    choose_variant(bundle, state, measure=Stopwatch(fp32=2.0))
    damage(state / FINDINGS_NAME)
    with capture_logs():
        assert choose_variant(bundle, state, measure=Stopwatch(int8=2.0)) == "fp32"
    if not (state / FINDINGS_NAME).is_dir():
        assert choose_variant(bundle, state, measure=never) == "fp32"
    assert len(list(state.iterdir())) == 1


def test_a_state_directory_that_cannot_be_written_is_one_warning(bundle: Path, tmp_path: Path) -> None:
    """What was measured is used."""
    (tmp_path / "file").write_text("")
    with capture_logs() as logs:
        variant = choose_variant(bundle, tmp_path / "file" / "state", measure=Stopwatch(int8=2.0))
    assert variant == "fp32"
    (warning,) = [entry for entry in logs if entry["log_level"] == "warning"]
    assert FINDINGS_NAME in warning["file"]


@pytest.mark.parametrize("unfit", BOTH)
def test_a_variant_that_does_not_run_here_is_not_taken(bundle: Path, state: Path, unfit: Variant) -> None:
    """Nor is that kept: a damaged file may be whole again at the next start."""
    with capture_logs() as logs:
        found = choose_variant(bundle, state, measure=Stopwatch(unfit={unfit: "root differs by 0.4"}))
    assert found != unfit
    assert [entry["event"] for entry in logs] == ["bench.unfit"]
    assert recall(state) == []


def test_what_cannot_be_measured_is_int8(bundle: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both variants unfit (whoever loads it is told why), a measurement killed, too little memory for one."""

    def killed(*_: object, **__: object) -> Measurement:
        raise EdgetagError("died")

    with capture_logs() as logs:
        assert choose_variant(bundle, state, measure=Stopwatch(unfit={"fp32": "", "int8": ""})) == "int8"
        assert choose_variant(bundle, state, measure=killed) == "int8"
        monkeypatch.setattr(choice, "available_bytes", lambda: 100_000_000)
        assert choose_variant(bundle, state, measure=never) == "int8"
    assert [entry["event"] for entry in logs] == ["bench.unfit"] * 2 + ["bench.failed", "bench.skipped"]
    assert recall(state) == []


def test_a_bundle_that_is_none_is_refused(tmp_path: Path, state: Path) -> None:
    """Before anything is measured."""
    with pytest.raises(BundleError, match=r"bundle\.yaml is missing"):
        choose_variant(tmp_path, state, measure=never)


# -- the decision --------------------------------------------------------------------------------------------


def test_a_tie_is_int8() -> None:
    """Within 3 %, or within what the ratios themselves scatter by; beyond both it is fp32."""
    fp32 = windows(*[100.0] * 7)
    assert faster({"fp32": fp32, "int8": windows(*[102.0] * 7)}) == "int8"
    assert faster({"fp32": fp32, "int8": windows(*[104.0] * 7)}) == "fp32"
    assert faster({"fp32": fp32, "int8": windows(60, 70, 80, 110, 140, 150, 160)}) == "int8"


def test_one_disturbed_window_decides_nothing() -> None:
    """Nor does a machine that gets slower and slower: the variants are compared side by side."""
    slower = [10.0 * k for k in range(1, 8)]
    assert faster({"fp32": windows(*slower), "int8": windows(*[1.2 * ms for ms in slower])}) == "fp32"
    assert faster({"fp32": windows(*slower), "int8": windows(*[0.8 * ms for ms in slower])}) == "int8"
    disturbed = [9.0, 9.1, 9.0, 5000.0, 9.0]
    assert faster({"fp32": windows(*[10.0] * 5), "int8": windows(*disturbed)}) == "int8"


def test_a_third_of_the_branches_counts() -> None:
    """Here two: a root 10 ms faster is undone by branches 20 ms slower, not by branches 10 ms slower."""
    fp32 = windows(*[50.0] * 5)
    assert faster({"fp32": fp32, "int8": windows(*[40.0] * 5, branch_ms=10.0)}) == "int8"
    assert faster({"fp32": fp32, "int8": windows(*[40.0] * 5, branch_ms=20.0)}) == "fp32"


def test_a_summary_adds_up() -> None:
    """A quiet window has no branch, a busy one has all, a branch is their mean."""
    rows = summary(windows(10, 30, 20, branch_ms=4))
    assert {name: cost.cpu_ms for name, cost in rows.items()} == {
        "level": 1,
        "root": 20,
        "branch": 4,
        "quiet window": 21,
        "busy window": 29,
    }


# -- the measurement -----------------------------------------------------------------------------------------


def test_variants_are_measured_side_by_side(bundle: Path) -> None:
    """As many windows of each, step by step, in a process of its own."""
    found = measure(bundle, BOTH, threads=1, public_key=None, seconds=0)
    assert found.unfit == {}
    assert set(found.windows) == set(BOTH)
    for measured in found.windows.values():
        assert len(measured) == MIN_WINDOWS
        assert list(measured[0]) == ["windows", "level", "log-mel", "root", "branch-1", "event"]
        assert all(cost.wall_ms > 0 for window in measured for cost in window.values())


def test_an_embedding_is_measured(tmp_path: Path) -> None:
    """With its own front end, since only bundles with an embedding pay for that."""
    golden = [1 / (1 + np.exp(-np.log(0.01)))] * 37
    path = with_int8(write_bundle(tmp_path, [0.5] * 37, embedding=True, golden_root=golden))
    found = measure(path, BOTH, threads=2, public_key=None, seconds=0)
    steps = ["windows", "level", "log-mel", "embedding", "root", "event"]
    assert list(found.windows["int8"][0]) == steps


def test_a_variant_that_gives_other_probabilities_is_unfit(tmp_path: Path, state: Path) -> None:
    """As int8 does where its sums saturate; the other one is measured, and taken."""
    path = with_int8(write_bundle(tmp_path / "bundle", [0.1] * 37), root_says=[0.5] * 37)
    found = measure(path, BOTH, threads=1, public_key=None, seconds=0)
    assert list(found.windows) == ["fp32"]
    assert "root differs by 0.4" in found.unfit["int8"]
    with capture_logs():
        assert choose_variant(path, state) == "fp32"


@pytest.mark.parametrize("python", ["/bin/false", "/nowhere/python", "/bin/true"])
def test_a_measurement_that_dies_is_said_in_one_sentence(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, python: str
) -> None:
    """Killed, never started, or silent."""
    monkeypatch.setattr(sys, "executable", python)
    with pytest.raises(EdgetagError, match="could not be measured") as error:
        measure(bundle, BOTH, threads=1, public_key=None, seconds=0)
    assert "\n" not in str(error.value)


# -- the machine ---------------------------------------------------------------------------------------------


def test_arm_processors_have_no_name() -> None:
    """Board and cores stand for it; cores of two kinds both count, and without a board they are enough."""
    cores = "CPU implementer\t: 0x41\nCPU part\t: 0xd03\n\nCPU implementer\t: 0x41\nCPU part\t: 0xd09\n"
    assert cpu_model(cores, "") == "0x41 0xd03 0xd09"
    assert cpu_model(cores, "Khadas VIM3\0") == "Khadas VIM3 (0x41 0xd03 0xd09)"
    assert cpu_model("", "Khadas VIM3\0") == "Khadas VIM3"
    assert cpu_model("", "") == ""
    assert int8_instructions("Features\t: fp asimd aes asimddp\n") == ["asimd", "asimddp"]


def test_memory_is_the_machines_or_the_control_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever is less; unknown where nobody tells."""
    for name in "MEMINFO", "CGROUP", "CGROUPS":
        monkeypatch.setattr(machine, name, tmp_path / name)
    assert available_bytes() is None
    (tmp_path / "MEMINFO").write_text("MemTotal: 2 kB\nMemAvailable:    1000 kB\n")
    assert available_bytes() == 1_024_000
    (tmp_path / "CGROUP").write_text("0::/system.slice/edgetag.service\n")
    group = tmp_path / "CGROUPS" / "system.slice" / "edgetag.service"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("200000\n")
    (group / "memory.max").write_text("max\n")
    assert available_bytes() == 1_024_000
    (group / "memory.max").write_text("500000\n")
    assert available_bytes() == 300_000


def test_the_state_directory() -> None:
    """systemd's, the first if there are several; else the user's; there is one even without a home."""
    given = {"STATE_DIRECTORY": "/var/lib/edgetag:/var/lib/other", "XDG_STATE_HOME": "/x"}
    assert state_directory(given) == Path("/var/lib/edgetag")
    assert state_directory({"XDG_STATE_HOME": "/x"}) == Path("/x/edgetag")
    assert state_directory({"XDG_STATE_HOME": "x"}) == state_directory({})
    code = "from edgetag.state import state_directory; print(state_directory())"
    done = subprocess.run([sys.executable, "-c", code], env={}, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_absolute()


# -- edgetag bench -------------------------------------------------------------------------------------------


def bench(state: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`edgetag bench …` without the patience."""
    code = "import edgetag.bench_cli as b, edgetag.cli as c; b.SECONDS = 0; c.main()"
    return run_python("-c", code, "bench", *arguments, state=state)


def test_bench_tells_and_keeps_what_it_found(bundle: Path, state: Path) -> None:
    """Everything as JSON; `auto` goes by it."""
    done = bench(state, "--bundle", bundle, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["costs"]) == set(found["resident_mb"]) == set(BOTH)
    assert set(found["costs"]["int8"]) >= {"root", "branch", "quiet window", "busy window"}
    assert choose_variant(bundle, state, measure=never) == found["faster"]
    assert json.loads((state / FINDINGS_NAME).read_text())["findings"] == [found]


def test_bench_prints_a_table(tmp_path: Path, state: Path) -> None:
    """Of one variant, too, of which nothing needs to be kept."""
    done = bench(state, "--bundle", write_bundle(tmp_path / "fp32", [0.1] * 37))
    assert done.returncode == 0, done.stderr
    assert "onnxruntime" in done.stdout
    assert "quiet window" in done.stdout
    assert "fp32 is the only variant." in done.stdout
    assert not state.exists()


def test_bench_refuses_a_bad_bundle(bundle: Path, state: Path) -> None:
    """One sentence, exit code 3, whichever variant it is."""
    (bundle / "root.int8.onnx").write_bytes(b"no net")
    done = bench(state, "--bundle", bundle)
    assert done.returncode == 3
    assert "root.int8.onnx is truncated" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not state.exists()
