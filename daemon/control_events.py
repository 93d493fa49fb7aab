"""The log as a stream: commits as lines of JSON, or as server-sent events, from any position on.

    {"position": 7, "at": "…", "hash": "…", "events": [{"type": "JobRequested", …}], "words": {…}}

Rule: there is no queue. A follower is a place in the log; it reads on from there when its client has taken what it
got, so a slow client costs nothing and misses nothing, and only what is durable is ever told. The position is the
cursor: whoever gives the last one it saw gets what follows it, without a gap and without a repetition.
"""

import logging
from collections.abc import Generator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import trio

from daemon.doors import Lobby
from daemon.ending import Closing
from daemon.house import House
from daemon.replies import Problem, Reply, Send
from eventlog import framing
from eventlog.errors import EventLogError
from eventlog.events import Event
from eventlog.segments import Located, Mark, MarkNotThere, read_log, segment_name, segment_starts
from eventlog.values import Position, Words

HEARTBEAT_SECONDS = 15.0
PIECE_BYTES = 256 * 1024  # of lines, in memory for each follower
READERS_MAX = 2  # threads for all followers together, so that pictures never wait for them
NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
_HEARTBEAT: Mapping[str, bytes] = {NDJSON: b"\n", SSE: b": still here\n\n"}
_UNREADABLE = (EventLogError, MarkNotThere, framing.Unsound, OSError)

followers = Lobby()  # who has got all there is; one that makes room goes on elsewhere from its position, and loses nothing
_readers = trio.CapacityLimiter(READERS_MAX)
logger = logging.getLogger(__name__)


class _Told(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One commit. `words` is left out where there are none, and `words_forgotten` says that there once were."""

    position: Position
    at: str
    hash: str
    events: tuple[Event, ...]
    words: dict[str, Any] = {}
    words_forgotten: bool = False


def stream(house: House, after: Position, media_type: str, *, follow: bool, doors_close: Closing) -> Reply:
    """What follows `after`, up to the log's end or, for a follower, until its connection ends.

    Raises:
        Problem: the log does not reach that far, or does not go back as far.
    """
    head = house.log.head
    if after > head.position:
        raise Problem(
            "cursor_ahead",
            f"after is {after}, but the log ends at {head.position}; it is another log, or begin again with a smaller one.",
            argument="after",
        )
    if 0 < after < (begins := house.log.archived):
        raise Problem(
            "cursor_archived",
            f"after is {after}, but commits up to {begins} are archived; begin with after={begins}, and take what was before "
            "from the history or from the archive.",
            argument="after",
        )
    cursor = _Cursor(house.places.events, after, media_type)
    send_all = partial(_follow, house, cursor, doors_close) if follow else partial(_once, cursor, head)
    return Reply(200, media_type, headers={"connection": "close"} if follow else {}, stream=send_all)


async def _once(cursor: "_Cursor", head: Mark, send: Send) -> None:
    while cursor.position < head.position:
        await send(await _read(cursor, head))


async def _follow(house: House, cursor: "_Cursor", doors_close: Closing, send: Send) -> None:
    house.sessions += 1
    try:
        await send(b"")  # the head: its reader wants to know at once that it follows
        while not doors_close.begun:
            await _once(cursor, house.log.head, send)
            with followers.wait() as place, doors_close.ends_a_wait(HEARTBEAT_SECONDS) as wait:
                await house.ledger.durable(Position(cursor.position + 1))
            if place.cancel_called:
                return
            if wait.cancelled_caught and not doors_close.begun:
                await send(_HEARTBEAT[cursor.media_type])
    finally:
        house.sessions -= 1


async def _read(cursor: "_Cursor", head: Mark) -> bytes:
    """
    Raises:
        Problem: old lines cannot be read. That is no reason to end the daemon: its own end of the log is good.
    """
    try:
        return await trio.to_thread.run_sync(cursor.read, head, limiter=_readers, abandon_on_cancel=True)
    except _UNREADABLE as exc:
        logger.error("the log cannot be read", extra={"after": cursor.position, "why": str(exc)})
        raise Problem("log_unreadable", f"The log cannot be read after position {cursor.position}; run: imaged audit") from exc


class _Cursor:
    """A place in the log, behind the commit of `position`. Blocking."""

    def __init__(self, events: Path, after: Position, media_type: str) -> None:
        self._events = events
        self._mark: Mark | None = None
        self.position = after
        self.media_type = media_type

    def read(self, head: Mark) -> bytes:
        """The next lines, as many as make a piece; none beyond `head`, which must be durable and not passed yet."""
        if self._mark is None and self.position > 0:
            self._mark = head if self.position == head.position else self._before()
        lines, size_bytes = [], 0
        with closing(cast(Generator[Located], read_log(self._events, self._mark))) as found:
            for located in found:
                self._mark = located.mark
                if located.mark.position <= self.position:
                    continue
                lines.append(self._line(located))
                self.position = located.mark.position
                size_bytes += len(lines[-1])
                if size_bytes >= PIECE_BYTES or self.position >= head.position:
                    return b"".join(lines)
        raise MarkNotThere(f"commit {head.position} is not there")

    def _before(self) -> Mark | None:
        """The first commit of the segment that holds our position: from there on it is found by reading."""
        for start in reversed(segment_starts([path.name for path in self._events.iterdir()])):
            with (self._events / segment_name(start)).open("rb") as segment:
                first = framing.read(segment.readline(2 * framing.LINE_BYTES_MAX).removesuffix(b"\n"))
            if first.commit.position <= self.position:
                return Mark(start, first.commit.position, first.hash)
        return None

    def _line(self, located: Located) -> bytes:
        commit = located.commit
        told = _Told(
            position=commit.position,
            at=commit.at.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            hash=located.mark.hash,
            events=commit.events,
            words={} if commit.words is None else _spoken(commit.words),
            words_forgotten=located.words_forgotten,
        )
        data = msgspec.json.encode(told)
        if self.media_type == SSE:
            return b"id: %d\ndata: %s\n\n" % (commit.position, data)
        return data + b"\n"


def _spoken(words: Words) -> dict[str, Any]:
    """Without the salt: with it, whoever kept this line could still check a guess after the words are forgotten."""
    said = {name: value for name, value in msgspec.structs.asdict(words).items() if value not in (None, (), {})}
    del said["salt"]
    return said
