"""Hundreds of sensors on one Mosquitto: what it carries, how long a message takes, and what an outage does.

```
sensors  ~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~  a window each every hop
broker   ●●●●●● steady ●●●●●● | down: outboxes fill | ●●●●●●●● drain ●●●●●●
```
Publisher, outbox (default durability, on disk) and paho are the real ones; only the tagging is not done.

    python tests/bench/fleet.py --sensors 500 --hop 5 --steady 60 --outage 600
"""

import argparse
import json
import logging
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

sys.path.insert(0, str(Path(__file__).parents[1]))

from edgetag.config import Settings
from edgetag.contract.event import TagsEvent, new_boot_id, timestamp
from edgetag.delivery.address import BrokerAddress
from edgetag.delivery.background import Background
from edgetag.log import configure
from edgetag.publishing import publisher
from fakes import bundle_info, tags_event
from system.test_mosquitto import Mosquitto

N_WORKERS = 4
SETTINGS = ("allow_anonymous true", "max_queued_messages 1000000")
WAIT_S = 600.0


# -- the sensors: a few processes, many sensors in each ------------------------------------------------


def feed(port: int, folder: Path, names: list[str], hop_s: float) -> None:
    """Runs sensors until SIGTERM; then prints how many windows each had, as JSON."""
    configure(logging.ERROR)
    stopping: list[int] = []  # an Event's lock may be held by whom the signal interrupts
    signal.signal(signal.SIGTERM, lambda number, _frame: stopping.append(number))
    with ExitStack() as stack:
        sensors = [Sensor(name, stack.enter_context(_publisher(port, folder, name))) for name in names]
        due_s = time.monotonic()
        while not stopping:
            for k, sensor in enumerate(sensors):  # evenly over the hop
                time.sleep(max(0.0, due_s + k * hop_s / len(sensors) - time.monotonic()))
                if stopping:
                    break
                sensor.hear()
            due_s += hop_s
    sys.stdout.write(json.dumps({sensor.name: sensor.n for sensor in sensors}))


@dataclass
class Sensor:
    name: str
    sink: Background
    boot: str = field(default_factory=new_boot_id)
    n: int = 0

    def hear(self) -> None:
        """One window, stamped with the moment it is handed over."""
        now = timestamp(time.time())
        self.sink.deliver(tags_event(self.n, sensor=self.name, boot=self.boot, end=now))
        self.n += 1


def _publisher(port: int, folder: Path, name: str) -> Background:
    return publisher(
        Settings(),
        BrokerAddress("127.0.0.1", port),
        sensor=name,
        boot_id=new_boot_id(),
        info=bundle_info(),
        state_directory=folder / name,
        flush_s=30.0,
    )


@contextmanager
def workers(port: int, folder: Path, n_sensors: int, hop_s: float) -> Iterator[list[subprocess.Popen[str]]]:
    names = [f"sensor-{k:03d}" for k in range(n_sensors)]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--feed", str(port), str(folder), str(hop_s), *names[k::N_WORKERS]],
            stdout=subprocess.PIPE,
            text=True,
        )
        for k in range(N_WORKERS)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


# -- the subscriber --------------------------------------------------------------------------------------


class Reader:
    """Subscribed to every sensor's windows, in a session that outlives the broker's restart in good order."""

    def __init__(self, port: int) -> None:
        self.seqs: dict[str, list[int]] = defaultdict(list)
        self.arrivals: list[tuple[float, float, bool]] = []  # when, how long it took, whether it was late
        self._client = Client(
            CallbackAPIVersion.VERSION2, client_id="reader", protocol=MQTTProtocolVersion.MQTTv5
        )
        self._client.reconnect_delay_set(1, 1)
        self._client.on_message = self._take
        self._client.on_connect = lambda client, *_: client.subscribe(
            "sonyc/v1/+/tags", options=SubscribeOptions(qos=1)
        )
        self._client.connect("127.0.0.1", port, clean_start=False, properties=_session())
        self._client.loop_start()

    def _take(self, _client: Client, _userdata: object, message: MQTTMessage) -> None:
        event = msgspec.json.decode(message.payload, type=TagsEvent)
        now_s = time.time()
        self.seqs[event.sensor].append(event.seq)
        self.arrivals.append((now_s, now_s - _seconds(event.end), event.late))

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def _session() -> Properties:
    properties = Properties(1)  # of CONNECT
    properties.SessionExpiryInterval = 3600
    return properties


