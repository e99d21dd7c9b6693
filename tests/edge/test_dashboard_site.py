"""The dashboard over HTTP: who gets in, what every answer says besides, and how streams begin and end."""

import asyncio
import http.client
import json
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec
import pytest

from edgetag.contract.errors import InputError
from edgetag.contract.event import encode
from edgetag.dashboard.access import HEADERS, MIN_TOKEN_CHARS, Gate, Names
from edgetag.dashboard.board import Board, Snapshot
from edgetag.dashboard.feed import Feed
from edgetag.dashboard.serving import _Server
from edgetag.dashboard.site import site
from edgetag.delivery.address import own_name
from edgetag.delivery.network import Network
from edgetag.delivery.subscription import Message, Regained
from edgetag.secret import Secret
from fakes import START_UTC_S, FakeBroker, bundle_info, grant, sensor_status, tags_event
from fakes_cli import refused, run_python
from fakes_dashboard import WAIT_S, Running

TOKEN = "correct-horse-battery"


def http_to(port: int) -> "closing[http.client.HTTPConnection]":
    return closing(http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S))


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Site(NamedTuple):
    """A dashboard that is served in a thread."""

    port: int
    board: Board
    feed: Feed
    gate: Gate
    publish: Callable[[bytes], None]

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
        with http_to(self.port) as connection:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            named = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, named, answer.read())

    def cookie(self) -> str:
        return self.ask("/login", "POST", TOKEN.encode()).headers["set-cookie"].partition(";")[0]


@contextmanager
def served(token: str | None = None, stuck_s: float = WAIT_S) -> Iterator[Site]:
    board, feed = Board(Network("sonyc/v1"), "mqtt://localhost:1883", START_UTC_S), Feed(max_readers=2)
    gate = Gate(None if token is None else Secret(token))
    server = _Server(site(board, feed, gate, Names(frozenset({"localhost"})), stuck_s), feed)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        loops: list[asyncio.AbstractEventLoop] = []

        async def serve() -> None:
            loops.append(asyncio.get_running_loop())
            await server.serve([bound])

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        port = bound.getsockname()[1]
        while not server.started:
            time.sleep(0.01)
        yield Site(port, board, feed, gate, lambda batch: loops[0].call_soon_threadsafe(feed.publish, batch))  # type: ignore[func-returns-value]
        server.should_exit = True
        thread.join(WAIT_S)
        assert not thread.is_alive()


@pytest.fixture
def open_site() -> Iterator[Site]:
    with served() as site:
        site.board.take(Regained(), START_UTC_S)
        yield site


@pytest.fixture
def guarded() -> Iterator[Site]:
    with served(TOKEN) as site:
        yield site


def tell(site: Site, sensor: str, kind: str, message: msgspec.Struct) -> None:
    arrival = Message(f"sonyc/v1/{sensor}/{kind}", encode(message), False, START_UTC_S)
    site.board.take(arrival, START_UTC_S)


# -- every answer --------------------------------------------------------------------------------------------

OTHERS_HOST = {"Host": "rebound.example"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {}, 200),
        ("HEAD", "/", {}, 200),
        ("GET", "/page.js", {}, 200),
        ("GET", "/style.css", {}, 200),
        ("GET", "/favicon.svg", {}, 200),
        ("GET", "/login", {}, 200),
        ("GET", "/login.js", {}, 200),
        ("GET", "/api/snapshot", {}, 200),
        ("GET", "/api/sensor?id=nobody", {}, 404),
        ("GET", "/nothing", {}, 404),
        ("GET", "/../secret", {}, 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", {}, 404),
        ("POST", "/", {}, 405),
        ("DELETE", "/api/snapshot", {}, 405),
        ("GET", "/", OTHERS_HOST, 421),
        ("GET", "/api/events", OTHERS_HOST, 421),
    ],
)
def test_every_answer_tells_the_browser_what_never_to_do(
    open_site: Site, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    answer = open_site.ask(path, method, **headers)
    assert answer.status == status
    assert {name.lower(): value for name, value in HEADERS.items()}.items() <= answer.headers.items()
    assert "server" not in answer.headers


def test_an_answer_that_went_wrong_tells_it_too() -> None:
    """The board is at fault; the browser is not told how."""
    with served() as site:
        site.board.snapshot = lambda _now_s: 1 / 0  # type: ignore[method-assign, assignment, return-value]
        answer = site.ask("/api/snapshot")
    assert (answer.status, answer.body) == (500, b"The dashboard is at fault; its log says more.\n")
    assert answer.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]


