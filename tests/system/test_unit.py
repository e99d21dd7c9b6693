"""The systemd unit: what systemd's own judges say of it, what it promises, what it leaves to a daemon.

A real systemd runs it in `test_systemd`. Here the unit is read, and a daemon's life is traced beside it:

```
edgetag.service ─ SystemCallFilter=, RestrictAddressFamilies=, MemoryDenyWriteExecute=
                       ⊇
strace ─ edgetag run ─ every call of all its threads, libraries and children
```
"""

import re
import shutil
import signal
import subprocess
import time
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
import yaml

from edgetag.demo.scene import street_scene
from edgetag.listener import LOOKING_S, MARGIN
from fakes_cli import needs_root
from system.sensor import WAIT_S, Sensor
from system.sound_server import SoundServer, needs_sound_server
from system.trace import needs_strace

REPOSITORY = Path(__file__).parents[2]
SERVICE = REPOSITORY / "systemd" / "edgetag.service"
TIMER = REPOSITORY / "systemd" / "edgetag.timer"
SYSUSERS = REPOSITORY / "systemd" / "edgetag.sysusers.conf"
DEBIANS_UNITS = Path("/usr/lib/systemd/system")

HOP_S = 5.0  # where nobody configured another one
LONGEST_STOP_S = 5.0

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None or not DEBIANS_UNITS.is_dir(), reason="systemd is not installed"
)


def settings(unit: Path) -> dict[str, list[str]]:
    """All values of every setting, in order; no two sections of ours have one in common."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for line in unit.read_text().splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found[key].append(value)
    return dict(found)


@pytest.fixture(scope="module")
def service() -> dict[str, list[str]]:
    return settings(SERVICE)


def one(values: list[str]) -> str:
    (value,) = values
    return value


def seconds(values: list[str]) -> float:
    amount, unit = re.fullmatch(r"(\d+)(s|min)", one(values)).groups()  # type: ignore[union-attr]
    return int(amount) * {"s": 1, "min": 60}[unit]


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


# -- systemd's judges ------------------------------------------------------------------------------------


@pytest.fixture
def sensor_root(tmp_path: Path) -> Path:
    """A file system with Debian's units and ours, and, as empty files, the programs that ours start."""
    root = tmp_path / "root"
    shutil.copytree(DEBIANS_UNITS, root / "usr/lib/systemd/system", symlinks=True)
    (root / "lib").symlink_to("usr/lib")
    units = root / "etc/systemd/system"
    units.mkdir(parents=True)
    for unit in SERVICE, TIMER:
        shutil.copy(unit, units)
        for command in re.findall(r"^Exec\w+=([\w./]+)", unit.read_text(), re.MULTILINE):
            program = root / command.removeprefix("/")
            program.parent.mkdir(parents=True, exist_ok=True)
            program.touch(mode=0o755)
    return root


@needs_systemd
@pytest.mark.parametrize("unit", [SERVICE, TIMER], ids=lambda unit: unit.name)
def test_systemd_finds_no_fault_in_it(sensor_root: Path, unit: Path) -> None:
    """No unknown setting or value, no dependency that is missing or goes round: not a word."""
    assert analyze("verify", "--man=no", f"--root={sensor_root}", unit.name).stdout == ""


@needs_systemd
def test_systemd_would_say_what_is_wrong(sensor_root: Path) -> None:
    """The silence above means something."""
    with (sensor_root / "etc/systemd/system" / SERVICE.name).open("a") as unit:
        unit.write("\n[Service]\nRestrictTheatre=yes\n")
    (sensor_root / "opt/edgetag/current/bin/edgetag").unlink()
    said = analyze("verify", "--man=no", f"--root={sensor_root}", SERVICE.name).stdout
    assert "RestrictTheatre" in said
    assert "bin/edgetag is not executable" in said


@needs_systemd
def test_it_is_exposed_to_little() -> None:
    """1.5 of ten at most; what is above zero is explained in the unit."""
    judged = analyze("security", "--offline=true", "--threshold=15", SERVICE)
    assert judged.returncode == 0, judged.stdout


def test_no_setting_is_newer_than_debian_12(service: dict[str, list[str]]) -> None:
    """A systemd of version 252 would ignore it, and say so at every start."""
    newer = {
        *("RestartSteps", "RestartMaxDelaySec", "RestartMode", "ImportCredential", "MemoryPressureWatch"),
        *("PrivatePIDs", "ReloadSignal", "SetLoginEnvironment", "SurviveFinalKillSignal", "OpenFile"),
        *("MemoryZSwapMax", "RootEphemeral", "CoredumpReceive", "ProtectHostnameEx", "PrivateBPF"),
    }
    assert not newer & service.keys()
    assert one(service["Type"]) == "notify"  # notify-reload is of 253


# -- what it promises ------------------------------------------------------------------------------------


