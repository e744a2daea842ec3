"""One request to a service, and the documents that it answers with."""

import ssl
from collections.abc import Mapping
from types import MappingProxyType, UnionType
from typing import Any

import urllib3

from claude_workflow.cli.endpoint import Endpoint, Unusable

LONGEST = 335
"""Seconds to wait for an answer: above the API's longest integration timeout and, on one machine, the wait for a seat
before that, so that its own answer arrives."""
CONNECT = 10
"""Seconds to wait for a connection."""

ENDS_OF_TLS = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
"""What can happen after the request was sent; the rest of TLS's errors come before."""

NOTHING: Mapping[str, str] = MappingProxyType({})

Document = dict[str, Any]
"""An answer, a failure, or what is said of a run that is under way: whatever it is, `success` says which of them."""

ANSWER: dict[str, type | UnionType] = {
    "session_id": str,
    "result": str | None,
    "files": list,
    "duration_ms": int | float,
    "num_turns": int,
    "cost_usd": int | float,
}
FAILURE: dict[str, type | UnionType] = {"code": str, "error": str, "retryable": bool}
FILE: dict[str, type | UnionType] = {"path": str, "change": str, "size": int}
UNDER_WAY: dict[str, type | UnionType] = {"status": str, "run_id": str, "session_id": str}
"""What is shown, with its types."""


class Unreachable(Unusable):
    """No connection: nothing was sent."""


class Unanswered(Unusable):
    """The service has the request, but its answer did not come: the run may go on."""


def send(
    endpoint: Endpoint,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] = NOTHING,
    body: Document | None = None,
    silence: float = LONGEST,
    streamed: bool = False,
) -> urllib3.BaseHTTPResponse:
    """What is answered, whatever its status; `silence` is how many seconds may pass without a byte of it.

    Raises `Unreachable` or `Unanswered`, and `Unusable` for what cannot be sent at all.
    """
    mine = {"x-api-key": endpoint.key} if endpoint.key else {}
    timeout = urllib3.Timeout(connect=CONNECT, read=silence)
    try:
        return urllib3.request(
            method,
            url,
            json=body,
            headers={**headers, **mine},
            timeout=timeout,
            retries=False,
            preload_content=not streamed,
        )
    except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError) as error:
        raise Unreachable(f"{endpoint.url} does not answer ({error}). Is the service running?") from error
    except urllib3.exceptions.LocationValueError as error:
        raise Unusable(f"{endpoint.url} is no URL ({error}).") from error
    except urllib3.exceptions.SSLError as error:
        if isinstance(error.args[0], ENDS_OF_TLS):
            raise unanswered(endpoint, error) from error
        raise Unusable(f"{endpoint.url} cannot be asked by HTTPS ({error}). Nothing was sent.") from error
    except urllib3.exceptions.HTTPError as error:
        raise unanswered(endpoint, error) from error
    except (ValueError, UnicodeError) as error:  # of http.client, for what no header or URL can hold
        raise Unusable(f"The key, or the URL, holds what cannot be sent ({error}).") from error


def unanswered(endpoint: Endpoint, error: Exception) -> Unanswered:
    """For what broke after a request was sent."""
    return Unanswered(f"{endpoint.url} was asked, but gave no answer ({error}).")


def of_run(endpoint: Endpoint, run_id: str) -> str:
    """The URL of one run: of the service that is meant, wherever its answers may point."""
    return f"{endpoint.url.rstrip('/')}/runs/{run_id}"


def document(endpoint: Endpoint, response: urllib3.BaseHTTPResponse) -> Document:
    """What a service says in a response. Raises `Unusable` for what is not this API's."""
    try:
        found = response.json()
    except (ValueError, RecursionError):
        found = None
    if is_answer(found) or is_under_way(found):
        return dict(found)
    raise Unusable(f"{endpoint.url} answered {response.status}, but not as this API does. Is the URL right?")


def is_answer(found: Any) -> bool:
    """Whether it has all that is shown of an answer or a failure: another server may say anything."""
    if not isinstance(found, dict) or not isinstance(found.get("success"), bool):
        return False
    if not _has(found, ANSWER if found["success"] else FAILURE):
        return False
    return all(isinstance(file, dict) and _has(file, FILE) for file in found.get("files", []))


def is_under_way(found: Any) -> bool:
    """Whether it says how it stands with a run instead of what it came to."""
    return isinstance(found, dict) and found.get("success") is True and _has(found, UNDER_WAY)


def _has(found: Document, shape: dict[str, type | UnionType]) -> bool:
    return all(isinstance(found.get(name), kind) for name, kind in shape.items())
