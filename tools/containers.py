"""Where labels stand in a PNG, JPEG or WebP, put there as bytes: no pixel is decoded, nothing of others is moved.

            text           EXIF            XMP
    PNG     tEXt, iTXt                     iTXt "XML:com.adobe.xmp"
    JPEG                   APP1 "Exif"     APP1 ".../xap/1.0/", and what is too long for it in ".../xmp/extension/"
    WebP                   chunk "EXIF"    chunk "XMP "

Rule: a label takes the place of the first one of its kind; a new one goes before the pixels of a PNG, behind the
JFIF header of a JPEG (XMP behind EXIF), and behind the pixels of a WebP, whose header says what it holds. Everything
else is the same, byte for byte. Source: PNG 3rd edition §11.3.3, Adobe XMP part 3 §1.1.3, WebP container specification.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping

from tools.pictures import PIECES_MAX, jpeg_segments, measure, png_chunks, sniff, webp_chunks

LABEL_BYTES_MAX = 1 << 20  # read from one file; three times what 32,000 characters take in their most wordy form
JPEG_PACKET_BYTES_MAX = 65_502
_JPEG_EXTENSION_BYTES_MAX = 65_400
_JPEG_SEGMENT_BYTES_MAX = 0xFFFF  # its length field counts itself, too
_EXIF_MARK, _XMP_MARK, _EXTENSION_MARK = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
_GUID_BYTES = 32
_PNG_XMP = "XML:com.adobe.xmp"
_PNG_KEYWORD_BYTES_MAX = 79
_WEBP_HAS = {b"EXIF": 0x08, b"XMP ": 0x04}
_WEBP_HAS_ALPHA = 0x10
_WEBP_PICTURE = {b"VP8X", b"ICCP", b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L"}
_VP8L_ALPHA = 1 << 28


class Strange(Exception):
    """Not laid out as it should be: left alone by who writes, not there for who reads."""


class TooLong(Exception):
    """A JPEG holds no more than 64 KiB of it."""


def texts(data: bytes) -> Iterator[tuple[str, str]]:
    """Keyword and text of a PNG's chunks in order. Compressed ones are not inflated, overlong ones not read.

    Raises:
        BadPicture: cut off.
    """
    for chunk in png_chunks(data):
        if chunk.kind not in (b"tEXt", b"iTXt") or len(chunk.body) > LABEL_BYTES_MAX:
            continue
        keyword, separator, body = bytes(chunk.body).partition(b"\0")
        if not separator or len(keyword) > _PNG_KEYWORD_BYTES_MAX:
            continue
        if chunk.kind == b"tEXt":
            yield keyword.decode("latin-1"), body.decode("latin-1")
        elif body[:2] == b"\0\0" and body.count(b"\0", 2) >= 2:
            yield keyword.decode("latin-1"), body[2:].split(b"\0", 2)[2].decode("utf-8", "replace")


def with_texts(data: bytes, written: Mapping[str, str]) -> bytes:
    """Raises:
    BadPicture: cut off.
    """
    place = _before_pixels(data)
    return data[:place] + b"".join(_text_chunk(key, text) for key, text in written.items()) + data[place:]


def exif(data: bytes) -> bytes:
    """The block in a JPEG or WebP, empty if there is none.

    Raises:
        BadPicture: cut off.
    """
    if sniff(data) == "jpeg":
        start, end = _jpeg_place(data, _EXIF_MARK)
        return data[start + 4 + len(_EXIF_MARK) : end]
    bodies = (bytes(chunk.body) for chunk in webp_chunks(data) if chunk.kind == b"EXIF")
    return next(bodies, b"").removeprefix(_EXIF_MARK)  # some writers put JPEG's mark before it


def with_exif(data: bytes, block: bytes) -> bytes:
    """Raises:
    TooLong: the block does not fit into a JPEG.
    Strange: the WebP's header is not the first of its chunks.
    BadPicture: cut off.
    """
    if sniff(data) != "jpeg":
        return _into_webp(data, b"EXIF", block)
    start, end = _jpeg_place(data, _EXIF_MARK)
    return data[:start] + _segment(_EXIF_MARK + block) + data[end:]


def xmp(data: bytes) -> bytes | None:
    """The packet in a PNG, JPEG or WebP as it stands there, None if there is none.

    Raises:
        Strange: it is compressed.
        BadPicture: cut off.
    """
    match sniff(data):
        case "png":
            start, end = _png_place(data)
            head, body = _PNG_XMP.encode() + b"\0", data[start + 8 : end - 4]
            if start != end and body[len(head) : len(head) + 2] != b"\0\0":
                raise Strange
            return body[len(head) + 2 :].split(b"\0", 2)[-1] if start != end else None
        case "jpeg":
            start, end = _jpeg_place(data, _XMP_MARK)
            return data[start + 4 + len(_XMP_MARK) : end] if start != end else None
        case _:
            return next((bytes(chunk.body) for chunk in webp_chunks(data) if chunk.kind == b"XMP "), None)


def with_xmp(data: bytes, packet: bytes) -> bytes:
    """Raises:
    TooLong: the packet does not fit into a JPEG.
    Strange: the WebP's header is not the first of its chunks.
    BadPicture: cut off.
    """
    match sniff(data):
        case "png":
            start, end = _png_place(data)
            return data[:start] + _chunk(b"iTXt", _PNG_XMP.encode() + b"\0\0\0\0\0" + packet) + data[end:]
        case "jpeg":
            if len(packet) > JPEG_PACKET_BYTES_MAX:
                raise TooLong
            start, end = _jpeg_place(data, _XMP_MARK)
            return data[:start] + _segment(_XMP_MARK + packet) + data[end:]
        case _:
            return _into_webp(data, b"XMP ", packet)


def extension(data: bytes, guid: str) -> bytes:
    """The rest of a JPEG's XMP that goes by this name, put together; empty if it is not there whole.

    Raises:
        BadPicture: cut off.
    """
    pieces = {}
    for start, end in _extension_segments(data, guid):
        at = start + 4 + len(_EXTENSION_MARK) + _GUID_BYTES
        total, offset = struct.unpack(">II", data[at : at + 8]) if at + 8 <= end else (0, 0)
        pieces[offset] = total, data[at + 8 : end]
    reached = 0
    for offset, (_, piece) in sorted(pieces.items()):
        if offset != reached:
            return b""
        reached += len(piece)
    is_whole = reached <= LABEL_BYTES_MAX and all(total == reached for total, _ in pieces.values())
    return b"".join(piece for _, (_, piece) in sorted(pieces.items())) if is_whole else b""


def with_extension(data: bytes, guid: str, document: bytes) -> bytes:
    """Behind the packet, in as many segments as it takes.

    Raises:
        BadPicture: cut off.
    """
    _, place = _jpeg_place(data, _XMP_MARK)
    head = _EXTENSION_MARK + guid.encode("ascii")
    segments = [
        _segment(head + struct.pack(">II", len(document), at) + document[at : at + _JPEG_EXTENSION_BYTES_MAX])
        for at in range(0, len(document), _JPEG_EXTENSION_BYTES_MAX)
    ]
    return data[:place] + b"".join(segments) + data[place:]


def without_extension(data: bytes, guid: str) -> bytes:
    """Raises:
    BadPicture: cut off.
    """
    pieces, at = [], 0
    for start, end in _extension_segments(data, guid):
        pieces.append(data[at:start])
        at = end
    return b"".join(pieces) + data[at:]


def gif_applications(data: bytes) -> Iterator[bytes]:
    """The 11 bytes by which each application extension of a GIF is known. Stops where the GIF is cut off or damaged."""
    at = 13 + _gif_colours(data[10:11])
    for _ in range(PIECES_MAX):
        if data[at : at + 1] not in (b"!", b","):
            return
        if data[at] == ord("!"):
            if data[at + 1 : at + 3] == b"\xff\x0b":
                yield data[at + 3 : at + 14]
            at += 2
        else:
            at += 11 + _gif_colours(data[at + 9 : at + 10])
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1


def _gif_colours(flags: bytes) -> int:
    """Bytes of the colour table that these flags announce."""
    return 3 * 2 ** ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


def _before_pixels(data: bytes) -> int:
    return next(chunk.start for chunk in png_chunks(data) if chunk.kind in (b"IDAT", b"IEND"))


def _png_place(data: bytes) -> tuple[int, int]:
    """The bounds of the chunk that holds XMP; empty ones where there is none."""
    head = _PNG_XMP.encode() + b"\0"
    found = (chunk for chunk in png_chunks(data) if chunk.kind == b"iTXt" and chunk.body[: len(head)] == head)
    chunk = next(found, None)
    place = chunk.start if chunk else _before_pixels(data)
    return place, chunk.end if chunk else place


def _jpeg_place(data: bytes, mark: bytes) -> tuple[int, int]:
    """The bounds of the APP1 segment with this mark; where there is none, empty ones at the place for it."""
    place = 2
    for marker, start, end in jpeg_segments(data):
        if marker == 0xE1 and data.startswith(mark, start + 4):
            return start, end
        behind_exif = mark == _XMP_MARK and marker == 0xE1 and data.startswith(_EXIF_MARK, start + 4)
        if (marker == 0xE0 and start == place) or behind_exif:
            place = end
    return place, place


def _extension_segments(data: bytes, guid: str) -> Iterator[tuple[int, int]]:
    name = guid.encode("ascii", "replace")
    if len(name) != _GUID_BYTES:
        return
    for marker, start, end in jpeg_segments(data):
        if marker == 0xE1 and data.startswith(_EXTENSION_MARK + name, start + 4):
            yield start, end


def _segment(body: bytes) -> bytes:
    if len(body) + 2 > _JPEG_SEGMENT_BYTES_MAX:
        raise TooLong
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def _into_webp(data: bytes, kind: bytes, body: bytes) -> bytes:
    chunks = list(webp_chunks(data))
    if not chunks or any(chunk.kind == b"VP8X" and (n or len(chunk.body) != 10) for n, chunk in enumerate(chunks)):
        raise Strange
    first, whole = chunks[0], chunks[-1].end
    if first.kind == b"VP8X":
        behind_header, header = first.end, bytes(first.body)
    else:
        behind_header, header = first.start, _extended_header(data, first.kind, bytes(first.body[1:5]))
    header = bytes((header[0] | _WEBP_HAS[kind],)) + header[1:]
    before = _WEBP_PICTURE | ({b"EXIF"} if kind == b"XMP " else set())
    place = max((chunk.end for chunk in chunks if chunk.kind in before), default=whole)
    start, end = next(((chunk.start, chunk.end) for chunk in chunks if chunk.kind == kind), (place, place))
    label = _riff_chunk(kind, body)
    inner = b"WEBP" + _riff_chunk(b"VP8X", header) + data[behind_header:start] + label + data[end:whole]
    return b"RIFF" + struct.pack("<I", len(inner)) + inner + data[whole:]


def _extended_header(data: bytes, kind: bytes, bits: bytes) -> bytes:
    """VP8X for a simple file: its size, and whether the lossless bit stream says that it is transparent."""
    found = measure(data)
    transparent = kind == b"VP8L" and int.from_bytes(bits, "little") & _VP8L_ALPHA
    sizes = (found.width - 1).to_bytes(3, "little") + (found.height - 1).to_bytes(3, "little")
    return bytes((_WEBP_HAS_ALPHA if transparent else 0, 0, 0, 0)) + sizes


def _riff_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def _text_chunk(key: str, text: str) -> bytes:
    keyword = key.encode("ascii")
    if _is_plain_latin(text):
        return _chunk(b"tEXt", keyword + b"\0" + text.encode("latin-1"))
    # No compression, no language, no translated keyword; and a text may hold anything but a zero.
    return _chunk(b"iTXt", keyword + b"\0\0\0\0\0" + text.replace("\0", "\ufffd").encode())


def _is_plain_latin(text: str) -> bool:
    """PNG's tEXt holds Latin-1 with no control character but the newline."""
    return all(c == "\n" or " " <= c <= "~" or "\xa0" <= c <= "\xff" for c in text)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(body, zlib.crc32(kind)).to_bytes(4, "big")
