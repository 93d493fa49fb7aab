"""The user comment in the EXIF of a JPEG or WebP, written as bytes: no pixel is decoded, nothing of others is moved.

Rule: the EXIF block is a TIFF file, and everything in it is found by its distance from the block's start. So what
is there stays where it is; the comment and new copies of the two directories are appended, and the header points
to them.

    TIFF       := ("II" | "MM") 42 offset-of-directory …
    directory  := count entry* offset-of-next
    entry      := tag type count value-or-offset            (12 bytes)

A block that does not hold to this is left alone, and the file with it. Source: TIFF 6.0 §2, EXIF 2.32 §4.6.5,
WebP container specification.
"""

import struct
from typing import Literal, NamedTuple

from tools.pictures import jpeg_segments, measure, sniff, webp_chunks

JPEG_SEGMENT_BYTES_MAX = 0xFFFF  # its length field counts itself, too
_MARK = b"Exif\0\0"
_EXIF_DIRECTORY, _USER_COMMENT = 0x8769, 0x9286
_LONG, _UNDEFINED = 4, 7
_ENTRY_BYTES = 12
_WEBP_HAS_EXIF, _WEBP_HAS_ALPHA = 0x08, 0x10
_VP8L_ALPHA = 1 << 28


class TooLong(Exception):
    """A JPEG holds no more than 64 KiB of EXIF."""


class _Strange(Exception):
    """Not laid out as it should be."""


class _Directory(NamedTuple):
    """`entries` by tag, each as its 12 bytes."""

    entries: dict[int, bytes]
    next: bytes


