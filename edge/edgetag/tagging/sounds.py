"""Sounds that begin and end: an automaton over windows' probabilities that knows nothing of audio or clocks.

```
windows   ..##+..+.#.##++##..     # p ≥ on    + off ≤ p < on    . p < off
sounds      [-]    ^ [----]       from a # to the last window before a .
```
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

import msgspec

from edgetag.contract.errors import InputError
from edgetag.contract.event import SoundEvent, TagsEvent, timestamp

Reason = Literal["faded", "audio_ended", "settings"]

STAMP_ERROR_S = 0.1
"""How far apart a window's end and the next one's start may be stamped with no audio between them: the
microphone's clock is not the system's, which is steered besides. A missing window leaves a longer gap."""


@dataclass(frozen=True)
class Rule:
    """When a tag's sound begins and ends.

    Attributes:
        on: probability at or above which it begins.
        off: probability below which it ends; at most `on`.
        min_duration_s: shorter sounds are not published.

    Raises:
        ValueError: not so.
    """

    on: float
    off: float
    min_duration_s: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.off <= self.on <= 1 and self.min_duration_s >= 0):
            raise ValueError(f"{self}; expected 0 ≤ off ≤ on ≤ 1 and a duration of 0 or more")


class TagRule(Protocol):
    """One tag's own rule; None is the rule for all."""

    @property
    def on(self) -> float | None: ...
    @property
    def off(self) -> float | None: ...
    @property
    def min_duration_s(self) -> float | None: ...


def rules_of(
    thresholds: Mapping[str, float],
    *,
    off_ratio: float,
    min_duration_s: float,
    tags: Mapping[str, TagRule],
) -> dict[str, Rule]:
    """The rule of every tag of a bundle.

    Args:
        thresholds: the bundle's, by tag: where a sound begins unless told otherwise.
        off_ratio: of `on`, where it ends unless told otherwise.
        min_duration_s: of all tags that have none of their own.
        tags: tags' own rules. An `off` above what another bundle's threshold is counts as that threshold.

    Raises:
        InputError: one of them is for a tag that the bundle does not have.
    """
    if unknown := [tag for tag in tags if tag not in thresholds]:
        raise InputError(
            f"events.tags.{unknown[0]} is no tag of the bundle's; it has {', '.join(thresholds)}"
        )
    rules: dict[str, Rule] = {}
    for tag, threshold in thresholds.items():
        own = tags.get(tag)
        on = threshold if own is None or own.on is None else own.on
        off = on * off_ratio if own is None or own.off is None else min(own.off, on)
        shortest_s = min_duration_s if own is None or own.min_duration_s is None else own.min_duration_s
        rules[tag] = Rule(on, off, shortest_s)
    return rules


@dataclass
class _Sound:
    """A sound that has begun and not ended. Times are milliseconds since 1970, of which sums are exact.

    `id` is empty until it is published; `model` and `end_ms` are of its latest window.
    """

    tag: str
    start_ms: int
    end_ms: int
    peak: float
    peak_at_ms: int
    model: str
    id: str = ""

    @property
    def duration_s(self) -> float:
        return (self.end_ms - self.start_ms) / 1000


