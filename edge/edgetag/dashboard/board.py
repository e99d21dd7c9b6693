"""Everything the page shows: what sensors say, their last hour, the latest sounds, how the broker is reached.

One thread takes messages in and asks once a second what has changed; others ask for all of it. Bounded by
the number of sensors that `network` keeps: some 25 kB each.
"""

import dataclasses
import threading
from collections.abc import Iterator

import msgspec

from edgetag.contract.errors import EdgetagError
from edgetag.dashboard.hour import CELL_S, Hour, cell_at, place
from edgetag.dashboard.sounds import SoundRow, Sounds
from edgetag.delivery.network import Health, Info, Network, News, Sensor, Sound, Window, place_of
from edgetag.delivery.network_view import natural, remarks, verdict
from edgetag.delivery.subscription import Arrival, Lost, Message, Missed, Regained

N_SOUNDS = 100  # of the network
N_SOUNDS_EACH = 20  # of a sensor
N_MINUTES = 60
_N_RECENT_MINUTES = 2
_MAX_TAGS = 16  # shown of a window


class Minutes(msgspec.Struct, frozen=True):
    """Levels by the minute, dB, None where nothing came; `last` is the last one's, minutes since 1970."""

    last: int
    level_db: list[float | None]


class Heard(msgspec.Struct, frozen=True, omit_defaults=True):
    """An active tag of a window, with its probability in per cent if that was said, and its active kinds."""

    name: str
    percent: int | None = None
    kinds: list["Heard"] = []


