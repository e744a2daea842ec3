"""Secrets Manager's part: one secret with a key for the model, for any caller."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRET = json.dumps({"ANTHROPIC_API_KEY": "sk-scripted"})
ARN = "arn:aws:secretsmanager:us-east-1:000000000000:secret:model"


class _Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_POST(self) -> None:
        """GetSecretValue."""
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"ARN": ARN, "Name": "model", "SecretString": SECRET}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """Says nothing."""


@contextmanager
def serving() -> Iterator[str]:
    """Its URL, on a free loopback port; ended on the way out."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Answering) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