class SoundEvents:
    """The sounds of one sensor in one boot, from its windows' events.

    A tag that a tagged window does not tell counts as 0 there; so does every tag in a window that is `silent`
    or `quiet`, since nothing to hear is an answer, too. A window with too little audio is no answer: sounds
    are held until the next one that is, and end if there is a stretch between the two that nobody heard.

    When the clock is set, sounds that are open move with it: their durations stay true, and an `end` gives
    the sound's start by the new time.

    Args:
        rules: of the tags that are watched. Messages of one window come in their order.
        names: of these tags.
        sensor, boot: as in the windows' events.
    """

    def __init__(
        self, rules: Mapping[str, Rule], names: Mapping[str, str], *, sensor: str, boot: str
    ) -> None:
        self._rules, self._names = dict(rules), dict(names)
        self._sensor, self._boot = sensor, boot
        self._seq = 0
        self._open: dict[str, _Sound] = {}
        self._heard_ms: tuple[int, int] | None = None  # the latest window that was an answer

    def take(self, event: TagsEvent, *, max_gap_s: float = 0.0) -> list[SoundEvent]:
        """What begins and ends with the next window.

        Args:
            event: of the window.
            max_gap_s: how much audio before this window may have been left out on purpose: by a hop longer
                than a window, or for lack of time. Sounds are taken to go on over it; over a longer gap not.
        """
        self._set_clock(round(1000 * event.clock.step_s))
        if event.verdict == "too_little_audio":
            return []
        start_ms, end_ms = _milliseconds(event.start), _milliseconds(event.end)
        events = [] if self._goes_on(start_ms, max_gap_s) else self.end()
        self._heard_ms = start_ms, end_ms
        probabilities = event.coarse | event.fine
        for tag, rule in self._rules.items():
            heard = _Sound(tag, start_ms, end_ms, probabilities.get(tag, 0.0), start_ms, event.model)
            events += self._hear(heard, rule)
        return events

    def end(self) -> list[SoundEvent]:
        """The audio has ended: so do all sounds."""
        return self._close(self._open, "audio_ended")

    def change(self, rules: Mapping[str, Rule], names: Mapping[str, str]) -> list[SoundEvent]:
        """Watch by other rules from now on; sounds of tags whose rule is not the same end."""
        changed = [tag for tag in self._open if rules.get(tag) != self._rules[tag]]
        events = self._close(changed, "settings")
        self._rules, self._names = dict(rules), dict(names)
        return events

    def _set_clock(self, step_ms: int) -> None:
        for sound in self._open.values():
            sound.start_ms += step_ms
            sound.end_ms += step_ms
            sound.peak_at_ms += step_ms
        if self._heard_ms is not None:
            start_ms, end_ms = self._heard_ms
            self._heard_ms = start_ms + step_ms, end_ms + step_ms

    def _goes_on(self, start_ms: int, max_gap_s: float) -> bool:
        """Whether a window that starts then follows the one before: not earlier, nothing lost in between."""
        if self._heard_ms is None:
            return True
        latest_start_ms, latest_end_ms = self._heard_ms
        return latest_start_ms <= start_ms <= latest_end_ms + 1000 * (max_gap_s + STAMP_ERROR_S)

    def _hear(self, heard: _Sound, rule: Rule) -> list[SoundEvent]:
        """One tag in one window."""
        sound = self._open.get(heard.tag)
        if sound is None:
            if heard.peak < rule.on:
                return []
            sound = self._open[heard.tag] = heard
        elif heard.peak < rule.off:
            return self._close([heard.tag], "faded")
        sound.end_ms, sound.model = heard.end_ms, heard.model
        if heard.peak > sound.peak:
            sound.peak, sound.peak_at_ms = heard.peak, heard.peak_at_ms
        if sound.id or sound.duration_s < rule.min_duration_s:
            return []
        sound.id = f"{self._boot}/{self._seq}"
        return [self._message(sound, "start")]

    def _close(self, tags: Collection[str], reason: Reason) -> list[SoundEvent]:
        """End their sounds; those that were never published leave no trace."""
        sounds = [self._open.pop(tag) for tag in list(tags)]
        return [self._message(sound, "end", reason) for sound in sounds if sound.id]

    def _message(
        self,
        sound: _Sound,
        kind: Literal["start", "end"],
        reason: Reason | msgspec.UnsetType = msgspec.UNSET,
    ) -> SoundEvent:
        seq = self._seq
        self._seq += 1
        return SoundEvent(
            sensor=self._sensor,
            boot=self._boot,
            seq=seq,
            kind=kind,
            id=sound.id,
            tag=sound.tag,
            name=self._names[sound.tag],
            start=timestamp(sound.start_ms / 1000),
            end=timestamp(sound.end_ms / 1000),
            duration_s=sound.duration_s,
            peak=sound.peak,
            peak_at=timestamp(sound.peak_at_ms / 1000),
            model=sound.model,
            reason=reason,
        )


def _milliseconds(stamp: str) -> int:
    """Since 1970."""
    return round(1000 * datetime.fromisoformat(stamp).timestamp())
