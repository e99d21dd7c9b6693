"""The data path of a microphone, which comes and goes: pieces → windows → tags, sounds, state → sink.

```
microphone's thread   device ─ ring
this thread                     └─ windows ─ ladder ─ tags ─ sounds ─ sink
                                               └─ waited too long: counted, not tagged
sink's thread                                                          └─ network
```
"""

import math
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import msgspec
import structlog

from edgetag.capture.clock import SystemTime
from edgetag.capture.ledger import Ledger
from edgetag.capture.microphone import Lost, Microphone, Opened, Piece
from edgetag.capture.source import Block
from edgetag.capture.windows import Window, Windower
from edgetag.condition import STARTING, Condition
from edgetag.config import LIVE, changes
from edgetag.contract.errors import EdgetagError
from edgetag.contract.event import (
    AudioHealth,
    DeliveryHealth,
    LoadHealth,
    SoundEvent,
    State,
    Status,
    timestamp,
)
from edgetag.contract.frontend import SAMPLE_RATE_HZ, WINDOW_S
from edgetag.daemon import sounds_of, take_over
from edgetag.delivery.sink import Sink
from edgetag.health import HealthWatch
from edgetag.ladder import Ladder
from edgetag.loading import Loaded
from edgetag.log import set_level
from edgetag.notify import Notifier
from edgetag.replacement import Replacement
from edgetag.tagging.stream import EventStream

ENDING_S = 1.0  # for windows that wait when the microphone is left; of the network there is more to wait for
LOOKING_S = (
    50.0  # until a microphone has been looked for once more: a wait of 30 s, and 20 s until its rate is known
)
MARGIN = 1.5

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("edgetag.listener")


class Account(NamedTuple):
    """How the hearing goes, at one moment.

    Attributes:
        audio, load: of the microphone, and of what was left out.
        delivery: how the broker is reached; UNSET where nothing is published.
        unreachable: why nobody is; "" if somebody is.
    """

    audio: AudioHealth
    load: LoadHealth
    delivery: DeliveryHealth | msgspec.UnsetType
    unreachable: str


class Onlooker(Protocol):
    """Who is shown what is heard, as it comes in. Whatever it takes the time for is not heard meanwhile."""

    def see(self, piece: Piece, account: Callable[[], Account]) -> None:
        """A piece of the microphone's, and whoever knows how it goes."""
        ...


