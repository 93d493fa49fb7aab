"""Bounded JSON-RPC lines out of bytes, without I/O.

    reader = LineReader(max_bytes); for line in reader.feed(data): …

Rule: what cannot be a message is answered, never dropped: a peer that waits for an answer to a broken line
would wait for ever. A `Reject` carries that answer, ready to send. Nothing is decoded here beyond what is
looked at; who takes the line parses it.
"""

import json
import math
import re
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import msgspec

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
DEPTH_MAX = 64  # parsers behind us stop at about 200, and would not say whose request it was
DIGITS_MAX = 4300  # before the point; where Python stops, and the parsers behind us do

_Id = str | int | None
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"')
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_DIGITS = b"0123456789"
_DIGITS_AS_NINES = bytes(ord("9") if byte in _DIGITS else ord(" ") for byte in range(256))
_TOO_MANY_DIGITS = b"9" * (DIGITS_MAX + 1)
_LONG_NUMBER = re.compile(rb"(?<![0-9.eE+-])-?[0-9]{%d}" % (DIGITS_MAX + 1))


class Reject(NamedTuple):
    reply: bytes


class _Look(msgspec.Struct):
    """What must be right before anybody parses the rest. Everything else is only walked over."""

    jsonrpc: object = None
    id: object = msgspec.UNSET
    method: object = None
    params: msgspec.Raw = msgspec.Raw(b"{}")
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_look = msgspec.json.Decoder(_Look).decode


class LineReader:
    """Linear in the bytes it is fed, however they are split; holds at most one line of `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held = bytearray()
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
        if len(self._held) + len(piece) > self._max_bytes:
            self._skipping = True
            self._held = bytearray()
        if not self._skipping:
            self._held += piece

    def _finish_line(self, piece: bytes) -> Iterator[bytes | Reject]:
        if self._held or self._skipping or len(piece) > self._max_bytes:
            self._hold(piece)
            piece = bytes(self._held)
            self._held = bytearray()
        if self._skipping:
            self._skipping = False
            yield _reject(None, INVALID_REQUEST, f"A message of more than {self._max_bytes} bytes was skipped.")
        elif piece.strip():
            yield _checked(piece)


def _checked(line: bytes) -> bytes | Reject:
    try:
        if not line.isascii():
            line.decode()  # what is only walked over is not checked for it
        seen = _look(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _not_an_object(line)
    is_answer = seen.method is None and (seen.result is not msgspec.UNSET or seen.error is not msgspec.UNSET)
    request_id = None if is_answer else _usable_id(seen.id)
    if _depth(line) > DEPTH_MAX:
        return _reject(request_id, INVALID_REQUEST, f"The message is nested more than {DEPTH_MAX} deep.")
    if _has_long_number(line):
        return _reject(request_id, INVALID_REQUEST, f"The message holds a number of more than {DIGITS_MAX} digits.")
    if seen.jsonrpc != "2.0":
        return _reject(request_id, INVALID_REQUEST, 'The message does not say "jsonrpc": "2.0".')
    if is_answer:
        return line
    if not isinstance(seen.method, str):
        return _reject(request_id, INVALID_REQUEST, "The message has no method.")
    if bytes(memoryview(seen.params)[:1]) not in (b"{", b"n"):
        return _reject(request_id, INVALID_REQUEST, "The params of a message are a JSON object.")
    # Some clients write "id": null where there is none. A request with it would never find its answer.
    has_none = seen.id is msgspec.UNSET or (seen.id is None and seen.method.startswith("notifications/"))
    if request_id is None and not has_none:
        return _reject(None, INVALID_REQUEST, "The id of a request is a string or a whole number of 64 bits.")
    return line


def _depth(line: bytes) -> int:
    """How deep arrays and objects are nested in a line of good JSON; at most as deep as it has brackets."""
    brackets = line.count(b"[") + line.count(b"{")
    if brackets <= DEPTH_MAX:
        return brackets
    return max(accumulate(map(_STEPS.__getitem__, _STRING.sub(b"", line).translate(None, _NOT_BRACKETS))))


def _has_long_number(line: bytes) -> bool:
    """Text may hold as many digits as it likes, so that a line of pictures is looked at closely only if it must be."""
    if len(line) <= DIGITS_MAX or _TOO_MANY_DIGITS not in line.translate(_DIGITS_AS_NINES):
        return False
    return _LONG_NUMBER.search(_STRING.sub(b"", line)) is not None


def _not_an_object(line: bytes) -> Reject:
    """JSON to a lenient eye, but with half a character (`\\ud800`) in its text, is answered to whoever asked."""
    try:
        lenient = json.loads(line.decode(), parse_int=_whole_number)
    except RecursionError:
        return _reject(None, INVALID_REQUEST, "The message is nested too deeply.")
    except ValueError:
        return _reject(None, PARSE_ERROR, "This line is not JSON in UTF-8.")
    if not isinstance(lenient, dict):
        return _reject(None, INVALID_REQUEST, "A message is one JSON object; batches are not part of MCP.")
    is_answer = "method" not in lenient and ("result" in lenient or "error" in lenient)
    request_id = None if is_answer else _usable_id(lenient.get("id"))
    return _reject(request_id, INVALID_REQUEST, "The message holds text or numbers that JSON in UTF-8 cannot hold.")


def _whole_number(digits: str) -> int | float:
    """One that Python does not read is a number all the same."""
    return int(digits) if len(digits) <= DIGITS_MAX else math.inf


def _usable_id(request_id: object) -> _Id:
    """What can be said back in an answer: None for half a character, and for a number that few parsers can read."""
    if isinstance(request_id, int) and not isinstance(request_id, bool):
        return request_id if -(1 << 63) <= request_id < 1 << 63 else None
    if not isinstance(request_id, str):
        return None
    try:
        request_id.encode()
    except UnicodeEncodeError:
        return None
    return request_id


def _reject(request_id: _Id, code: int, message: str) -> Reject:
    error = {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message}}
    return Reject(msgspec.json.encode(error) + b"\n")
