"""edgetag.service on a real systemd: what it promises, and what becomes of bad input.

Run by `make test-system`, as root; a plain `make test` leaves these tests out. One machine (see `machine`) is
installed from the archive, as a person would, and lives through all the stories in order; each begins with a
sensor that hears and publishes, and mends what it spoilt. A line is printed for every claim.

```
street ─> edgetag.service ─> outbox ─> broker ─> reader      what is asserted is what the reader has heard,
                 └ systemd, journal                          what systemd shows, and what the journal says
```
"""

import platform
import subprocess
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgspec
import pytest
import soundfile

from edgetag.contract.frontend import SAMPLE_RATE_HZ, WINDOW_S
from edgetag.demo.scene import SCRIPT_S, street_scene
from system.lamp_post import BROKER
from system.machine import missing
from system.recording import LEVEL_TOLERANCE_DB, TOLERANCE, Recording
from system.sensor import utc_s
from system.service import CONFIGURATION, STARTING_S, STATE_DIRECTORY, UNIT, Number, Service, lamp

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(900),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the archive that is built is for amd64"),
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]

HOP_S = 5.0
PROMPT_S = 6.0  # what is to happen within five seconds, on a machine that does other things, too
RESTART_S = 10.0  # the unit's RestartSec=
WATCHDOG_S = 120.0  # its WatchdogSec=


def say(claim: str) -> None:
    print(f"\nsystemd: {claim}", end="")  # noqa: T201


@pytest.fixture(scope="module")
def installed() -> Iterator[Service]:
    with lamp() as service:
        done = service.install_here()
        assert done.returncode in (0, 5), (
            done.stdout
        )  # 5: the doctor found something, a clock that nobody sets
        yield service


@pytest.fixture
def service(installed: Service) -> Service:
    """It hears and publishes."""
    installed.mend()
    return installed


# -- what it does ------------------------------------------------------------------------------------------


def test_it_is_ready_when_the_first_window_has_been_tagged(service: Service) -> None:
    """`systemctl start` waits for ten seconds of audio, and for no more than that.

    systemd    activating ───────────────────────────── active
    windows    [------------ the first ------------]
    """
    service.systemctl("stop")
    since_s = time.time()
    with subprocess.Popen(service.machine.inside("systemctl", "start", UNIT)) as starting:
        states = set()
        while starting.poll() is None:
            states.add((service.show("ActiveState"), bool(service.post.heard("tags", since_s))))
            time.sleep(0.1)
        ready_s = time.time()
    (first, *_) = service.wait_for_tags(since_s)
    assert ("activating", False) in states
    assert ("active", False) not in states
    assert utc_s(first["end"]) < ready_s
    assert service.show("StatusText") == "online: hearing"
    say(f"READY after the first window; `systemctl start` took {ready_s - since_s:.1f} s, ten of them audio")


def test_it_tags_what_is_played(service: Service) -> None:
    """In the sandbox, by ALSA, from one place in the recording on: every window, as the installed
    `edgetag replay` tags that recording from there.
    """
    info = service.post.heard("info")[-1].message
    boot = service.post.heard("status")[-1].message["boot_id"]
    service.machine.wait_until(lambda: len(of_boot(service, boot)) >= 5, "five windows")
    events = of_boot(service, boot)[:5]
    street = Recording(street_scene().samples, info["variant"])
    start_s = street.where(events, HOP_S, near_s=SCRIPT_S / 2, within_s=SCRIPT_S / 2)
    n_samples = round((WINDOW_S + (len(events) - 1) * HOP_S) * SAMPLE_RATE_HZ)
    played = service.machine.root / "root/played.wav"
    soundfile.write(played, street.window(start_s, n_samples), SAMPLE_RATE_HZ, subtype="PCM_16")
    options = ("--hop", f"{HOP_S:g}", "--variant", info["variant"], "--format", "json")
    replayed = service.machine.run("edgetag", "replay", "/root/played.wav", *options).splitlines()
    expected = [event for event in map(msgspec.json.decode, replayed) if event["schema"] == "edgetag.tags/1"]
    differences = [differs(one, other) for one, other in zip(events, expected, strict=True)]
    of_tags, of_levels_db = (max(column) for column in zip(*differences, strict=True))
    say(f"five windows differ from `edgetag replay` by {of_tags:.1e} in tags, {of_levels_db:.2f} dB in level")
    assert {event["verdict"] for event in events} == {"tagged"}
    assert {(event["audio"]["valid"], event["audio"]["overruns"]) for event in events} == {(1.0, 0)}
    assert {event["model"] for event in events} == {event["model"] for event in expected}
    assert any(event["active"] for event in events)
    assert of_tags < TOLERANCE
    assert of_levels_db < LEVEL_TOLERANCE_DB


