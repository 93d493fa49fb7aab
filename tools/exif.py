"""The user comment in EXIF, written as bytes: nothing of others is moved.

Rule: the EXIF block is a TIFF file, and everything in it is found by its distance from the block's start. So what
is there stays where it is; the comment and new copies of the two directories are appended, and the header points
to them.

    TIFF       := ("II" | "MM") 42 offset-of-directory …
    directory  := count entry* offset-of-next
    entry      := tag type count value-or-offset            (12 bytes)

A block that does not hold to this is left alone. Where the block stands in a file is a matter of tools/containers.py.
Source: TIFF 6.0 §2, EXIF 2.32 §4.6.5.
"""

from typing import Literal, NamedTuple

from tools.containers import LABEL_BYTES_MAX, Strange

_EXIF_DIRECTORY, _USER_COMMENT, _IMAGE_DESCRIPTION = 0x8769, 0x9286, 0x010E
_LONG, _UNDEFINED = 4, 7
_ENTRY_BYTES = 12


class Texts(NamedTuple):
    """What stands in a block; empty where there is none or none that can be read. Text from outside."""

    comment: str = ""
    description: str = ""


class _Directory(NamedTuple):
    """`entries` by tag, each as its 12 bytes."""

    entries: dict[int, bytes]
    next: bytes


class _Tiff:
    """A block to read from and append to."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data or b"MM\0*\0\0\0\x08\0\0\0\0\0\0")
        if bytes(self.data[:4]) not in (b"II*\0", b"MM\0*"):
            raise Strange
        self.order: Literal["little", "big"] = "little" if self.data[:2] == b"II" else "big"

    def number(self, at: int, size: int) -> int:
        if at < 0 or at + size > len(self.data):
            raise Strange
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

    def text(self, entry: bytes | None) -> bytes:
        """The bytes that an entry points to; empty without an entry, or where they are too many."""
        length, at = (int.from_bytes(entry[place : place + 4], self.order) for place in (4, 8)) if entry else (0, 0)
        return bytes(self.data[at : at + length]) if length <= LABEL_BYTES_MAX else b""

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


def write(block: bytes, comment: str) -> bytes:
    """The same block, or a new one for an empty one, with this comment.

    Raises:
        Strange: the block is not laid out as it should be.
    """
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


def read(block: bytes) -> Texts:
    """The user comment and the image description."""
    if not block:
        return Texts()
    try:
        tiff = _Tiff(block)
        root = tiff.directory(tiff.number(4, 4))
        comment = tiff.text(tiff.inner(root).entries.get(_USER_COMMENT))
    except Strange:
        return Texts()
    description = tiff.text(root.entries.get(_IMAGE_DESCRIPTION)).rstrip(b"\0").decode("utf-8", "replace")
    if comment.startswith(b"UNICODE\0"):
        return Texts(comment[8:].decode("utf-16-le" if tiff.order == "little" else "utf-16-be", "replace"), description)
    return Texts(comment[8:].decode("ascii", "replace") if comment.startswith(b"ASCII\0\0\0") else "", description)
