"""Bytes both ways between a client and its daemons, one after the other, and what a daemon's first line may be.

Rule: standard library only, as for the bridge. Nothing is read that there is no room for, and nothing waits that could
move. Both sides see whole lines: what ends in the middle of one was never said. Only a line that is too long to be held
back is passed on as it comes.
"""

import os
import select
from _collections import deque  # type: ignore[import-not-found]  # all of `collections` takes 2-3 ms
from _collections_abc import Callable, Iterator

from daemon.conversation import Conversation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket

DAEMONS_MAX = 5  # that end before they say a word; the last of them is told of
LAST_ANSWERS_SECONDS_MAX = 2.0  # of silence after the client closed its side
BUFFER_BYTES_MAX = 1024 * 1024  # in each direction; beyond that the other side has to wait, or a line is not held back
READ_BYTES = 64 * 1024
OURS = b'{"imaged"'  # begins a first line that is not for the client: why it is refused, or that nobody has listened

_WHOLE, _BEGINNING, _MORE = range(3)  # of a line


class Refused(Exception):
    """By the daemon, with its sentence."""


class Gone(Exception):
    """The daemon, in the middle of what cannot be followed; or one daemon after the other."""


class _Held:
    """What was read of a line that is not whole yet."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self.is_long = False  # its beginning has been passed on

    def __len__(self) -> int:
        return len(self._bytes)

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Whole lines, and pieces of what is too long to be held."""
        self._bytes += data
        start = 0
        while end := self._bytes.find(b"\n", start) + 1:
            yield (_MORE if self.is_long else _WHOLE), bytes(self._bytes[start:end])
            self.is_long, start = False, end
        del self._bytes[:start]
        if self._bytes and (self.is_long or len(self._bytes) >= BUFFER_BYTES_MAX):
            yield (_MORE if self.is_long else _BEGINNING), self.take()
            self.is_long = True

    def take(self) -> bytes:
        held = bytes(self._bytes)
        self._bytes.clear()
        return held


class _Client:
    """stdin and stdout. `words` are for a daemon, and none has begun to hear them; `answers` are for the client."""

    def __init__(self) -> None:
        self.words: deque[tuple[int, bytes]] = deque()
        self.answers = bytearray()
        self.has_ended = False
        self._held = _Held()
        self._waiting_bytes = 0

    @property
    def has_room(self) -> bool:
        return not self.has_ended and self._waiting_bytes + len(self._held) < BUFFER_BYTES_MAX

    def read(self) -> None:
        try:
            data = os.read(0, READ_BYTES)
        except BlockingIOError:
            return
        for kind, piece in self._held.feed(data):
            self.put(kind, piece)
        if not data:
            self.has_ended = True
            if self._held:
                self.put(_WHOLE, self._held.take())

    def put(self, kind: int, piece: bytes) -> None:
        self.words.append((kind, piece))
        self._waiting_bytes += len(piece)

    def put_back(self, kind: int, piece: bytes) -> None:
        self.words.appendleft((kind, piece))
        self._waiting_bytes += len(piece)

    def take(self) -> tuple[int, bytes]:
        kind, piece = self.words.popleft()
        self._waiting_bytes -= len(piece)
        return kind, piece

    def write(self) -> bool:
        """False: it takes nothing more. Not more at once than never blocks: stdout is the client's, too, and not ours to
        change."""
        try:
            del self.answers[: os.write(1, self.answers[: select.PIPE_BUF])]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True


def pump(connect: "Callable[[], Socket]", hello: bytes, silence_seconds_max: float) -> None:
    """One client, from its first word until it has left and heard the last answer, or takes nothing more. Blocks.

    `connect` finds or starts a daemon; each is told `hello` first. Between two daemons nothing is started before the client
    says something: whoever stopped the first may want none, unless it has ended to make way for us. A client that has left
    waits `silence_seconds_max` for the first byte of a daemon that is still starting.

    Raises:
        Refused, Gone
    """
    client, conversation = _Client(), Conversation()
    unheard = 0
    while True:
        talk = _Talk(connect(), hello, client, conversation)
        if talk.run(silence_seconds_max):
            return
        unheard = 0 if talk.heard else unheard + 1
        if unheard >= DAEMONS_MAX:
            raise Gone
        if (client.has_ended or not talk.makes_way) and not _wait(client, conversation):
            return


def _wait(client: _Client, conversation: Conversation) -> bool:
    """Until there is something to be told to a daemon. False: there never will be."""
    while not (conversation.has_to_ask_again or client.words):
        if client.has_ended and not client.answers:
            return False
        masks = {0: select.POLLIN * client.has_room, 1: select.POLLOUT * bool(client.answers)}
        ready = _poll(masks, LAST_ANSWERS_SECONDS_MAX if client.has_ended else None)
        if not ready or (ready.get(1) and not client.write()):
            return False
        if ready.get(0):
            client.read()
    return True