def of_boot(service: Service, boot: str) -> list[dict[str, Any]]:
    """All the windows of one boot that have been heard of, without repetitions."""
    events = (heard.message for heard in service.post.heard("tags"))
    return list({event["seq"]: event for event in events if event["boot"] == boot}.values())


def differs(one: dict[str, Any], other: dict[str, Any]) -> tuple[float, float]:
    """Two events' largest difference of a probability, and of a level in dB."""
    tags, others = (event["coarse"] | event["fine"] for event in (one, other))
    assert tags.keys() == others.keys()
    levels, other_levels = one["level"], other["level"]
    decibels = ("laeq_db", "lafmax_db", "la10_db", "la90_db")
    return (
        max(abs(tags[id] - others[id]) for id in tags),
        max(abs(levels[name] - other_levels[name]) for name in decibels),
    )


def test_its_events_say_of_the_clock_what_the_kernel_says(service: Service) -> None:
    """systemd asks the kernel, too; it is the judge."""
    word = service.machine.run("timedatectl", "show", "--property=NTPSynchronized", "--value")
    events = service.wait_for_tags(time.time() - 60)
    assert {event["clock"]["synced"] for event in events} == {word == "yes"}
    say(f"clock.synced is {word}, as timedatectl says")


# -- the sandbox -------------------------------------------------------------------------------------------


def test_the_live_unit_is_as_closed_as_the_file_promises(service: Service) -> None:
    """1.5 or better, drop-ins and defaults of this systemd included."""
    said = service.machine.run("systemd-analyze", "security", "--no-pager", UNIT).splitlines()[-1]
    exposure = float(said.split(":")[1].split()[0])
    say(f"systemd-analyze security says {exposure:g} of the live unit")
    assert exposure <= 1.5


