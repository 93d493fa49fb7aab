"""Carries ApiRequests to OpenAI and back: deadlines, size limits, and what a broken connection means.

Rule: one call is one request on the wire. Nothing here tries again; whether to is a question of money and
is answered by the worker. The only file that knows httpx.
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

from daemon.config import Secret, Settings
from daemon.errors import BadConfiguration
from daemon.post import Hear, RawReply
from eventlog.values import Account
from tools.openai_api import ApiRequest, Failure, transport_failure
from tools.streaming import is_stream

sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]  # its command line, half of what it imports: not for us
import httpx  # noqa: E402

if TYPE_CHECKING:
    from daemon.offline import Answer

CONNECT_SECONDS_MAX = 10.0
WRITE_SECONDS_MAX = 120.0  # up to 16 source images of 50 MB
READ_SECONDS_MAX = 600.0  # silence while the picture is drawn; 3-5 minutes were measured for large ones
ATTEMPT_SECONDS_MAX = 900.0
CLOSE_SECONDS_MAX = 2.0
MODELS_SECONDS_MAX = 20.0  # a list of some kilobytes
EVENT_END = b"\n\n"  # as the stand-in writes it
REPLY_BYTES_MAX = 512 * 1024 * 1024  # ten 4K PNGs in base64 are about 330 MB


_NOTHING_LEFT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
    httpx.InvalidURL,
)


class Courier:
    def __init__(self, online: httpx.AsyncClient, local: httpx.AsyncClient) -> None:
        self._online = online
        self._local = local

    @classmethod
    @asynccontextmanager
    async def open(cls, *, offline_seconds: float) -> AsyncIterator["Courier"]:
        """`offline_seconds` is how long the stand-in pretends to draw."""
        timeout = httpx.Timeout(
            connect=CONNECT_SECONDS_MAX, write=WRITE_SECONDS_MAX, read=READ_SECONDS_MAX, pool=CONNECT_SECONDS_MAX
        )
        # No connection is used twice: one that the server closes just as we send looks like a lost answer,
        # and a lost answer may be a paid picture. A handshake costs nothing beside drawing.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        try:
            # Plain http goes to this machine only, so no proxy of the environment ever sees a key in the clear.
            online = httpx.AsyncClient(timeout=timeout, limits=limits, follow_redirects=False, mounts={"http://": None})
        except (ImportError, ValueError) as exc:
            raise BadConfiguration(f"the proxy settings of the environment cannot be used: {exc}") from exc
        async with online, httpx.AsyncClient(timeout=None, transport=_StandIn(offline_seconds)) as local:
            yield cls(online, local)

    async def send(
        self, request: ApiRequest, account: Account, key: Secret | None, client_request_id: str, hear: Hear | None = None
    ) -> RawReply | Failure:
        """One attempt. Failures of the connection come back as values, split by whether money may be spent."""
        client = self._local if account.backend == "offline" else self._online
        headers = {**request.headers, "X-Client-Request-Id": client_request_id, "Accept": "application/json"}
        headers["Accept-Encoding"] = "identity"  # pictures do not shrink, and the bytes are taken as they come
        if key is not None:
            headers["Authorization"] = f"Bearer {key.reveal()}"
        if account.organization:
            headers["OpenAI-Organization"] = account.organization
        if account.project:
            headers["OpenAI-Project"] = account.project
        url = (account.base_url or "http://offline.invalid/v1") + request.path
        stream: list[RawReply] = []
        try:
            with trio.fail_after(ATTEMPT_SECONDS_MAX):
                sent = client.build_request(request.method, url, headers=headers, content=request.body)
                return await _whole(await client.send(sent, stream=True), hear, stream)
        except _NOTHING_LEFT as exc:
            return transport_failure("not_sent", str(exc) or type(exc).__name__)
        except httpx.LocalProtocolError:  # its text may quote a header, and with it the key
            return transport_failure("not_sent", "the request could not be put into HTTP")
        except (httpx.HTTPError, httpx.StreamError, trio.TooSlowError, _TooLong) as exc:
            # A stream that is cut may have brought the whole picture before, so what came of it is read like any other.
            return stream[0] if stream else transport_failure("outcome_unknown", str(exc) or type(exc).__name__)


async def ask_for_models(settings: Settings) -> RawReply | Failure:
    """GET /models, once: costs nothing, and tells whether the key is taken. Bounded in time; redirects are not followed."""
    question = ApiRequest("GET", "/models", {}, b"")
    async with Courier.open(offline_seconds=0) as courier:
        with trio.move_on_after(MODELS_SECONDS_MAX):
            return await courier.send(question, settings.account, settings.key, "imaged-doctor")
    return transport_failure("not_sent", f"no answer within {MODELS_SECONDS_MAX:.0f} s")


class _TooLong(Exception):
    def __init__(self) -> None:
        super().__init__(f"the answer is longer than {REPLY_BYTES_MAX} bytes")


async def _whole(reply: httpx.Response, hear: Hear | None, stream: list[RawReply]) -> RawReply:
    """`stream` gets what came of an event stream that does not come to its end."""
    headers = {name.lower(): value for name, value in reply.headers.items()}
    streamed = reply.status_code == 200 and is_stream(headers.get("content-type", ""))
    body = bytearray()  # grows where it is: pieces that are put together at the end would be there twice
    try:
        try:
            await _read_bounded(reply, body, hear if streamed else None)
        except (httpx.HTTPError, httpx.StreamError, trio.Cancelled):
            if streamed:
                stream.append(RawReply(reply.status_code, headers, body))
            raise
    finally:
        # Shielded: the body may be paid for, and a stop that arrives now must not cost it. Bounded by the deadline.
        with trio.move_on_after(CLOSE_SECONDS_MAX, shield=True):
            await reply.aclose()
    return RawReply(reply.status_code, headers, body)


async def _read_bounded(reply: httpx.Response, body: bytearray, hear: Hear | None) -> None:
    # Not `aiter_bytes`: after the last byte it closes the reply itself, and a stop that arrives there costs the body.
    assert isinstance(reply.stream, httpx.AsyncByteStream)
    async for piece in reply.stream:
        if len(body) + len(piece) > REPLY_BYTES_MAX:
            raise _TooLong
        body += piece
        if hear is None:
            continue
        with trio.CancelScope(shield=True):  # bounded by decoding one event and storing it
            if await hear(piece):
                return  # some servers leave a stream open behind its last event, and a stop would cost what is here


def _drawn_here(method: str, path: str, body: bytes) -> "Answer":
    """Blocks."""
    from daemon import offline  # Pillow comes with it, which who draws online does not need

    return offline.answer(method, path, body)


class _StandIn(httpx.AsyncBaseTransport):
    """The offline stand-in, wired where the network would be, so that everything above is the real code."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        answer = await trio.to_thread.run_sync(partial(_drawn_here, request.method, request.url.path, body))
        headers = dict(answer.headers)
        if is_stream(headers["content-type"]):
            return httpx.Response(answer.status, headers=headers, content=self._spaced(answer.body), request=request)
        await trio.sleep(self._seconds)
        return httpx.Response(answer.status, headers=headers, content=answer.body, request=request)

    async def _spaced(self, body: bytes) -> AsyncIterator[bytes]:
        """One event after another, so that previews are there before the picture is."""
        sent = body.split(EVENT_END)[:-1]
        for event in sent:
            await trio.sleep(self._seconds / len(sent))
            yield event + EVENT_END
