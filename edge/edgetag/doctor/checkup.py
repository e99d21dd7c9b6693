"""All checks, one after the other.

```
configuration ─┬─ password ──────────────────────┐
               ├─ bundle                         │
               ├─ audio device                   │
               ├─ outbox                         │
               └─ DNS ── TCP ── TLS ── MQTT login ┴─ publish and receive
clock
```
What needs something that failed is skipped. A running sensor goes on, and nothing of its own is changed.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import msgspec

from edgetag.capture.stderr import stderr_silenced
from edgetag.contract.errors import BundleError, EdgetagError, InputError, NetworkError, OutputError
from edgetag.deadline import within
from edgetag.doctor import broker, sensor
from edgetag.doctor.bundle import bundle
from edgetag.doctor.finding import Case, Finding, Verdict, failed
from edgetag.doctor.microphone import audio_device
from edgetag.doctor.storage import outbox


class Report(msgspec.Struct, frozen=True):
    """What one check found: see `Finding`; and how long that took."""

    check: str
    verdict: Verdict
    finding: str
    remedy: str
    exit_code: int
    took_s: float


@dataclass(frozen=True)
class Check:
    """One thing to look at.

    needs: checks that must not have failed before.
    deadline_s: after that it has failed, and is left to itself.
    kind: of error that such a failure counts as.
    if_hangs: what to do then.
    is_network: it is made only with a broker.
    is_noisy: a library writes to stderr meanwhile.
    """

    name: str
    look: Callable[[Case], Finding]
    needs: tuple[str, ...]
    deadline_s: float
    kind: type[EdgetagError]
    if_hangs: str
    is_network: bool = False
    is_noisy: bool = False


_DISK = "does a disk, card or network drive hang? `dmesg` says so"
_WAY = "does the broker hang, or does something on the way drop packets?"

CHECKS = (
    Check("configuration", sensor.configuration, (), 10, InputError, _DISK),
    Check("password", sensor.password, ("configuration",), 10, InputError, _DISK, is_network=True),
    Check("bundle", bundle, ("configuration",), 300, BundleError, "a smaller bundle"),
    Check(
        "audio device",
        audio_device,
        ("configuration",),
        15,
        InputError,
        "does a sound server hang, or a driver? Restart the one, plug in the other again",
        is_noisy=True,
    ),
    Check("outbox", outbox, ("configuration",), 120, OutputError, _DISK),
    Check(
        "DNS",
        broker.dns,
        ("configuration",),
        20,
        NetworkError,
        "does the name server in /etc/resolv.conf answer?",
        is_network=True,
    ),
    Check("TCP", broker.tcp, ("DNS",), 30, NetworkError, _WAY, is_network=True),
    Check("TLS", broker.tls, ("TCP",), 30, NetworkError, _WAY, is_network=True),
    Check("MQTT login", broker.mqtt_login, ("password", "TLS"), 30, NetworkError, _WAY, is_network=True),
    Check(
        "publish and receive",
        broker.publish_and_receive,
        ("MQTT login",),
        30,
        NetworkError,
        _WAY,
        is_network=True,
    ),
    Check("clock", sensor.clock, (), 5, NetworkError, "`dmesg`"),
)
"""In the order in which they are made."""


def examine(case: Case, checks: Sequence[Check]) -> Iterator[Report]:
    """A report on each check, as soon as there is one.

    Raises:
        KeyboardInterrupt: at once, whatever hangs.
    """
    unfit: set[str] = set()  # failed, or skipped for one that had
    exit_code = 0
    for check in checks:
        started_s = time.monotonic()
        missing = [name for name in check.needs if name in unfit]
        finding = _not_made(check, case, missing) or _made(check, case, exit_code)
        if missing or finding.verdict == "failed":
            unfit.add(check.name)
        exit_code = exit_code or finding.exit_code
        yield Report(check.name, *finding, round(time.monotonic() - started_s, 3))


def _not_made(check: Check, case: Case, missing: list[str]) -> Finding | None:
    if missing:
        return Finding("skipped", f"needs {' and '.join(missing)}")
    if check.is_network and case.address is None:
        return Finding("skipped", "mqtt.url is null: events go to stdout")
    return None


def _made(check: Check, case: Case, exit_code: int) -> Finding:
    """What a check finds; `exit_code` is that of the first failure before it, if there was one."""
    code = exit_code or check.kind.exit_code
    # Silenced here, not in a thread that may never leave it.
    with stderr_silenced() if check.is_noisy else nullcontext():
        try:
            return within(check.deadline_s, lambda: check.look(case), exit_code=code)
        except TimeoutError:
            return failed(f"no answer within {check.deadline_s:g} s", check.if_hangs, check.kind)