def test_the_process_has_no_rights(service: Service) -> None:
    """No capability, none to be had, a filter of system calls; audio is the only other group."""
    pid = service.show("MainPID")
    status = dict(
        line.split(":", 1)
        for line in service.machine.run("cat", f"/proc/{pid}/status").replace("\t", " ").splitlines()
    )
    groups = {service.machine.run("getent", "group", name).split(":")[2] for name in ("edgetag", "audio")}
    assert {int(status[f"Cap{which}"], 16) for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")
    assert set(status["Groups"].split()) == groups
    assert status["Uid"].split() == [service.machine.run("id", "--user", "edgetag")] * 4
    say("the live process has no capability, no new privileges, a system-call filter, and the group audio")


ATTEMPTS = {
    "open('/etc/edgetag/edgetag.yaml')": "",
    "open('/etc/edgetag/edgetag.yaml', 'a')": "Permission denied",
    "open('/usr/bin/x', 'w')": "Read-only file system",
    "open('/var/lib/x', 'w')": "Read-only file system",
    "open('/var/lib/edgetag/x', 'w')": "",
    "open('/run/edgetag/x', 'w')": "",
    "open('/etc/credstore/edgetag.mqtt-password')": "Permission denied",
    "open(os.environ['CREDENTIALS_DIRECTORY'] + '/edgetag.mqtt-password')": "",
    "open('/dev/tty')": "No such device or address",
    "os.listdir('/home')": "Permission denied",
    "os.listdir('/root')": "Permission denied",
    "os.listdir('/proc/1')": "No such file or directory",
    "os.setuid(0)": "Operation not permitted",
    "os.mknod('/tmp/x', 0o20666, os.makedev(1, 5))": "Operation not permitted",
    "os.execv(shutil.copy('/bin/true', '/var/lib/edgetag/x'), ['x'])": "Permission denied",
    "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))": "Operation not permitted",
    "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)": "Address family not supported by protocol",
    "time.clock_settime(time.CLOCK_REALTIME, 0)": "Operation not permitted",
    "mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)": "Operation not permitted",
}
"""What the unit's process tries, and what stops it; nothing stops what it must do."""


def test_the_unit_can_do_what_it_must_and_nothing_else(service: Service) -> None:
    """Another program, started as edgetag is: the same unit, its sandbox, its user."""
    script = service.machine.root / "usr/local/share/attempts.py"
    script.write_text(
        "import json, mmap, os, shutil, socket, time\n"
        "def attempt(code):\n"
        "    try:\n"
        "        eval(code)\n"
        "    except OSError as error:\n"
        "        return error.strerror\n"
        "    return ''\n"
        f"print(json.dumps({{code: attempt(code) for code in {list(ATTEMPTS)}}}))\n"
    )
    start = "ExecStart=\nExecStart=/usr/bin/python3 /usr/local/share/attempts.py\n"
    service.drop_in(f"[Service]\nType=oneshot\nRestart=no\n{start}")
    since_s = time.time()
    service.machine.run("systemctl", "restart", UNIT)
    found = msgspec.json.decode(service.said(since_s)[-1])
    for code, error in found.items():
        say(f"{code}: {error or 'is done'}")
    assert found == ATTEMPTS


def test_no_memory_of_the_process_is_writable_and_executable(service: Service) -> None:
    maps = service.machine.run("cat", f"/proc/{service.show('MainPID')}/maps").splitlines()
    assert not [line for line in maps if "wx" in line.split()[1]]
    say(f"none of the live process's {len(maps)} pieces of memory is writable and executable")


def test_devices_that_are_no_sound_cards_are_closed_even_to_root(service: Service) -> None:
    """DevicePolicy=closed is the kernel's, for whoever is in the service's control group: who can open the
    kernel's log elsewhere cannot there.
    """
    service.spoil("mknod", "/dev/log-of-the-kernel", "c", "1", "11", remedy=("rm", "/dev/log-of-the-kernel"))
    group = f"/sys/fs/cgroup{service.show('ControlGroup')}"
    attempt = ": >/dev/log-of-the-kernel"
    assert service.machine.call("sh", "-c", attempt).returncode == 0
    done = service.machine.call("sh", "-c", f"echo $$ >{group}/cgroup.procs; {attempt}")
    assert done.returncode != 0
    assert "Operation not permitted" in done.stdout
    say("a device that is no sound card is closed, even to root among the service's processes")


# -- its life ----------------------------------------------------------------------------------------------


def test_it_ends_in_good_order(service: Service) -> None:
    """`systemctl stop`: within five seconds, with success; the broker has it as stopped."""
    since_s = time.time()
    assert service.systemctl("stop").returncode == 0
    took_s = time.time() - since_s
    assert took_s < 5
    assert (service.show("Result"), service.show("ExecMainStatus")) == ("success", "0")
    service.wait_for_state("offline", since_s)
    assert service.post.retained("status")["reason"] == "stopped"
    assert service.show("ActiveState") == "inactive"
    say(f"`systemctl stop` took {took_s:.1f} s; the retained status is offline, stopped")


def test_it_takes_settings_without_a_restart(service: Service) -> None:
    pid, since_s = service.show("MainPID"), time.time()
    service.configure(service.configuration() + "level: {calibration_db: 94}\n")
    assert service.systemctl("reload").returncode == 0
    service.machine.wait_until(
        lambda: any(h.message["level"]["calibrated"] for h in service.post.heard("tags", since_s)),
        "calibrated",
    )
    assert service.show("MainPID") == pid
    assert service.show("ActiveState") == "active"
    say("`systemctl reload`: levels are calibrated, the process is the same")


def test_who_is_killed_comes_back_and_loses_nothing(service: Service) -> None:
    """All windows that were in the outbox arrive, in order; the next process begins at 0.

    broker     ~~~~~~~~ away ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~
    process    …4 5 6 7 | kill -9 |        0 1 2 …
    reader                                               … 4 5 6 7 0 1 2
    """
    service.machine.run("systemctl", "stop", "mosquitto")
    service.machine.wait_until(lambda: len(service.waiting()) >= 3, "three windows wait")
    since_s = time.time()
    service.systemctl("kill", "--signal=KILL")
    service.machine.wait_until(lambda: service.restarts(since_s) == 1, "restarted")
    service.wait_for("active")
    stored = service.waiting()
    back_s = time.time()
    service.machine.run("systemctl", "start", "mosquitto")
    events = service.wait_for_tags(back_s, n=len(stored) + 1)
    assert in_order(numbers(events))[: len(stored)] == stored
    assert len({event["boot"] for event in events}) == 2
    assert all(event["late"] for event in events if event["boot"] == stored[0].boot)
    assert is_whole(of_boot(service, stored[0].boot))
    assert service.restarts(since_s) == 1
    took_s = utc_s(events[-1]["start"]) - since_s
    assert took_s > RESTART_S
    say(f"kill -9: restarted as another boot, {len(stored)} windows that waited have arrived, in order")


def numbers(events: list[dict[str, Any]]) -> list[Number]:
    return [Number(event["boot"], event["seq"]) for event in events]


def in_order(events: list[Number]) -> list[Number]:
    """The same, without repetitions; within a boot each follows the one before."""
    once = list(dict.fromkeys(events))
    for before, after in pairwise(once):
        assert after == (before.boot, before.seq + 1) or (after.boot > before.boot and after.seq == 0)
    return once


def is_whole(events: list[dict[str, Any]]) -> bool:
    """Whether these are a boot's windows from its first on, none missing, in order."""
    return [event["seq"] for event in events] == list(range(len(events)))


def test_a_microphone_that_is_pulled_out_restarts_nothing(service: Service) -> None:
    since_s, pid = time.time(), service.show("MainPID")
    service.post.pull_out()
    lost = service.wait_for_state("no_audio", since_s)
    service.post.plug_in()
    service.wait_for_state("online", since_s)
    assert (service.show("MainPID"), service.restarts(since_s)) == (pid, 0)
    say(f"without a microphone it waits ({lost['reason']}), and hears again: the same process")


def test_the_watchdog_ends_a_capture_that_hangs(service: Service) -> None:
    """The sensor says so at once; systemd has patience for two minutes; what comes after hears."""
    since_s = time.time()
    service.post.hang()
    service.wait_for_state("no_audio", since_s, within_s=PROMPT_S)
    service.machine.wait_until(lambda: service.restarts(since_s) == 1, "restarted", WATCHDOG_S + 60)
    took_s = time.time() - since_s
    service.post.go_on()
    journal = service.machine.journal(UNIT, since_s)
    assert any("Watchdog timeout" in line for line in journal)
    assert any("microphone.py" in line or "portaudio.py" in line for line in service.said(since_s))
    service.wait_for("active")
    service.wait_for_state("online", since_s + took_s)
    assert service.restarts(since_s) == 1
    say(f"a capture that hangs: told within five seconds, restarted after {took_s:.0f} s, and it hears again")


def test_the_watchdog_has_the_patience_that_the_hop_needs(service: Service) -> None:
    """Half as long again as eight hops. That is less than the unit's two minutes, unless a hop is long."""
    assert service.show("WatchdogUSec") == "2min"
    service.configure(service.configuration() + "window: {hop_s: 20}\n")
    service.start_anew()
    service.wait_for("active")
    patience = service.show("WatchdogUSec")
    say(f"with windows every 20 s the watchdog waits {patience}")
    assert patience == "4min"


def test_what_crashes_again_and_again_is_tried_at_leisure(service: Service) -> None:
    """Five times, then by the timer only; whoever stops it stops that, too. The times here are shorter.

    starts   |||||              |||||              |||||      | systemctl stop
             burst   the timer's five minutes
    """
    service.systemctl("stop")
    since_s = time.time()
    service.drop_in(
        "[Unit]\nStartLimitIntervalSec=4s\n"
        "[Service]\nRestartSec=200ms\nExecStart=\nExecStart=/bin/sh -c 'kill -SEGV $$$$'\n",
        timer="[Timer]\nOnUnitInactiveSec=\nOnUnitInactiveSec=6s\nAccuracySec=100ms\n",
    )
    service.systemctl("start", "--no-block")
    service.wait_for("failed")
    assert service.starts(since_s) == 5
    assert service.show("Result") == "start-limit-hit" or service.show("SubState") == "failed"
    service.machine.wait_until(lambda: service.starts(since_s) > 5, "tried by the timer")
    service.wait_for("failed")
    service.systemctl("stop")
    before = service.starts(since_s)
    time.sleep(15)  # more than two of the timer's rounds
    assert service.starts(since_s) == before
    assert service.machine.show("edgetag.timer", "ActiveState") == "inactive"
    say("five crashes, then the timer's turn; after `systemctl stop` nothing starts it any more")


def test_a_reboot_takes_nothing_from_the_outbox(service: Service) -> None:
    """The broker is away before and after; then all arrives, in order, and what waited says so.

    broker    ~~~~~~~ away ~~~~~~~~~~~~~~~~~~~~~~~~~
    machine   ──────────────── reboot ──────────────────
    """
    machine = service.machine
    service.spoil(
        *("systemctl", "disable", "--now", "mosquitto"),
        remedy=("systemctl", "enable", "--now", "mosquitto"),
    )
    machine.wait_until(lambda: len(service.waiting()) >= 3, "three windows wait")
    machine.reboot()
    service.wait_for("active")
    machine.wait_until(lambda: len({number.boot for number in service.waiting()}) == 2, "both boots wait")
    stored, back_s = service.waiting(), time.time()
    machine.run("systemctl", "enable", "--now", "mosquitto")
    events = service.wait_for_tags(back_s, n=len(stored) + 1)
    assert in_order(numbers(events))[: len(stored)] == stored
    assert all(event["late"] for event in events if event["boot"] == stored[0].boot)
    assert is_whole(of_boot(service, stored[0].boot))
    say(f"a reboot without a broker: {len(stored)} windows of two boots waited, and have arrived in order")


# -- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "spoil", "sentence"),
    [
        ("that nobody may read", ("chmod", "000"), "cannot be read"),
        ("that is root's alone", ("chown", "root:root"), "cannot be read"),
        ("that is no YAML", ("sh", "-c", 'echo "mqtt: [" >"$0"'), "edgetag.yaml"),
        ("with an unknown setting", ("sh", "-c", 'echo "level: {calibration: 3}" >"$0"'), "did you mean"),
        ("that is not there", ("rm",), "edgetag.yaml"),
    ],
)
def test_a_configuration_that_cannot_be_used_ends_it_at_once(
    installed: Service, what: str, spoil: tuple[str, ...], sentence: str
) -> None:
    """Exit code 2, one sentence, failed: only a person can change that."""
    installed.machine.run("cp", "--archive", "/root/edgetag.yaml", f"/{CONFIGURATION}")
    installed.machine.run(*spoil, f"/{CONFIGURATION}")
    since_s = installed.start_anew()
    installed.wait_for("failed")
    (line,) = installed.said(since_s)
    assert sentence in line
    assert installed.show("ExecMainStatus") == "2"
    say(f"a configuration {what}: failed at once. {line}")


