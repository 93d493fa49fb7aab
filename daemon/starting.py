"""Reading the log at the start, and the control API's door meanwhile: whoever asks hears how far that is, and asks again.

Nothing is known yet that could be told, and nothing can be ordered: budgets and jobs stand in what is being read. Clients of
MCP wait at their own door, which opens when all is read.
"""

import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path

import trio

from daemon import doors
from daemon.config import Places
from daemon.replies import Problem
from eventlog.index import Index
from eventlog.log import EventLog, Recovery
from eventlog.segments import Located, MarkNotThere, segment_name, segment_starts

HEAD_BYTES_MAX = 64 * 1024
CLIENT_SECONDS_MAX = 5.0  # to say what it wants, and to hear that it is too early
CLIENTS_MAX = 100
PERCENT_TOLD = 10  # each so many

logger = logging.getLogger(__name__)
Replay = Callable[[Sequence[Located]], None]


class Reading:
    """How far the log has been read; written by one thread and read by another."""

    def __init__(self, events: Path) -> None:
        starts = segment_starts([path.name for path in events.glob("*.jsonl")])
        self._begin = starts[0] if starts else 0
        self._end = starts[-1] + (events / segment_name(starts[-1])).stat().st_size if starts else 0
        self._told = 0
        self.percent = 0

    def following(self, replay: Replay) -> Replay:
        """The same, and noticed."""

        def follow(located: Sequence[Located]) -> None:
            replay(located)
            mark = located[-1].mark
            self.percent = min(99, 100 * (mark.offset - self._begin) // max(1, self._end - self._begin))
            if self.percent >= self._told + PERCENT_TOLD:
                self._told = self.percent
                logger.info("reading the log", extra={"percent": self.percent, "position": mark.position})

        return follow


@asynccontextmanager
async def open_door(listener: trio.SocketListener, reading: Reading) -> AsyncIterator[None]:
    """For as long as the body runs; the listener is left open."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_accept, listener, reading)
        yield
        nursery.cancel_scope.cancel()


async def _accept(listener: trio.SocketListener, reading: Reading) -> None:
    limiter = trio.CapacityLimiter(CLIENTS_MAX)
    async with trio.open_nursery() as clients:
        while True:
            await limiter.acquire_on_behalf_of(stream := await listener.accept())
            clients.start_soon(partial(_tell, stream, reading, limiter))


async def _tell(stream: trio.SocketStream, reading: Reading, limiter: trio.CapacityLimiter) -> None:
    try:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError), trio.move_on_after(CLIENT_SECONDS_MAX):
            async with stream:
                if doors.is_ours(stream):
                    await _hear(stream)
                    await stream.send_all(_too_early(reading.percent))
                    await stream.send_eof()
                    while await stream.receive_some(HEAD_BYTES_MAX):  # unread bytes would break the peer's reading
                        pass
    finally:
        limiter.release_on_behalf_of(stream)


async def _hear(stream: trio.SocketStream) -> None:
    """The head of a request, or as much as comes."""
    head = b""
    while b"\r\n\r\n" not in head and len(head) < HEAD_BYTES_MAX:
        piece = await stream.receive_some(HEAD_BYTES_MAX)
        if not piece:
            return
        head += piece


def _too_early(percent: int) -> bytes:
    tens = percent // PERCENT_TOLD * PERCENT_TOLD
    sentence = f"imaged is reading its log, and has read {tens} % of it; nothing was begun. Ask again in a moment."
    reply = Problem("starting", sentence).reply()
    lines = (
        f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}",
        f"content-type: {reply.media_type}",
        f"content-length: {len(reply.body)}",
        "retry-after: 1",
        "connection: close",
    )
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + reply.body


def read(places: Places, log: EventLog, reading: Reading) -> tuple[Index, Recovery]:
    """The log put in order, and its index. Blocks: for moments beside an index, and for as long as it takes without one.

    Raises:
        EventLogError, LogFull, IndexUnavailable
    """
    index = Index.open(places.index)
    with without_collecting():
        try:
            with index.in_bulk():
                return index, log.recover(index.mark, reading.following(index.fold), restore=index.restore)
        except MarkNotThere as exc:
            logger.warning("the index does not belong to this log and is made anew", extra={"why": str(exc)})
            beyond = index.mark
        index.discard()
        index = Index.open(places.index)
        with index.in_bulk():
            follow = reading.following(index.fold)
            return index, log.recover(None, follow, restore=index.restore, once_durable=beyond)


@contextmanager
def without_collecting() -> Iterator[None]:
    """A long log makes millions of objects, and no cycles to look for."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