def test_the_policy_lets_nothing_run_but_the_pages_own_files() -> None:
    policy = dict(part.split(" ", 1) for part in HEADERS["Content-Security-Policy"].split("; "))
    own = {"script-src", "style-src", "connect-src", "img-src"}
    assert {name for name, sources in policy.items() if sources == "'self'"} == own
    assert {name for name, sources in policy.items() if sources == "'none'"} == {
        *("default-src", "base-uri", "form-action", "frame-ancestors", "trusted-types")
    }


def test_the_pages_files_need_nothing_the_policy_forbids(open_site: Site) -> None:
    """No script or style in the page itself, nothing from elsewhere, and no markup out of text."""
    for path in ("/", "/login"):
        page = open_site.ask(path).body.decode()
        assert "<style" not in page
        assert " style=" not in page
        assert " on" not in "".join(part.split(">")[0] for part in page.split("<"))
        assert page.count("<script") == page.count("<script src=")
        assert "http" not in page
    for path in ("/page.js", "/login.js"):
        script = open_site.ask(path).body.decode()
        assert not any(
            word in script for word in ("innerHTML", "outerHTML", "insertAdjacent", "eval(", "write(")
        )


# -- who gets in ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("localhost", True),
        ("LOCALHOST:8737", True),
        ("127.0.0.1:8737", True),
        ("[::1]:8737", True),
        ("192.168.1.5", True),  # an address cannot be made to lead elsewhere
        ("dashboard.example:443", True),
        ("dashboard.example.:443", True),
        ("rebound.example", False),
        ("localhost.rebound.example", False),
        ("127.0.0.1.rebound.example", False),
        ("[::1].rebound.example", False),
        ("rebound.example:127.0.0.1", False),
        ("", False),
        (None, False),
    ],
)
def test_a_name_that_somebody_else_lets_lead_here_is_not_answered(host: str | None, is_ours: bool) -> None:
    assert Names(frozenset({"localhost", "dashboard.example"})).admits(host) == is_ours


@pytest.mark.parametrize(
    "path", ["/api/snapshot", "/api/sensor?id=lamp", "/api/events", "/page.js", "/nothing"]
)
def test_without_the_token_nothing_is_told(guarded: Site, path: str) -> None:
    tell(guarded, "lamp", "status", sensor_status())
    answer = guarded.ask(path)
    assert answer.status == 401
    assert b"lamp" not in answer.body
    cookie = f"{guarded.gate.cookie_name}={'0' * 64}"
    assert guarded.ask(path, Cookie=cookie).status == 401


def test_without_the_token_the_page_leads_to_where_it_is_shown(guarded: Site) -> None:
    answer = guarded.ask("/")
    assert (answer.status, answer.headers["location"]) == (303, "/login")
    assert guarded.ask("/login").status == guarded.ask("/login.js").status == 200


def test_the_token_is_exchanged_for_a_cookie_that_no_script_and_no_other_site_can_use(guarded: Site) -> None:
    answer = guarded.ask("/login", "POST", f"{TOKEN}\n".encode())
    cookie, *attributes = answer.headers["set-cookie"].split("; ")
    assert answer.status == 204
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(attributes)
    assert "Secure" not in attributes
    assert TOKEN not in cookie
    assert guarded.ask("/api/snapshot", Cookie=f"other=1; {cookie}; more=2").status == 200


def test_behind_a_proxy_with_tls_the_cookie_keeps_to_tls(guarded: Site) -> None:
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.1"}
    assert "; Secure" in guarded.ask("/login", "POST", TOKEN.encode(), **headers).headers["set-cookie"]


@pytest.mark.parametrize("shown", [b"", b"wrong", TOKEN[:-1].encode(), TOKEN.encode() + b"x", b"\xff\x00"])
def test_what_is_not_the_token_is_refused_without_a_cookie(guarded: Site, shown: bytes) -> None:
    answer = guarded.ask("/login", "POST", shown)
    assert (answer.status, answer.body) == (403, b"That is not the token.\n")
    assert "set-cookie" not in answer.headers


def test_what_is_longer_than_any_token_is_not_read(guarded: Site) -> None:
    assert guarded.ask("/login", "POST", b"x" * 100_000).status == 413


@pytest.mark.parametrize("header", ["", "=", "a=b; ;;", f"{'x' * 9_000}=1", 'a="\\"', "a=\xff"])
def test_a_strange_cookie_is_nobodys(guarded: Site, header: str) -> None:
    assert guarded.ask("/api/snapshot", Cookie=header).status == 401