def test_nobody_but_the_timer_tries_a_configuration_again(installed: Service) -> None:
    """Not systemd's Restart=, which would have by now. A person has changed it when the timer comes: it runs.

    systemd   failed ────────────────────── the timer ── activating ── active
    """
    installed.configure("mqtt: [\n")
    installed.drop_in("", timer="[Timer]\nOnUnitInactiveSec=\nOnUnitInactiveSec=20s\nAccuracySec=100ms\n")
    since_s = installed.start_anew()
    installed.wait_for("failed")
    time.sleep(1.5 * RESTART_S)
    assert (installed.show("ActiveState"), installed.starts(since_s)) == ("failed", 1)
    installed.configure(installed.configuration())
    installed.wait_for("active")
    assert (installed.restarts(since_s), installed.starts(since_s)) == (0, 2)
    say("a configuration that was mended: the timer finds it, nobody has to start anything")


def test_a_credential_that_is_not_there_ends_it_at_once(service: Service) -> None:
    """As bad as a configuration: it asks for a password that nobody handed over."""
    credential, away = "/etc/credstore/edgetag.mqtt-password", "/root/edgetag.mqtt-password"
    service.spoil("mv", credential, away, remedy=("mv", away, credential))
    since_s = service.start_anew()
    service.wait_for("failed")
    (line,) = service.said(since_s)
    assert "mqtt.password_credential names none of the credentials" in line
    assert (service.show("ExecMainStatus"), service.restarts(since_s)) == ("2", 0)
    say(f"without its credential: failed at once. {line}")


