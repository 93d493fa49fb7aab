"""Bytes to commits and back, without touching a disk.

    line   := hash (64 hex) SPACE commit (JSON) [ SPACE words (JSON) ]        (NEWLINE ends it in the file)
    hash   =  SHA-256 of the commit's bytes
    commit =  {"previous": hash of the line before, "position": n, "batch": position of the first commit of
               the same sync, "at": UTC, "words": SHA-256 of the words' bytes or null, "events": […]}

Rule: the commit's JSON holds no space (one inside a string is written \\u0020), so the first space after the
hash ends it. The hash covers raw bytes: nothing here depends on canonical JSON, and every line proves itself.
"""

import hashlib
import re
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

import msgspec

from eventlog.errors import LogTooNew
from eventlog.events import FORMAT, Commit, Event, LogCreated
from eventlog.values import Position, Sha256, Words

LINE_BYTES_MAX = 8 * 1024 * 1024  # a 32,000-character prompt in escaped JSON is under 400 kB
NO_HASH = Sha256("0" * 64)


class Unsound(Exception):
    """The bytes are not a line that we wrote: torn, or damaged."""


class Draft(NamedTuple):
    """A commit that is known to be writable; what is missing depends on its place in the log."""

    position: Position
    body: bytes
    words: bytes


class Sealed(NamedTuple):
    line: bytes
    hash: Sha256


class Line(msgspec.Struct, frozen=True, gc=False):
    """`words_forgotten`: the commit names words, but spaces stand in their place."""

    hash: Sha256
    previous: Sha256
    batch: Position
    commit: Commit
    words_forgotten: bool


class _Body(msgspec.Struct, frozen=True, gc=False):
    previous: Sha256
    position: Position
    batch: Position
    at: datetime
    words: str | None
    events: tuple[Event, ...]


class _AnyBody(msgspec.Struct, frozen=True):
    """A sound line of any version: enough to say that it is too new, not damaged."""

    previous: str
    position: int
    batch: int
    events: list[dict[str, object]]


_encode = msgspec.json.Encoder().encode
_decode_body = msgspec.json.Decoder(_Body).decode
_decode_any = msgspec.json.Decoder(_AnyBody).decode
_decode_words = msgspec.json.Decoder(Words).decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

# Looks for lines whose start is not where a newline says. No quote stands unescaped inside a JSON string, so
# text that somebody chose cannot look like this.
_LINE_START = re.compile(rb'[0-9a-f]{64} \{"previous":"')


def draft(commit: Commit) -> Draft:
    """Encode what does not depend on the commit's place.

    Raises:
        ValueError: it cannot stand on a line: too long, a raw value that is not JSON on one line, text that is
            not Unicode, or a time without a zone.
    """
    if commit.at.tzinfo is None:
        raise ValueError(f"commit {commit.position} has a time without a zone: {commit.at}")
    words = b"" if commit.words is None else _encode(commit.words)
    digest = b"null" if commit.words is None else b'"%b"' % hashlib.sha256(words).hexdigest().encode()
    events = _encode(commit.events).replace(b" ", b"\\u0020")
    body = b'"at":%b,"words":%b,"events":%b}' % (_encode(commit.at), digest, events)
    if b"\n" in words:
        raise ValueError(f"commit {commit.position} has words with a raw line break; write them on one line")
    if len(body) + len(words) > LINE_BYTES_MAX:
        raise ValueError(f"commit {commit.position} does not fit on a line: {len(body) + len(words)} bytes")
    if commit.words is not None and commit.words.arguments:
        _insist_on_reading_back(commit.words, words, commit.position)
    return Draft(commit.position, body, words)


def _insist_on_reading_back(words: Words, written: bytes, position: Position) -> None:
    """Raw values are copied as they are: one that is no JSON value would be found out when it is too late."""
    try:
        written.decode()
        same = _decode_words(written) == words
    except _UNREADABLE as exc:
        raise ValueError(f"commit {position} has words that are not JSON ({exc})") from exc
    if not same:
        raise ValueError(f"commit {position} has raw words that are not one JSON value each")


def seal(draft: Draft, previous: Sha256, batch: Position) -> Sealed:
    """The line, newline and all."""
    commit = b'{"previous":"%b","position":%d,"batch":%d,%b' % (previous.encode(), draft.position, batch, draft.body)
    proof = Sha256(hashlib.sha256(commit).hexdigest())
    tail = b" " + draft.words if draft.words else b""
    return Sealed(b"%b %b%b\n" % (proof.encode(), commit, tail), proof)


def read(line: bytes) -> Line:
    """A line without its newline.

    Raises:
        Unsound: torn or damaged.
        LogTooNew: whole and sound, but with facts or a format that this version does not know.
    """
    if line[64:65] != b" ":
        raise Unsound("no hash at the start")
    space = line.find(b" ", 65)
    body = line[65:] if space < 0 else line[65:space]
    proof = Sha256(hashlib.sha256(body).hexdigest())
    if not line.startswith(proof.encode()):
        raise Unsound("the hash does not fit")
    try:
        parsed = _decode_body(body)
    except _UNREADABLE as exc:
        raise _too_new(body, str(exc)) from exc
    for event in parsed.events:
        if isinstance(event, LogCreated) and event.format > FORMAT:
            raise LogTooNew(f"The log has format {event.format}, written by {event.software}; upgrade imaged.")
    try:
        words, forgotten = _words(parsed.words, b"" if space < 0 else line[space:])
    except _UNREADABLE as exc:
        raise _too_new(body, str(exc)) from exc
    commit = Commit(position=parsed.position, at=parsed.at, events=parsed.events, words=words)
    return Line(proof, parsed.previous, parsed.batch, commit, forgotten)


def without_words(line: bytes) -> bytes:
    """The same line, of the same length, with spaces in place of its words: every byte behind it stays where it is.

    What stays of them is their digest, which cannot be guessed against without the salt, and how long they were.

    Raises:
        Unsound, LogTooNew: see `read`.
    """
    read(line)
    body_end = line.find(b" ", 65)
    return line if body_end < 0 else line[:body_end].ljust(len(line), b" ")


def hidden_lines(run: bytes) -> Iterator[bytes]:
    """What may be lines inside `run`, beyond its start: damage to a newline hides the line behind it."""
    for found in _LINE_START.finditer(run, 1):
        yield run[found.start() :]


def _too_new(body: bytes, complaint: str) -> LogTooNew:
    try:
        position = _decode_any(body).position
    except _UNREADABLE:
        return LogTooNew(f"A sound line of the log has a shape that this version does not know ({complaint}); upgrade.")
    return LogTooNew(f"Commit {position} was written by a newer imaged ({complaint}); upgrade, do not repair.")


def _words(expected: str | None, tail: bytes) -> tuple[Words | None, bool]:
    """`tail` is all that follows the commit, from the space on."""
    if expected is None:
        if tail:
            raise Unsound("bytes behind the commit")
        return None, False
    words = tail[1:]
    if words and not words.strip(b" "):
        return None, True
    if hashlib.sha256(words).hexdigest() != expected:
        raise Unsound("the words do not fit their digest")
    return _decode_words(words), False
