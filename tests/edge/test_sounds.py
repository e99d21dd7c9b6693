"""Sounds begin and end as drawn.

A character is a window of ten seconds, one after the other: `#` at or above `on`, `+` between `off` and
`on`, `.` below `off`, `s` silent, `q` quiet, `?` too little audio, a space no window at all. Sounds are drawn
under the windows they are in: `[-]`, or `^` in one window, and `[->`, or `>`, where they end because the
audio did. Below them is drawn in which window what was said: `s` a start, `e` an end, `x` both.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from edgetag.contract.errors import InputError
from edgetag.contract.event import Audio, Clock, Level, SoundEvent, TagsEvent, Verdict, timestamp
from edgetag.tagging.sounds import STAMP_ERROR_S, Rule, SoundEvents, rules_of

T0_MS = 1_795_341_600_000  # 2026-11-22T10:00:00Z
WINDOW_MS = 10_000
RULE = Rule(on=0.5, off=0.4)
P = {"#": 0.9, "+": 0.45, ".": 0.1}
VERDICTS: dict[str, Verdict] = {"s": "silent", "q": "quiet", "?": "too_little_audio"}


def window(
    start_ms: int,
    p: Mapping[str, float],
    *,
    verdict: Verdict = "tagged",
    step_ms: int = 0,
    model: str = "m@1",
) -> TagsEvent:
    """A window's event; tags with a hyphen are fine ones."""
    return TagsEvent(
        sensor="s",
        boot="b",
        seq=0,
        start=timestamp((T0_MS + start_ms) / 1000),
        end=timestamp((T0_MS + start_ms + WINDOW_MS) / 1000),
        clock=Clock(synced=True, step_s=step_ms / 1000),
        verdict=verdict,
        audio=Audio(44_100, 1.0, 0, 0.0),
        level=Level(-40.0, -30.0, -35.0, -50.0),
        coarse={tag: value for tag, value in p.items() if "-" not in tag},
        fine={tag: value for tag, value in p.items() if "-" in tag},
        refined=[],
        active=[],
        model=model,
        lag_s=0.1,
    )


def watch(rules: Mapping[str, Rule] | None = None) -> SoundEvents:
    rules = {"5": RULE} if rules is None else rules
    return SoundEvents(rules, {tag: f"name of {tag}" for tag in rules}, sensor="s", boot="b")


def drawn_window(k: int, character: str) -> TagsEvent:
    p = {"5": P[character]} if character in P else {"5": 0.0} if character == "s" else {}
    return window(k * WINDOW_MS, p, verdict=VERDICTS.get(character, "tagged"))


def index(stamp: str) -> int:
    """Which window a time lies in, counted from the first."""
    return (milliseconds(stamp) - T0_MS) // WINDOW_MS


def milliseconds(stamp: str) -> int:
    return round(1000 * datetime.fromisoformat(stamp).timestamp())


def drawn(windows: str, *, rule: Rule = RULE, max_gap_s: float = 0.0) -> tuple[str, str]:
    """The sounds of drawn windows, after which the audio ends, and when they were told of."""
    sounds, said = [" "] * len(windows), [" "] * (len(windows) + 1)
    watched = watch({"5": rule})
    for k, character in enumerate(windows + "$"):
        if character == " ":
            continue
        if character == "$":
            messages = watched.end()
        else:
            messages = watched.take(drawn_window(k, character), max_gap_s=max_gap_s)
        for message in messages:
            said[k] = message.kind[0] if said[k] == " " else "x"
            if message.kind == "end":
                draw(sounds, message)
    return "".join(sounds).rstrip(), "".join(said).rstrip()


def draw(sounds: list[str], end: SoundEvent) -> None:
    first, last = index(end.start), index(end.end) - 1
    sounds[first : last + 1] = "[" + "-" * (last - first - 1) + "]" if last > first else "^"
    if end.reason == "audio_ended":
        sounds[last] = ">"


