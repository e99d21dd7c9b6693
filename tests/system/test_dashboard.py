"""`edgetag dashboard` in a real browser, headless Chromium, at a real broker.

EDGETAG_SCREENSHOT=deploy/dashboard.png pytest tests/system/test_dashboard.py -k phone   draws that anew
"""

import io
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import soundfile
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from edgetag.contract.event import (
    DeliveryHealth,
    Level,
    OutboxHealth,
    encode,
    timestamp,
)
from edgetag.demo.scene import GENERATORS
from fakes import bundle_info, sensor_health, sensor_status, sound_event, tags_event
from fakes_dashboard import Running
from system.test_mosquitto import WAIT_S, Mosquitto, find

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.skipif(not find("mosquitto"), reason="mosquitto is not installed"),
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium or chromium-driver is not installed"),
]

HOSTILE = "<img src=x onerror=window.owned=1>"  # an id, a name and a reason
VIOLATIONS = """
window.violations = [];
addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
"""


class Dashboard(Running):
    """`edgetag dashboard` on a free port."""

    def __init__(self, broker: Mosquitto, *options: object, port: int = 0) -> None:
        super().__init__("dashboard", "--mqtt", f"mqtt://127.0.0.1:{broker.port}", "--port", port, *options)


class Page:
    """A browser's tab."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(
        self, url: str, path: str = "", *, width: int = 1280, height: int = 800, dark: bool = False
    ) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.resize(width, height)
        self.driver.get("about:blank")
        self.driver.get(url + path)

    def resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    @property
    def text(self) -> str:
        return str(self.run("return document.body.innerText")).replace("\xa0", " ")

    def until(self, *words: str, without: str = "\0") -> str:
        """All these words can be read; what can."""
        deadline_s = time.monotonic() + 2 * WAIT_S
        while not (all(word in self.text for word in words) and without not in self.text):
            assert time.monotonic() < deadline_s, f"no {words} in\n{self.text}"
            time.sleep(0.05)
        return self.text

    def click(self, text: str) -> None:
        self.driver.find_element("link text", text).click()

    def press(self, *keys: str) -> None:
        self.driver.switch_to.active_element.send_keys(*keys)

    @property
    def ids(self) -> list[str]:
        return list(self.run("return [...document.querySelectorAll('#sensors a')].map(a => a.textContent)"))

    def faults(self) -> list[str]:
        """What broke the policy or ended a script, since this was asked before."""
        lines = self.driver.get_log("browser")
        said = [line["message"] for line in lines if line["source"] != "network"]  # dashboards come and go
        return said + [f"policy: {directive}" for directive in self.run("return window.violations ?? []")]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Page]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    for option in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", *root):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(str(DRIVER)))
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": VIOLATIONS})
    yield Page(driver)
    driver.quit()


@pytest.fixture
def page(chromium: Page) -> Iterator[Page]:
    """With nothing to complain of in the end."""
    chromium.driver.delete_all_cookies()
    chromium.faults()
    yield chromium
    assert chromium.faults() == []


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path) as broker:
        yield broker


Publish = Callable[[str, str, "msgspec.Struct | bytes"], None]


@contextmanager
def publisher(broker: Mosquitto) -> Iterator[Publish]:
    """Publishes what any sensor could; retained, where sensors do."""
    client = Client(CallbackAPIVersion.VERSION2)
    client.max_queued_messages_set(0)
    client.connect("127.0.0.1", broker.port)
    client.loop_start()

    def publish(sensor: str, kind: str, message: "msgspec.Struct | bytes") -> None:
        payload = message if isinstance(message, bytes) else encode(message)
        sent = client.publish(f"sonyc/v1/{sensor}/{kind}", payload, 1, retain=kind in ("status", "info"))
        sent.wait_for_publish(WAIT_S)

    yield publish
    client.disconnect()
    client.loop_stop()


def window_now(seq: int, **changes: object) -> msgspec.Struct:
    now_s = time.time()
    return tags_event(seq, start=timestamp(now_s - 10), end=timestamp(now_s), **changes)


# -- what is heard -------------------------------------------------------------------------------------------


def test_a_siren_in_the_street_appears_and_the_sensor_that_dies_turns_offline(
    broker: Mosquitto, page: Page, tmp_path: Path
) -> None:
    """By the real tagger, paced in real time, and by its last will."""
    siren = GENERATORS["5-3"](np.random.default_rng(0), 30.0)
    soundfile.write(tmp_path / "siren.wav", siren, 44_100)
    url = f"mqtt://127.0.0.1:{broker.port}"
    with Dashboard(broker) as dashboard:
        page.open(dashboard.url)
        page.until("Nothing has come under sonyc/v1/ yet.")
        how = ("--realtime", "--sensor", "lamp-17", "--mqtt", url)
        command = [sys.executable, "-m", "edgetag", "replay", str(tmp_path / "siren.wav"), *how]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as sensor:
            said = page.until("lamp-17", "online", "alert-signal", "dBFS(A)")
            assert "offline" not in said
            sensor.kill()
            page.until("offline", "connection lost")
        page.click("lamp-17")
        said = page.until("offline", "Level over the last hour", "alert-signal", "starter", "came")
        assert "all sensors" in said


def test_nothing_that_a_sensor_says_is_run(broker: Mosquitto, page: Page) -> None:
    """Ids, names, reasons and payloads are shown as they are, in the overview and on the sensor's page."""
    evil = msgspec.structs.replace(
        bundle_info(), bundle=HOSTILE, edgetag=HOSTILE, tags={"1": HOSTILE, "5": f"<script>{HOSTILE}"}
    )
    with publisher(broker) as publish, Dashboard(broker) as dashboard:
        page.open(dashboard.url)
        publish(HOSTILE, "info", evil)
        publish(HOSTILE, "status", sensor_status("degraded", f'"><svg onload=alert(1)>{HOSTILE}'))
        publish(HOSTILE, "tags", window_now(0, active=["1", "5", HOSTILE], verdict=HOSTILE))
        publish(HOSTILE, "events", sound_event(0, name=HOSTILE, id=HOSTILE))
        publish(HOSTILE, "health", sensor_health())
        publish("javascript:alert(1)", "status", sensor_status("degraded", "javascript:alert(1)"))
        publish("lamp", "tags", b"<script>window.owned=1</script>")
        said = page.until(
            HOSTILE, "1 message not understood", "javascript:alert(1)", f'"><svg onload=alert(1)>{HOSTILE}'
        )
        assert said.count(HOSTILE) >= 6
        page.click(HOSTILE)
        page.until(HOSTILE, "What hears", "120 MB", f"<script>{HOSTILE}")
        page.run("history.back()")
        page.until("Latest sounds")
        page.click("javascript:alert(1)")
        page.until("all sensors", "javascript:alert(1)")
        assert page.run("return [window.owned, document.images.length, document.scripts.length]") == [
            None,
            0,
            1,
        ]
        assert page.run("return [...document.links].every(a => a.protocol === 'http:' && a.hash)") is True


