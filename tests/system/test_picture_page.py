"""The page of `edgetag replay --html`, in a real browser."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from fakes_bundle import write_bundle
from fakes_cli import run_python
from system.browser_pipe import Browser, needs_browser

pytestmark = needs_browser

NAME = "<img src=x onerror=alert(1)>.wav"
SECONDS = 60.0
TEXT = "document.getElementById('chart').getAttribute('aria-valuetext')"
NOW = "Number(document.getElementById('chart').getAttribute('aria-valuenow'))"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a minute of noise; its name is HTML."""
    folder = tmp_path_factory.mktemp("page")
    bundle = write_bundle(folder / "bundle", [0.9] + [0.1] * 36, {"1": [0.7, 0.1, 0.1, 0.1]})
    rng = np.random.default_rng(0)
    soundfile.write(folder / NAME, rng.normal(0, 0.05, round(SECONDS * 44_100)), 44_100)
    done = run_python(
        "-m",
        "edgetag",
        "replay",
        NAME,
        "--bundle",
        bundle,
        "--html",
        "page.html",
        state=folder / "state",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return folder / "page.html"


@pytest.fixture
def browser(page: Path) -> Iterator[Browser]:
    with Browser() as browser:
        browser.open(page)
        yield browser


def test_it_asks_for_nothing_and_its_policy_lets_it_work(browser: Browser, page: Path) -> None:
    assert browser.value(TEXT)
    assert browser.requests() == [page.as_uri()]
    assert browser.complaints() == []


def test_its_policy_lets_nothing_else_run_or_load(browser: Browser) -> None:
    """A script that somebody had smuggled in would not run; a picture would not be fetched."""
    browser.value("const script = document.createElement('script'); script.textContent = 'window.ran = 1'")
    browser.value("document.body.append(script)")
    browser.value("const image = new Image(); image.src = 'http://127.0.0.1:9/x.png'")
    browser.value("document.body.append(image)")
    browser.until("document.images.length === 1 && document.images[0].complete")
    assert browser.value("window.ran === undefined")
    assert len(browser.complaints()) >= 2


def test_a_name_is_text(browser: Browser) -> None:
    assert browser.value("document.title") == NAME
    assert browser.value("document.querySelector('h1').textContent") == NAME
    assert browser.value("document.images.length") == 0


def test_keys_walk_from_window_to_window_and_say_what_was_heard(browser: Browser) -> None:
    browser.value("document.getElementById('chart').focus()")
    places = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "Home"):
        browser.press(key)
        places.append(browser.value(NOW))
    assert places == [10.0, 15.0, 10.0, SECONDS, 0.0]
    assert "engine 90 %" in browser.value(TEXT)
    assert "dBFS(A)" in browser.value(TEXT)


def test_the_cursor_is_where_the_mouse_points(browser: Browser) -> None:
    browser.point("#coarse", 0.5)
    assert browser.value(NOW) == pytest.approx(SECONDS / 2, abs=0.5)
    lines = browser.value("document.getElementById('cursor').getBoundingClientRect().left")
    box = browser.value("document.getElementById('coarse').getBoundingClientRect().toJSON()")
    assert lines == pytest.approx(box["left"] + box["width"] / 2, abs=2)


def test_a_sound_leads_to_its_place(browser: Browser) -> None:
    """And the sounds of that place are marked."""
    browser.value("document.querySelectorAll('tbody tr button')[1].click()")
    assert browser.value(NOW) == SECONDS
    browser.value("document.querySelector('tbody tr button').click()")
    assert browser.value(NOW) == 0
    assert browser.value("document.querySelectorAll('tr.now').length") >= 1


def test_zoomed_in_the_cursor_stays_in_sight(browser: Browser) -> None:
    browser.value("document.getElementById('chart').focus()")
    for key in ("+", "+", "End"):
        browser.press(key)
    assert browser.value("document.getElementById('cursor').style.display") == "block"
    browser.point("#coarse", 0.0)
    assert browser.value(NOW) == pytest.approx(SECONDS * 3 / 4, abs=0.5)


def test_the_reader_s_own_recording_is_played_and_followed(
    browser: Browser, page: Path, tmp_path: Path
) -> None:
    """It stays on the device: it is an object of the browser, and nothing is asked for but that."""
    recording = tmp_path / "mine.wav"
    shutil.copy(page.parent / NAME, recording)
    browser.choose("#file", recording)
    browser.until("document.getElementById('audio').readyState >= 2")
    browser.point("#coarse", 0.5, click=True)
    seconds = browser.until("document.getElementById('audio').currentTime")
    assert seconds == pytest.approx(SECONDS / 2, abs=0.5)
    browser.value("document.getElementById('audio').play()")
    browser.until(f"document.getElementById('audio').currentTime > {seconds} + 0.5")
    browser.value("document.getElementById('audio').pause()")
    assert browser.value(NOW) > seconds + 0.3
    # The player's own icons are data, not addresses.
    assert [url for url in browser.requests() if not url.startswith(("blob:", "data:"))] == [page.as_uri()]
    assert browser.complaints() == []


def test_another_recording_is_asked_about(browser: Browser, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "other.wav", np.zeros(44_100), 44_100)
    browser.choose("#file", tmp_path / "other.wav")
    assert "0:01.0" in browser.until("document.getElementById('complaint').textContent")


@pytest.mark.parametrize("is_dark", [False, True])
def test_a_phone_shows_all_of_it_without_scrolling_sideways(page: Path, is_dark: bool) -> None:
    with Browser(390, 844, is_dark=is_dark) as browser:
        browser.open(page)
        assert browser.value("document.documentElement.scrollWidth") <= 390
        paper = browser.value("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(19, 19, 22)" if is_dark else "rgb(255, 255, 255)")