class Listener:
    """Tags what a microphone hears, and says how that goes.

    Args:
        stream: numbers and tags the windows.
        loaded: the stream's bundle, and the settings of gate, level and sounds.
        sink: open; must not make anybody wait.
        hop_samples: from one window's start to the next, at 44.1 kHz, while there is time for all.
        notifier: the service manager; ready after the first full window.
        refusal: why the bundle that hears is not the one that was asked for; "" if it is.
        onlooker: shown every piece; nobody, as a rule.
        monotonic: the microphone's clock.
        system_time: UTC of that clock's readings.

    Raises:
        InputError: the settings have a rule for a tag that the bundle does not have.
    """

    def __init__(
        self,
        stream: EventStream,
        loaded: Loaded,
        sink: Sink,
        *,
        hop_samples: int,
        notifier: Notifier,
        refusal: str = "",
        onlooker: Onlooker | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        system_time: SystemTime | None = None,
    ) -> None:
        self._stream, self._settings, self._sink = stream, loaded.settings, sink
        self._hop_samples = hop_samples
        self._notifier, self._onlooker = notifier, onlooker
        self._monotonic = monotonic
        self._time = system_time or SystemTime()
        self._condition, self._ledger = Condition(monotonic()), Ledger(monotonic())
        self._ladder = Ladder(hop_samples)
        self._watch = HealthWatch(stream, monotonic, lambda: self._time.utc_s(monotonic()))
        if refusal:
            self._watch.refused(refusal)
        self._patience_s = MARGIN * max(LOOKING_S, self._ladder.longest_hop_s)
        self._sounds = sounds_of(loaded, stream)
        self._opened: Opened | None = None
        self._windower: Windower | None = None
        self._n_skipped = 0  # windows, when the latest was tagged
        self._said: tuple[State, str] | None = None

    def listen(self, microphone: Microphone, replacement: Replacement[Loaded] | None = None) -> None:
        """Until the microphone is left: then what it has heard is tagged to the end, as far as there is time.

        Args:
            microphone: entered.
            replacement: entered; what it brings takes over between two windows.
        """
        self._notifier.expect(self._patience_s)
        self._notifier.extend_timeout(self._patience_s)  # for the first window
        self._say_state()
        for piece in microphone.pieces():
            self._take(piece)
            if self._onlooker is not None:
                self._onlooker.see(piece, self._account)
            if replacement is not None and (outcome := replacement.outcome()) is not None:
                self._change(outcome)
            if self._watch.due:
                self._report()
            if not microphone.is_behind:
                self._tag_next()
            self._say_state()
        self._notifier.stopping()
        self._end_audio(within_s=ENDING_S)
        self._report()

    # -- audio -------------------------------------------------------------------------------------

    def _take(self, piece: Piece) -> None:
        self._ledger.note(piece)
        self._condition.note(piece, self._monotonic())
        match piece:
            case Opened():
                _log.info("microphone.opened", device=piece.name, rate_hz=piece.rate_hz)
                self._opened = piece
                self._windower = Windower(piece.rate_hz, hop_samples=self._hop_samples)
            case Block() if self._windower is not None:
                self._ladder.put(self._windower.feed(piece))
            case Lost():
                self._end_audio()
                # To have looked for a device in vain is progress, too: a restart would not find one either.
                self._notifier.watchdog()

    def _end_audio(self, within_s: float = math.inf) -> None:
        """The last windows are tagged, those that can be begun in time, and whatever sounded ends."""
        deadline_s = self._monotonic() + within_s
        if self._windower is not None:
            self._ladder.put(self._windower.finish())
            while self._monotonic() < deadline_s and self._tag_next():
                pass
            self._ladder.skip_all()
        self._publish(self._sounds.end())
        self._windower = self._opened = None

    def _tag_next(self) -> bool:
        """Tag the window whose turn it is; whether there was one."""
        began_s = self._monotonic()
        window = self._ladder.next(began_s)
        if window is None:
            return False
        event = self._stream.event(
            window,
            start_utc_s=self._start_utc_s(window),
            clock_step_s=self._time.step_s(),
            with_branches=self._ladder.with_branches,
        )
        self._sink.deliver(event)
        self._publish(self._sounds.take(event, max_gap_s=self._left_out_s()))
        if self._ladder.took(self._monotonic() - began_s, n_branches_skipped=len(event.skipped)):
            _log.warning("load.step", step=self._ladder.step, reason=self._ladder.reason or "it keeps up")
        if event.verdict != "too_little_audio":
            self._notifier.ready()
        self._notifier.watchdog()
        return True

    def _start_utc_s(self, window: Window) -> float:
        """UTC of the stream's sample 0, as this window's first sample lets it appear."""
        assert self._opened is not None
        start_s = window.start_sample / SAMPLE_RATE_HZ
        return self._time.utc_s(self._opened.pace.time_of(start_s * self._opened.rate_hz)) - start_s

    def _left_out_s(self) -> float:
        """Audio between this tagged window and the one before that was left out on purpose."""
        n_hops = 1 + self._ladder.windows_skipped - self._n_skipped
        self._n_skipped = self._ladder.windows_skipped
        return max(0.0, n_hops * self._hop_samples / SAMPLE_RATE_HZ - WINDOW_S)

    # -- what is said ------------------------------------------------------------------------------

    def _publish(self, sounds: Iterable[SoundEvent]) -> None:
        for sound in sounds:
            self._sink.sound(sound)

    def _say_state(self) -> None:
        """Publish the state, if it is another one or has another reason.

        To know that there is no device is to have started: nobody need wait for a first window.
        """
        now_s = self._monotonic()
        refusal = "a bundle was refused" if self._watch.bundle.state == "refused" else ""
        trouble = self._sink.trouble()
        state, reason = said = self._condition.state(now_s, self._ladder.reason, refusal, trouble)
        self._notifier.status("; ".join(filter(None, (f"{state}: {reason}", self._sink.unreachable()))))
        if said != self._said:
            self._said = said
            log = _log.info if state == "online" else _log.warning
            log("sensor.state", state=state, reason=reason)
            since = timestamp(self._time.utc_s(now_s))
            self._sink.state(Status(state=state, reason=reason, boot_id=self._stream.boot, since=since))
        if self._opened is None and reason != STARTING:
            self._notifier.ready()

    def _report(self) -> None:
        audio, load, delivery, _ = self._account()
        health = self._watch.health(audio=audio, load=load, delivery=delivery, clock_steps=self._time.n_steps)
        self._sink.report(health)

    def _account(self) -> Account:
        return Account(
            self._ledger.health(self._monotonic()),
            self._ladder.health(),
            self._sink.delivery(),
            self._sink.unreachable(),
        )

    # -- other settings, another bundle ------------------------------------------------------------

    def _change(self, outcome: Loaded | EdgetagError) -> None:
        """Go on with what was read anew, as far as that is possible, and say what is not."""
        hop_s = self._hop_samples / SAMPLE_RATE_HZ
        is_taken = take_over(outcome, self._stream, self._sounds, self._sink, self._watch, hop_s)
        if not is_taken or isinstance(outcome, EdgetagError):
            return
        changed = changes(self._settings, outcome.settings)
        self._settings = outcome.settings
        if "log.level" in changed:
            set_level(outcome.settings.log.level)
        for path in changed:
            _log.warning("setting.changed" if path in LIVE else "setting.needs_restart", setting=path)