class _Talk:
    """With one daemon. `heard` is whether it has said something to the client, `makes_way` whether it ends for our sake."""

    def __init__(self, connection: "Socket", hello: bytes, client: _Client, conversation: Conversation) -> None:
        self.heard = self.makes_way = False
        self._connection = connection
        self._wire = connection.fileno()
        self._client = client
        self._conversation = conversation
        self._held = _Held()
        self._said: list[tuple[int, bytes]] | None = []  # what has left the queue, until the daemon has said something
        self._said_bytes = 0
        self._saying: tuple[int, bytes] | None = None  # what has left the queue, and not all of it has left us
        self._is_deaf = False  # it takes nothing more, but may still answer
        self._leaving = bytearray(hello + conversation.opening())
        if not conversation.is_opening:
            self._leaving += conversation.rest()

    def run(self, silence_seconds_max: float) -> bool:
        """False: the daemon is gone, and the client is not.

        Raises:
            Refused, Gone
        """
        try:
            return self._until_one_leaves(silence_seconds_max)
        finally:
            self._connection.close()

    def _until_one_leaves(self, silence_seconds_max: float) -> bool:
        client, half_closed = self._client, False
        while True:
            # A daemon that is still starting has not said anything yet: `echo … | imaged mcp` deserves its answer.
            patience = LAST_ANSWERS_SECONDS_MAX if self.heard else silence_seconds_max
            ready = _poll(self._masks(half_closed), patience if client.has_ended else None)
            if not ready or (ready.get(1) and not client.write()):
                return True
            if ready.get(self._wire, 0) & select.POLLOUT:
                self._write()
            if ready.get(0):
                client.read()
            if client.has_ended and not (half_closed or self._leaving or client.words):
                half_closed = True
                self._half_close()
            if ready.get(self._wire, 0) & ~select.POLLOUT and not self._read():
                return self._daemon_is_gone()

    def _masks(self, half_closed: bool) -> dict[int, int]:
        client = self._client
        reads = len(client.answers) < BUFFER_BYTES_MAX
        speaks = self._leaving or (client.words and not self._conversation.is_opening)
        writes = speaks and not (half_closed or self._is_deaf)
        return {
            0: select.POLLIN * client.has_room,
            1: select.POLLOUT * bool(client.answers),
            self._wire: select.POLLIN * reads | select.POLLOUT * bool(writes),
        }

    def _write(self) -> None:
        if not self._leaving and self._client.words and not self._conversation.is_opening:
            self._begin_to_say(*self._client.take())
        try:
            del self._leaving[: os.write(self._wire, self._leaving[:READ_BYTES])]
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            self._is_deaf = True
            self._leaving.clear()
            self._take_back()
        if not self._leaving:
            self._saying = None

    def _begin_to_say(self, kind: int, piece: bytes) -> None:
        if kind == _WHOLE:
            self._conversation.client_said(piece)
        else:
            self._conversation.client_said_too_much()
        self._leaving += piece
        self._saying = kind, piece
        if self._said is not None:
            self._said.append((kind, piece))
            self._said_bytes += len(piece)
            if self._said_bytes > BUFFER_BYTES_MAX:
                self._said = None

    def _take_back(self) -> None:
        """A line whose end did not arrive was never said."""
        if self._saying and self._saying[0] == _WHOLE:
            self._conversation.forget([self._saying[1]])
            self._client.put_back(*self._saying)
            if self._said:
                self._said.pop()

    def _half_close(self) -> None:
        try:
            self._connection.shutdown(1)
        except OSError:
            return  # it went before us, which the next read will tell

    def _read(self) -> bool:
        """False: there is nothing more."""
        try:
            data = os.read(self._wire, READ_BYTES)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        for kind, piece in self._held.feed(data):
            if not self.heard and kind == _WHOLE and piece.startswith(OURS):
                self._hear_of_us(piece)
                if not self.makes_way:
                    return False
                continue
            self.heard, self._said = True, None
            if kind == _MORE or self._conversation.daemon_said(piece):
                self._client.answers += piece
            elif not self._conversation.is_opening:
                self._leaving += self._conversation.rest()
        return bool(data)

    def _hear_of_us(self, line: bytes) -> None:
        """If nobody has listened, all of it is said to the next daemon, as if it had never left.

        Raises:
            Refused, Gone
        """
        import json

        told = json.loads(line)
        self.makes_way = told.get("makes_way") is True
        if self.makes_way:
            return
        if told.get("leaving") is not True:
            raise Refused(str(told.get("refused", "the daemon refused this client.")))
        if self._said is None:
            raise Gone
        self._conversation.forget(line for _, line in self._said)
        self._conversation.is_followed = True
        for kind, piece in reversed(self._said):
            self._client.put_back(kind, piece)

    def _daemon_is_gone(self) -> bool:
        """True if the client has left, too, and waits for nothing.

        Raises:
            Gone: what the client has said cannot be answered in the place of the daemon.
        """
        client = self._client
        if not self._conversation.is_followed:
            raise Gone
        if self._leaving:  # a crash in the middle of a line
            self._take_back()
        if self._held.is_long:
            client.answers += b"\n"  # of a line the client has only the beginning, and sees that by its end
            self._conversation.daemon_did_not_end()
        client.answers += self._conversation.answers()
        return client.has_ended and not (client.answers or client.words or self._conversation.has_to_ask_again)


def _poll(masks: dict[int, int], seconds: float | None) -> dict[int, int]:
    poll = select.poll()
    for descriptor, mask in masks.items():
        if mask:
            poll.register(descriptor, mask)
    return dict(poll.poll(None if seconds is None else seconds * 1000))
