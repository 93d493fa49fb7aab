"""Server-sent events out of bytes, as they arrive.

Rule: the same bytes give the same events, however they were split on their way. An event is
`event: NAME` and `data: JSON` lines up to an empty one; a line may be megabytes long, so no line has a limit here. Whoever
feeds bounds the stream as a whole.
"""

from typing import NamedTuple

CONTENT_TYPE = "text/event-stream"
DONE = b"[DONE]"  # not documented for pictures, but the mark with which OpenAI's other streams end
NAME_BYTES_MAX = 100  # of an event; the longest known name has 30


class StreamEvent(NamedTuple):
    """`name` is empty where the stream gives none; the data says then what it is."""

    name: str
    data: bytes


class EventParser:
    """Holds the event that is under way, nothing else."""

    def __init__(self) -> None:
        self._line: list[bytes] = []
        self._name = ""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> tuple[StreamEvent, ...]:
        """The events that are whole now."""
        events: list[StreamEvent] = []
        *ended, rest = piece.split(b"\n")
        for end in ended:
            self._line.append(end)
            line = b"".join(self._line).removesuffix(b"\r")
            self._line.clear()
            if line:
                self._read_field(line)
            else:
                events += self._take()
        if rest:
            self._line.append(rest)
        return tuple(events)

    def finish(self) -> tuple[StreamEvent, ...]:
        """What the end of the stream makes whole: it stands for an empty line that never came, because a picture that
        is paid for must not be lost for one. An event that was cut is found out by its data.
        """
        line = b"".join(self._line).removesuffix(b"\r")
        self._line.clear()
        if line:
            self._read_field(line)
        return self._take()

    def _read_field(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value[:NAME_BYTES_MAX].decode("utf-8", "replace")

    def _take(self) -> tuple[StreamEvent, ...]:
        name, data = self._name, b"\n".join(self._data)
        self._name = ""
        self._data.clear()
        return (StreamEvent(name, data),) if data and data != DONE else ()


def events(body: bytes | bytearray) -> tuple[StreamEvent, ...]:
    """Of a stream that is here as a whole."""
    parser = EventParser()
    return (*parser.feed(bytes(body)), *parser.finish())


def is_stream(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == CONTENT_TYPE
