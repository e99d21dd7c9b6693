"""`runtime.variant: auto`: the variant that is faster on this machine, found once and kept.

int8 is not faster everywhere: without instructions for it, eight bits are multiplied by way of sixteen. So it
is measured, and `<state>/bench.json` keeps what was found, to be read by people, too. What does not fit any
more (another processor, bundle, runtime or number of threads, a damaged file) is measured anew.
"""

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import structlog

from edgetag.contract.errors import BundleError, EdgetagError
from edgetag.contract.event import timestamp
from edgetag.contract.manifest import Manifest, Variant
from edgetag.tagging.atomic import replacing
from edgetag.tagging.bundle import read_manifest
from edgetag.tagging.container import open_container, read_plain_file
from edgetag.tagging.machine import Machine, available_bytes, this_machine
from edgetag.tagging.measure import Cost, Measure, Measurement, faster, measure, summary

FINDINGS_NAME = "bench.json"
MAX_FINDINGS = 8
AUTO_S = 0.4
"""How long `auto` measures; with loading both variants about a second on a desktop."""

_MAX_FINDINGS_BYTES = 2**20
_PROCESS_BYTES = 200_000_000  # libraries, and what the nets' layers hand to each other
_BYTES_PER_FILE_BYTE = 3  # a net while it is loaded
_FAULTS = (OSError, ValueError, RecursionError, msgspec.MsgspecError)

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("edgetag.bench")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Which variant of a bundle is faster on a machine, and by what figures.

    Attributes:
        bundle, sha256: its name, and the hash of its manifest.
        machine: what it holds for.
        measured: when, UTC.
        windows: how many of each variant.
        faster: the variant; the only one, if the bundle has one.
        costs: by variant, what `edgetag.tagging.measure.summary` says.
        resident_mb: by variant, what the loaded bundle adds to a process; only `edgetag bench` measures it.
    """

    bundle: str
    sha256: str
    machine: Machine
    measured: str
    windows: int
    faster: Variant
    costs: dict[Variant, dict[str, Cost]]
    resident_mb: dict[Variant, float] = msgspec.field(default_factory=dict)


class _Findings(msgspec.Struct, frozen=True):
    format: Literal["edgetag.bench/1"]
    findings: Annotated[list[Finding], msgspec.Meta(max_length=MAX_FINDINGS)]  # the latest last


def choose_variant(
    bundle: Path,
    state: Path,
    *,
    threads: int = 1,
    public_key: Path | None = None,
    measure: Measure = measure,
) -> Variant:
    """The variant to load: the bundle's only one, or the faster one by what is known or measured now.

    A variant that is damaged or does not run correctly here is not taken; whoever loads the other one checks
    it. Where nothing can be measured it is int8, the smaller one. Neither is kept.

    Args:
        bundle: a folder or an archive.
        state: the directory of `bench.json`; if it cannot be written, that is logged.
        threads: of one net.
        public_key: whose signature it must bear.
        measure: how variants are measured.

    Raises:
        BundleError: its manifest is missing, unsigned, or none.
        InputError: the key cannot be used.
    """
    text, manifest = read_manifest(open_container(bundle), public_key)
    if len(manifest.variants) == 1:
        return manifest.variants[0]
    sha256, machine = hashlib.sha256(text).hexdigest(), this_machine(threads)
    for finding in recall(state):
        if (finding.sha256, finding.machine) == (sha256, machine) and finding.faster in manifest.variants:
            return finding.faster
    if not _fits(manifest):
        _log.warning("bench.skipped", reason="too little memory to load both variants", instead="int8")
        return "int8"
    try:
        measured = measure(bundle, manifest.variants, threads=threads, public_key=public_key, seconds=AUTO_S)
    except EdgetagError as error:
        _log.warning("bench.failed", reason=str(error), instead="int8")
        return "int8"
    for variant, reason in measured.unfit.items():
        _log.warning("bench.unfit", variant=variant, reason=reason)
    if measured.unfit:
        return next(iter(measured.windows), "int8")
    finding = _finding(manifest, sha256, machine, measured)
    _log.info("bench.measured", bundle=finding.bundle, faster=finding.faster, machine=str(machine))
    keep(state, finding)
    return finding.faster


def bench(bundle: Path, *, threads: int, public_key: Path | None, seconds: float) -> Finding:
    """Measure all variants of a bundle, thoroughly.

    Raises:
        BundleError: it is damaged, unsigned, or does not run correctly here.
        InputError: the key cannot be used.
        EdgetagError: the measuring process failed.
    """
    text, manifest = read_manifest(open_container(bundle), public_key)

    def measured(variants: Sequence[Variant], seconds: float) -> Measurement:
        found = measure(bundle, variants, threads=threads, public_key=public_key, seconds=seconds)
        for reason in found.unfit.values():
            raise BundleError(reason)
        return found

    alone = {variant: measured([variant], 0).resident_bytes for variant in manifest.variants}
    together = measured(manifest.variants, seconds)
    return _finding(
        manifest,
        hashlib.sha256(text).hexdigest(),
        this_machine(threads),
        together,
        {variant: round(n / 1e6, 1) for variant, n in alone.items()},
    )


def recall(state: Path) -> list[Finding]:
    """What is kept, the latest last; nothing where the file is missing, damaged or unreadable."""
    try:
        text = read_plain_file(state / FINDINGS_NAME, _MAX_FINDINGS_BYTES)
        return msgspec.json.decode(text, type=_Findings).findings
    except _FAULTS:
        return []


def keep(state: Path, finding: Finding) -> None:
    """Keep a finding in place of an older one of the same bundle and machine. If it cannot be, log it."""
    others = [f for f in recall(state) if (f.sha256, f.machine) != (finding.sha256, finding.machine)]
    findings = _Findings("edgetag.bench/1", [*others, finding][-MAX_FINDINGS:])
    try:
        state.mkdir(parents=True, exist_ok=True)
        with replacing(state / FINDINGS_NAME) as stream:
            os.fchmod(stream.fileno(), 0o644)
            stream.write(msgspec.json.format(msgspec.json.encode(findings)) + b"\n")
    except OSError as error:
        _log.warning("bench.not_kept", file=str(state / FINDINGS_NAME), reason=error.strerror or str(error))


def _finding(
    manifest: Manifest,
    sha256: str,
    machine: Machine,
    measured: Measurement,
    resident_mb: dict[Variant, float] | None = None,
) -> Finding:
    return Finding(
        bundle=manifest.name,
        sha256=sha256,
        machine=machine,
        measured=timestamp(time.time()),
        windows=len(next(iter(measured.windows.values()))),
        faster=faster(measured.windows),
        costs={variant: summary(windows) for variant, windows in measured.windows.items()},
        resident_mb=resident_mb or {},
    )


def _fits(manifest: Manifest) -> bool:
    """Whether there is memory for the nets of all variants at once, beside the process that measures them."""
    available = available_bytes()
    needed = _PROCESS_BYTES + _BYTES_PER_FILE_BYTE * sum(file.size for file in manifest.files.values())
    return available is None or needed <= available
