"""What is behind each path.

```
/  /style.css  /page.js  /favicon.svg     the page
/login  /login.js  POST /login            for the token
/api/snapshot                             all of the overview       JSON, `board.Snapshot`
/api/sensor?id=lamp-17                    all of a sensor           JSON, `board.Detail`
/api/events                               snapshot, then changes    server-sent events
```
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import resources

import msgspec
import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgetag.contract.errors import first_line
from edgetag.dashboard.access import COOKIE_AGE_S, Gate, Guarded, Names
from edgetag.dashboard.board import Board, UnknownSensorError
from edgetag.dashboard.feed import Feed, Reader

_FILES = {
    "/": ("index.html", "text/html"),
    "/style.css": ("style.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/favicon.svg": ("favicon.svg", "image/svg+xml"),
    "/login": ("login.html", "text/html"),
    "/login.js": ("login.js", "text/javascript"),
}
_OPEN_PATHS = ("/login", "/login.js", "/style.css", "/favicon.svg")
_MAX_TOKEN_BYTES = 4_096
_WRONG_TOKEN_S = 0.5
STUCK_S = 30.0

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("edgetag.dashboard")


def site(board: Board, feed: Feed, gate: Gate, names: Names, stuck_s: float = STUCK_S) -> ASGIApp:
    """The whole dashboard as an ASGI application.

    Args:
        board: what is shown.
        feed: gets `board`'s changes from whoever drives it.
        gate: who may look.
        names: by what hosts it may be asked for.
        stuck_s: a browser that takes nothing of a stream for so long is let go.
    """
    pages = _Pages(board, feed, gate, stuck_s)
    app = Starlette(
        routes=[
            *(Route(path, _file(name, media_type)) for path, (name, media_type) in _FILES.items()),
            Route("/login", pages.login, methods=["POST"]),
            Route("/api/snapshot", pages.snapshot),
            Route("/api/sensor", pages.sensor),
            Route("/api/events", pages.events),
        ],
        exception_handlers={Exception: _fault},
    )
    return Guarded(app, gate, names, _OPEN_PATHS)


def _file(name: str, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    body = resources.files("edgetag.dashboard").joinpath("static", name).read_bytes()

    async def answer(_request: Request) -> Response:
        return Response(body, media_type=media_type)

    return answer


async def _fault(_request: Request, error: Exception) -> Response:
    _log.error("dashboard.fault", type=type(error).__name__, reason=first_line(error))
    return PlainTextResponse("The dashboard is at fault; its log says more.\n", 500)


class _Pages:
    def __init__(self, board: Board, feed: Feed, gate: Gate, stuck_s: float) -> None:
        self._board, self._feed, self._gate, self._stuck_s = board, feed, gate, stuck_s
        self._guessing = asyncio.Lock()

    async def login(self, request: Request) -> Response:
        """The token as the body; a cookie in return."""
        if (shown := await _body(request)) is None:
            return PlainTextResponse("That is too long for a token.\n", 413)
        if not self._gate.is_token(shown.strip()):
            async with self._guessing:  # two a second, however many guess
                await asyncio.sleep(_WRONG_TOKEN_S)
            return PlainTextResponse("That is not the token.\n", 403)
        answer = Response(status_code=204)
        if not self._gate.is_open:
            answer.set_cookie(
                self._gate.cookie_name,
                self._gate.cookie_value,
                max_age=COOKIE_AGE_S,
                secure=request.url.scheme == "https",
                httponly=True,
                samesite="strict",
            )
        return answer

    async def snapshot(self, _request: Request) -> Response:
        return _json(await asyncio.to_thread(self._snapshot))

    async def sensor(self, request: Request) -> Response:
        try:
            return _json(await asyncio.to_thread(self._detail, request.query_params.get("id", "")))
        except UnknownSensorError as error:
            return JSONResponse({"error": str(error)}, 404)

    async def events(self, _request: Request) -> Response:
        if (reader := self._feed.enter()) is None:
            return JSONResponse({"error": "too many are looking already"}, 503)
        return _EventStream(self._feed, reader, self._told(reader), self._stuck_s)

    async def _told(self, reader: Reader) -> AsyncIterator[bytes]:
        while True:
            try:
                batch = await reader.next()
            except StopAsyncIteration:
                return
            if batch is None:
                yield _event("snapshot", await asyncio.to_thread(self._snapshot))
            else:
                yield _event("changes", batch)

    def _snapshot(self) -> bytes:
        return msgspec.json.encode(self._board.snapshot(time.time()))

    def _detail(self, id: str) -> bytes:
        return msgspec.json.encode(self._board.detail(id, time.time()))


class _EventStream(StreamingResponse):
    """Until the browser goes, or takes nothing any more."""

    def __init__(self, feed: Feed, reader: Reader, told: AsyncIterator[bytes], stuck_s: float) -> None:
        super().__init__(told, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._feed, self._reader, self._stuck_s = feed, reader, stuck_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_or_give_up(message: Message) -> None:
            await asyncio.wait_for(send(message), self._stuck_s)

        try:
            await super().__call__(scope, receive, send_or_give_up)
        except TimeoutError:
            _log.info("dashboard.stuck", patience_s=self._stuck_s)
        finally:
            self._feed.leave(self._reader)


async def _body(request: Request) -> bytes | None:
    """None if it is longer than any token."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_TOKEN_BYTES:
            return None
    return body


def _json(data: bytes) -> Response:
    return Response(data, media_type="application/json")


def _event(name: str, data: bytes) -> bytes:
    """JSON has no line breaks of its own."""
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)