def test_a_page_that_did_run_such_things_would_be_found_out(broker: Mosquitto, chromium: Page) -> None:
    """So what the other tests do not find is not there: markup out of text, scripts and hosts of others."""
    with Dashboard(broker) as dashboard:
        chromium.open(dashboard.url)
        chromium.until("Nothing has come")
        assert (
            chromium.run("try { document.body.innerHTML = '<p>' } catch (e) { return e.name }") == "TypeError"
        )
        chromium.run("const i = new Image(); i.src = 'http://other.example/x.png'; document.body.append(i)")
        chromium.run(
            "const s = document.createElement('style'); s.textContent = 'p{}'; document.body.append(s)"
        )
        time.sleep(0.5)
        faults = " ".join(chromium.faults())
    for directive in ("require-trusted-types-for", "img-src", "style-src-elem"):
        assert f"policy: {directive}" in faults


def test_what_is_lost_is_said_in_words_and_that_it_is_back(broker: Mosquitto, page: Page) -> None:
    """The broker to the dashboard, and the dashboard to the browser."""
    with publisher(broker) as publish:
        publish("lamp-1", "status", sensor_status())
    with Dashboard(broker) as dashboard:
        page.open(dashboard.url)
        page.until("lamp-1", f"live from mqtt://127.0.0.1:{broker.port}")
        broker.stop()
        page.until("has had no connection to the broker since", "tries again by itself", "lamp-1")
        broker.start()
        page.until("live from mqtt://", without="no connection")
        assert dashboard.ended(signal.SIGTERM) == (0, "")
        page.until("This page has lost its connection to the dashboard", "What is shown is from")
    with Dashboard(broker, port=dashboard.port):
        page.until("live from mqtt://", without="lost its connection")