BORDERS = {
    "one window": ("..#..", "  ^", "  se"),
    "between off and on it goes on": ("..##+.", "  [-]", "  s  e"),
    "between off and on it does not begin": ("++#+.++.", "  []", "  s e"),
    "what flickers between off and on is one sound": (".#+#+#.", " [---]", " s    e"),
    "two": (".#.##.", " ^ []", " ses e"),
    "at the very beginning": ("#.", "^", "se"),
    "the audio ends": (".##", " [>", " s e"),
    "nothing": ("..++..", "", ""),
    "digital silence is an answer": ("##s##", "[] [>", "s es e"),
    "a window below the gate is an answer": ("##q##", "[] [>", "s es e"),
    "too little audio is none, and what was not heard parts sounds": ("##?##.", "[> []", "s  x e"),
    "a window that is missing does, too": ("## ##.", "[> []", "s  x e"),
    "after what was not heard a sound begins anew or not at all": ("##?++.", "[>", "s  e"),
    "unheard at the end": ("##??", "[>", "s   e"),
    "unheard at the beginning": ("??##.", "  []", "  s e"),
}


@pytest.mark.parametrize(("windows", "sounds", "said"), BORDERS.values(), ids=BORDERS.keys())
def test_borders(windows: str, sounds: str, said: str) -> None:
    """A sound is from the first window at `on` to the last one not below `off`."""
    assert drawn(windows) == (sounds, said)


SHORTEST = {
    "as long as the shortest": (".##.", " []", "  se"),
    "shorter": (".#.", "", ""),
    "told of as soon as it is long enough": (".#+##.", " [--]", "  s  e"),
    "each by itself": (".#.#.##.", "     []", "      se"),
    "cut short by the end": ("..#", "", ""),
    "cut short by what was not heard": (".#?##.", "   []", "    se"),
}


@pytest.mark.parametrize(("windows", "sounds", "said"), SHORTEST.values(), ids=SHORTEST.keys())
def test_shorter_ones_are_not_published(windows: str, sounds: str, said: str) -> None:
    """Of at least 20 s: what ends before was never told of."""
    assert drawn(windows, rule=Rule(0.5, 0.4, min_duration_s=20.0)) == (sounds, said)


LONGER_HOP = {
    "a sound goes on over what was left out": ("# # # . .", "[---]", "s     e"),
    "but not over more than that": ("# #   # .", "[->   ^", "s     x e"),
    "nor over a window that was due and was not heard": ("# ? # .", ">   ^", "s   x e"),
}


@pytest.mark.parametrize(("windows", "sounds", "said"), LONGER_HOP.values(), ids=LONGER_HOP.keys())
def test_a_longer_hop_does_not_shatter_a_sound(windows: str, sounds: str, said: str) -> None:
    """Ten of every twenty seconds are left out on purpose."""
    assert drawn(windows, max_gap_s=10.0) == (sounds, said)


def test_overlapping_windows_bridge_one_that_was_not_heard() -> None:
    """
    [----#---)
         [----?---)           too little of it was heard, …
              [----#---)      … but all of it in the windows around it
    """
    sounds = watch()
    sounds.take(window(0, {"5": 0.9}))
    assert sounds.take(window(5_000, {}, verdict="too_little_audio")) == []
    assert sounds.take(window(10_000, {"5": 0.9})) == []
    (end,) = sounds.take(window(15_000, {"5": 0.1}))
    assert (end.duration_s, end.reason) == (20.0, "faded")


def test_the_wire() -> None:
    """Every field of both messages: times, the peak and where, one `id`, the newest window's model."""
    sounds = watch({"5": RULE, "5-1": RULE})
    (start,) = sounds.take(window(0, {"5": 0.6, "5-1": 0.3}, model="old@1"))
    assert sounds.take(window(10_000, {"5": 0.8}, model="new@2")) == []
    (end,) = sounds.take(window(20_000, {}))
    common = {"sensor": "s", "boot": "b", "id": "b/0", "tag": "5", "name": "name of 5"}
    assert start == SoundEvent(
        **common,  # type: ignore[arg-type]
        seq=0,
        kind="start",
        start="2026-11-22T10:00:00.000Z",
        end="2026-11-22T10:00:10.000Z",
        duration_s=10.0,
        peak=0.6,
        peak_at="2026-11-22T10:00:00.000Z",
        model="old@1",
    )
    assert end == SoundEvent(
        **common,  # type: ignore[arg-type]
        seq=1,
        kind="end",
        start="2026-11-22T10:00:00.000Z",
        end="2026-11-22T10:00:20.000Z",
        duration_s=20.0,
        peak=0.8,
        peak_at="2026-11-22T10:00:10.000Z",
        model="new@2",
        reason="faded",
    )
    for message in (start, end):
        assert msgspec.json.decode(msgspec.json.encode(message), type=SoundEvent) == message


