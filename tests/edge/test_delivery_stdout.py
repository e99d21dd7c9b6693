"""Events as text: JSON Lines, CSV, and a table for a person."""

import csv
import io
import json
import re
import subprocess
import sys

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from edgetag.contract.event import Audio, Level, TagsEvent, encode, json_schema
from edgetag.contract.taxonomy import SONYC_UST, Taxonomy
from edgetag.delivery.stdout import Csv, JsonLines
from edgetag.delivery.table import WIDE_COLUMNS, Table
from fakes import tags_event

EVENTS = [
    tags_event(0),
    tags_event(1, verdict="silent", coarse=dict.fromkeys(SONYC_UST.coarse_ids, 0.0), refined=[], active=[]),
    tags_event(2, verdict="too_little_audio", coarse={}, fine={}, refined=[], active=[]),
    tags_event(3, source='Käfer, "rot"\n.wav', fine={"3-1": 0.5, "8-1": 0.5}),
]


# -- JSON Lines --------------------------------------------------------------------------------------


def test_every_line_is_one_event_as_the_broker_would_get_it() -> None:
    stream = io.BytesIO()
    with JsonLines(stream) as sink:
        for event in EVENTS:
            sink.deliver(event)
    lines = stream.getvalue().splitlines()
    assert lines == [encode(event) for event in EVENTS]
    for line in lines:
        jsonschema.validate(json.loads(line), json_schema("tags"))


def test_an_event_is_one_write_of_a_whole_line_and_a_flush() -> None:
    class Stream(io.BytesIO):
        calls: list[object]

        def __init__(self) -> None:
            super().__init__()
            self.calls = []

        def write(self, data: bytes) -> int:  # type: ignore[override]
            self.calls.append(data)
            return len(data)

        def flush(self) -> None:
            self.calls.append("flush")

    stream = Stream()
    with JsonLines(stream) as sink:
        sink.deliver(EVENTS[0])
        assert stream.calls == [encode(EVENTS[0]) + b"\n", "flush"]


def test_the_stream_stays_open_for_its_owner() -> None:
    stream = io.BytesIO()
    with JsonLines(stream):
        pass
    assert not stream.closed


WRITES_FOR_EVER = """
import itertools, os, sys
from fakes import tags_event
from edgetag.contract.taxonomy import SONYC_UST
from edgetag.delivery.stdout import Csv, JsonLines
try:
    with {sink} as sink:
        for seq in itertools.count():
            sink.deliver(tags_event(seq))
except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(7)
"""