def test_only_who_shows_the_token_gets_in_and_it_is_in_no_url(
    broker: Mosquitto, page: Page, tmp_path: Path
) -> None:
    secret = tmp_path / "token"
    secret.write_text("correct-horse-battery\n")
    secret.chmod(0o600)
    with publisher(broker) as publish, Dashboard(broker, "--token-file", secret) as dashboard:
        publish("lamp-1", "status", sensor_status())
        page.open(dashboard.url)
        page.until("Token of this dashboard")
        page.press("wrong", "\ue007")
        page.until("That is not the token.")
        page.press("correct-horse-battery", "\ue007")
        page.until("lamp-1", "online")
        assert page.driver.current_url == dashboard.url
        assert page.run("return document.cookie") == ""
        page.driver.delete_all_cookies()
        page.driver.refresh()
        page.until("Token of this dashboard")


# -- a network -----------------------------------------------------------------------------------------------

PLACES: dict[str, tuple[float, str]] = {  # by sensor: level in dB(A), and what is usually heard there
    "bridge-1": (71, "engine"),
    "bridge-2": (69, "engine"),
    "harbour-1": (62, "machinery"),
    "hospital-1": (64, "siren"),
    "market-1": (66, "voices"),
    "market-2": (65, "voices"),
    "park-1": (52, "dogs"),
    "park-2": (50, "voices"),
    "school-1": (60, "voices"),
    "station-1": (68, "engine"),
    "station-2": (67, "music"),
    "works-1": (73, "machinery"),
}
GOING_ON = ("hospital-1", "market-2", "works-1")
HEARD: dict[str, dict[str, float]] = {
    "engine": {"1": 0.85, "1-2": 0.7, "7": 0.2},
    "machinery": {"1": 0.6, "2": 0.8, "2-2": 0.7, "1-3": 0.6},
    "siren": {"5": 0.7, "5-3": 0.6, "1": 0.55, "1-2": 0.5},
    "voices": {"7": 0.85, "7-1": 0.8, "1": 0.3},
    "dogs": {"8": 0.7, "8-1": 0.7, "7": 0.4},
    "music": {"6": 0.8, "6-1": 0.7, "7": 0.6, "7-1": 0.5},
}


def windows(place: str, now_s: float, rng: random.Random) -> Iterator[msgspec.Struct]:
    """An hour at a place, a window every ten seconds: what swells and ebbs, and what comes and goes."""
    level_db, usual = PLACES[place]
    phase, pace = rng.uniform(0, math.tau), rng.uniform(9, 40)
    for seq in range(358):
        ago_s = 10.0 * (357 - seq) + 1
        swell = math.sin(seq / pace + phase) + 0.6 * math.sin(seq / 2.6)
        there = 1 / (1 + math.exp(-0.6 - 3 * math.sin(seq / 23 + 2 * phase) - rng.uniform(-1, 1)))
        there = max(there, 0.8) if seq > 345 and place in GOING_ON else there
        said = {tag: min(0.97, max(0.02, p * (0.35 + 0.75 * there))) for tag, p in HEARD[usual].items()}
        coarse = {tag: said.get(tag, rng.uniform(0.01, 0.12)) for tag in "12345678"}
        fine = {tag: p for tag, p in said.items() if "-" in tag}
        level = Level(round(level_db + 3 * swell + 4 * there + rng.gauss(0, 1), 1), 0, 0, 0, calibrated=True)
        active = [tag for tag, p in {**coarse, **fine}.items() if p >= 0.35]
        times = {"start": timestamp(now_s - ago_s - 10), "end": timestamp(now_s - ago_s)}
        yield tags_event(seq, **times, level=level, coarse=coarse, fine=fine, active=active, late=seq < 357)