def test_it_is_where_the_installer_puts_things(service: dict[str, list[str]]) -> None:
    """Program, configuration, state, secrets; a secret that is not there is none."""
    program, command, *options = one(service["ExecStart"]).split()
    assert program == "/opt/edgetag/current/bin/edgetag"
    assert (command, options) == ("run", ["--config", "/etc/edgetag/edgetag.yaml"])
    assert service["StateDirectory"] == service["RuntimeDirectory"] == service["User"] == ["edgetag"]
    assert service["StateDirectoryMode"] == service["RuntimeDirectoryMode"] == ["0700"]
    assert "HOME=%t/edgetag" in service["Environment"]
    assert service["LoadCredential"] == ["edgetag.mqtt-password", "edgetag.mqtt-key"]
    assert service["WantedBy"] == ["multi-user.target"]


def test_it_reaches_no_device_but_alsa_s_and_makes_no_code(service: dict[str, list[str]]) -> None:
    """Whatever else is relaxed one day."""
    assert (service["DevicePolicy"], service["DeviceAllow"]) == (["closed"], ["char-alsa rw"])
    assert service["SupplementaryGroups"] == ["audio"]
    assert service["MemoryDenyWriteExecute"] == service["NoNewPrivileges"] == ["yes"]
    assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"] == [""]
    assert service["ProtectSystem"] == ["strict"]


def test_a_microphone_that_is_plugged_in_later_is_seen(service: dict[str, list[str]]) -> None:
    """Its own /dev has the host's /dev/snd; the module that makes that, and char-alsa, was loaded before."""
    assert (service["PrivateDevices"], service["BindPaths"]) == (["yes"], ["-/dev/snd"])
    module = "modprobe@snd_timer.service"
    assert module in service["Wants"]
    assert module in service["After"]
    assert "Requires" not in service
    assert "BindsTo" not in service


def test_audio_is_written_nowhere_by_the_system(service: dict[str, list[str]]) -> None:
    """Neither swapped out nor dumped."""
    assert (service["MemorySwapMax"], service["LimitCORE"]) == (["0"], ["0"])


def test_its_watchdog_has_more_patience_than_progress_takes(service: dict[str, list[str]]) -> None:
    """With the hop that nobody configured. Where another one takes longer the daemon asks for more."""
    watchdog_s = seconds(service["WatchdogSec"])
    assert watchdog_s > LOOKING_S == 50
    assert watchdog_s > 8 * HOP_S
    assert watchdog_s >= MARGIN * max(LOOKING_S, 8 * HOP_S)


def test_a_stop_has_the_time_it_takes(service: dict[str, list[str]]) -> None:
    assert seconds(service["TimeoutStopSec"]) > 2 * LONGEST_STOP_S


def test_what_fails_again_and_again_is_tried_less_often_and_never_given_up(
    service: dict[str, list[str]],
) -> None:
    """
    start  x x x x x ............ x x x x x ............ x      x: it fails at once
           10 s between them      the timer's, every five minutes
    """
    timer = settings(TIMER)
    restart_s, burst = seconds(service["RestartSec"]), int(one(service["StartLimitBurst"]))
    interval_s = seconds(service["StartLimitIntervalSec"])
    assert service["Restart"] == ["always"]
    assert burst * restart_s < interval_s < seconds(timer["OnUnitInactiveSec"])
    assert service["RestartPreventExitStatus"] == ["2"]
    assert TIMER.name in service["Wants"]
    assert timer["PartOf"] == [SERVICE.name]  # a stop stops both


def test_nothing_is_waited_for_that_may_never_come(service: dict[str, list[str]]) -> None:
    """A network that is up, a synchronised clock, a sound card."""
    after = {name for line in service["After"] for name in line.split()}
    assert {"time-set.target", "sound.target", "network.target"} <= after
    assert not {"network-online.target", "time-sync.target"} & after
    assert "network-online.target" not in service["Wants"]


@needs_systemd
@needs_root
def test_its_user_is_a_member_of_audio(tmp_path: Path) -> None:
    """And nobody's: no shell, no home on the disk."""
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "group").write_text("audio:x:29:\n")
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}", SYSUSERS], check=True, capture_output=True)
    name, _, _, _, _, home, shell = (etc / "passwd").read_text().strip().split(":")
    assert (name, home, shell) == ("edgetag", "/run/edgetag", "/usr/sbin/nologin")
    assert "audio:x:29:edgetag" in (etc / "group").read_text().splitlines()


# -- what a daemon needs ---------------------------------------------------------------------------------

REFUSED = {
    "mbind": "OpenBLAS would like its memory on this processor's node",
    "sched_setaffinity": "ONNX Runtime looks at one processor after the other",
    "sched_setscheduler": "a sound server's client wants the ordinary scheduler",
    "fchown": "SQLite gives files to the database's owner, if it is root that writes them",
}
"""Calls that a daemon makes, and that the unit refuses."""