def test_thresholds_belong_to_the_sound() -> None:
    """At `on` it begins, at `off` it goes on: both are on the sound's side."""
    sounds = watch()
    assert [message.kind for message in sounds.take(window(0, {"5": 0.5}))] == ["start"]
    assert sounds.take(window(10_000, {"5": 0.4})) == []


def test_the_peak_is_where_it_was_reached_first() -> None:
    """Of two equal windows the first."""
    sounds = watch()
    sounds.take(window(0, {"5": 0.6}))
    sounds.take(window(10_000, {"5": 0.8}))
    sounds.take(window(20_000, {"5": 0.8}))
    (end,) = sounds.end()
    assert end.peak_at == "2026-11-22T10:00:10.000Z"


@pytest.mark.parametrize("jitter_ms", [-90, -1, 1, 90])
def test_stamps_that_jitter_part_no_sound(jitter_ms: int) -> None:
    """The microphone's clock is not the system's; consecutive windows need not touch to the millisecond."""
    assert abs(jitter_ms) < 1000 * STAMP_ERROR_S
    sounds = watch()
    sounds.take(window(0, {"5": 0.9}))
    assert sounds.take(window(WINDOW_MS + jitter_ms, {"5": 0.9})) == []


def test_a_recording_of_the_same_time_is_another_one() -> None:
    """Stamps that go back without a step are of other audio: nothing lasts for less than nothing."""
    sounds = watch()
    sounds.take(window(60_000, {"5": 0.9}))
    end, start = sounds.take(window(0, {"5": 0.9}))
    assert (end.kind, end.reason, end.duration_s) == ("end", "audio_ended", 10.0)
    assert (start.kind, start.duration_s) == ("start", 10.0)


@pytest.mark.parametrize("step_ms", [-3_600_000, -15, 15, 3_600_000])
def test_when_the_clock_is_set_durations_stay_true(step_ms: int) -> None:
    """
    10:00:00 #   10:00:10 #   11:00:20 #   11:00:30 .      30 s from 11:00:00, and not an hour
    """
    sounds = watch()
    sounds.take(window(0, {"5": 0.6}))
    sounds.take(window(10_000, {"5": 0.9}))
    assert sounds.take(window(20_000 + step_ms, {"5": 0.6}, step_ms=step_ms)) == []
    (end,) = sounds.take(window(30_000 + step_ms, {"5": 0.1}))
    assert (end.duration_s, end.reason) == (30.0, "faded")
    assert milliseconds(end.start) == T0_MS + step_ms
    assert milliseconds(end.peak_at) == T0_MS + step_ms + 10_000


def test_a_step_counts_in_windows_that_say_nothing_too() -> None:
    """The clock is set, and too little of that window was heard: the gap after it is still ten seconds."""
    sounds = watch()
    sounds.take(window(0, {"5": 0.6}))
    sounds.take(window(3_610_000, {}, verdict="too_little_audio", step_ms=3_600_000))
    assert sounds.take(window(3_620_000, {"5": 0.6}), max_gap_s=10.0) == []