class Row(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A sensor in the overview.

    Attributes:
        state: as it says itself, or `unknown`.
        is_overdue: it says that it hears, and owes a window.
        remarks: what to know before trusting the figures.
        heard_at_s: when its last window arrived, seconds since 1970; None if none did.
        lag_s: from the window's end, by the sensor's clock, to its arrival.
        tags: the active ones, fine ones below their coarse ones.
        verdict: why there are none.
        minutes: of the last hour, or of what is new of it.
    """

    id: str
    state: str
    minutes: Minutes
    is_overdue: bool = False
    remarks: list[str] = []
    heard_at_s: float | None = None
    lag_s: float | None = None
    level_db: float | None = None
    is_calibrated: bool = False
    tags: list[Heard] = []
    verdict: str = ""


class Notes(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the dashboard is.

    Attributes:
        now_s: its clock, seconds since 1970.
        broker: its address, without credentials.
        trouble: with the connection to the broker; "" for none. Since `trouble_since_s`, to be tried again
            at `retry_at_s`.
        n_unreadable, fault, n_beyond: as `Network` counts.
        n_missed: messages that came faster than they could be taken.
    """

    now_s: float
    broker: str
    prefix: str
    trouble: str = ""
    trouble_since_s: float | None = None
    retry_at_s: float | None = None
    n_unreadable: int = 0
    fault: str = ""
    n_beyond: int = 0
    n_missed: int = 0


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All of the overview."""

    schema: str = "edgetag.dashboard/1"
    notes: Notes
    sensors: list[Row]
    sounds: list[SoundRow]


class Changes(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is new of it: whole rows, and who is gone."""

    notes: Notes
    sensors: list[Row] = []
    gone: list[str] = []
    sounds: list[SoundRow] = []


class TagHour(msgspec.Struct, frozen=True):
    """A coarse tag's probabilities in the last hour, in per cent by cell; None where nothing came."""

    id: str
    name: str
    percents: list[int | None]


class Detail(msgspec.Struct, frozen=True, kw_only=True):
    """All of a sensor. `last_cell` is the number of the last cell of `level_db` and `tags`."""

    schema: str = "edgetag.dashboard.sensor/1"
    now_s: float
    sensor: Row
    cell_s: int
    last_cell: int
    level_db: list[float | None]
    tags: list[TagHour]
    sounds: list[SoundRow]
    info: Info | None
    health: Health | None


class UnknownSensorError(EdgetagError):
    """Nothing has come from a sensor of this id."""


class Board:
    """What a network of sensors says, kept for the page. Every method may be called from any thread.

    Args:
        network: to be filled.
        broker: what to call the broker.
        now_s: seconds since 1970, as everywhere here.
    """

    def __init__(self, network: Network, broker: str, now_s: float) -> None:
        self._network = network
        self._broker = broker
        self._lock = threading.Lock()
        self._hours: dict[str, Hour] = {}
        self._sounds = Sounds(N_SOUNDS)
        self._sounds_of: dict[str, Sounds] = {}
        self._boots: dict[str, str] = {}
        self._trouble: tuple[str, float, float | None] | None = ("connecting", now_s, None)
        self._hearing_since_s = now_s
        self._n_missed = 0

        self._changed: set[str] = set()
        self._rewritten: set[str] = set()  # of these the whole hour has to be sent again
        self._gone: set[str] = set()
        self._changed_sounds: dict[int, SoundRow] = {}
        self._overdue: set[str] = set()

    # -- what comes in -----------------------------------------------------------------------------

    def take(self, arrival: Arrival, now_s: float) -> None:
        """Take in what a subscription brings."""
        with self._lock:
            match arrival:
                case Message():
                    self._take_message(arrival)
                case Lost(reason, retry_s):
                    since_s = now_s if self._trouble is None else self._trouble[1]
                    self._trouble = reason, since_s, now_s + retry_s
                case Regained():
                    self._trouble, self._hearing_since_s = None, now_s
                case Missed(n):
                    self._n_missed += n

    def _take_message(self, message: Message) -> None:
        news = self._network.take(message.topic, message.payload, message.at_s)
        if news is not None:
            self._gone.discard(news.sensor.id)
            self._changed.add(news.sensor.id)
            self._keep(news, message.at_s)
        elif not message.payload:
            self._forget(message.topic)

    def _keep(self, news: News, now_s: float) -> None:
        sensor, said = news
        match said:
            case Window():
                self._keep_window(sensor.id, said, now_s)
            case Sound():
                self._tell_sound(self._sounds.take(sensor.id, said))
                self._sounds_of.setdefault(sensor.id, Sounds(N_SOUNDS_EACH)).take(sensor.id, said)

    def _keep_window(self, id: str, window: Window, now_s: float) -> None:
        if self._boots.get(id, window.boot) != window.boot:
            self._end_other_boots(id, window.boot)
        self._boots[id] = window.boot
        at_s = place(window.end.timestamp(), now_s, is_late=window.late)
        hour = self._hours.setdefault(id, Hour())
        if at_s is not None and not hour.add(at_s, window.level.laeq_db, window.coarse):
            self._rewritten.add(id)

    def _end_other_boots(self, id: str, boot: str) -> None:
        for row in self._sounds.end_other_boots(id, boot):
            self._tell_sound(row)
        if (sounds := self._sounds_of.get(id)) is not None:
            sounds.end_other_boots(id, boot)

    def _tell_sound(self, row: SoundRow) -> None:
        self._changed_sounds[row.number] = row
        if len(self._changed_sounds) > N_SOUNDS:
            del self._changed_sounds[next(iter(self._changed_sounds))]

    def _forget(self, topic: str) -> None:
        """A sensor whose status was cleared away is gone."""
        gone = place_of(topic, self._network.prefix)
        if gone is None or gone.sensor in self._network.sensors:
            return
        for kept in (self._hours, self._sounds_of, self._boots):
            kept.pop(gone.sensor, None)
        self._sounds.forget(gone.sensor)
        self._changed.discard(gone.sensor)
        self._overdue.discard(gone.sensor)
        self._gone.add(gone.sensor)

    # -- what is shown -----------------------------------------------------------------------------

    def changes(self, now_s: float) -> Changes:
        """What is new since this was asked before."""
        with self._lock:
            overdue = {id for id, sensor in self._network.sensors.items() if self._is_overdue(sensor, now_s)}
            changed = (self._changed | (overdue ^ self._overdue)) & self._network.sensors.keys()
            self._overdue = overdue
            changes = Changes(
                notes=self._notes(now_s),
                sensors=[self._changed_row(self._network.sensors[id], now_s) for id in sorted(changed)],
                gone=sorted(self._gone),
                sounds=list(self._changed_sounds.values()),
            )
            for told in (self._changed, self._rewritten, self._gone, self._changed_sounds):
                told.clear()
            return changes

    def snapshot(self, now_s: float) -> Snapshot:
        """All there is."""
        with self._lock:
            return Snapshot(
                notes=self._notes(now_s),
                sensors=[self._whole_row(sensor, now_s) for sensor in self._network.sensors.values()],
                sounds=self._sounds.rows,
            )

    def detail(self, id: str, now_s: float) -> Detail:
        """All of a sensor.

        Raises:
            UnknownSensorError: there is none of this id.
        """
        with self._lock:
            if (sensor := self._network.sensors.get(id)) is None:
                raise UnknownSensorError(f"nothing has come from a sensor {id!r}")
            hour, last = self._hours.get(id, Hour()), cell_at(now_s)
            return Detail(
                now_s=now_s,
                sensor=self._whole_row(sensor, now_s),
                cell_s=CELL_S,
                last_cell=last,
                level_db=hour.levels(last),
                tags=list(_tag_hours(sensor, hour, last)),
                sounds=self._sounds_of[id].rows if id in self._sounds_of else [],
                info=None if sensor.info is None else msgspec.structs.replace(sensor.info, tags={}),
                health=sensor.health,
            )

    def _notes(self, now_s: float) -> Notes:
        trouble, since_s, retry_at_s = self._trouble or ("", None, None)
        return Notes(
            now_s=round(now_s, 1),
            broker=self._broker,
            prefix=self._network.prefix,
            trouble=trouble,
            trouble_since_s=since_s,
            retry_at_s=retry_at_s,
            n_unreadable=self._network.n_unreadable,
            fault=self._network.fault,
            n_beyond=self._network.n_beyond,
            n_missed=self._n_missed,
        )

    def _changed_row(self, sensor: Sensor, now_s: float) -> Row:
        hour = self._hours.get(sensor.id)
        if hour is None or sensor.id in self._rewritten:
            return self._whole_row(sensor, now_s)
        last = hour.newest_minute
        return self._row(sensor, Minutes(last, hour.minutes(last, _N_RECENT_MINUTES)), now_s)

    def _whole_row(self, sensor: Sensor, now_s: float) -> Row:
        last = int(now_s // 60)
        hour = self._hours.get(sensor.id)
        return self._row(sensor, Minutes(last, [] if hour is None else hour.minutes(last, N_MINUTES)), now_s)

    def _row(self, sensor: Sensor, minutes: Minutes, now_s: float) -> Row:
        window = sensor.window
        return Row(
            id=sensor.id,
            state=sensor.state,
            minutes=minutes,
            is_overdue=self._is_overdue(sensor, now_s),
            remarks=list(remarks(sensor)),
            heard_at_s=None if window is None else round(sensor.heard_at_s, 1),
            lag_s=None if sensor.lag_s is None else round(sensor.lag_s, 1),
            level_db=None if window is None else window.level.laeq_db,
            is_calibrated=window is not None and window.level.calibrated,
            tags=[] if window is None else _heard(sensor, window),
            verdict="" if window is None or window.active else verdict(window),
        )

    def _is_overdue(self, sensor: Sensor, now_s: float) -> bool:
        """Not while nobody can be heard, and not for what was missed meanwhile."""
        if self._trouble is not None:
            return False
        heard_at_s = max(sensor.heard_at_s, self._hearing_since_s)
        return dataclasses.replace(sensor, heard_at_s=heard_at_s).is_overdue(now_s)


def _heard(sensor: Sensor, window: Window) -> list[Heard]:
    said = {**window.coarse, **window.fine}
    found: dict[str, Heard] = {}
    for id in window.active[:_MAX_TAGS]:
        heard = Heard(sensor.name_of(id), round(100 * said[id]) if id in said else None, [])
        above = found.get(id.partition("-")[0])
        if above is None:
            found[id] = heard
        elif above.name != heard.name:  # impacts that no machine makes are of one kind only
            above.kinds.append(heard)
    return list(found.values())


def _tag_hours(sensor: Sensor, hour: Hour, last: int) -> Iterator[TagHour]:
    for id in sorted(hour.tags, key=natural):
        yield TagHour(id, sensor.name_of(id), hour.percents(id, last))