@cache
def group(name: str) -> frozenset[str]:
    """System calls of a group, as systemd has it."""
    said = analyze("syscall-filter", name).stdout.splitlines()[1:]
    names = [line.strip() for line in said if line.strip() and not line.strip().startswith("#")]
    return frozenset().union(*(group(each) if each[0] == "@" else {each} for each in names))


def allowed(service: dict[str, list[str]]) -> set[str]:
    """System calls that pass the filter. @default's always do."""
    calls: set[str] = set(group("@default"))
    for line in service["SystemCallFilter"]:
        names = line.removeprefix("~").split()
        meant = set().union(*(group(name) if name[0] == "@" else {name} for name in names))
        calls = calls - meant if line[0] == "~" else calls | meant
    return calls


@needs_systemd
def test_the_clock_can_be_asked_and_not_be_set(service: dict[str, list[str]]) -> None:
    """`clock.synced` is the kernel's word. The C library takes either of two calls for adjtimex(3)."""
    assert service["ProtectClock"] == ["no"]
    assert {"adjtimex", "clock_adjtime"} <= allowed(service)
    assert not {"clock_settime", "settimeofday"} & allowed(service)
    assert service["CapabilityBoundingSet"] == [""]  # without CAP_SYS_TIME either only tells


class Life(list[str]):
    """Lines of strace, of a daemon that heard a street, read its settings anew and was stopped."""

    def calls(self) -> set[str]:
        return {match[1] for line in self if (match := re.match(r"\d+ +(?:<\.\.\. )?(\w+)[( ]", line))}

    def families(self) -> set[str]:
        return {match[1] for line in self if (match := re.search(r"\bsocket\((\w+)", line))}

    def made_code(self) -> list[str]:
        """Memory that is to be run and was, or can be, written."""
        return [
            line
            for line in self
            if re.search(r"\b(?:mmap|mprotect|pkey_mprotect|shmat)\(", line)
            and ("PROT_WRITE|PROT_EXEC" in line or ("PROT_EXEC" in line and "mprotect(" in line))
        ]


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    """Without a broker, with two threads for each net; what the unit refuses is refused."""
    folder = tmp_path_factory.mktemp("u")
    config, trace = folder / "edgetag.yaml", folder / "trace"
    config.write_text(yaml.safe_dump({"runtime": {"threads": 2}, "mqtt": {"url": "mqtt://localhost:1"}}))
    refusal = f"inject={','.join(REFUSED)}:error=EPERM"
    strace = ("strace", "-D", "-f", "-e", refusal, "-o", str(trace))
    with SoundServer(folder) as server:
        server.play(street_scene().samples, wait=False)
        options = ("--config", str(config), "--format", "json", "--hop", "1")
        with Sensor(folder / "sensor", server.environment(), *options, under=strace) as sensor:
            assert sensor.wait_for(lambda: sensor.messages("tags"), 2 * WAIT_S), sensor.logged
            sensor.process.send_signal(signal.SIGHUP)
            assert sensor.wait_for(lambda: any("bundle.replaced" in line.text for line in sensor.logged))
            code, _ = sensor.terminate()
            assert code == 0, sensor.logged
            assert not [line for line in sensor.logged if "[error" in line.text]
    last_word = f"{sensor.process.pid:<5} +++ exited with 0 +++\n"
    deadline_s = time.monotonic() + WAIT_S
    while not (text := trace.read_text(errors="replace")).endswith(last_word):
        assert time.monotonic() < deadline_s, "the trace does not end"
        time.sleep(0.1)
    return Life(text.splitlines())


@needs_systemd
@needs_strace
@needs_sound_server
def test_a_daemon_s_calls_pass_the_filter_or_are_not_missed(
    life: Life, service: dict[str, list[str]]
) -> None:
    """It has heard, published, changed its bundle and ended in good order while they were refused."""
    assert len(life.calls()) > 50
    assert life.calls() - allowed(service) <= REFUSED.keys()
    assert not REFUSED.keys() & allowed(service)
    assert service["SystemCallErrorNumber"] == ["EPERM"]


@needs_strace
@needs_sound_server
def test_a_daemon_speaks_no_other_protocols(life: Life, service: dict[str, list[str]]) -> None:
    """Names are resolved without asking the kernel by netlink."""
    assert life.families() <= set(one(service["RestrictAddressFamilies"]).split())
    assert {"AF_INET", "AF_UNIX"} <= life.families()


@needs_strace
@needs_sound_server
def test_a_daemon_makes_no_code(life: Life) -> None:
    """Neither ctypes nor cffi, PortAudio, NumPy or ONNX Runtime: MemoryDenyWriteExecute= costs nothing."""
    assert life.made_code() == []