def test_cookies_of_two_tokens_do_not_get_in_each_others_way() -> None:
    """Browsers do not tell ports apart; and a token that was changed lets nobody in who knew the old one."""
    one, two = Gate(Secret(TOKEN)), Gate(Secret(TOKEN + "2"))
    assert one.cookie_name != two.cookie_name
    assert Gate(Secret(TOKEN)).admits([f"{one.cookie_name}={one.cookie_value}"])
    assert not two.admits([f"{two.cookie_name}={one.cookie_value}"])


def test_a_token_that_can_be_guessed_is_refused_unquoted() -> None:
    with pytest.raises(
        InputError, match=rf"has 7 characters, expected at least {MIN_TOKEN_CHARS}"
    ) as refusal:
        Gate(Secret("hunter2"))
    assert "hunter2" not in str(refusal.value)


# -- what is told --------------------------------------------------------------------------------------------


def test_a_snapshot_is_what_the_board_has(open_site: Site) -> None:
    tell(open_site, "lamp", "status", sensor_status("degraded", "inference cannot keep up"))
    tell(open_site, "lamp", "tags", tags_event())
    snapshot = msgspec.json.decode(open_site.ask("/api/snapshot").body, type=Snapshot)
    assert [(row.id, row.state, row.level_db) for row in snapshot.sensors] == [("lamp", "degraded", 63.2)]


@pytest.mark.parametrize("id", ["lamp", "lämp 1", "<img src=x>", "a&id=b", "100%"])
def test_a_sensor_is_asked_for_by_its_id_whatever_it_is(open_site: Site, id: str) -> None:
    tell(open_site, id, "info", bundle_info())
    detail = json.loads(open_site.ask(f"/api/sensor?id={quote(id)}").body)
    assert (detail["sensor"]["id"], detail["info"]["bundle"]) == (id, "starter")


class Stream:
    """Server-sent events, as they come."""

    def __init__(self, site: Site) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=WAIT_S)
        self._connection.request("GET", "/api/events")
        self.answer = self._connection.getresponse()

    def next(self) -> tuple[str, Any]:
        event, data, _ = (self.answer.readline().decode() for _ in range(3))
        return event.removeprefix("event: ").strip(), json.loads(data.removeprefix("data: "))

    def close(self) -> None:
        self.answer.close()
        self._connection.close()


def test_a_stream_begins_with_a_snapshot_and_goes_on_with_changes(open_site: Site) -> None:
    tell(open_site, "lamp", "status", sensor_status())
    stream = Stream(open_site)
    assert stream.answer.headers["content-type"].startswith("text/event-stream")
    kind, snapshot = stream.next()
    assert (kind, [row["id"] for row in snapshot["sensors"]]) == ("snapshot", ["lamp"])
    for number in range(3):
        open_site.publish(b"%d" % number)
        assert stream.next() == ("changes", number)
    stream.close()


def test_one_who_goes_makes_room_for_another(open_site: Site) -> None:
    streams = [Stream(open_site), Stream(open_site)]
    for stream in streams:
        stream.next()
    assert open_site.ask("/api/events").status == 503
    streams[0].close()
    deadline_s = time.monotonic() + WAIT_S
    while open_site.feed.n_readers > 1 and time.monotonic() < deadline_s:
        open_site.publish(b"1")
        time.sleep(0.01)
    again = Stream(open_site)
    assert again.next()[0] == "snapshot"
    for stream in (streams[1], again):
        stream.close()


def test_one_who_does_not_read_begins_anew_and_holds_nobody_up(open_site: Site) -> None:
    """What waits for it is bounded: after megabytes it gets a snapshot; another gets every batch."""
    slow, quick = Stream(open_site), Stream(open_site)
    slow.next()
    quick.next()
    for number in range(200):
        batch = msgspec.json.encode([number, "x" * 100_000])
        open_site.publish(batch)
        assert quick.next()[1][0] == number
    kinds = []
    while "snapshot" not in kinds:
        kinds.append(slow.next()[0])
    assert len(kinds) < 200
    slow.close()
    quick.close()


def test_one_who_takes_nothing_any_more_is_let_go() -> None:
    """A browser whose machine has gone does not keep its place until TCP gives up."""
    with served(stuck_s=0.2) as site:
        stream = Stream(site)
        stream.next()
        deadline_s = time.monotonic() + WAIT_S
        while site.feed.n_readers:
            assert time.monotonic() < deadline_s
            site.publish(b'"%s"' % (b"x" * 1_000_000))
            time.sleep(0.01)
        stream.close()


def test_it_ends_though_streams_are_open() -> None:
    with served() as site:
        stream = Stream(site)
        stream.next()
    assert stream.answer.readline() == b""
    stream.close()


