"""`deploy/README.md` tells of what there is: files, options, settings, words of the journal, figures."""

import re
import subprocess
from pathlib import Path

import msgspec
import pytest

from edgetag.config import Settings
from edgetag.contract.event import Clock

REPOSITORY = Path(__file__).parents[2]
DEPLOY, UNIT = REPOSITORY / "deploy", "systemd/edgetag.service"
TEXT = (DEPLOY / "README.md").read_text("utf-8")
QUOTED = set(re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)))
SOURCE = "\n".join(path.read_text("utf-8") for path in (REPOSITORY / "edge" / "edgetag").rglob("*.py"))


def text_of(*path: str) -> str:
    return REPOSITORY.joinpath(*path).read_text("utf-8")


@pytest.mark.parametrize("script", ["install.sh", "provision.sh"])
def test_every_option_is_one(script: str) -> None:
    """Wherever the page calls the script, in a block or in a sentence."""
    said = subprocess.run([DEPLOY / script, "--help"], capture_output=True, text=True, check=True).stdout
    calls = re.findall(rf"{re.escape(script)}\b([^`#\n]*(?:\n(?!\n)[^`#\n]*)?)", TEXT)
    used = {option for call in calls for option in re.findall(r"--[a-z-]+", call)}
    assert len(used) >= 3
    assert used <= {*re.findall(r"--[a-z-]+", said), "--help"}


def test_every_dotted_word_is_a_setting_or_something_else_that_there_is() -> None:
    """What a setting, a field of an event, a line of the journal or a file is called."""
    settings = {
        f"{section}.{key}" for section, keys in msgspec.to_builtins(Settings()).items() for key in keys
    }
    fields = {f"clock.{name}" for name in Clock.__struct_fields__}
    words = {word for word in QUOTED if re.fullmatch(r"[a-z_]+\.[a-z_]+", word)}
    assert words & settings
    assert words & fields
    for word in words - settings - fields:
        assert f'"{word}"' in SOURCE or word in text_of("deploy", "install.sh"), word


def test_every_file_is_there_or_is_installed() -> None:
    installer = text_of("deploy", "install.sh")
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert (DEPLOY / target).exists(), target
    for file in ("journald.conf.d/edgetag.conf", "system.conf.d/edgetag.conf"):
        assert file in QUOTED
        assert (DEPLOY / "appliance" / file).exists()
    places = {word for word in QUOTED if re.match(r"/(opt|etc|var/lib|usr/local/s?bin)/?.*edgetag", word)}
    assert len(places) >= 7
    for place in places:
        assert place in installer or str(Path(place).parent) in installer, place


@pytest.mark.parametrize("secret", ["edgetag.mqtt-password", "edgetag.mqtt-key"])
def test_a_secret_is_called_alike_by_all(secret: str) -> None:
    """By whoever makes it, installs it, and loads it."""
    assert secret in TEXT
    assert secret in text_of("deploy", "provision.sh")
    assert secret in text_of("deploy", "install.sh")
    assert f"LoadCredential={secret}\n" in text_of(UNIT)


def test_what_it_quotes_of_the_journal_is_what_is_logged() -> None:
    rows = [
        row.split("|") for row in TEXT.partition("| in the journal |")[2].splitlines() if row.count("|") == 5
    ]
    words = [re.findall(r"`([^`]+)`", " ".join(row[2:3])) for row in rows]
    assert len([word for row in words for word in row]) >= 8
    assert not [word for row in words for word in row if word not in SOURCE]
    states = {state for row in rows for state in re.findall(r"`([^`]+)`", row[4])}
    assert states == {"online", "degraded", "no_audio", "offline"}


@pytest.mark.parametrize(
    ("said", "file", "line"),
    [
        ("Three quarters of the board's memory", UNIT, "MemoryMax=75%"),
        ("slowed down from 70 %", UNIT, "MemoryHigh=70%"),
        ("twice the share of the processor", UNIT, "CPUWeight=200"),
        ("restarted after two minutes if it hangs", UNIT, "WatchdogSec=2min"),
        ("again after 10 s", UNIT, "RestartSec=10s"),
        ("after five times in four minutes", UNIT, "StartLimitIntervalSec=4min"),
        ("after five times in four minutes", UNIT, "StartLimitBurst=5"),
        ("one sentence, exit code 2", UNIT, "RestartPreventExitStatus=2"),
        ("tried again every five minutes", "systemd/edgetag.timer", "OnUnitInactiveSec=5min"),
        ("at most 64 MB", "deploy/appliance/journald.conf.d/edgetag.conf", "SystemMaxUse=64M"),
        ("reset within 15 s", "deploy/appliance/system.conf.d/edgetag.conf", "RuntimeWatchdogSec=15s"),
        ("good for ten years", "deploy/provision.sh", "readonly SENSOR_DAYS=3650"),
    ],
)
def test_its_figures_are_those_of_the_files(said: str, file: str, line: str) -> None:
    assert said in " ".join(TEXT.split())
    assert re.search(rf"^{re.escape(line)}(?!\w)", text_of(file), re.MULTILINE)