def test_who_is_not_in_the_group_audio_is_told_that_there_is_nothing_to_hear(service: Service) -> None:
    """The service runs and waits."""
    join = ("gpasswd", "--add", "edgetag", "audio")
    service.spoil("gpasswd", "--delete", "edgetag", "audio", remedy=join)
    service.drop_in("[Service]\nSupplementaryGroups=\n")
    since_s = service.start_anew()
    service.wait_for("active")
    service.machine.wait_until(lambda: "no input device" in service.post.state()[1], "told")
    assert (service.post.state()[0], service.restarts(since_s)) == ("no_audio", 0)
    (line,) = (line for line in service.said(since_s) if "no input device" in line)
    say(f"without the group audio: active and no_audio. {line}")


def test_a_boot_without_a_microphone_is_no_failure(service: Service) -> None:
    """systemd does not wait for one; when it comes, it is heard."""
    service.spoil("systemctl", "disable", "microphone", remedy=("systemctl", "enable", "--now", "microphone"))
    since_s = time.time()
    service.machine.reboot()
    service.wait_for("active")
    service.machine.wait_until(lambda: "no input device" in service.post.state()[1], "told")
    assert service.post.state()[0] == "no_audio"
    reason, plugged_s = service.post.state()[1], time.time()
    service.post.plug_in()
    service.wait_for_state("online", plugged_s)
    assert (service.show("ActiveState"), service.restarts(since_s)) == ("active", 0)
    assert any(reason in line for line in service.said(since_s))
    say(f"booted without a microphone: active and no_audio ({reason}), and online when there is one")


