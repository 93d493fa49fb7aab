"""What kind of image some bytes are, how large, and whether they are whole - by walking the container, not by decoding.

Rule: nothing is believed because of a name or a header. The walk is bounded by the bytes. Pixels are decoded elsewhere, in
`tools.decoder`, and only after the walk has said how many there are.
"""

import re
import zlib
from collections.abc import Iterator
from typing import NamedTuple

PNG = b"\x89PNG\r\n\x1a\n"
SVG_LOOK_BYTES = 4096
_SVG = re.compile(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!DOCTYPE[^>]*>\s*)?(<!--.*?-->\s*)?<svg[\s>]", re.DOTALL)
JPEG_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
JPEG_ALONE = {0x01, *range(0xD0, 0xD8)}
JPEG_SCAN, JPEG_END = 0xDA, 0xD9
PIECES_MAX = 100_000  # of a container; the most finely cut of 50 MB have some 12,000, and a walk must not take seconds
_JPEG_MARKER = re.compile(rb"\xff+[\x00-\xfe]")
_JPEG_AFTER_SCAN = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")  # not FF 00, fill bytes and restarts, which belong to it


class BadPicture(Exception):
    """The bytes are not a whole image of a kind we know; the sentence says what is wrong with them."""


class Measured(NamedTuple):
    """Pixels; 0 x 0 for svg, which has no size of its own."""

    format: str
    width: int
    height: int


class Chunk(NamedTuple):
    """A piece of a PNG or WebP container: `start` and `end` are its outer bounds in the data."""

    kind: bytes
    start: int
    end: int
    body: memoryview


def sniff(data: bytes) -> str | None:
    """png, jpeg, webp, gif, svg, or None. Looks at the beginning only."""
    if data.startswith(PNG):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if _SVG.match(data[:SVG_LOOK_BYTES]):
        return "svg"
    return None


def measure(data: bytes) -> Measured:
    """Walks the container to its end.

    Raises:
        BadPicture: of no kind we know, cut off, or without a picture.
    """
    match sniff(data):
        case "png":
            return _measure_png(data)
        case "jpeg":
            return _measure_jpeg(data)
        case "webp":
            return _measure_webp(data)
        case "gif":
            return _measure_gif(data)
        case "svg":
            if b"</svg>" not in data[-SVG_LOOK_BYTES:]:
                raise BadPicture("the svg is cut off: it does not end with </svg>")
            return Measured("svg", 0, 0)
        case _:
            raise BadPicture(f"{len(data):,} bytes that begin with {data[:8].hex()} are not png, jpeg, webp, gif or svg")


def png_chunks(data: bytes) -> Iterator[Chunk]:
    """Every chunk in order, up to and with IEND.

    Raises:
        BadPicture: cut off.
    """
    view = memoryview(data)
    at = len(PNG)
    for _ in range(PIECES_MAX):
        if at + 12 > len(data):
            raise BadPicture(f"the png is cut off after {len(data):,} bytes")
        length = int.from_bytes(view[at : at + 4], "big")
        end = at + 12 + length
        if end > len(data):
            raise BadPicture(f"the png is cut off after {len(data):,} bytes")
        kind = bytes(view[at + 4 : at + 8])
        yield Chunk(kind, at, end, view[at + 8 : end - 4])
        if kind == b"IEND":
            return
        at = end
    raise BadPicture(f"the png has more than {PIECES_MAX:,} chunks")


def webp_chunks(data: bytes) -> Iterator[Chunk]:
    """Every chunk of the RIFF container in order.

    Raises:
        BadPicture: cut off.
    """
    view = memoryview(data)
    whole = int.from_bytes(view[4:8], "little") + 8
    if whole > len(data):
        raise BadPicture(f"the webp is cut off: it says it has {whole:,} bytes, but there are {len(data):,}")
    at = 12
    for _ in range(PIECES_MAX):
        if at >= whole:
            return
        length = int.from_bytes(view[at + 4 : at + 8], "little")
        end = at + 8 + length + length % 2
        if at + 8 > whole or end > whole:
            raise BadPicture("the webp is cut off inside a chunk")
        yield Chunk(bytes(view[at : at + 4]), at, end, view[at + 8 : at + 8 + length])
        at = end
    raise BadPicture(f"the webp has more than {PIECES_MAX:,} chunks")


def _measure_png(data: bytes) -> Measured:
    width = height = 0
    has_pixels = False
    for number, chunk in enumerate(png_chunks(data)):
        if number == 0:
            if chunk.kind != b"IHDR" or len(chunk.body) != 13:
                raise BadPicture("the png does not begin with its header")
            crc = zlib.crc32(chunk.body, zlib.crc32(b"IHDR"))
            if crc != int.from_bytes(data[chunk.end - 4 : chunk.end], "big"):
                raise BadPicture("the png's header is damaged")
            width, height = int.from_bytes(chunk.body[:4], "big"), int.from_bytes(chunk.body[4:8], "big")
        has_pixels = has_pixels or chunk.kind == b"IDAT"
        if chunk.kind == b"IEND" and chunk.end != len(data):
            raise BadPicture(f"{len(data) - chunk.end:,} bytes follow the end of the png")
    return _insist(Measured("png", width, height), has_pixels)


