"""What a sensor's machine finds at its lamp post: a street to hear, a broker, and somebody who reads there.

```
street.service ─ pacat ─> microphone.service ─ ALSA's pulse plugin ─> PortAudio "default" ─> edgetag
    60 s, for ever          a PulseAudio for the group audio                              TLS   │
/var/lib/reader/heard <─ reader.service: mosquitto_sub, with a lasting session <─ mosquitto <───┘
```

The broker is the one of `deploy/mosquitto`; authority and identities are `deploy/provision.sh`'s. The units
are the machine's own: they start at every boot unless they were disabled, edgetag before them or after. The
microphone can be pulled out, and it can hang (see `sound_server`).
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from system.machine import Machine

SENSOR = "lamp-17"
BROKER = "localhost"
READER, ADMIN = "dashboard", "admin"  # whom deploy/mosquitto/acl knows
_DEPLOY = Path(__file__).parents[2] / "deploy"
_SOCKET = "/run/street/socket"

_FILES = {
    "etc/hostname": f"{SENSOR}\n",
    "etc/hosts": f"127.0.0.1 {BROKER}\n127.0.1.1 {SENSOR}\n",
    "etc/asound.conf": f"""\
pcm.!default {{ type pulse server "unix:{_SOCKET}" device "street.monitor" hint {{ show on }} }}
ctl.!default {{ type pulse server "unix:{_SOCKET}" }}
""",
    "etc/pulse/client.conf": f"autospawn = no\nenable-shm = no\ndefault-server = unix:{_SOCKET}\n",
    "etc/street.pa": f"""\
load-module module-null-sink sink_name=street rate=44100 channels=1
load-module module-native-protocol-unix socket={_SOCKET} auth-anonymous=1
""",
    "etc/systemd/system/microphone.service": """\
[Service]
User=pulse
Group=audio
RuntimeDirectory=street
RuntimeDirectoryMode=0750
Environment=HOME=/run/street XDG_RUNTIME_DIR=/run/street
ExecStart=pulseaudio -n -F /etc/street.pa --daemonize=no --use-pid-file=no --exit-idle-time=-1 \\
  --disable-shm --high-priority=no --realtime=no
[Install]
WantedBy=multi-user.target
""",
    "etc/systemd/system/street.service": """\
[Unit]
BindsTo=microphone.service
After=microphone.service
StartLimitIntervalSec=0
[Service]
Environment=HOME=/run/street
ExecStart=sh -c 'while cat /var/lib/street/street.raw; do :; done | \\
  pacat --device=street --raw --format=s16le --rate=44100 --channels=1 --latency-msec=500'
Restart=always
RestartSec=100ms
[Install]
WantedBy=microphone.service
""",
    "etc/systemd/system/reader.service": f"""\
[Unit]
StartLimitIntervalSec=0
[Service]
StateDirectory=reader
ExecStart=sh -c 'exec mosquitto_sub -V 5 -i {READER} -c -x 86400 -q 1 -h {BROKER} -p 8883 \\
  --cafile /etc/mosquitto/edgetag/ca.crt -u {READER} -P "$(cat /root/{READER}.password)" \\
  -t sonyc/v1/# -F "%%U\\t%%r\\t%%t\\t%%p" >>/var/lib/reader/heard'
Restart=always
RestartSec=100ms
[Install]
WantedBy=multi-user.target
""",
}


class Heard(NamedTuple):
    """A message as the reader had it, at a time in seconds since 1970; `kind` is its topic's last word."""

    at_s: float
    retained: bool
    kind: str
    message: dict[str, Any]


class LampPost:
    """The lamp post of a machine that has not been booted yet.

    Args:
        street: what is heard, again and again without a gap; shape [T], 44.1 kHz.
    """

    def __init__(self, machine: Machine, street: NDArray[np.float32]) -> None:
        self._machine = machine
        for path, text in _FILES.items():
            (machine.root / path).write_text(text)
        (machine.root / "var/lib/street").mkdir()
        pcm = np.round(street * 32_767).astype("<i2")
        (machine.root / "var/lib/street/street.raw").write_bytes(pcm.tobytes())
        self._provision()
        machine.offline("systemctl", "enable", "microphone", "street", "reader")

    def _provision(self) -> None:
        """The identity that `install.sh` is to be given is `/root/lamp-17.tar`."""
        home, etc = self._machine.root / "root", self._machine.root / "etc/mosquitto"
        sensor, server = (SENSOR, "--broker", BROKER), ("--server", BROKER)
        for task in (sensor, server, ("--reader", READER), ("--reader", ADMIN)):
            command = [_DEPLOY / "provision.sh", *task, "--ca", home / "ca", "--out", home]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        shutil.copy(_DEPLOY / "mosquitto/edgetag.conf", etc / "conf.d")
        shutil.copy(_DEPLOY / "mosquitto/acl", home / "ca")

        own = "/etc/mosquitto/edgetag"
        files = [f"/root/ca/{file}" for file in ("acl", "passwords", "ca.crt", "server.crt", "server.key")]
        self._machine.offline("mkdir", own)
        self._machine.offline("install", "-g", "mosquitto", "-m", "640", *files, own)

    def heard(self, kind: str, since_s: float = 0) -> list[Heard]:
        """Messages of one kind (`tags`, `events`, `status`, `info`, `health`), in order."""
        return [heard for heard in self._heard() if heard.kind == kind and heard.at_s > since_s]

    def retained(self, kind: str) -> dict[str, Any]:
        """What the broker tells whoever comes and asks."""
        password = (self._machine.root / f"root/{ADMIN}.password").read_text().strip()
        who = ["-u", ADMIN, "-P", password, "--cafile", "/etc/mosquitto/edgetag/ca.crt"]
        topic = ["-t", f"sonyc/v1/{SENSOR}/{kind}", "--retained-only", "-C", "1", "-W", "10"]
        said = self._machine.run("mosquitto_sub", "-h", BROKER, "-p", "8883", *who, *topic)
        message: dict[str, Any] = json.loads(said)
        return message

    def state(self) -> tuple[str, str]:
        """The latest state and its reason; empty before the first."""
        states = self.heard("status")
        return (states[-1].message["state"], states[-1].message["reason"]) if states else ("", "")

    def hang(self) -> None:
        """The microphone stays open and delivers nothing any more."""
        self._machine.run("systemctl", "kill", "--signal=STOP", "microphone")

    def go_on(self) -> None:
        """After `hang()`."""
        self._machine.run("systemctl", "kill", "--signal=CONT", "microphone")

    def pull_out(self) -> None:
        """There is no microphone."""
        self._machine.run("systemctl", "stop", "microphone")

    def plug_in(self) -> None:
        """There is one again."""
        self._machine.run("systemctl", "start", "microphone")

    def _heard(self) -> Iterator[Heard]:
        file = self._machine.root / "var/lib/reader/heard"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        for line in lines:
            if line.endswith("\n"):
                at_s, retained, topic, payload = line.split("\t", 3)
                kind = topic.rpartition("/")[2]
                yield Heard(float(at_s), retained == "1", kind, json.loads(payload))