def test_an_outbox_that_is_somebody_elses_degrades_the_sensor(service: Service) -> None:
    """It hears and publishes; what is not acknowledged waits in memory."""
    service.systemctl("stop")
    outbox = f"/{STATE_DIRECTORY}/outbox.db"
    service.spoil("chown", "root:root", outbox, remedy=("chown", "edgetag:edgetag", outbox))
    since_s = service.start_anew()
    status = service.wait_for_state("degraded", since_s)
    service.wait_for_tags(since_s)
    assert "outbox cannot be written" in status["reason"]
    assert any("outbox.not_written" in line for line in service.said(since_s))
    assert (service.show("ActiveState"), service.restarts(since_s)) == ("active", 0)
    say(f"an outbox of root's: active and degraded, {status['reason']}")


def test_a_state_directory_that_is_somebody_elses_is_given_back(service: Service) -> None:
    """systemd does that before it starts the service, with everything in it."""
    service.systemctl("stop")
    service.machine.run("chown", "--recursive", "root:root", f"/{STATE_DIRECTORY}")
    since_s = service.start_anew()
    service.wait_for("active")
    service.wait_for_state("online", since_s)
    files = service.machine.run("find", f"/{STATE_DIRECTORY}", "-printf", "%u\n").split()
    assert set(files) == {"edgetag"}
    say("a state directory of root's is the service's again, and it is online")