# -- the command ---------------------------------------------------------------------------------------------


def dashboard(*options: object, state: Path) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "edgetag", "dashboard", *options, state=state)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(stat.S_IRUSR)
    return path


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--mqtt", "localhost"], "does not begin with mqtt://"),
        (["--mqtt", "mqtt://localhost", "--prefix", "+"], "the topic prefix '+'"),
        (["--mqtt", "mqtt://localhost", "--ca-file", "x"], "--ca-file needs TLS"),
        (["--mqtt", "mqtts://localhost", "--ca-file", "no such"], "no such"),
        (["--mqtt", "mqtt://localhost", "--token-file", "no such"], "--token-file's file cannot be read"),
        (["--mqtt", "mqtt://localhost", "--host", "0.0.0.0"], "give a token with --token-file"),
        (["--mqtt", "mqtt://localhost", "--host", "no.such.invalid"], "is no address of this machine"),
        (
            ["--mqtt", "mqtt://localhost", "--host", "192.0.2.1", "--without-token"],
            "is no address of this machine",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(
    options: list[str], sentence: str, tmp_path: Path
) -> None:
    refused(dashboard(*options, state=tmp_path), 2, sentence)


def test_a_token_excludes_that_there_is_none(tmp_path: Path, secret: Path) -> None:
    done = dashboard("--mqtt", "mqtt://localhost", "--token-file", secret, "--without-token", state=tmp_path)
    refused(done, 2, "exclude each other")


def test_a_port_that_is_taken_is_said_in_a_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = dashboard("--mqtt", "mqtt://localhost", "--port", port, state=tmp_path)
    refused(done, 2, f"port {port} of 127.0.0.1 is taken", "--port")


@pytest.mark.parametrize(
    ("missing", "command"),
    [("starlette", ["dashboard", "--mqtt", "mqtt://localhost"]), ("uvicorn", ["demo", "--dashboard"])],
)
def test_what_is_missing_is_said_with_how_to_get_it(missing: str, command: list[str], tmp_path: Path) -> None:
    program = (
        f"import sys; sys.modules['{missing}'] = None; sys.argv[0] = 'edgetag';"
        "from edgetag.cli import main; main()"
    )
    done = run_python("-c", program, *command, state=tmp_path)
    refused(done, 2, f"needs {missing}", "pip install 'edgetag[dashboard]'")


def test_what_serves_pages_is_not_loaded_by_what_hears(tmp_path: Path) -> None:
    """A sensor has neither; the command line is there without them."""
    program = "import sys, edgetag.cli; print(sys.modules.keys() & {'starlette', 'uvicorn', 'anyio'})"
    assert run_python("-c", program, state=tmp_path).stdout == "set()\n"


def test_beyond_loopback_it_is_served_to_those_who_show_the_token(secret: Path) -> None:
    url = "mqtt://127.0.0.1:1"
    with Running(
        "dashboard", "--mqtt", url, "--port", 0, "--host", "0.0.0.0", "--token-file", secret
    ) as running:
        assert running.url == f"http://{own_name()}:{running.port}/"
        with http_to(running.port) as connection:
            connection.request("GET", "/api/snapshot", headers={"Host": f"{own_name()}:{running.port}"})
            assert connection.getresponse().status == 401
        assert TOKEN not in running.said
        assert running.ended(signal.SIGTERM) == (0, "")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly_though_streams_are_open(how: signal.Signals) -> None:
    with (
        FakeBroker(on_subscribe=grant) as broker,
        Running("dashboard", "--mqtt", f"mqtt://127.0.0.1:{broker.port}", "--port", 0) as running,
    ):
        running.until(lambda snapshot: not snapshot.notes.trouble)
        with http_to(running.port) as connection:
            connection.request("GET", "/api/events")
            connection.getresponse().readline()
            assert running.ended(how) == (0, "")


def test_where_there_is_no_broker_it_says_so_and_tries_again(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    secret = tmp_path / "password"
    secret.write_text("hunter2hunter2\n")
    secret.chmod(stat.S_IRUSR)
    url = f"mqtt://127.0.0.1:{port}"
    with Running(
        "dashboard", "--mqtt", url, "--port", 0, "--user", "u", "--password-file", secret
    ) as running:
        notes = running.until(lambda snapshot: "nothing listens" in snapshot.notes.trouble).notes
        assert notes.retry_at_s is not None
        assert "hunter2" not in running.said + str(notes)
        assert running.ended(signal.SIGTERM) == (0, "")
