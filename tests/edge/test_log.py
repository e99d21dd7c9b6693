"""Log lines: one event a line on stderr, for people or for machines."""

import datetime
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from edgetag.log import configure

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("edgetag.test")


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def test_a_json_line_is_one_object_with_event_level_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    configure(logging.INFO, "json")
    _log.info("microphone.opened", device='Käfer "rot"\n\udcff', rate_hz=44_100)
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    said = json.loads(line)
    assert out == ""
    assert said.keys() == {"event", "level", "timestamp", "device", "rate_hz"}
    assert (said["event"], said["level"], said["rate_hz"]) == ("microphone.opened", "info", 44_100)
    assert said["device"] == 'Käfer "rot"\n\udcff'
    assert datetime.datetime.fromisoformat(said["timestamp"]).utcoffset() == datetime.timedelta(0)


def test_an_exception_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure(format="json")
    try:
        raise KeyError("lost")
    except KeyError:
        _log.error("oops", exc_info=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert "KeyError: 'lost'" in json.loads(line)["exception"]


def test_people_get_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure(logging.INFO)
    _log.info("microphone.opened", rate_hz=44_100)
    line = capsys.readouterr().err
    assert "microphone.opened" in line
    assert "rate_hz=44100" in line
    assert "{" not in line


@pytest.mark.parametrize("format", ["console", "json"])
def test_another_level_holds_for_loggers_that_exist(format: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure(logging.WARNING, format)  # type: ignore[arg-type]
    _log.info("not said")
    configure(logging.INFO, format)  # type: ignore[arg-type]
    _log.info("said")
    (line,) = capsys.readouterr().err.splitlines()
    assert "not said" not in line


def test_without_a_stderr_nothing_is_said_and_nothing_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    configure(format="json")
    _log.warning("nobody hears")


def test_a_log_that_cannot_be_written_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, or a reader who has gone. What comes later is said again as soon as that is possible."""
    read_end, write_end = os.pipe()
    with Path("/dev/full").open("w") as full, os.fdopen(write_end, "w") as piped:
        monkeypatch.setattr(sys, "stderr", full)
        configure()
        _log.warning("nowhere to go")
        monkeypatch.setattr(sys, "stderr", piped)
        configure()
        os.close(read_end)
        _log.warning("nobody reads")
        read_end, write_end = os.pipe()
        os.dup2(write_end, piped.fileno())
        _log.warning("somebody reads")
        assert b"somebody reads" in os.read(read_end, 1000)
        os.close(read_end)
        os.close(write_end)


def test_what_a_sensor_imports_to_log_has_no_rich_in_it() -> None:
    """Which can be imported all the same, by whoever needs it."""
    code = "import edgetag.cli, sys; print('rich' in sys.modules); import rich.console"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
