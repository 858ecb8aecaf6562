"""A small real HTTP server that answers as a test tells it to and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Asked:
    """One request: ``query`` holds the first value of each name."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """``body``: bytes and text go out as they are, anything else as JSON."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


Handler = Callable[[Asked], Answer]


class FakeApi:
    """``routes`` maps ``"GET /jobs/1"`` (below ``/api/v1``) to a handler or an answer."""

    def __init__(self) -> None:
        self.routes: dict[str, Handler | Answer] = {}
        self.asked: list[Asked] = []
        self.url = ""

    def answer(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        found = self.routes.get(f"{asked.method} {asked.path}")
        if found is None:
            return Answer({"title": "Not found", "detail": f"no {asked.path}", "status": 404, "request_id": "r-1"}, 404)
        return found if isinstance(found, Answer) else found(asked)


@contextmanager
def serving() -> Iterator[FakeApi]:
    """A running fake on a free port of loopback."""
    api = FakeApi()

    class Request(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = api.answer(Asked(self.command, parts.path.removeprefix("/api/v1"), query, headers, body))
            data = answer.body
            if isinstance(data, str):
                data = data.encode()
            elif not isinstance(data, bytes):
                data = json.dumps(data).encode()
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(data)))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Request)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield api
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