def _seconds(stamp: str) -> float:
    return np.datetime64(stamp.removesuffix("Z")).astype("datetime64[ms]").astype(float) / 1000


# -- what it came to -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """Messages a second and their latency in the steady part, the drain after the outage, and the account."""

    sensors: int
    steady_per_s: float
    p50_ms: float
    p99_ms: float
    backlog: int
    drain_s: float
    drain_per_s: float
    sent: int
    lost: int
    twice: int
    out_of_order: int


def measure(n_sensors: int, hop_s: float, steady_s: float, outage_s: float) -> Outcome:
    """Live through it: all connected, a steady part, the broker gone, the drain, the end."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Mosquitto(Path(folder), *SETTINGS, "persistence true") as broker,
    ):
        reader = Reader(broker.port)
        with workers(broker.port, Path(folder), n_sensors, hop_s) as processes:
            _until(lambda: len(reader.seqs) == n_sensors)
            time.sleep(hop_s)
            begin_s = time.time()
            time.sleep(steady_s)
            end_s = time.time()
            broker.stop()
            time.sleep(outage_s)
            back_s = time.time()
            broker.start()
            drained_s = _drained(reader, n_sensors, back_s)
            for process in processes:
                process.send_signal(signal.SIGTERM)
            sent = {}
            for process in processes:
                sent |= json.loads(process.communicate(timeout=WAIT_S)[0])
            _until(lambda: sum(len(set(seqs)) for seqs in reader.seqs.values()) >= sum(sent.values()), 30)
        reader.close()
    steady = [took_s for at_s, took_s, _ in reader.arrivals if begin_s < at_s < end_s]
    backlog = [at_s for at_s, _, late in reader.arrivals if late and at_s > back_s]
    return Outcome(
        sensors=n_sensors,
        steady_per_s=len(steady) / steady_s,
        p50_ms=1e3 * float(np.percentile(steady, 50)),
        p99_ms=1e3 * float(np.percentile(steady, 99)),
        backlog=len(backlog),
        drain_s=drained_s - back_s,
        drain_per_s=_peak_rate(backlog),
        sent=sum(sent.values()),
        lost=sum(len(set(range(n)) - set(reader.seqs[name])) for name, n in sent.items()),
        twice=sum(len(seqs) - len(set(seqs)) for seqs in reader.seqs.values()),
        out_of_order=sum(_n_backwards(seqs) for seqs in reader.seqs.values()),
    )


def _drained(reader: Reader, n_sensors: int, back_s: float) -> float:
    """When every sensor had come back and the last late window had arrived."""
    _until(lambda: len({*reader.seqs}) == n_sensors and _is_drained(reader, back_s))
    return max(at_s for at_s, _, late in reader.arrivals if late)


def _is_drained(reader: Reader, back_s: float) -> bool:
    """Nothing late for ten seconds, after something was."""
    late_s = [at_s for at_s, _, late in reader.arrivals[-20_000:] if late and at_s > back_s]
    return bool(late_s) and time.time() - max(late_s) > 10


def _peak_rate(times_s: list[float]) -> float:
    """Messages a second between the first and the last tenth."""
    if len(times_s) < 10:
        return float("nan")
    first_s, last_s = np.percentile(times_s, (10, 90))
    return 0.8 * len(times_s) / max(last_s - first_s, 1e-3)


def _n_backwards(seqs: list[int]) -> int:
    """Messages that came after a later one, those that came twice aside."""
    firsts = list(dict.fromkeys(seqs))
    return sum(b < a for a, b in pairwise(firsts))


def _until(done: Callable[[], bool], within_s: float = WAIT_S) -> None:
    deadline_s = time.monotonic() + within_s
    while not done():
        if time.monotonic() > deadline_s:
            raise SystemExit("it did not happen")
        time.sleep(0.25)


def main() -> None:
    if sys.argv[1:2] == ["--feed"]:
        port, folder, hop_s, *names = sys.argv[2:]
        return feed(int(port), Path(folder), names, float(hop_s))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sensors", type=int, default=500)
    parser.add_argument("--hop", type=float, default=5.0, help="seconds between a sensor's windows")
    parser.add_argument("--steady", type=float, default=60.0, help="seconds before the outage")
    parser.add_argument("--outage", type=float, default=600.0, help="seconds")
    options = parser.parse_args()
    outcome = measure(options.sensors, options.hop, options.steady, options.outage)
    sys.stdout.write(json.dumps({k: round(v, 1) for k, v in vars(outcome).items()}, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
