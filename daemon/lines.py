"""Bounded JSON-RPC lines out of bytes, without I/O.

    reader = LineReader(max_bytes); for line in reader.feed(data): …

Rule: what cannot be a message is answered, never dropped: a peer that waits for an answer to a broken line
would wait for ever. A `Reject` carries that answer, ready to send.
"""

import json
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

PARSE_ERROR = -32700
INVALID_REQUEST = -32600

_Id = str | int | None


class Reject(NamedTuple):
    reply: bytes


class _Look(msgspec.Struct):
    """What must be right before anybody parses the rest."""

    jsonrpc: object = None
    id: object = None
    method: object = None
    params: object = None
    result: object = msgspec.UNSET
    error: object = msgspec.UNSET


_look = msgspec.json.Decoder(_Look).decode


class LineReader:
    """Linear in the bytes it is fed, however they are split; holds at most one line of `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._pieces: list[bytes] = []
        self._held = 0
        self._skipping = False

    def feed(self, data: bytes) -> Iterator[bytes | Reject]:
        """Every line that ends in `data`, without its newline, or what to say instead."""
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            yield from self._finish_line(data[start:end])
            start = end + 1
        if start < len(data):
            self._hold(data[start:])

    def finish(self) -> Iterator[bytes | Reject]:
        """The last line, if the peer left without ending it."""
        if self._held or self._skipping:
            yield from self._finish_line(b"")

    def _hold(self, piece: bytes) -> None:
        if self._held + len(piece) > self._max_bytes:
            self._skipping = True
            self._pieces.clear()
            self._held = 0
        if not self._skipping:
            self._pieces.append(piece)
            self._held += len(piece)

    def _finish_line(self, piece: bytes) -> Iterator[bytes | Reject]:
        self._hold(piece)
        if self._skipping:
            self._skipping = False
            yield _reject(None, INVALID_REQUEST, f"A message of more than {self._max_bytes} bytes was skipped.")
            return
        line = b"".join(self._pieces)
        self._pieces.clear()
        self._held = 0
        if line.strip():
            yield _checked(line)


def _checked(line: bytes) -> bytes | Reject:
    try:
        seen = _look(line)
    except msgspec.ValidationError:
        return _reject(None, INVALID_REQUEST, "A message is one JSON object; batches are not part of MCP.")
    except RecursionError:
        return _reject(None, INVALID_REQUEST, "The message is nested too deeply.")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _not_json(line)
    request_id = seen.id if isinstance(seen.id, str | int) and not isinstance(seen.id, bool) else None
    if seen.jsonrpc != "2.0":
        return _reject(request_id, INVALID_REQUEST, 'The message does not say "jsonrpc": "2.0".')
    if seen.method is None and (seen.result is not msgspec.UNSET or seen.error is not msgspec.UNSET):
        return line
    if not isinstance(seen.method, str):
        return _reject(request_id, INVALID_REQUEST, "The message has no method.")
    if seen.id is not None and request_id is None:
        return _reject(None, INVALID_REQUEST, "The id of a request is a string or a whole number.")
    if seen.params is not None and not isinstance(seen.params, dict):
        return _reject(request_id, INVALID_REQUEST, "The params of a message are a JSON object.")
    return line


def _not_json(line: bytes) -> Reject:
    """JSON to a lenient eye, but with half a character (`\\ud800`) in its text, is answered to whoever asked."""
    try:
        lenient = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return _reject(None, PARSE_ERROR, "This line is not JSON in UTF-8.")
    request_id = lenient.get("id") if isinstance(lenient, dict) else None
    if not isinstance(request_id, str | int) or isinstance(request_id, bool) or not str(request_id).isprintable():
        request_id = None
    return _reject(request_id, INVALID_REQUEST, "The message holds text or numbers that JSON in UTF-8 cannot hold.")


def _reject(request_id: _Id, code: int, message: str) -> Reject:
    error = {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message}}
    return Reject(msgspec.json.encode(error) + b"\n")