def test_another_configuration_ends_what_is_watched_otherwise() -> None:
    """A tag with another rule, and one without any; what is watched as before goes on; the seq, too."""
    rules = {"1": RULE, "2": RULE, "5": RULE, "6": Rule(0.5, 0.4, min_duration_s=60.0)}
    sounds = watch(rules)
    sounds.take(window(0, dict.fromkeys(rules, 0.9)))
    changed = {"1": RULE, "2": Rule(0.7, 0.4), "6": RULE}
    ends = sounds.change(changed, dict.fromkeys(changed, "name"))
    assert [(end.tag, end.kind, end.reason, end.seq) for end in ends] == [
        ("2", "end", "settings", 3),
        ("5", "end", "settings", 4),
    ]
    messages = sounds.take(window(10_000, {"1": 0.1, "2": 0.6, "5": 0.9, "6": 0.9}))
    assert [(message.tag, message.kind) for message in messages] == [("1", "end"), ("6", "start")]


def test_a_tag_without_a_rule_is_not_watched() -> None:
    """Whatever its probability."""
    assert watch({}).take(window(0, {"5": 1.0})) == []


@dataclass(frozen=True)
class OwnRule:
    on: float | None = None
    off: float | None = None
    min_duration_s: float | None = None


def test_rules_are_the_bundles_thresholds_unless_told_otherwise() -> None:
    """`off` follows `on`, also a tag's own; an `off` that another bundle's threshold undercuts is that."""
    rules = rules_of(
        {"1": 0.5, "2": 0.5, "3": 0.5, "4": 0.5, "5": 0.2},
        off_ratio=0.8,
        min_duration_s=5.0,
        tags={"2": OwnRule(on=0.7), "3": OwnRule(off=0.1, min_duration_s=0.0), "5": OwnRule(off=0.3)},
    )
    assert rules == {
        "1": Rule(0.5, 0.4, 5.0),
        "2": Rule(0.7, 0.7 * 0.8, 5.0),
        "3": Rule(0.5, 0.1, 0.0),
        "4": Rule(0.5, 0.4, 5.0),
        "5": Rule(0.2, 0.2, 5.0),
    }


def test_a_rule_for_a_tag_that_is_none_is_refused() -> None:
    """One sentence with what there is."""
    with pytest.raises(InputError, match=r"events\.tags\.9 is no tag .* 1, 2"):
        rules_of({"1": 0.5, "2": 0.5}, off_ratio=0.8, min_duration_s=0, tags={"9": OwnRule(on=0.5)})


@pytest.mark.parametrize("rule", [(0.4, 0.5), (1.1, 0.5), (0.5, -0.1), (0.5, 0.4, -1.0), (float("nan"), 0.4)])
def test_a_rule_that_cannot_be_is_refused(rule: tuple[float, ...]) -> None:
    """`off` is at most `on`, both are probabilities, no duration is negative."""
    with pytest.raises(ValueError, match="expected 0 ≤ off ≤ on ≤ 1"):
        Rule(*rule)


# -- drawn at random -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heard:
    """A window as the oracle has it; `p` is None where too little was heard."""

    start_ms: int
    p: float | None
    step_ms: int = 0

    @property
    def end_ms(self) -> int:
        return self.start_ms + WINDOW_MS


def series(*, overlap: bool = True) -> st.SearchStrategy[list[Heard]]:
    """Windows a hop apart, with overlaps and holes; times without the steps of the clock."""
    hops = st.sampled_from([5_000, 10_000, 20_000, 60_000] if overlap else [10_000, 10_000, 20_000])
    p = st.sampled_from([None, 0.0, 0.2, 0.39, 0.4, 0.45, 0.5, 0.7, 1.0])
    steps = st.sampled_from([0, 0, 0, 0, -3_600_000, -12, 12, 86_400_000])

    def placed(windows: list[tuple[int, float | None, int]]) -> list[Heard]:
        now_ms, found = 0, []
        for hop_ms, value, step_ms in windows:
            found.append(Heard(now_ms, value, step_ms))
            now_ms += hop_ms
        return found

    return st.lists(st.tuples(hops, p, steps), max_size=30).map(placed)


rules = st.builds(
    lambda on, ratio, shortest_s: Rule(on, on * ratio, shortest_s),
    st.sampled_from([0.2, 0.5, 0.7]),
    st.sampled_from([0.5, 0.8, 1.0]),
    st.sampled_from([0.0, 10.0, 15.0, 40.0]),
)


