"""The real program as tests start it: in a home of its own, bounded in every wait, ended by pid."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from daemon import client
from daemon.config import Places
from daemon.errors import NotRunning
from eventlog.events import Commit
from eventlog.segments import read_log
from tests import steps

SECONDS_MAX = 60.0
step_files: dict[Path, int] = {}  # of every daemon that was watched, and how many of its long steps were told
IMAGED = [sys.executable, "-m", "daemon"]


def altered(statement: str) -> list[str]:
    """The command of a daemon for which a test has changed a constant: `statement` sets one in `worker` or `supervisor`."""
    root = str(Path(__file__).resolve().parent.parent)
    begun = f"import sys; sys.path.insert(0, {root!r}); from daemon import __main__, supervisor, worker"
    return [sys.executable, "-c", f"{begun}; {statement}; sys.argv[1:] = ['serve']; sys.exit(__main__.main())"]


def environment(home: Path, **more: str) -> dict[str, str]:
    """What a client's child gets: almost nothing, and the settings."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "SSL_CERT_FILE") if name in os.environ}
    return {
        **kept,
        "HOME": str(home / "user"),
        "IMAGED_HOME": str(home / "imaged"),
        "IMAGED_BACKEND": "offline",
        "IMAGED_OFFLINE_SECONDS": "0",
        "IMAGED_PICTURES_PER_MINUTE": "0",  # tests are agents that run away
        "IMAGED_SAME_PROMPT_PER_HOUR": "0",
        "OPENAI_IMAGE_OUTPUT_DIR": str(home / "pictures"),
        **more,
    }


def wait_until(true: Callable[[], Any], what: str) -> Any:
    """Looks again and again; the clock only bounds it."""
    give_up_at = time.monotonic() + SECONDS_MAX
    while time.monotonic() < give_up_at:
        if found := true():
            return found
        select.select([], [], [], 0.01)
    raise AssertionError(f"waited in vain for {what}")


class Program:
    """A daemon in the foreground and the places it keeps things."""

    def __init__(self, home: Path, command: Sequence[str] | None = None, **settings: str) -> None:
        self.home = home
        self.environment = environment(home, **settings)
        self.places = Places(Path(self.environment["IMAGED_HOME"]))
        self.steps = home / "long steps.txt"
        self.command = list(command or steps.watched(self.steps))
        step_files[self.steps] = 0
        self.pictures = home / "pictures"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Program":
        self.stderr = (self.home / "stderr.txt").open("ab")
        self._process = subprocess.Popen(
            self.command, env=self.environment, cwd="/", stdin=subprocess.DEVNULL, stdout=self.stderr, stderr=self.stderr
        )
        self.stderr.close()
        return self

    def ready(self) -> "Program":
        wait_until(self.answers, f"the daemon to answer; it said: {self.said()}")
        return self

    def answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the daemon ended with {self._process.returncode}: {self.said()}"
        try:
            self.ask("get_status")
        except NotRunning:
            return False
        return True

    def said(self) -> str:
        return (self.home / "stderr.txt").read_text("utf-8", "replace")

    def ask(self, operation: str, **arguments: object) -> dict[str, Any]:
        return client.ask(self.places, operation, arguments, self.environment)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait(SECONDS_MAX)

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self._process is not None
        if self._process.poll() is None:
            os.kill(self._process.pid, number)
        return self._process.wait(SECONDS_MAX)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait_for_end(self) -> int:
        assert self._process is not None
        return self._process.wait(SECONDS_MAX)

    def log(self) -> list[Commit]:
        return [located.commit for located in read_log(self.places.events, None)]


@contextmanager
def running(home: Path, **settings: str) -> Iterator[Program]:
    program = Program(home, **settings).start()
    try:
        yield program.ready()
    finally:
        program.kill()


class Stdio:
    """An MCP client over stdio, spoken by hand."""

    def __init__(self, settings: Mapping[str, str], command: Sequence[str] | None = None) -> None:
        self.process = subprocess.Popen(
            list(command or [*IMAGED, "mcp"]),
            env=dict(settings),
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._buffer = b""
        self._id = 0

    def __enter__(self) -> "Stdio":
        return self

    def __exit__(self, *exc: object) -> None:
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.process.kill()
        self.process.wait(SECONDS_MAX)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            try:
                pipe.close()
            except BrokenPipeError:
                continue

    def send(self, line: bytes) -> None:
        assert self.process.stdin
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def request(self, method: str, params: Mapping[str, Any] | None = None) -> int:
        self._id += 1
        message: dict[str, Any] = {"jsonrpc": "2.0", "id": self._id, "method": method}
        if params is not None:
            message["params"] = params
        self.send(json.dumps(message).encode())
        return self._id

    def notify(self, method: str, params: Mapping[str, Any] | None = None) -> None:
        message = {"jsonrpc": "2.0", "method": method, **({"params": params} if params is not None else {})}
        self.send(json.dumps(message).encode())

    def receive(self) -> dict[str, Any]:
        """The next message; fails when none comes in time."""
        assert self.process.stdout
        give_up_at = time.monotonic() + SECONDS_MAX
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, give_up_at - time.monotonic()))
            assert ready, "no message came"
            piece = os.read(self.process.stdout.fileno(), 1 << 20)
            assert piece, "the program ended"
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        parsed: dict[str, Any] = json.loads(line)
        return parsed

    def answer(self, request_id: int | None) -> dict[str, Any]:
        """The reply to one request; other messages on the way are kept in `heard`."""
        self.heard: list[dict[str, Any]] = []
        while True:
            message = self.receive()
            if message.get("id") == request_id and ("result" in message or "error" in message):
                return message
            self.heard.append(message)

    def initialize(self, version: str = "2025-11-25") -> dict[str, Any]:
        asked = self.request(
            "initialize",
            {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "test-client", "version": "1"}},
        )
        result: dict[str, Any] = self.answer(asked)["result"]
        self.notify("notifications/initialized")
        return result

    def call(self, tool: str, **arguments: object) -> dict[str, Any]:
        result: dict[str, Any] = self.answer(self.request("tools/call", {"name": tool, "arguments": arguments}))["result"]
        return result

    def answer_any(self) -> dict[str, Any]:
        """The next reply to any request."""
        while True:
            message = self.receive()
            if "result" in message:
                result: dict[str, Any] = message["result"]
                return result
