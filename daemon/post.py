"""Where a worker gives its requests, and what it gets back.

Rule: nothing of HTTP is imported before the first request, or an idle moment: it takes a tenth of a second, and clients wait
for the daemon's doors.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import trio

from daemon.config import Secret
from daemon.errors import BadConfiguration
from eventlog.values import Account
from tools.openai_api import ApiRequest, Failure, transport_failure

if TYPE_CHECKING:
    from daemon.courier import Courier

KEY_REPEATED = "[the key]"

Hear = Callable[[bytes], Awaitable[bool]]
"""Is given every piece of a stream as it arrives, must not fail for what it makes of it, and says whether all is there."""


class RawReply(NamedTuple):
    """A complete HTTP answer or, of a stream, as much as came: its events tell what is missing. Header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes | bytearray

    def without(self, key: Secret) -> "RawReply":
        """As if the server had not repeated the key, as error pages of some proxies do. Blocks: reads a long body once."""
        said = key.reveal()
        headers = {name: value.replace(said, KEY_REPEATED) for name, value in self.headers.items()}
        body = self.body.replace(said.encode(), KEY_REPEATED.encode()) if said.encode() in self.body else self.body
        return RawReply(self.status, headers, body)


class Post:
    """Has a courier from the first request on."""

    def __init__(self, offline_seconds: float, stay: AsyncExitStack) -> None:
        self._offline_seconds = offline_seconds
        self._stay = stay
        self._calling = trio.Lock()
        self._courier: Courier | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, *, offline_seconds: float) -> AsyncIterator["Post"]:
        """`offline_seconds` is how long the stand-in pretends to draw."""
        async with AsyncExitStack() as stay:
            yield cls(offline_seconds, stay)

    async def send(
        self, request: ApiRequest, account: Account, key: Secret | None, client_request_id: str, hear: Hear | None = None
    ) -> RawReply | Failure:
        """One attempt. Failures of the connection come back as values, split by whether money may be spent."""
        try:
            courier = await self.call_courier()
        except BadConfiguration as exc:
            return transport_failure("not_sent", str(exc))._replace(retry="never")  # it would be the same again
        return await courier.send(request, account, key, client_request_id, hear)

    async def call_courier(self) -> "Courier":
        """
        Raises:
            BadConfiguration: the proxy settings of the environment cannot be used.
        """
        async with self._calling:
            if self._courier is None:
                opened = await trio.to_thread.run_sync(_load)
                self._courier = await self._stay.enter_async_context(opened.open(offline_seconds=self._offline_seconds))
            return self._courier


def _load() -> "type[Courier]":
    """Blocks."""
    from daemon.courier import Courier

    return Courier