def events_of(heard: Iterable[Heard], *, tag: str = "5", steps: bool = False) -> list[TagsEvent]:
    """Their events, stamped by a clock that is set or not."""
    offset_ms, events = 0, []
    for each in heard:
        step_ms = each.step_ms if steps else 0
        offset_ms += step_ms
        p = {} if each.p is None else {tag: each.p}
        verdict: Verdict = "too_little_audio" if each.p is None else "tagged"
        events.append(window(each.start_ms + offset_ms, p, verdict=verdict, step_ms=step_ms))
    return events


def messages_of(events: Iterable[TagsEvent], rule: Rule, max_gap_s: float = 0.0) -> list[SoundEvent]:
    sounds = watch({"5": rule})
    told = [message for event in events for message in sounds.take(event, max_gap_s=max_gap_s)]
    return told + sounds.end()


Found = tuple[int, int, float, int, str]  # start, end, peak, peak at, reason


def oracle(heard: list[Heard], rule: Rule, max_gap_s: float) -> list[Found]:
    """Slow and obvious: split where something was not heard, then look for the borders in each part."""
    parts: list[list[tuple[Heard, float]]] = [[]]
    for each in heard:
        if each.p is None:
            continue
        if parts[-1] and each.start_ms > parts[-1][-1][0].end_ms + 1000 * max_gap_s:
            parts.append([])
        parts[-1].append((each, each.p))
    return [found for part in parts for found in sounds_in(part, rule)]


def sounds_in(part: list[tuple[Heard, float]], rule: Rule) -> list[Found]:
    begin = next((k for k, (_, p) in enumerate(part) if p >= rule.on), None)
    if begin is None:
        return []
    end = next((k for k, (_, p) in enumerate(part) if k > begin and p < rule.off), len(part))
    sound = part[begin:end]
    first, last = sound[0][0].start_ms, sound[-1][0].end_ms
    peak = max(p for _, p in sound)
    peak_at = next(each.start_ms for each, p in sound if p == peak)
    reason = "audio_ended" if end == len(part) else "faded"
    found = [(first, last, peak, peak_at, reason)] if last - first >= 1000 * rule.min_duration_s else []
    return found + sounds_in(part[end:], rule)


def found(message: SoundEvent) -> Found:
    times = [milliseconds(stamp) - T0_MS for stamp in (message.start, message.end, message.peak_at)]
    assert message.reason is not msgspec.UNSET
    return times[0], times[1], message.peak, times[2], message.reason


@given(heard=series(), rule=rules, max_gap_s=st.sampled_from([0.0, 10.0, 50.0]))
def test_the_automaton_finds_what_the_slow_search_finds(
    heard: list[Heard], rule: Rule, max_gap_s: float
) -> None:
    """Start, end, peak, its place and the reason of every sound."""
    messages = messages_of(events_of(heard), rule, max_gap_s)
    assert [found(message) for message in messages if message.kind == "end"] == oracle(heard, rule, max_gap_s)


@given(heard=series(), rule=rules)
def test_a_clock_that_is_set_changes_no_sound(heard: list[Heard], rule: Rule) -> None:
    """Durations, peaks and reasons are those of a clock that nobody touches."""
    steady, set_now_and_then = (messages_of(events_of(heard, steps=steps), rule) for steps in (False, True))
    kept = [(m.kind, m.seq, m.id, m.duration_s, m.peak, m.reason) for m in steady]
    assert [(m.kind, m.seq, m.id, m.duration_s, m.peak, m.reason) for m in set_now_and_then] == kept