def sounds(now_s: float) -> Iterator[tuple[str, msgspec.Struct]]:
    """A siren that drives through the town, and what else there is."""
    script = [
        *(
            ("station-2", "music", 1500, 400.0),
            ("works-1", "jackhammer", 1300, 95.0),
            ("park-1", "dog", 700, 15.0),
        ),
        *(
            ("market-1", "human-voice", 640, 240.0),
            ("hospital-1", "siren", 310, 35.0),
            ("bridge-1", "siren", 270, 30.0),
        ),
        *(
            ("station-1", "siren", 240, 25.0),
            ("harbour-1", "machinery-impact", 200, 60.0),
            ("park-1", "dog", 130, 20.0),
        ),
        *(
            ("works-1", "jackhammer", 110, None),
            ("market-2", "human-voice", 80, None),
            ("hospital-1", "siren", 20, None),
        ),
    ]
    for number, (sensor, name, ago_s, duration_s) in enumerate(script):
        start_s = now_s - ago_s
        about = {
            "name": name,
            "id": f"x/{number}",
            "start": timestamp(start_s),
            "peak": 0.6 + number % 4 / 10,
        }
        yield sensor, sound_event(2 * number, **about, end=timestamp(start_s + 10))
        if duration_s is not None:
            over = {"kind": "end", "end": timestamp(start_s + duration_s), "duration_s": duration_s}
            yield sensor, sound_event(2 * number + 1, **about, **over)


def health(place: str, rng: random.Random) -> msgspec.Struct:
    depth = 214 if place == "harbour-1" else 0
    outbox = OutboxHealth(depth=depth, bytes=900 * depth)
    delivery = DeliveryHealth(connects=3, connects_last_hour=5 if depth else 1, last_error="", outbox=outbox)
    figures = {"cpu_s": 3_600 * 24 * 0.02, "uptime_s": 3_600.0 * 24, "temperature_c": rng.uniform(38, 52)}
    return msgspec.structs.replace(sensor_health(), **figures, disk_free_mb=21_400.0, delivery=delivery)


@contextmanager
def town(broker: Mosquitto, dashboard: Dashboard, page: Page) -> Iterator[None]:
    """Twelve sensors with an hour behind them; four have their troubles."""
    rng, now_s = random.Random(7), time.time()
    with publisher(broker) as publish:
        for place in PLACES:
            publish(place, "info", bundle_info())
            publish(place, "status", sensor_status())
            publish(place, "health", health(place, rng))
            for window in windows(place, now_s, rng):
                publish(place, "tags", window)
        for sensor, sound in sounds(now_s):
            publish(sensor, "events", sound)
        publish("harbour-1", "status", sensor_status("degraded", "inference cannot keep up"))
        publish("school-1", "status", sensor_status("no_audio", "no microphone usb:1-1.3"))
        publish("bridge-2", "status", sensor_status("offline", "connection lost"))
        yield


def test_a_network_can_be_looked_through_by_keyboard_and_on_a_phone(broker: Mosquitto, page: Page) -> None:
    """Trouble comes first; what is sought is found; nothing is wider than the page; the picture is drawn."""
    long = "w" * 64
    with Dashboard(broker) as dashboard, town(broker, dashboard, page):
        page.open(dashboard.url)
        page.until(
            "12", "all 12", "trouble 3", "jackhammer", "going on", "no microphone usb:1-1.3", "214 waiting"
        )
        assert page.ids[:3] == ["bridge-2", "school-1", "harbour-1"]
        assert page.ids[3:] == sorted(page.ids[3:])
        draw(page)
        find_by_keyboard(page)
        with publisher(broker) as publish:
            publish(long, "status", sensor_status("degraded", "x" * 190))
            publish(long, "events", sound_event(99, name="y" * 190, id="long"))
            page.until(long)
        for path in ("", "#/sensor/harbour-1", f"#/sensor/{long}"):
            for dark in (False, True):
                page.open(dashboard.url, path, width=320, height=800, dark=dark)
                page.until("Latest sounds" if not path else "What hears")
                assert page.run("return document.documentElement.scrollWidth") == 320
                assert page.run(PALE) == []
                assert nameless(page) == []


