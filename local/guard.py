"""What stands before the engine's port on loopback, which every program on this machine can reach.

The engine takes for the account's root whoever names no key, the key `test` or an account's number, without checking a
signature; and its own interface (`/_ministack/…`) wipes everything for anybody. Here nobody is root but who knows the
key that this start has drawn; the rest has to come with the credentials of a function's role, whose signature the
engine checks.
"""

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

from ministack.core.iam_evaluator import is_root_access_key
from ministack.core.router import extract_access_key_id

App = Callable[[Any, Any, Any], Awaitable[None]]

READY = "/_ministack/ready"


class Guard:
    """An ASGI application before the engine's. `root` is the one key of the account's root."""

    def __init__(self, app: App, root: str) -> None:
        self._app = app
        self._root = root

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self._admits(scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _admits(self, scope: Any) -> bool:
        if scope["path"] == READY or scope["method"] == "OPTIONS":  # browsers ask before they send a key
            return True
        # As the engine reads them, so that both see the same key: a header that is there twice is joined.
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            field, text = name.decode("latin-1").lower(), value.decode("latin-1")
            headers[field] = f"{headers[field]}, {text}" if field in headers else text
        key = extract_access_key_id(headers, parse_qs(scope["query_string"].decode(), keep_blank_values=True))
        its_own = scope["path"].startswith(("/_ministack", "/_localstack", "/health"))
        return key == self._root or not (is_root_access_key(key) or its_own)