@given(several=st.lists(series(), max_size=4), rule=rules, data=st.data())
def test_messages_pair_up(several: list[list[Heard]], rule: Rule, data: st.DataObject) -> None:
    """Of each tag every start has exactly one end, with its id, before the next start; `seq` has no holes."""
    tags = [f"1-{k}" for k in range(len(several))]
    sounds = watch(dict.fromkeys(tags, rule))
    n_windows = max(map(len, several), default=0)
    told: list[SoundEvent] = []
    for k in range(n_windows):
        p = {tag: s[k].p or 0.0 for tag, s in zip(tags, several, strict=True) if k < len(s)}
        told += sounds.take(window(k * WINDOW_MS, p))
        if data.draw(st.integers(0, 9)) == 0:
            told += sounds.change(dict.fromkeys(tags, rule), dict.fromkeys(tags, "name"))
        if data.draw(st.integers(0, 9)) == 0:
            told += sounds.end()
    told += sounds.end()
    assert [message.seq for message in told] == list(range(len(told)))
    for tag in tags:
        own = [message for message in told if message.tag == tag]
        assert [message.kind for message in own] == ["start", "end"] * (len(own) // 2)
        for start, end in zip(own[::2], own[1::2], strict=True):
            assert start.id == end.id == f"b/{start.seq}"
            assert (start.start, start.duration_s <= end.duration_s) == (end.start, True)
            assert start.peak <= end.peak
    assert sounds.end() == []


@given(heard=series(), rule=rules)
def test_a_duration_is_from_start_to_end(heard: list[Heard], rule: Rule) -> None:
    """In both messages, exactly; never negative, and never shorter than the shortest."""
    for message in messages_of(events_of(heard, steps=True), rule):
        assert message.duration_s == (milliseconds(message.end) - milliseconds(message.start)) / 1000
        assert message.duration_s >= max(WINDOW_MS / 1000, rule.min_duration_s)
        assert message.start <= message.peak_at < message.end


@given(heard=series(), rule=rules)
def test_sounds_of_a_tag_come_in_order(heard: list[Heard], rule: Rule) -> None:
    """Each begins after the one before began, and ends after it ended."""
    ends = [found(m) for m in messages_of(events_of(heard), rule) if m.kind == "end"]
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(ends))


def covered(messages: Iterable[SoundEvent]) -> set[int]:
    """The seconds that are in a sound."""
    ends = [found(message) for message in messages if message.kind == "end"]
    return {second for start, end, *_ in ends for second in range(start // 1000, end // 1000)}


@given(heard=series(), on=st.sampled_from([0.2, 0.5, 0.7]), data=st.data())
def test_an_end_in_between_moves_no_border(heard: list[Heard], on: float, data: st.DataObject) -> None:
    """Without hysteresis the same seconds are covered, wherever the audio ends and goes on at once."""
    assume(heard)
    at = data.draw(st.integers(0, len(heard)))
    rule, events = Rule(on, on), events_of(heard)
    sounds = watch({"5": rule})
    parted = [message for event in events[:at] for message in sounds.take(event)] + sounds.end()
    parted += [message for event in events[at:] for message in sounds.take(event)] + sounds.end()
    assert covered(parted) == covered(messages_of(events, rule))


@given(heard=series(), rule=rules, data=st.data())
def test_an_end_in_between_adds_nothing(heard: list[Heard], rule: Rule, data: st.DataObject) -> None:
    """With hysteresis a sound may fade out of sight by it, but no second of sound is made up."""
    at = data.draw(st.integers(0, len(heard)))
    events = events_of(heard)
    sounds = watch({"5": rule})
    parted = [message for event in events[:at] for message in sounds.take(event)] + sounds.end()
    parted += [message for event in events[at:] for message in sounds.take(event)] + sounds.end()
    assert covered(parted) <= covered(messages_of(events, rule))


@given(heard=series(), max_gap_s=st.sampled_from([0.0, 10.0, 50.0]))
def test_every_window_at_on_is_in_a_sound(heard: list[Heard], max_gap_s: float) -> None:
    """Over its whole length."""
    inside = covered(messages_of(events_of(heard), RULE, max_gap_s))
    for each in heard:
        if each.p is not None and each.p >= RULE.on:
            assert set(range(each.start_ms // 1000, each.end_ms // 1000)) <= inside


@given(heard=series(overlap=False), rule=rules)
def test_no_window_below_off_is_in_a_sound(heard: list[Heard], rule: Rule) -> None:
    """Windows that do not overlap are in a sound or not."""
    inside = covered(messages_of(events_of(heard), rule))
    for each in heard:
        if each.p is None or each.p < rule.off:
            assert not inside & set(range(each.start_ms // 1000, each.end_ms // 1000))