def _measure_jpeg(data: bytes) -> Measured:
    width = height = 0
    for marker, start, end in jpeg_segments(data):
        if marker in JPEG_FRAMES and end - start >= 9:
            height, width = (
                int.from_bytes(data[start + 5 : start + 7], "big"),
                int.from_bytes(data[start + 7 : start + 9], "big"),
            )
    if not data.endswith(b"\xff\xd9"):
        raise BadPicture(f"the jpeg is cut off after {len(data):,} bytes")
    return _insist(Measured("jpeg", width, height), True)


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start of its FF, end) of every segment up to and with the start of the first scan.

    Raises:
        BadPicture: cut off, or not made of segments.
    """
    at = 2
    for _ in range(PIECES_MAX):
        marker, start, at = _jpeg_segment(data, at)
        if marker == JPEG_END:
            raise BadPicture("the jpeg is cut off in its header")
        yield marker, start, at
        if marker == JPEG_SCAN:
            return
    raise BadPicture(f"the jpeg has more than {PIECES_MAX:,} segments")


def jpeg_pieces(data: bytes) -> Iterator[tuple[int, int, int]]:
    """The segments on through every scan, whose pixels count as theirs, up to and with the end of the image.

    Raises:
        BadPicture: cut off, or not made of segments.
    """
    at = 2
    for _ in range(PIECES_MAX):
        marker, start, at = _jpeg_segment(data, at)
        if marker == JPEG_SCAN:
            after = _JPEG_AFTER_SCAN.search(data, at)
            if after is None:
                raise BadPicture(f"the jpeg is cut off after {len(data):,} bytes")
            at = after.start()
        yield marker, start, at
        if marker == JPEG_END:
            return
    raise BadPicture(f"the jpeg has more than {PIECES_MAX:,} segments")


def _jpeg_segment(data: bytes, at: int) -> tuple[int, int, int]:
    """The next one at or after `at`, behind fill bytes and markers that stand alone."""
    for _ in range(PIECES_MAX):
        found = _JPEG_MARKER.match(data, at)
        if found is None:
            break
        at = found.end()
        marker, start = data[at - 1], at - 2
        if marker in JPEG_ALONE:
            continue
        length = 0 if marker == JPEG_END else int.from_bytes(data[at : at + 2], "big")
        if at + length > len(data) or (length < 2 and marker != JPEG_END):
            break
        return marker, start, at + length
    raise BadPicture("the jpeg is cut off or damaged between its segments")


def _measure_webp(data: bytes) -> Measured:
    size: tuple[int, int] | None = None
    has_pixels = False
    for chunk in webp_chunks(data):
        body = bytes(chunk.body[:10])
        match chunk.kind:
            case b"VP8X" if len(body) == 10:
                size = int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
            case b"VP8L" if len(body) >= 5 and body[0] == 0x2F:
                bits = int.from_bytes(body[1:5], "little")
                size = size or ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
                has_pixels = True
            case b"VP8 " if body[3:6] == b"\x9d\x01\x2a":
                edges = int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
                size = size or edges
                has_pixels = True
            case b"ANMF":
                has_pixels = True
    width, height = size or (0, 0)
    return _insist(Measured("webp", width, height), has_pixels)


def _measure_gif(data: bytes) -> Measured:
    """Blocks up to the trailer: an extension is 21 and a label, a picture 2C, a descriptor and a code size."""
    try:
        width, height = int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
        at = 13 + _gif_colours(data[10])
        frames = 0
        while data[at] != 0x3B:
            if data[at] == 0x21:
                at = _gif_data_end(data, at + 2)
            elif data[at] == 0x2C:
                at = _gif_data_end(data, at + 11 + _gif_colours(data[at + 9]))
                frames += 1
            else:
                raise BadPicture(f"the gif is damaged at byte {at:,}")
    except IndexError:
        raise BadPicture(f"the gif is cut off after {len(data):,} bytes") from None
    return _insist(Measured("gif", width, height), frames > 0)


def _gif_colours(flags: int) -> int:
    """Bytes of the colour table that these flags announce."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _gif_data_end(data: bytes, at: int) -> int:
    """The first byte behind a run of sub-blocks; raises IndexError where it is cut."""
    while length := data[at]:
        at += 1 + length
    return at + 1


def _insist(found: Measured, has_pixels: bool) -> Measured:
    if not (found.width and found.height and has_pixels):
        raise BadPicture(f"the {found.format} holds no picture")
    return found