def test_a_disk_that_is_full_at_boot_degrades_the_sensor(service: Service) -> None:
    """It hears and publishes; when there is room again, it writes again."""
    ballast, fstab = f"/{STATE_DIRECTORY}/ballast", "/etc/fstab"
    mount = f"echo tmpfs /{STATE_DIRECTORY} tmpfs size=64k 0 0 >{fstab}"
    away = f": >{fstab}; systemctl stop edgetag; umount /{STATE_DIRECTORY}"
    service.spoil("sh", "-c", mount, remedy=("sh", "-c", away))
    service.drop_in(f"[Service]\nExecStartPre=+/bin/sh -c 'cat /dev/zero >{ballast} || :'\n")
    since_s = time.time()
    service.machine.reboot()
    status = service.wait_for_state("degraded", since_s)
    service.wait_for_tags(since_s)
    assert "full" in status["reason"]
    assert any("outbox.not_written" in line for line in service.said(since_s))
    assert (service.show("ActiveState"), service.restarts(since_s)) == ("active", 0)
    freed_s = time.time()
    service.machine.run("rm", ballast)
    service.wait_for_state("online", freed_s, within_s=2 * STARTING_S)
    say(f"a disk that is full at boot: active and degraded, {status['reason']}; with room again, online")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("mqtts://localhost:1", "nothing listens at mqtts://localhost:1"),
        ("mqtts://192.0.2.1", "did not answer within 10 s"),
    ],
)
def test_a_broker_that_cannot_be_reached_costs_no_window(service: Service, url: str, sentence: str) -> None:
    """Ready as always; systemctl status and the journal say why; what was heard waits in the outbox."""
    mute = ("192.0.2.1", "dev", "lo")  # where nobody answers
    service.spoil("ip", "route", "add", *mute, remedy=("ip", "route", "delete", *mute))
    service.configure(service.configuration().replace(f"mqtts://{BROKER}", url))
    since_s = service.start_anew()
    service.wait_for("active")
    service.machine.wait_until(lambda: sentence in service.show("StatusText"), sentence)
    service.machine.wait_until(lambda: len(service.waiting()) >= 2, "two windows wait")
    stored = service.waiting()
    assert any("delivery.failed" in line and sentence in line for line in service.said(since_s))
    assert service.restarts(since_s) == 0
    say(f"{url}: active; {service.show('StatusText')}")
    back_s = time.time()
    service.mend()
    events = service.wait_for_tags(back_s, n=len(stored))
    assert in_order(numbers(events))[: len(stored)] == stored


def test_a_clock_at_1970_stops_nothing(service: Service) -> None:
    """Events say that the clock is not synchronised. The broker's certificate is not valid yet, so that they
    wait; they are delivered once the clock is right.
    """
    clock = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"
    environment = f'LD_PRELOAD={clock} "FAKETIME=@1970-01-01 00:05:00" DONT_FAKE_MONOTONIC=1'
    service.drop_in(f"[Service]\nEnvironment={environment}\n")
    since_s = service.start_anew()
    service.wait_for("active")
    reason = "is not valid yet: is this machine's clock right?"
    service.machine.wait_until(lambda: reason in service.show("StatusText"), reason)
    service.machine.wait_until(lambda: len(service.waiting()) >= 2, "two windows wait")
    stored = service.waiting()
    assert service.restarts(since_s) == 0
    say(f"a clock at 1970: active; {service.show('StatusText')}")
    back_s = time.time()
    service.mend()
    events = service.wait_for_tags(back_s, n=len(stored) + 1)
    of_1970 = [event for event in events if event["start"].startswith("1970-01-01T00:05")]
    assert numbers(of_1970)[: len(stored)] == stored
    assert {event["clock"]["synced"] for event in of_1970} == {False}
    assert all(event["late"] for event in of_1970)
    say(f"{len(of_1970)} windows of 1970 have arrived, late, and say that the clock was not synchronised")