class _Tiff:
    """A block to read from and append to."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data or b"MM\0*\0\0\0\x08\0\0\0\0\0\0")
        if bytes(self.data[:4]) not in (b"II*\0", b"MM\0*"):
            raise _Strange
        self.order: Literal["little", "big"] = "little" if self.data[:2] == b"II" else "big"

    def number(self, at: int, size: int) -> int:
        if at < 0 or at + size > len(self.data):
            raise _Strange
        return int.from_bytes(self.data[at : at + size], self.order)

    def bytes_of(self, number: int, size: int) -> bytes:
        return number.to_bytes(size, self.order)

    def directory(self, at: int) -> _Directory:
        count = self.number(at, 2)
        end = at + 2 + count * _ENTRY_BYTES
        self.number(end, 4)
        starts = range(at + 2, end, _ENTRY_BYTES)
        entries = {self.number(start, 2): bytes(self.data[start : start + _ENTRY_BYTES]) for start in starts}
        return _Directory(entries, bytes(self.data[end : end + 4]))

    def inner(self, root: _Directory) -> _Directory:
        """The directory that holds the comment; empty if there is none yet."""
        entry = root.entries.get(_EXIF_DIRECTORY)
        return self.directory(int.from_bytes(entry[8:12], self.order)) if entry else _Directory({}, bytes(4))

    def append(self, data: bytes) -> int:
        """Where it begins: at an even byte, as the format wants."""
        self.data += bytes(len(self.data) % 2)
        at = len(self.data)
        self.data += data
        return at

    def append_directory(self, directory: _Directory) -> int:
        entries = b"".join(entry for _, entry in sorted(directory.entries.items()))
        return self.append(self.bytes_of(len(directory.entries), 2) + entries + directory.next)

    def entry(self, tag: int, kind: int, count: int, value: int) -> bytes:
        return self.bytes_of(tag, 2) + self.bytes_of(kind, 2) + self.bytes_of(count, 4) + self.bytes_of(value, 4)


def write(data: bytes, comment: str) -> bytes:
    """The same JPEG or WebP with this user comment; as it was if its EXIF is not laid out as it should be.

    Raises:
        TooLong: the comment does not fit.
        BadPicture: cut off.
    """
    try:
        return _into_jpeg(data, comment) if sniff(data) == "jpeg" else _into_webp(data, comment)
    except _Strange:
        return data


def read(data: bytes) -> str | None:
    """The user comment of a JPEG or WebP, None if there is none that can be read. Text from outside.

    Raises:
        BadPicture: cut off.
    """
    block = _block_of_jpeg(data)[0] if sniff(data) == "jpeg" else _block_of_webp(data)
    if not block:
        return None
    try:
        tiff = _Tiff(block)
        entry = tiff.inner(tiff.directory(tiff.number(4, 4))).entries.get(_USER_COMMENT)
    except _Strange:
        return None
    if entry is None:
        return None
    length, at = (int.from_bytes(entry[place : place + 4], tiff.order) for place in (4, 8))
    body = bytes(tiff.data[at : at + length])
    if body.startswith(b"UNICODE\0"):
        return body[8:].decode("utf-16-le" if tiff.order == "little" else "utf-16-be", "replace")
    return body[8:].decode("ascii", "replace") if body.startswith(b"ASCII\0\0\0") else None


def _with_comment(block: bytes, comment: str) -> bytes:
    tiff = _Tiff(block)
    root = tiff.directory(tiff.number(4, 4))
    inner = tiff.inner(root)
    if comment.isascii():
        body = b"ASCII\0\0\0" + comment.encode()
    else:
        body = b"UNICODE\0" + comment.encode("utf-16-le" if tiff.order == "little" else "utf-16-be", "replace")
    at = tiff.append(body)
    inner.entries[_USER_COMMENT] = tiff.entry(_USER_COMMENT, _UNDEFINED, len(body), at)
    at = tiff.append_directory(inner)
    root.entries[_EXIF_DIRECTORY] = tiff.entry(_EXIF_DIRECTORY, _LONG, 1, at)
    at = tiff.append_directory(root)
    tiff.data[4:8] = tiff.bytes_of(at, 4)
    return bytes(tiff.data)


def _block_of_jpeg(data: bytes) -> tuple[bytes, int, int]:
    """The block and the bounds of its segment; where there is none, an empty one behind the JFIF header."""
    place = 2
    for marker, start, end in jpeg_segments(data):
        if marker == 0xE1 and data[start + 4 : start + 10] == _MARK:
            return data[start + 10 : end], start, end
        if marker == 0xE0 and start == 2:
            place = end
    return b"", place, place


def _into_jpeg(data: bytes, comment: str) -> bytes:
    block, start, end = _block_of_jpeg(data)
    body = _MARK + _with_comment(block, comment)
    if len(body) + 2 > JPEG_SEGMENT_BYTES_MAX:
        raise TooLong(f"{len(body):,} bytes of EXIF do not fit into a JPEG")
    return data[:start] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[end:]


def _block_of_webp(data: bytes) -> bytes:
    bodies = (bytes(chunk.body) for chunk in webp_chunks(data) if chunk.kind == b"EXIF")
    return next(bodies, b"").removeprefix(_MARK)  # some writers put JPEG's mark before it


def _into_webp(data: bytes, comment: str) -> bytes:
    block = _chunk(b"EXIF", _with_comment(_block_of_webp(data), comment))
    pieces: list[bytes] = []
    last = 12
    for chunk in webp_chunks(data):
        last = chunk.end
        if chunk.kind == b"VP8X":
            if pieces or len(chunk.body) != 10:
                raise _Strange
            flags = chunk.body[0] | _WEBP_HAS_EXIF
            pieces.append(_chunk(b"VP8X", bytes((flags,)) + bytes(chunk.body[1:])))
            continue
        if not pieces:
            pieces.append(_extended_header(data, chunk.kind, bytes(chunk.body[1:5])))
        if block and chunk.kind in (b"EXIF", b"XMP "):
            pieces.append(block)
            block = b""
        if chunk.kind != b"EXIF":
            pieces.append(data[chunk.start : chunk.end])
    body = b"WEBP" + b"".join(pieces) + block
    return b"RIFF" + struct.pack("<I", len(body)) + body + data[last:]


def _extended_header(data: bytes, kind: bytes, bits: bytes) -> bytes:
    """VP8X for a simple file: its size, and whether the lossless bit stream says that it is transparent."""
    found = measure(data)
    transparent = kind == b"VP8L" and int.from_bytes(bits, "little") & _VP8L_ALPHA
    flags = _WEBP_HAS_EXIF | (_WEBP_HAS_ALPHA if transparent else 0)
    sizes = (found.width - 1).to_bytes(3, "little") + (found.height - 1).to_bytes(3, "little")
    return _chunk(b"VP8X", bytes((flags, 0, 0, 0)) + sizes)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
