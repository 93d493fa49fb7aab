"""A strict little OpenAI over a real socket, in a thread: counts every request it sees and answers as it is told."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from daemon import offline

Behaviour = Callable[["Request"], None]


class Request:
    """One request on the wire. A behaviour answers it, or does something worse."""

    def __init__(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        self.handler = handler
        self.path = handler.path
        self.headers = {name.lower(): value for name, value in handler.headers.items()}
        self.body = body

    @property
    def json(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.body)
        return parsed

    def good_reply(self) -> bytes:
        return offline.answer("POST", self.path, self.body).body

    def reply(self, status: int, body: bytes, **headers: str) -> None:
        self.handler.send_response(status)
        names = {"content-type": "application/json", "content-length": str(len(body)), "x-request-id": "req_standin"}
        for name, value in {**names, **{k.replace("_", "-"): v for k, v in headers.items()}}.items():
            self.handler.send_header(name, value)
        self.handler.end_headers()
        self.handler.wfile.write(body)

    def error(self, status: int, code: str | None, message: str = "said no", **headers: str) -> None:
        error = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
        self.reply(status, json.dumps(error).encode(), **headers)

    def reply_half_then(self, act: Callable[[], None]) -> None:
        """Half of a good answer, then `act`, then the connection closes."""
        body = self.good_reply()
        self.handler.send_response(200)
        self.handler.send_header("content-type", "application/json")
        self.handler.send_header("content-length", str(len(body)))
        self.handler.end_headers()
        self.handler.wfile.write(body[: len(body) // 2])
        self.handler.wfile.flush()
        act()
        self.handler.close_connection = True


def draw(request: Request) -> None:
    request.reply(200, request.good_reply())


class StandIn:
    """`behaviours` are used up one by one; after them it does `otherwise`."""

    def __init__(self, *behaviours: Behaviour, otherwise: Behaviour = draw) -> None:
        self.requests: list[Request] = []
        self._behaviours = list(behaviours)
        self._lock = threading.Lock()
        standin = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                request = Request(self, body)
                with standin._lock:
                    standin.requests.append(request)
                    behave = standin._behaviours.pop(0) if standin._behaviours else otherwise
                try:
                    behave(request)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]  # daemons are killed
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def will(self, *behaviours: Behaviour) -> None:
        """From now on: these, one by one, then drawing again."""
        with self._lock:
            self._behaviours = list(behaviours)

    def __enter__(self) -> "StandIn":
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
