"""Bytes both ways between a client and a daemon, and what the daemon's first line may be.

Rule: standard library only, as for the bridge. Nothing is read that there is no room for, and nothing waits that could
move. What the client said is kept until the daemon has said something: a daemon that was just leaving never heard it.
"""

import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket

LAST_ANSWERS_SECONDS_MAX = 2.0  # of silence after the client closed its side
BUFFER_BYTES_MAX = 1024 * 1024  # in each direction; beyond that the other side has to wait
READ_BYTES = 64 * 1024


class Refused(Exception):
    """By the daemon, with its sentence."""


class Gone(Exception):
    """The daemon, in the middle of a conversation."""


class Unheard(Exception):
    """The daemon ended before it said anything. `said` is what the client has said so far, None if that is too much to keep."""

    def __init__(self, said: bytes | None) -> None:
        super().__init__(said)
        self.said = said


class _Flow:
    """One direction: what was read and is not written yet. `at_once` bytes never block the sink when it is ready."""

    def __init__(self, source: int, sink: int, at_once: int, first: bytes = b"") -> None:
        self.source, self.sink = source, sink
        self.buffer = bytearray(first)
        self.ended = False
        self.broken = False
        self._at_once = at_once

    @property
    def wants_to_read(self) -> bool:
        return not self.ended and not self.broken and len(self.buffer) < BUFFER_BYTES_MAX

    def read(self) -> bytes:
        try:
            data = os.read(self.source, READ_BYTES)
        except BlockingIOError:
            return b""
        except ConnectionResetError:
            data = b""
        self.buffer += data
        self.ended = not data
        return data

    def write(self) -> None:
        try:
            written = os.write(self.sink, self.buffer[: self._at_once])
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            self.broken = True
            written = len(self.buffer)
        del self.buffer[:written]


def pump(connection: "Socket", hello: bytes, said: bytes, silence_seconds_max: float) -> None:
    """Until the client has left and the daemon has said its last, or takes nothing more, or the daemon is gone.

    `said` is what the client told a daemon that did not hear it. Blocks. A client that has left waits `silence_seconds_max`
    for the first byte of a daemon that is still starting.

    Raises:
        Refused, Gone, Unheard
    """
    wire = connection.fileno()
    upstream = _Flow(0, wire, READ_BYTES, hello + said)
    downstream = _Flow(wire, 1, select.PIPE_BUF)  # stdout may block: it is the client's, too, and not ours to change
    kept: bytes | None = said
    greeted = half_closed = False
    while not downstream.broken:
        ready = _wait(upstream, downstream, greeted, silence_seconds_max)
        if not ready:
            return
        if upstream.buffer and ready.get(wire, 0) & ~select.POLLIN:
            upstream.write()
        if upstream.wants_to_read and ready.get(0):
            kept = _kept(kept, upstream.read(), greeted)
        if upstream.ended and not (upstream.buffer or upstream.broken or half_closed):
            half_closed = True
            try:
                connection.shutdown(1)
            except OSError:
                upstream.broken = True  # it went before us, which the next read will tell
        if downstream.wants_to_read and ready.get(wire, 0) & ~select.POLLOUT:
            downstream.read()
        greeted = greeted or _first_line_is_good(downstream)
        if greeted and downstream.buffer and ready.get(1):
            downstream.write()
        if downstream.ended and not (greeted and downstream.buffer):
            if not (greeted or downstream.buffer or (upstream.ended and kept == b"")):
                raise Unheard(kept)
            if upstream.ended:
                return
            raise Gone


def _kept(before: bytes | None, more: bytes, greeted: bool) -> bytes | None:
    """None once it is too much, or of no use any more."""
    if greeted or before is None or len(before) + len(more) > BUFFER_BYTES_MAX:
        return None
    return before + more


def _wait(upstream: _Flow, downstream: _Flow, greeted: bool, silence_seconds_max: float) -> dict[int, int]:
    """What can be read or written. Empty when the client has left and nothing moved for long enough."""
    masks: dict[int, int] = {}
    for flow in (upstream, downstream):
        if flow.wants_to_read:
            masks[flow.source] = masks.get(flow.source, 0) | select.POLLIN
        if flow.buffer and (greeted or flow is upstream):
            masks[flow.sink] = masks.get(flow.sink, 0) | select.POLLOUT
    poll = select.poll()
    for descriptor, mask in masks.items():
        poll.register(descriptor, mask)
    # A daemon that is still starting has not said anything yet: `echo … | imaged mcp` deserves its answer.
    patience = LAST_ANSWERS_SECONDS_MAX if greeted else silence_seconds_max
    return dict(poll.poll(patience * 1000 if upstream.ended else None))


def _first_line_is_good(flow: _Flow) -> bool:
    """False while it is not whole yet. If it refuses the settings, its sentence is raised."""
    ours = b'{"imaged"'
    start = bytes(flow.buffer[: len(ours)])
    if not ours.startswith(start):
        return True
    line, newline, _ = bytes(flow.buffer).partition(b"\n")
    if not newline:
        return len(flow.buffer) >= BUFFER_BYTES_MAX
    import json

    raise Refused(str(json.loads(line).get("refused", "the daemon refused this client.")))
