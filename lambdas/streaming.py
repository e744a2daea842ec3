"""A Lambda runtime whose function answers piece by piece: AWS's own client for Python cannot.

It is started in the place of AWS's (`streaming.sh`, by AWS_LAMBDA_EXEC_WRAPPER) and asks the Runtime API for one event
after the other. The function's answer goes out as it is made, behind what API Gateway takes for its status and headers.
"""

import base64
import http.client
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass

from lambdas.strict import Json

NEXT = "/2018-06-01/runtime/invocation/"
PRELUDE_END = bytes(8)
"""What API Gateway finds the body behind."""
ERROR_TYPE, ERROR_BODY = "Lambda-Runtime-Function-Error-Type", "Lambda-Runtime-Function-Error-Body"


@dataclass(frozen=True)
class Streamed:
    """An answer that comes in pieces, of which some may be empty: there is no news then."""

    status: int
    headers: Mapping[str, str]
    pieces: Iterator[bytes]

    def prelude(self) -> bytes:
        """Status and headers, as API Gateway takes them."""
        return json.dumps({"statusCode": self.status, "headers": dict(self.headers)}).encode() + PRELUDE_END


Handler = Callable[[Json], Streamed]


def serve(handler: Handler, address: str) -> None:
    """One event of the Runtime API at this address (`host:port`). Raises OSError where it is gone."""
    with closing(http.client.HTTPConnection(address)) as asking:
        asking.request("GET", f"{NEXT}next")
        response = asking.getresponse()
        event = json.loads(response.read())
    invocation = f"{NEXT}{response.headers['Lambda-Runtime-Aws-Request-Id']}"
    try:
        answer = handler(event)
    except Exception as error:
        # Whatever it is, it is this event's, and Lambda's to tell of; the function stays for the next one.
        _tell(address, f"{invocation}/error", error)
    else:
        _answer(address, f"{invocation}/response", answer)


def _tell(address: str, path: str, error: Exception) -> None:
    with closing(http.client.HTTPConnection(address)) as telling:
        telling.request("POST", path, json.dumps(_said(error)), {ERROR_TYPE: type(error).__name__})
        telling.getresponse().read()


def _said(error: Exception) -> Json:
    traceback.print_exception(error)  # for the log
    return {"errorType": type(error).__name__, "errorMessage": str(error)}


def _answer(address: str, path: str, answer: Streamed) -> None:
    with closing(http.client.HTTPConnection(address)) as sending:
        sending.putrequest("POST", path)
        for name, value in (
            ("Content-Type", "application/vnd.awslambda.http-integration-response"),
            ("Lambda-Runtime-Function-Response-Mode", "streaming"),
            ("Transfer-Encoding", "chunked"),
            ("Trailer", f"{ERROR_TYPE}, {ERROR_BODY}"),
        ):
            sending.putheader(name, value)
        sending.endheaders()
        trailer = b""
        try:
            sending.send(_chunk(answer.prelude()))
            for piece in answer.pieces:
                if piece:
                    sending.send(_chunk(piece))
        except OSError:
            return  # whoever took it is gone
        except Exception as error:
            body = base64.b64encode(json.dumps(_said(error)).encode())
            trailer = f"{ERROR_TYPE}: {type(error).__name__}\r\n{ERROR_BODY}: ".encode() + body + b"\r\n"
        sending.send(b"0\r\n" + trailer + b"\r\n")
        sending.getresponse().read()


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(piece), piece)


def main() -> None:
    """Serves events until the environment ends. A handler that cannot be loaded is told of once, and ends it."""
    address = os.environ["AWS_LAMBDA_RUNTIME_API"]
    module, _, name = os.environ["_HANDLER"].rpartition(".")
    try:
        handler: Handler = getattr(importlib.import_module(module), name)
    except Exception as error:
        _tell(address, "/2018-06-01/runtime/init/error", error)
        sys.exit(1)
    while True:
        serve(handler, address)


if __name__ == "__main__":
    main()
