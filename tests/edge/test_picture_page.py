"""What a recording's page holds, read without a browser."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from edgetag.capture.source import Block
from edgetag.contract.event import timestamp
from edgetag.contract.manifest import Manifest
from edgetag.picture.page import write
from edgetag.picture.portrait import Model, Portrait, Sitting
from edgetag.tagging.bundle import load_bundle
from fakes import START_UTC_S, bundle_info, sound_event, tags_event
from fakes_bundle import write_bundle

NASTY = "</script><script>alert(1)</script><!--\"'&amp;{{data}}.wav"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder: Path = write_bundle(tmp_path_factory.mktemp("bundle"), [0.9] + [0.1] * 36)
    return load_bundle(folder).manifest


def portrait_of(
    manifest: Manifest, *events: object, seconds: float = 30, name: str = "a.wav", is_dated: bool = False
) -> Portrait:
    portraits: list[Portrait] = []
    sitting = Sitting(Model(bundle_info(), manifest), lambda _, portrait: portraits.append(portrait))
    with sitting.of("a", name, START_UTC_S, is_dated=is_dated):
        listen = sitting.listener(8000)
        noise = np.random.default_rng(0).normal(0, 0.1, (8000, 1)).astype(np.float32)
        for second in range(round(seconds)):
            listen(Block(second * 8000, noise))
        for event in events:
            (sitting.deliver if hasattr(event, "verdict") else sitting.sound)(event)
    (portrait,) = portraits
    return portrait


def page(portrait: Portrait) -> str:
    stream = io.BytesIO()
    write(portrait, stream)
    return stream.getvalue().decode()


class Parts(HTMLParser):
    """A page's elements, and what its scripts and styles hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": [], "title": [], "td": []}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag
        if tag in self.inside:
            self.inside[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open in self.inside:
            self.inside[self._open][-1] += data

    @property
    def data(self) -> dict:
        return json.loads(self.inside["script"][0])


def test_its_policy_names_its_script_and_style_and_nothing_else(manifest: Manifest) -> None:
    parts = Parts(page(portrait_of(manifest, tags_event(0))))
    (policy,) = [attributes["content"] for _, attributes in parts.elements if "http-equiv" in attributes]
    hashes = [
        base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        for inside in (parts.inside["script"][1], parts.inside["style"][0])
    ]
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; "
        "media-src blob:; base-uri 'none'; form-action 'none'"
    )


def test_no_other_host_is_named_and_nothing_is_styled_or_scripted_in_attributes(manifest: Manifest) -> None:
    text = page(portrait_of(manifest, tags_event(0), sound_event(0)))
    assert "//" not in re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE)
    for _, attributes in Parts(text).elements:
        assert not [name for name in attributes if name in ("src", "href", "style") or name.startswith("on")]


@pytest.mark.parametrize("place", ["file", "tag", "summary"])
def test_whatever_a_name_holds_is_text(manifest: Manifest, place: str) -> None:
    import msgspec

    if place == "summary":
        manifest = msgspec.structs.replace(manifest, summary=NASTY, licence=NASTY)
    ended = sound_event(0, kind="end", name=NASTY if place == "tag" else "dog")
    text = page(portrait_of(manifest, tags_event(0), ended, name=NASTY if place == "file" else "a.wav"))
    plain = page(portrait_of(manifest, tags_event(0), sound_event(0, kind="end")))
    assert [tag for tag, _ in Parts(text).elements] == [tag for tag, _ in Parts(plain).elements]
    assert Parts(text).data["duration"] == 30
    if place == "file":
        assert Parts(text).inside["title"] == [NASTY]


def test_a_name_that_is_no_text_at_all_is_written_as_well_as_it_can_be(manifest: Manifest) -> None:
    assert "a\\x1b[2J" in page(portrait_of(manifest, tags_event(0), name="a\x1b[2J\udcff"))


def test_windows_are_in_it_as_they_were_heard(manifest: Manifest) -> None:
    data = Parts(page(portrait_of(manifest, tags_event(0), tags_event(1)))).data
    start, end, drawn_from, drawn_to, verdict, laeq, lafmax, la90, valid, p, refined, active = data[
        "windows"
    ][1]
    event = tags_event(1)
    assert (start, end, drawn_from, drawn_to) == (10, 20, 10, 20)
    assert (verdict, laeq, lafmax, la90, valid) == ("tagged", 63.2, 78.4, 55.1, 100)
    assert (refined, active) == (event.refined, event.active)
    assert dict(zip(data["ids"], p, strict=True)) == {
        id: round(100 * value) for id, value in (event.coarse | event.fine).items()
    }


def test_the_spectrogram_is_in_it_to_a_quarter_of_a_decibel(manifest: Manifest) -> None:
    portrait = portrait_of(manifest, tags_event(0), seconds=12)
    found = Parts(page(portrait)).data["spectrogram"]
    codes = np.frombuffer(base64.b64decode(found["codes"]), np.uint8).reshape(
        found["bands"], found["columns"]
    )
    np.testing.assert_allclose((codes - 1.0) / 2 - 120, portrait.spectrogram.db, atol=0.26)


def test_a_sound_has_a_row_with_its_times_and_its_peak(manifest: Manifest) -> None:
    sound = sound_event(
        1,
        kind="end",
        start=timestamp(START_UTC_S + 5),
        end=timestamp(START_UTC_S + 25),
        peak_at=timestamp(START_UTC_S + 15),
    )
    rows = {
        is_dated: re.findall(
            r"<tr data-from=\"5.0\" data-to=\"25.0\">(.*?)</tr>",
            page(portrait_of(manifest, tags_event(0), sound, is_dated=is_dated)),
        )
        for is_dated in (False, True)
    }
    words = {is_dated: re.sub("<[^>]*>", " ", row).split() for is_dated, (row,) in rows.items()}
    assert words[False] == ["dog", "0:05.0", "0:25.0", "20.0", "s", "91%", "0:15.0"]
    began = timestamp(START_UTC_S + 5)[11:19]
    assert words[True][:2] == ["dog", began]


def test_a_category_s_only_kind_has_no_row_beside_the_category_s(manifest: Manifest) -> None:
    dog, barking = (
        sound_event(0, kind="end"),
        sound_event(1, kind="end", tag="8-1", name="dog-barking-whining"),
    )
    text = page(portrait_of(manifest, tags_event(0), dog, barking))
    assert text.count("<tr data-from") == 1


def test_a_bundle_that_took_over_is_named(manifest: Manifest) -> None:
    """As a SIGHUP has it; a page of one bundle names no other."""
    first = f"{manifest.name}@sha256:0123456789ab"
    one = page(portrait_of(manifest, tags_event(0, model=first)))
    two = page(portrait_of(manifest, tags_event(0, model=first), tags_event(1, model="other@sha256:ab")))
    assert "<dt>then</dt>" not in one
    assert "<dt>then</dt><dd>other@sha256:ab</dd>" in two


def test_an_hour_stays_below_two_megabytes(manifest: Manifest) -> None:
    """With a sound in every window, which no street has."""
    events = [
        tags_event(seq, start=timestamp(START_UTC_S + 5 * seq), end=timestamp(START_UTC_S + 5 * seq + 10))
        for seq in range(720)
    ]
    sounds = [sound_event(seq, kind="end") for seq in range(720)]
    assert len(page(portrait_of(manifest, *events, *sounds, seconds=3600)).encode()) < 2_000_000
