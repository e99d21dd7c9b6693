"""The latest sounds: a beginning and its end are one row."""

import msgspec

from edgetag.delivery.network import Sound


class SoundRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """A sound as it is shown.

    Attributes:
        number: counts up with every sound that is heard of.
        sensor: who heard it.
        name: of the tag.
        start_s, end_s: seconds since 1970; `end_s` is how far it has been heard.
        duration_s: from the one to the other.
        percent: highest probability so far.
        is_over: whether its end is known; `reason` says why it ended.
    """

    number: int
    sensor: str
    name: str
    start_s: float
    end_s: float
    duration_s: float
    percent: int
    is_over: bool = False
    reason: str = ""


class Sounds:
    """The `max_rows` latest, of one sensor or of all.

    Args:
        max_rows: the oldest beyond are forgotten.
    """

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._rows: dict[tuple[str, str, str], SoundRow] = {}
        self._n = 0

    @property
    def rows(self) -> list[SoundRow]:
        """The latest last."""
        return list(self._rows.values())

    def take(self, sensor: str, sound: Sound) -> SoundRow:
        """Take in a beginning or an end; a row of the same sound is replaced in its place."""
        key = sensor, sound.boot, sound.id or f"{sound.kind} {sound.seq}"
        known = self._rows.get(key)
        if known is not None and known.is_over:
            return known  # its beginning has come after its end
        row = SoundRow(
            number=self._next() if known is None else known.number,
            sensor=sensor,
            name=sound.name,
            start_s=sound.start.timestamp(),
            end_s=sound.end.timestamp(),
            duration_s=sound.duration_s,
            percent=round(100 * sound.peak),
            is_over=sound.kind == "end",
            reason=sound.reason if sound.kind == "end" else "",
        )
        self._rows[key] = row
        if len(self._rows) > self._max_rows:
            del self._rows[next(iter(self._rows))]
        return row

    def end_other_boots(self, sensor: str, boot: str) -> list[SoundRow]:
        """A sensor has started anew: what was open before has ended unheard. The rows that changed."""
        return [
            self._ended(key)
            for key, row in self._rows.items()
            if key[0] == sensor and key[1] != boot and not row.is_over
        ]

    def forget(self, sensor: str) -> None:
        """A sensor is gone, and its sounds with it."""
        self._rows = {key: row for key, row in self._rows.items() if key[0] != sensor}

    def _ended(self, key: tuple[str, str, str]) -> SoundRow:
        self._rows[key] = msgspec.structs.replace(self._rows[key], is_over=True, reason="restarted")
        return self._rows[key]

    def _next(self) -> int:
        self._n += 1
        return self._n
