"""Who gets to the pages, and what a browser may do with them.

A page on this machine's own address can be asked for by every other page that the browser has open, by other programs
and by other users of the machine. So:

- It is reached by its address, or as `localhost`: another `Host` is a name that somebody made point here (DNS
  rebinding).
- Who opens the printed link shows the secret in it, and gets a cookie. Cookies know no ports: another server on this
  address would get it, too. So it is for one path, drawn at each start, at which no other server knows to be asked.
- What changes something is a POST, from a page of this very origin, with the token that its form has.
- What an answer holds is text of strangers: no script, style, picture or frame but the console's own is ever loaded.
"""

import hmac
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

COOKIE = "claude-workflow-console"

MOST = 1024 * 1024
"""Bytes of a form: a prompt has 240 KiB at the most, which are three times as many where each is escaped."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: with that a browser says of a form's POST that it comes from nowhere.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every answer."""

CLOSED = "Open the console by the link that its command has printed: it holds a secret, drawn anew at each start."
ELSEWHERE = "This was not asked for from a page of the console, so it is not done."

OPENING = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Console</title>
<link rel="icon" href="data:,">
<meta http-equiv="refresh" content="0; url={path}"><p><a href="{path}">Open the console</a></p></html>"""
"""A page, and no redirect: a link in another program's window would take that without the cookie."""


def _drawn() -> str:
    return secrets.token_urlsafe(32)


@dataclass(frozen=True)
class Keys:
    """What opens the console; drawn at each start."""

    secret: str = field(default_factory=_drawn, repr=False)
    """In the link that opens it."""
    cookie: str = field(default_factory=_drawn, repr=False)
    token: str = field(default_factory=_drawn, repr=False)
    """In each of its forms."""
    place: str = field(default_factory=lambda: f"/{secrets.token_hex(8)}")
    """The path at which all pages are."""


class Refused(Exception):
    """The request goes no further; the text says why, and holds nothing of it."""


class Guard:
    """An ASGI application before the console's, which it mounts at `keys.place`; `host` is where it listens, as
    browsers say it. The fields of a form are in the scope, as `form`."""

    def __init__(self, app: ASGIApp, keys: Keys, host: str) -> None:
        self._app = app
        self._keys = keys
        self._host = host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers HTTP, and nothing else."""
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            opened = self._admitted(Request(scope))
            if opened:
                await opened(scope, receive, _with_headers(send))
                return
            scope["form"] = await self._form(Request(scope, receive)) if scope["method"] == "POST" else {}
        except Refused as refused:
            await HTMLResponse(f"<!doctype html><p>{refused}</p>", 403)(scope, receive, _with_headers(send))
            return
        await self._app(scope, receive, _with_headers(send))

    def knows(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether the cookie is in a request's headers, whose names are in lower case."""
        return _same(_cookie(Headers(raw=[*headers])), self._keys.cookie)

    def _admitted(self, request: Request) -> Response | None:
        """The answer to the opening link, with the cookie; None where the cookie is there. Raises `Refused`."""
        if request.headers.getlist("host") not in ([self._host], [_named(self._host)]):
            raise Refused(CLOSED)
        secret = request.query_params.get("secret")
        if request.method == "GET" and request.url.path == "/" and secret is not None:
            if not _same(secret, self._keys.secret):
                raise Refused(CLOSED)
            opening = HTMLResponse(OPENING.format(path=f"{self._keys.place}/"))
            opening.set_cookie(COOKIE, self._keys.cookie, path=f"{self._keys.place}/", httponly=True, samesite="strict")
            return opening
        if not request.url.path.startswith(f"{self._keys.place}/"):
            raise Refused(CLOSED)
        if not self.knows(request.headers.raw):
            raise Refused(CLOSED)
        if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            raise Refused(ELSEWHERE)
        return None

    async def _form(self, request: Request) -> Mapping[str, str]:
        """The fields of a form of the console's own. Raises `Refused`."""
        if request.headers.get("origin") != f"http://{request.headers['host']}":
            raise Refused(ELSEWHERE)
        if request.headers.get("content-type", "").partition(";")[0] != "application/x-www-form-urlencoded":
            raise Refused(ELSEWHERE)
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > MOST:
                raise Refused("The form is too long.")
        try:
            fields = parse_qs(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=50)
        except ValueError:
            raise Refused(ELSEWHERE) from None
        form = {name: values[-1] for name, values in fields.items()}
        if not _same(form.pop("token", ""), self._keys.token):
            raise Refused(ELSEWHERE)
        return form


def _named(host: str) -> str:
    return host.replace("127.0.0.1", "localhost")


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())


def _with_headers(send: Send) -> Send:
    """Sends with `HEADERS`, of which an answer may have its own instead."""

    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            own = {name.lower() for name, _ in message["headers"]}
            ours = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
            message["headers"] = [*message["headers"], *(pair for pair in ours if pair[0] not in own)]
        await send(message)

    return sending