@pytest.mark.parametrize("sink", ["JsonLines(sys.stdout.buffer)", "Csv(sys.stdout, SONYC_UST)"])
def test_a_reader_that_leaves_ends_the_writer_with_a_broken_pipe_and_nothing_else(
    sink: str, request: pytest.FixtureRequest
) -> None:
    """`edgetag replay street.wav | head -1`."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITES_FOR_EVER.format(sink=sink)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={"PYTHONPATH": str(request.config.rootpath / "tests")},
    )
    assert writer.stdout is not None
    assert writer.stderr is not None
    with writer.stderr, writer.stdout:
        first = writer.stdout.readline()
        writer.stdout.close()
        assert writer.stderr.read() == b""
    assert writer.wait() == 7
    assert first.endswith(b"\n")


@pytest.mark.parametrize(
    ("module", "strangers"),
    [
        ("edgetag.delivery.stdout", {"paho", "rich", "structlog", "numpy"}),
        ("edgetag.delivery.table", {"paho", "numpy"}),
        ("edgetag.delivery.mqtt", {"numpy"}),
    ],
)
def test_a_way_out_imports_only_what_it_needs(module: str, strangers: set[str]) -> None:
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not strangers & set(loaded.stdout.split())


# -- CSV -----------------------------------------------------------------------------------------------


def rows_of(*events: TagsEvent) -> list[dict[str, str]]:
    stream = io.StringIO()
    with Csv(stream, SONYC_UST) as sink:
        for event in events:
            sink.deliver(event)
    return list(csv.DictReader(io.StringIO(stream.getvalue()), strict=True))


def test_csv_has_a_column_for_every_tag_in_taxonomy_order() -> None:
    header = list(rows_of(EVENTS[0])[0])
    assert header == [
        *("source", "start", "end", "verdict", "valid", "overruns", "clipped"),
        *("laeq_db", "lafmax_db", "la10_db", "la90_db"),
        *(SONYC_UST.tags[tag_id].label for tag_id in SONYC_UST.ids),
        *("refined", "active"),
    ]
    assert header[11] == "1_engine"
    assert "7-1_person-or-small-group-talking" in header


def test_csv_gives_the_events_back() -> None:
    rows = rows_of(*EVENTS)
    assert len(rows) == len(EVENTS)
    for row, event in zip(rows, EVENTS, strict=True):
        assert row["source"] == ("" if event.source is msgspec.UNSET else event.source)
        assert (row["start"], row["end"], row["verdict"]) == (event.start, event.end, event.verdict)
        assert float(row["laeq_db"]) == event.level.laeq_db
        assert (row["refined"].split(), row["active"].split()) == (event.refined, event.active)
        for tag in SONYC_UST.tags.values():
            probability = (event.coarse | event.fine).get(tag.id)
            assert row[tag.label] == ("" if probability is None else str(probability))


def test_csv_without_events_is_a_header() -> None:
    stream = io.StringIO()
    with Csv(stream, SONYC_UST):
        pass
    assert stream.getvalue().count("\n") == 1


# -- the table -------------------------------------------------------------------------------------------


def table_of(*events: TagsEvent, width: int = 100, **console: object) -> list[str]:
    stream = io.StringIO()
    options = {"file": stream, "width": width, "legacy_windows": False} | console
    with Table(Console(**options), SONYC_UST) as sink:  # type: ignore[arg-type]
        for event in events:
            sink.deliver(event)
    return stream.getvalue().splitlines()


def test_a_row_says_when_how_loud_and_what() -> None:
    loud = Level(laeq_db=-23.44, lafmax_db=-10.0, la10_db=-20.0, la90_db=-40.0)
    bus = {"1": 0.83, "7": 0.62, "2": 0.0, "3": 0.2, "4": 0.3, "5": 0.4, "6": 0.5, "8": 1.0}
    assert table_of(
        tags_event(0),
        tags_event(1, level=loud, coarse=bus, refined=["1", "7"], active=["1", "8", "8-1"]),
        width=100,
    ) == [
        "UTC                LAeq  eng mach imp saw alert music voice dog  heard",
        "10:00:00     63.2 dB(A)  ▁▁▁ ▁▁▁  ▁▁▁ ▁▁▁ ▁▁▁   ▂▂▂   ███   ▁▁▁  human-voice 91%:",
        "                                                                 person-or-small-group-talking 80%",
        "10:00:10  -23.4 dBFS(A)  ▇▇▇ ▁▁▁  ▂▂▂ ▃▃▃ ▄▄▄   ▅▅▅   ▅▅▅   ███  engine 83%:",
        "                                                                 small-sounding-engine 5%",
        "                                                                 human-voice 62%:",
        "                                                                 person-or-small-group-talking 80%",
        "                                                                 dog 100%",
    ]


def test_a_verdict_is_said_in_words_and_doubts_are_added() -> None:
    gaps = Audio(rate_hz=44_100, valid=0.62, overruns=2, clipped=0.0)
    lines = table_of(
        tags_event(0, verdict="silent", refined=[], active=[]),
        tags_event(1, verdict="too_little_audio", audio=gaps, coarse={}, fine={}, refined=[], active=[]),
        tags_event(2, refined=[], active=[], audio=Audio(44_100, 1.0, 1, 0.0123)),
        width=120,
    )
    words = [line[65:] for line in lines[1:]]
    assert words == [
        "silent",
        "too little audio: 62% of it heard  2 overruns",
        "nothing",
        "1 overrun  1.23% clipped",
    ]


def test_bars_above_a_half_stand_out_on_a_terminal_and_a_file_gets_plain_text() -> None:
    terminal = "\n".join(table_of(EVENTS[0], force_terminal=True, color_system="standard"))
    assert "\x1b[1;32m███" in terminal
    assert "\x1b[2m▂▂▂" in terminal
    assert "\x1b" not in "\n".join(table_of(EVENTS[0]))


def test_below_the_full_width_bars_are_numbered_under_a_legend() -> None:
    assert table_of(EVENTS[0], width=80) == [
        "1 engine  2 machinery-impact  3 non-machinery-impact  4 powered-saw",
        "5 alert-signal  6 music  7 human-voice  8 dog",
        "UTC                LAeq  1 2 3 4 5 6 7 8  heard",
        "10:00:00     63.2 dB(A)  ▁ ▁ ▁ ▁ ▁ ▂ █ ▁  human-voice 91%:",
        "                                          person-or-small-group-talking 80%",
    ]
    assert table_of(EVENTS[0], width=60)[-1] == "  human-voice 91%: person-or-small-group-talking 80%"


@given(
    st.integers(20, 140),
    st.lists(st.sampled_from(SONYC_UST.ids), unique=True),
    st.lists(st.sampled_from(SONYC_UST.branch_ids), unique=True),
)
def test_no_line_is_wider_than_the_terminal_and_no_tag_goes_missing(
    width: int, active: list[str], refined: list[str]
) -> None:
    lines = table_of(tags_event(0, active=active, refined=refined), width=width)
    assert all(cell_len(line) <= width for line in lines)
    names = {SONYC_UST.tags[tag_id].name for tag_id in active if tag_id not in ("3-1", "8-1")}
    if width >= 40:
        assert all(any(re.search(rf"\b{name} \d", line) for line in lines) for name in names)


def test_ascii_terminals_get_ascii_bars() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    table_of(*EVENTS, file=stream, width=WIDE_COLUMNS)
    stream.flush()
    assert b"@@@" in stream.buffer.getvalue()


def test_a_taxonomy_of_ones_own_gets_its_own_columns() -> None:
    farm = Taxonomy.from_names("farm", {"1": "chicken", "2": "cow"}, {"1": {"1": "hen"}, "2": {"1": "calf"}})
    stream = io.StringIO()
    with Table(Console(file=stream, width=120), farm) as sink:
        sink.deliver(tags_event(coarse={"1": 0.9}, fine={"1-1": 0.9}, refined=[], active=["1"]))
    assert stream.getvalue().splitlines() == [
        "UTC                LAeq  chick cow  heard",
        "10:00:00     63.2 dB(A)  ███        chicken 90%",
    ]


def first_line(taxonomy: Taxonomy, width: int = 120) -> str:
    stream = io.StringIO()
    with Table(Console(file=stream, width=width), taxonomy) as sink:
        sink.deliver(
            tags_event(coarse=dict.fromkeys(taxonomy.coarse_ids, 0.9), fine={}, refined=[], active=[])
        )
    return next(line for line in stream.getvalue().splitlines() if line.startswith("UTC"))


def farm_of(names: dict[str, str]) -> Taxonomy:
    return Taxonomy.from_names("farm", names, {id: {"1": f"kind-of-{name}"} for id, name in names.items()})


def test_bars_have_names_where_these_can_be_told_apart() -> None:
    """Five letters may not be enough; a dash is no end of a name."""
    assert first_line(farm_of({"1": "hen-house", "2": "quay-work"})).split()[2:] == ["hen-h", "quay", "heard"]
    assert first_line(farm_of({"1": "young-goat", "2": "young-hen"})).split()[2:] == ["1", "2", "heard"]


def test_more_categories_than_there_is_room_for_have_no_bars() -> None:
    many = farm_of({f"animal{k}": f"{k}-animal" for k in range(29)})
    assert first_line(many).split() == ["UTC", "LAeq", "heard"]
