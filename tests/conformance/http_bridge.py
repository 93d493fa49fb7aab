"""Streamable HTTP in front of `imaged mcp`, because the conformance tool speaks nothing else.

    POST /mcp with `initialize`           a child process for the session that it opens; DELETE ends both
    POST /mcp with 2026-07-28's headers   there are no sessions, so a child process for this one request

Rule: only what HTTP itself brings is judged here (hosts, sessions, headers, status codes), by the SDK's own functions.
Every JSON-RPC message that it answers with is a line of our program's, passed on as it came, but for the answer to headers
that contradict their body. What is posted becomes one line of the program's stdin.
"""

import asyncio
import json
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from uuid import uuid4

import uvicorn
from mcp.server.transport_security import TransportSecurityMiddleware, TransportSecuritySettings
from mcp.shared.inbound import (
    ERROR_CODE_HTTP_STATUS,
    MCP_PROTOCOL_VERSION_HEADER,
    InboundLadderRejection,
    classify_inbound_request,
    validate_mcp_param_headers,
)
from mcp_types import HEADER_MISMATCH
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.conformance.registry import NO_ARGUMENTS, SCHEMAS
from tests.program import SECONDS_MAX, wait_until

SESSION_HEADER = "mcp-session-id"
LINE_BYTES_MAX = 1024 * 1024


class _Gone(Exception):
    """The child ended before it answered."""


class _Conversation:
    """One `imaged mcp`, as a client holds it."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child
        self._open: dict[object, asyncio.Queue[str | None]] = {}  # requests without an answer, the latest one last
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def begin(cls, command: Sequence[str], environment: Mapping[str, str]) -> "_Conversation":
        child = await asyncio.create_subprocess_exec(
            *command,
            env=environment,
            cwd="/",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES_MAX,
        )
        return cls(child)

    async def tell(self, message: Mapping[str, Any]) -> None:
        assert self._child.stdin
        self._child.stdin.write(json.dumps(message).encode() + b"\n")
        await self._child.stdin.drain()

    async def ask(self, message: Mapping[str, Any]) -> AsyncIterator[str]:
        """What belongs to this request, its answer last."""
        heard = self._open[message["id"]] = asyncio.Queue()
        await self.tell(message)
        while message["id"] in self._open or not heard.empty():
            line = await heard.get()
            if line is None:
                raise _Gone
            yield line

    async def end(self) -> int:
        """As a client leaves: stdin is closed, and what is still said is read. The exit status."""
        assert self._child.stdin
        self._child.stdin.close()
        try:
            async with asyncio.timeout(SECONDS_MAX):
                await self._listening
                return await self._child.wait()
        finally:
            if self._child.returncode is None:
                self._child.kill()

    async def _listen(self) -> None:
        assert self._child.stdout
        async for line in self._child.stdout:
            message = json.loads(line)
            # stdio does not say which request a message belongs to. The scenarios wait for one before they ask the next.
            asked = message["id"] if "method" not in message and message["id"] in self._open else next(reversed(self._open), None)
            if asked is None:
                continue
            self._open[asked].put_nowait(line.decode().rstrip("\n"))
            if "method" not in message:
                del self._open[asked]
        for heard in self._open.values():
            heard.put_nowait(None)


class _Bridge:
    """`statuses` are those that the children ended with."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], port: int) -> None:
        self._command, self._environment = command, environment
        hosts = [f"localhost:{port}", f"127.0.0.1:{port}"]
        self._hosts = TransportSecurityMiddleware(
            TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=[f"http://{host}" for host in hosts])
        )
        self._sessions: dict[str, _Conversation] = {}
        self._held: set[_Conversation] = set()
        self._ending: list[asyncio.Task[int]] = []
        self.statuses: list[int] = []
        routes = [Route("/mcp", self._post, methods=["POST"]), Route("/mcp", self._delete, methods=["DELETE"])]
        self.app = Starlette(routes=routes, lifespan=self._life)

    @asynccontextmanager
    async def _life(self, app: Starlette) -> AsyncIterator[None]:
        yield
        for conversation in tuple(self._held):
            self._leave(conversation)
        self.statuses = await asyncio.gather(*self._ending)

    async def _begin(self) -> _Conversation:
        conversation = await _Conversation.begin(self._command, self._environment)
        self._held.add(conversation)
        return conversation

    def _leave(self, conversation: _Conversation) -> None:
        self._held.discard(conversation)
        self._ending.append(asyncio.create_task(conversation.end()))

    async def _delete(self, request: Request) -> Response:
        conversation = self._sessions.pop(request.headers.get(SESSION_HEADER, ""), None)
        if conversation is None:
            return Response(status_code=404)
        self._leave(conversation)
        return Response(status_code=200)

    async def _post(self, request: Request) -> Response:
        refused = await self._hosts.validate_request(request, is_post=True)
        if refused is not None:
            return refused
        message = await request.json()
        if SESSION_HEADER in request.headers:
            return await self._in_session(message, request.headers[SESSION_HEADER])
        version = request.headers.get(MCP_PROTOCOL_VERSION_HEADER, HANDSHAKE_PROTOCOL_VERSIONS[-1])
        if message["method"] == "initialize" and version in HANDSHAKE_PROTOCOL_VERSIONS:
            session = uuid4().hex
            self._sessions[session] = await self._begin()
            return await self._in_session(message, session)
        return await self._alone(message, request.headers)

    async def _in_session(self, message: dict[str, Any], session: str) -> Response:
        conversation = self._sessions.get(session)
        if conversation is None:
            return Response(status_code=404)
        if "method" not in message or "id" not in message:
            await conversation.tell(message)
            return Response(status_code=202)
        return await _answer(conversation.ask(message), {}, {SESSION_HEADER: session})

    async def _alone(self, message: dict[str, Any], headers: Mapping[str, str]) -> Response:
        mismatch = _header_mismatch(message, headers)
        if mismatch is not None:
            error = {"code": mismatch.code, "message": mismatch.message}
            return JSONResponse({"jsonrpc": "2.0", "id": message["id"], "error": error}, ERROR_CODE_HTTP_STATUS[mismatch.code])
        conversation = await self._begin()

        async def lines() -> AsyncIterator[str]:
            try:
                async for line in conversation.ask(message):
                    yield line
            finally:
                self._leave(conversation)

        return await _answer(lines(), ERROR_CODE_HTTP_STATUS, {})


