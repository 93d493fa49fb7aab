"""The newcomer's first minute: three pictures through the real program, then the plug is pulled.

Everything here happens as a client would do it: the executable is started over stdio, and MCP is spoken
with it by hand. Only the pictures come from the offline stand-in.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from daemon import client, executable
from daemon.config import Places
from daemon.errors import NotRunning
from daemon.version import VERSION
from eventlog.audit import narrate, verify
from eventlog.values import JobId

ANSWER_SECONDS_MAX = 40.0
OFFLINE_SECONDS = "2.5"  # long enough to see progress, short enough for three pictures

ORDERS: tuple[dict[str, Any], ...] = (
    {"prompt": "A lighthouse in a storm, seen from a small boat, oil painting", "output_path": "lighthouse.png",
     "size": "1024x1024", "quality": "high"},
    {"prompt": "雨の京都、石畳に映る提灯の明かり。浮世絵風で、静かな夜。", "output_path": "京都.png",
     "size": "1536x1024", "quality": "medium"},
    {"prompt": "A paper crane on a windowsill, morning light", "output_path": "crane.webp",
     "size": "1024x1536", "quality": "low", "output_format": "webp"},
)  # fmt: skip
LAST_ORDER = {"prompt": "A picture that nobody will see: the plug is pulled while it is drawn", "quality": "low"}


class StdioClient:
    """The least an MCP client does: starts the program and exchanges JSON-RPC lines. Every wait is bounded."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            executable.mcp_command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd="/"
        )
        self._buffer = b""
        self._last_id = 0

    def request(self, method: str, params: dict[str, Any]) -> int:
        self._last_id += 1
        self._send({"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params})
        return self._last_id

    def notify(self, method: str) -> None:
        self._send({"jsonrpc": "2.0", "method": method})

    def messages(self) -> Iterator[dict[str, Any]]:
        """What the server says, until it says nothing for too long or ends."""
        assert self._process.stdout is not None
        give_up_at = time.monotonic() + ANSWER_SECONDS_MAX
        while True:
            while b"\n" not in self._buffer:
                ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, give_up_at - time.monotonic()))
                piece = os.read(self._process.stdout.fileno(), 1 << 16) if ready else b""
                if not piece:
                    return
                self._buffer += piece
            line, _, self._buffer = self._buffer.partition(b"\n")
            yield json.loads(line)

    def answer(self, request_id: int) -> dict[str, Any]:
        """The result of one request; shows progress on the way."""
        for message in self.messages():
            if message.get("method") == "notifications/progress":
                _line(f"      … {message['params']['message']}")
            elif message.get("id") == request_id:
                if "error" in message:
                    raise NotRunning(f"The server answered with an error: {message['error']['message']}")
                result: dict[str, Any] = message["result"]
                return result
        raise NotRunning("The server ended, or did not answer in time.")

    def introduce(self) -> str:
        asked = self.request(
            "initialize",
            {
                "protocolVersion": "2025-11-25",
                "capabilities": {},
                "clientInfo": {"name": "imaged-demo", "version": VERSION},
            },
        )
        about = self.answer(asked)["serverInfo"]
        self.notify("notifications/initialized")
        return f"{about['name']} {about['version']}"

    def call(self, tool: str, arguments: dict[str, Any]) -> int:
        token = self._last_id + 1
        return self.request("tools/call", {"name": tool, "arguments": arguments, "_meta": {"progressToken": token}})

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(5)
        self._process.stdout.close()

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()


def run() -> int:
    """The exit status: 0 if everything went as it should."""
    home = Path(tempfile.mkdtemp(prefix="imaged-demo-"))
    places = Places(home / "home")
    environment = {
        **os.environ,
        "IMAGED_HOME": str(places.home),
        "IMAGED_BACKEND": "offline",
        "IMAGED_OFFLINE_SECONDS": OFFLINE_SECONDS,
        "OPENAI_IMAGE_OUTPUT_DIR": str(home / "pictures"),
    }
    try:
        _line("\nimaged, offline: no key, no network, no cost. Everything but the pictures is the real program.\n")
        _draw_three(environment)
        interrupted = _pull_the_plug(environment, places)
        _show_the_log(environment, places, interrupted)
    finally:
        with contextlib.suppress(NotRunning):
            client.ask(places, "stop_daemon", {"reason": "end of the demo"})
    _line(f"\nPictures, log and index are in {home} - look at them, then: rm -r {home}")
    _show_configuration()
    return 0


def _draw_three(environment: dict[str, str]) -> None:
    _line("1. A client starts the program over stdio; the daemon starts by itself.")
    server = StdioClient(environment)
    _line(f"   connected to {server.introduce()}\n")
    _line("2. Three pictures:")
    for order in ORDERS:
        _line(f"   generate_image: {order['prompt']}")
        result = server.answer(server.call("generate_image", order))["structuredContent"]
        image = result["images"][0]
        _line(f"      {image['path']}  {image['width']}x{image['height']} {image['format']}, {image['size_bytes']:,} bytes")
        _line(f"      cost: {result['cost']['text']}")
    _line("\n3. What list_history remembers of the newest:")
    listed = server.answer(server.call("list_history", {"limit": 1}))
    for text in listed["content"][0]["text"].splitlines():
        _line(f"      {text}")
    server.close()


def _pull_the_plug(environment: dict[str, str], places: Places) -> str:
    _line("\n4. A fourth picture, and kill -9 for the daemon while it is drawn:")
    server = StdioClient(environment)
    server.introduce()
    asked = server.call("generate_image", LAST_ORDER)
    for message in server.messages():
        if message.get("method") == "notifications/progress":
            _line(f"      … {message['params']['message']}")
            if "drawing" in message["params"]["message"]:
                break
        elif message.get("id") == asked:
            raise NotRunning("The fourth picture was finished before the plug could be pulled.")
    pid = client.ask(places, "get_status", {})["result"]["pid"]
    os.kill(pid, signal.SIGKILL)
    _line(f"      kill -9 {pid}")
    server.close()

    _line("\n5. The client starts the program again, and asks what became of it:")
    server = StdioClient(environment)
    server.introduce()
    jobs = server.answer(server.call("list_jobs", {"limit": 1}))["structuredContent"]["jobs"]
    _line(f"      {jobs[0]['job_id']} is {jobs[0]['state']}: {jobs[0]['error']}")
    server.close()
    return str(jobs[0]["job_id"])


def _show_the_log(environment: dict[str, str], places: Places, job_id: str) -> None:
    _line("\n6. What the log says about it:")
    for told in narrate(places.events, JobId(job_id)):
        _line(f"      {told}")
    found = verify(places.events)
    _line(f"      verified: {found.commits} commits, every hash and every link of the chain; head {found.head_hash[:16]}…")


def _show_configuration() -> None:
    command, *arguments = executable.mcp_command()
    entry = {"mcpServers": {"imaged": {"command": command, "args": arguments, "env": {"OPENAI_API_KEY": "sk-…"}}}}
    _line("\nPut it into Claude Desktop (claude_desktop_config.json), with your key:\n")
    _line(json.dumps(entry, indent=2, ensure_ascii=False))
    _line("\nor into Claude Code:\n")
    _line(f"claude mcp add --transport stdio --scope user --env OPENAI_API_KEY=sk-… imaged -- {command} {' '.join(arguments)}\n")


def _line(text: str) -> None:
    print(text, flush=True)  # noqa: T201
