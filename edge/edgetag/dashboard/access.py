"""Who may look, and what a browser is told never to do with the page.

A token is sent once, by the login page; what a browser keeps is a cookie made from it, which no script can
read and no other site can use. Neither is ever part of a URL.
"""

import hmac
import ipaddress
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgetag.contract.errors import InputError
from edgetag.secret import Secret

MIN_TOKEN_CHARS = 16
COOKIE_AGE_S = 30 * 86_400

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


_HOST = re.compile(r"(\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>[^][:@/]+))(:[0-9]*)?")


class Gate:
    """Tells who has shown the token.

    Args:
        token: what has to be shown; None lets everybody in.

    Raises:
        InputError: it can be guessed.
    """

    def __init__(self, token: Secret | None) -> None:
        if token is not None and len(token.reveal()) < MIN_TOKEN_CHARS:
            raise InputError(
                f"the token in --token-file has {len(token.reveal())} characters, expected at least "
                f"{MIN_TOKEN_CHARS}: make one with `openssl rand -hex 16`"
            )
        self._token = None if token is None else token.reveal().encode()

    @property
    def is_open(self) -> bool:
        """Whether everybody may come in."""
        return self._token is None

    @property
    def cookie_name(self) -> str:
        """Of its own for every token: cookies do not tell ports apart."""
        return f"edgetag_{self._derived(b'name')[:8]}"

    @property
    def cookie_value(self) -> str:
        """What is kept in place of the token, from which the token cannot be had."""
        return self._derived(b"session")

    def is_token(self, shown: bytes) -> bool:
        """Whether this is the token; takes as long for a wrong one as for a nearly right one."""
        return self._token is None or hmac.compare_digest(_digest(shown), _digest(self._token))

    def admits(self, cookies: Collection[str]) -> bool:
        """Whether one of these `Cookie` headers is of somebody who has shown the token."""
        if self._token is None:
            return True
        expected = _digest(self.cookie_value.encode())
        return any(
            hmac.compare_digest(_digest(value.encode()), expected)
            for header in cookies
            for value in _cookies_of(header, self.cookie_name)
        )

    def _derived(self, purpose: bytes) -> str:
        return hmac.new(self._token or b"", b"edgetag dashboard " + purpose, sha256).hexdigest()


def _digest(shown: bytes) -> bytes:
    """Of one length, so that comparing says nothing of the token's."""
    return sha256(shown).digest()


def _cookies_of(header: str, name: str) -> list[str]:
    try:
        jar = SimpleCookie(header)
    except CookieError:
        return []
    return [jar[name].value] if name in jar else []


@dataclass(frozen=True)
class Names:
    """By what hosts the page may be asked for: any address, and these names.

    A site that lets its own name lead to this machine (DNS rebinding) asks for that name, and gets nothing.
    """

    names: frozenset[str] = field(default_factory=frozenset)

    def admits(self, host: str | None) -> bool:
        """Whether a `Host` header is ours."""
        name = _host_of(host or "")
        return name.lower().rstrip(".") in self.names or _is_address(name)


def _host_of(header: str) -> str:
    """Without the port and the brackets of an IPv6 address; "" for what is no host."""
    found = _HOST.fullmatch(header)
    return "" if found is None else found["ipv6"] or found["name"]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class Guarded:
    """An application behind its gate: every answer has `HEADERS`, and strangers get nowhere.

    Args:
        app: what is guarded.
        gate: who may look.
        names: by what hosts.
        open_paths: what a stranger needs to show the token.
    """

    def __init__(self, app: ASGIApp, gate: Gate, names: Names, open_paths: Collection[str]) -> None:
        self._app, self._gate, self._names, self._open_paths = app, gate, names, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; everything but HTTP is passed on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        answer = self._refusal(scope) or self._app
        await answer(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers, path = Headers(scope=scope), scope["path"]
        if not self._names.admits(headers.get("host")):
            return PlainTextResponse(
                "This dashboard does not know itself by that name: start it with --name NAME.\n", 421
            )
        if path in self._open_paths or self._gate.admits(headers.getlist("cookie")):
            return None
        if path == "/":
            return RedirectResponse("/login", 303)
        return JSONResponse({"error": "the token has to be shown first, at /login"}, 401)