def _header_mismatch(message: dict[str, Any], headers: Mapping[str, str]) -> InboundLadderRejection | None:
    """Where headers and body disagree. All else that the SDK finds wrong with the body is for our program to find."""
    found = classify_inbound_request(message, headers=headers)
    if isinstance(found, InboundLadderRejection):
        return found if found.code == HEADER_MISMATCH else None
    if message["method"] != "tools/call":
        return None
    schema = SCHEMAS.get(message["params"]["name"], NO_ARGUMENTS)
    return validate_mcp_param_headers(schema, message["params"].get("arguments", {}), headers)


async def _answer(lines: AsyncIterator[str], statuses: Mapping[int, int], headers: Mapping[str, str]) -> Response:
    """JSON if the answer is the first thing that is said, a stream of events otherwise."""
    try:
        first = await anext(lines)
    except _Gone:
        return Response("the program ended before it answered", 502)
    message = json.loads(first)
    if "method" in message:
        return StreamingResponse(_events(first, lines), media_type="text/event-stream", headers=headers)
    await anext(lines, None)  # nothing follows; this lets it finish
    status = statuses.get(message["error"]["code"], 200) if "error" in message else 200
    return Response(first, status, headers, "application/json")


async def _events(first: str, lines: AsyncIterator[str]) -> AsyncIterator[str]:
    yield f"data: {first}\n\n"
    async for line in lines:
        yield f"data: {line}\n\n"


@contextmanager
def bridging(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[str]:
    """The URL at which `command` answers. In the end, every one of its processes has left with status 0."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        bridge = _Bridge(command, environment, port)
        config = uvicorn.Config(bridge.app, http="h11", ws="none", log_config=None, access_log=False, timeout_graceful_shutdown=5)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],), name="http bridge", daemon=True)
        thread.start()
        try:
            wait_until(lambda: server.started or not thread.is_alive(), "the HTTP bridge to listen")
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            server.should_exit = True
            thread.join(SECONDS_MAX)
    assert not thread.is_alive(), "the HTTP bridge did not end"
    assert set(bridge.statuses) == {os.EX_OK}, f"`{' '.join(command)}` ended with {sorted(set(bridge.statuses))}"