PALE = """
const linear = (c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
const light = (colour) => {
  const [r, g, b] = colour.match(/[0-9.]+/g).map((n) => linear(n / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  const colour = getComputedStyle(element).backgroundColor;
  return colour.startsWith("rgb(") || !element.parentElement ? colour : behind(element.parentElement);
};
const contrast = (element) => {
  const style = getComputedStyle(element);
  const text = light(element.closest("svg") ? style.fill : style.color), ground = light(behind(element));
  return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
};
const isText = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
const shown = [...document.querySelectorAll("body *")].filter((one) => isText(one) && one.checkVisibility());
return shown.filter((one) => contrast(one) < 4.5).map((one) => [one.textContent, contrast(one)]);
"""
"""What stands out from its ground by less than 4.5 to 1 (WCAG 2.2, success criterion 1.4.3)."""


def nameless(page: Page) -> list[str]:
    """The roles of what can have the focus, but no name for those who do not see it."""
    nodes = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    return [
        node["role"]["value"]
        for node in nodes
        if any(p["name"] == "focusable" and p["value"]["value"] for p in node.get("properties", []))
        and not node.get("name", {}).get("value")
    ]


def test_nothing_moves_for_those_who_do_not_want_it(broker: Mosquitto, page: Page) -> None:
    with publisher(broker) as publish, Dashboard(broker) as dashboard:
        moving = []
        for seq, wish in enumerate(("reduce", "no-preference")):
            page.open(dashboard.url)
            feature = {"name": "prefers-reduced-motion", "value": wish}
            page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
            page.until("Latest sounds")
            publish("lamp", "events", sound_event(seq, name=wish, id=wish))
            page.until(wish)
            moving.append(bool(page.run("return document.getAnimations().length")))
    assert moving == [False, True]


def draw(page: Page) -> None:
    """Keep what is seen, where it is asked for, in a hundred colours."""
    if (target := os.environ.get("EDGETAG_SCREENSHOT")) is None:
        return
    from PIL import Image

    page.resize(1280, 960)
    time.sleep(2)  # what is new is not new any more
    picture = Image.open(io.BytesIO(page.driver.get_screenshot_as_png())).convert("RGB")
    few = picture.quantize(160, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(target, optimize=True)


def find_by_keyboard(page: Page) -> None:
    tab, enter = "\ue004", "\ue007"
    page.run("document.body.focus(); document.activeElement.blur()")
    page.press(tab)
    assert page.run("return document.activeElement.textContent") == "Skip to the sensors"
    page.press(enter)
    assert page.run("return document.activeElement.id") == "main"
    page.press(tab, enter)
    page.press(tab)
    assert page.run("return document.activeElement.textContent") == "trouble 3"
    page.press(enter)
    assert page.run("return document.activeElement.getAttribute('aria-pressed')") == "true"
    assert page.ids == ["bridge-2", "school-1", "harbour-1"]
    page.press(enter)
    page.run("document.getElementById('find').focus()")
    page.press("PARK")
    assert page.ids == ["park-1", "park-2"]
    page.run("document.querySelector('#sensors a').focus()")
    outline = page.run(
        "const s = getComputedStyle(document.activeElement); return [s.outlineStyle, s.outlineWidth]"
    )
    assert outline == ["solid", "3px"]
    page.press(enter)
    page.until("Coarse tags over the last hour", "dog", "at most")
    assert page.run("return document.activeElement.id") == "sensor-title"
    page.run("document.querySelector('summary').click()")
    assert (
        len(page.run("return [...document.querySelectorAll('#figures tbody tr')].map(r => r.innerText)"))
        == 12
    )
    page.run("location.hash = '#/'; document.getElementById('find').value = ''")
