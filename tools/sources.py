"""Pictures on their way out: vetted, cleaned of what they tell about their owner, and turned upright.

Rule: nothing leaves that is not a whole PNG, JPEG or WebP by its bytes, and with it leaves only what a viewer needs to
show it: pixels, colour profile, transparency. Places, dates, devices, texts, previews and whatever hangs behind the end
are cut out of the container; the pixels stay bit for bit. Only a picture that its EXIF wants turned is encoded anew.

A container is walked before anything is decoded, and nothing with too many pixels is decoded at all. Decoding happens in a
throw-away process.
"""

import binascii
import codecs
import re
import string
import struct
import zlib
from typing import Literal, NamedTuple

from tools import decoder
from tools.errors import Refused
from tools.models import catalogue
from tools.pictures import (
    JPEG_END,
    JPEG_FRAMES,
    JPEG_SCAN,
    PNG,
    BadPicture,
    Measured,
    jpeg_pieces,
    measure,
    png_chunks,
    sniff,
    webp_chunks,
)

JPEG_SCANS_MAX = 100  # encoders write about ten; each costs a decoder a pass over the whole picture
_BASE64 = (string.ascii_letters + string.digits + "+/").encode()
_WHITESPACE = string.whitespace.encode()
_EXIF_MARK = b"Exif\0\0"
_ORIENTATION = 0x0112
TURNED_FACTOR_MAX = 8  # times the largest source: what a turned picture may have before it is refused for its size
_TURNED = range(2, 9)  # orientations other than upright
_JPEG_KEPT = JPEG_FRAMES | {0xC4, 0xCC, JPEG_SCAN, JPEG_END, 0xDB, 0xDC, 0xDD}  # tables, line count, restart interval
_PNG_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_PNG_COLOURS = {b"cHRM": 32, b"gAMA": 4, b"sRGB": 1, b"cICP": 4, b"mDCV": 24, b"cLLI": 8}
# The bytes that each may have: a longer one holds something else.
_PNG_KEPT = {b"IHDR": 13, b"PLTE": 768, b"tRNS": 256, b"sBIT": 4, b"pHYs": 9, b"IEND": 0, **_PNG_COLOURS}
_PNG_KEPT_WHOLE = {b"IDAT", b"iCCP"}
_WEBP_BITSTREAMS = {b"VP8 ", b"VP8L"}
_WEBP_KEPT = {b"ICCP", b"ALPH", *_WEBP_BITSTREAMS}
_WEBP_FLAGS = 0x30  # colour profile and transparency; no EXIF, no XMP, no animation
_KINDS = (  # what people give instead, by how it begins
    (rb"GIF8[79]a", "a GIF"),
    (rb"(?s)....ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)", "a HEIC picture"),
    (rb"(?s)....ftypavi[fs]", "an AVIF picture"),
    (rb"(?s)....ftyp", "a video"),
    (rb"\s*%PDF-", "a PDF"),
    (rb"II\*\0|MM\0\*", "a TIFF or raw picture"),
    (rb"(?s)BM....\0\0", "a BMP"),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "a JPEG XL picture"),
    (rb"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (rb"8BPS", "a Photoshop file"),
    (rb"\0\0\x01\0", "an icon"),
    (rb"PK\x03\x04", "a ZIP archive or office document"),
)


class Source(NamedTuple):
    """Fit to leave. `format` is png, jpeg or webp; the size is in pixels, as seen."""

    data: bytes
    format: str
    width: int
    height: int


class _Cleaned(NamedTuple):
    """`exif` is the block that was cut out, without its mark; empty if there was none."""

    data: bytes
    exif: bytes


class _Animated(Exception):
    pass


def decode(text: str, *, name: str, bytes_max: int) -> bytes:
    """Base64, of either alphabet, or a data: URL of it. White space and missing padding are forgiven, nothing else.

    `name` is what the argument is called.

    Raises:
        Refused: `bad_base64`, or `too_large`, which is known before anything is decoded.
    """
    body = text.strip()
    if body[:5].lower() == "data:":
        head, comma, body = body.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise _no(f"{name} is a data: URL without base64; write it as data:image/png;base64,…", "bad_base64", name)
    try:
        whole = body.encode("ascii").translate(None, _WHITESPACE)
    except UnicodeEncodeError as exc:
        raise _not_base64(ord(body[exc.start]), name) from exc
    digits = whole.rstrip(b"=")
    size = len(digits) * 3 // 4
    if not digits:
        raise _no(f"{name} is empty; give a picture as base64, or leave {name} out.", "bad_base64", name)
    if size > bytes_max:
        raise _no(f"{name} holds {size:,} bytes; at most {bytes_max:,} are allowed. Make it smaller.", "too_large", name)
    if not set(b"+/").intersection(digits):
        digits = digits.translate(bytes.maketrans(b"-_", b"+/"))
    if strange := digits.translate(None, _BASE64):
        raise _not_base64(strange[0], name)
    missing = -len(digits) % 4
    if missing == 3 or len(whole) - len(digits) not in (0, missing):
        raise _no(f"{name} is base64 that is cut off or wrongly padded; send it again, whole.", "bad_base64", name)
    return binascii.a2b_base64(digits + b"=" * missing, strict_mode=True)


def vet(data: bytes, *, name: str) -> Source:
    """The picture as it may leave: whole, upright, without metadata. Blocking: it is decoded once.

    A PNG of 16 bits a channel that its EXIF wants turned keeps the upper eight of a colour.

    Raises:
        Refused: `unsupported_source` (something else, or animated), `bad_picture` (damaged), `too_large` (bytes, pixels).
    """
    limits = catalogue().limits
    _insist_on_bytes(data, limits.edit_input_bytes_max, name)
    try:
        cleaned = _clean(data, name)
        found = measure(cleaned.data)
        pixels = found.width * found.height
        if pixels > limits.edit_input_pixels_max:
            raise _no(
                f"{name} has {found.width}x{found.height} = {pixels:,} pixels; at most {limits.edit_input_pixels_max:,} are "
                "allowed. Make it smaller.",
                "too_large",
                name,
            )
        source = _upright(cleaned, found, limits.edit_input_bytes_max * TURNED_FACTOR_MAX)
    except _Animated as exc:
        raise _no(
            f"{name} is an animation; OpenAI takes still pictures. Save one of its frames as a PNG and give that.",
            "unsupported_source",
            name,
        ) from exc
    except BadPicture as exc:
        raise _no(
            f"{name} cannot be used: {exc}. Open it in an image program, save it anew and give that file.", "bad_picture", name
        ) from exc
    _insist_on_bytes(source.data, limits.edit_input_bytes_max, name)
    return source


def check_mask(mask: bytes, first: Source, *, name: str = "mask_image") -> Source:
    """A mask that fits the first picture, cleaned like any source. Blocking: it is decoded.

    Raises:
        Refused: `bad_mask`.
    """
    checked = _overlay(mask, first, name, "bad_mask")
    bytes_max = catalogue().limits.mask_bytes_max
    if len(checked.data) >= bytes_max:
        raise _no(
            f"{name} has {len(checked.data):,} bytes; a mask must have fewer than {bytes_max:,}. Save it with one colour and "
            "transparency only.",
            "bad_mask",
            name,
        )
    return checked


def check_markup(markup: bytes, first: Source, *, name: str = "markup_image") -> Source:
    """Drawn hints that fit over the first picture, cleaned like any source. Blocking: it is decoded.

    Raises:
        Refused: `bad_markup`.
    """
    return _overlay(markup, first, name, "bad_markup")


def _overlay(data: bytes, first: Source, name: str, code: str) -> Source:
    what = "where the picture may change" if code == "bad_mask" else "where nothing is marked"
    try:
        checked = vet(data, name=name)
    except Refused as exc:
        raise _no(str(exc), code, name) from exc
    if checked.format != "png":
        raise _no(f"{name} is a {checked.format}; it must be a PNG that is transparent {what}.", code, name)
    if (checked.width, checked.height) != (first.width, first.height):
        raise _no(
            f"{name} has {checked.width}x{checked.height} pixels, the first picture, upright, {first.width}x{first.height}; "
            "make it the same size.",
            code,
            name,
        )
    kinds = {chunk.kind: chunk.body for chunk in png_chunks(checked.data)}
    if kinds[b"IHDR"][9] not in (4, 6) and b"tRNS" not in kinds:
        raise _no(f"{name} has no alpha channel; save it as a PNG that is transparent {what}.", code, name)
    if _is_opaque(checked, name, code):
        raise _no(f"{name} is opaque everywhere; make it transparent {what}.", code, name)
    return checked


def _is_opaque(checked: Source, name: str, code: str) -> bool:
    try:
        return decoder.is_opaque(checked.data, Measured(checked.format, checked.width, checked.height))
    except BadPicture as exc:
        raise _no(f"{name} cannot be used: {exc}.", code, name) from exc


def _clean(data: bytes, name: str) -> _Cleaned:
    match sniff(data):
        case "png":
            return _clean_png(data)
        case "jpeg":
            return _clean_jpeg(data)
        case "webp":
            return _clean_webp(data)
        case other:
            kind = "an SVG" if other == "svg" else _kind(data)
            raise _no(
                f"{name} is {kind}, not a PNG, JPEG or WebP, the pictures that OpenAI takes; save it as one of these in an image "
                "program and give that file.",
                "unsupported_source",
                name,
            )


def _kind(data: bytes) -> str:
    if not data:
        return "empty"
    for beginning, kind in _KINDS:
        if re.match(beginning, data):
            return kind
    try:
        beginning_text = codecs.getincrementaldecoder("utf-8")().decode(data[:1000])  # a character may be cut at its end
    except UnicodeDecodeError:
        return "a file of an unknown kind"
    return "a file of an unknown kind" if "\0" in beginning_text else "text"


def _clean_png(data: bytes) -> _Cleaned:
    pieces, exif = [PNG], b""
    for chunk in png_chunks(data):
        if chunk.kind in (b"acTL", b"fdAT"):
            raise _Animated
        if chunk.kind == b"eXIf":
            exif = exif or bytes(chunk.body)
        if chunk.kind in _PNG_KEPT_WHOLE or len(chunk.body) <= _PNG_KEPT.get(chunk.kind, -1):
            if zlib.crc32(chunk.body, zlib.crc32(chunk.kind)) != int.from_bytes(data[chunk.end - 4 : chunk.end], "big"):
                raise BadPicture(f"the png is damaged in its {chunk.kind.decode()} chunk")
            pieces.append(data[chunk.start : chunk.end])
        elif not chunk.kind.isalpha() or chunk.kind[:1].isupper():  # upper case: it cannot be shown without
            raise BadPicture("the png is damaged, or holds what no viewer knows")
    return _Cleaned(b"".join(pieces), exif.removeprefix(_EXIF_MARK))


def _clean_jpeg(data: bytes) -> _Cleaned:
    pieces, exif, frames, scans = [data[:2]], b"", 0, 0
    for marker, start, end in jpeg_pieces(data):
        inside, length = start + 4, end - start - 4
        frames += marker in JPEG_FRAMES
        scans += marker == JPEG_SCAN
        if frames > 1 or scans > JPEG_SCANS_MAX:
            raise BadPicture(f"the jpeg has more than one frame or more than {JPEG_SCANS_MAX} scans")
        if marker in _JPEG_KEPT or (marker == 0xE2 and data.startswith(b"ICC_PROFILE\0", inside)):
            pieces.append(data[start:end])
        elif marker == 0xE0 and length >= 14 and data.startswith(b"JFIF\0", inside):
            pieces.append(b"\xff\xe0\0\x10" + data[inside : inside + 12] + b"\0\0")  # its density, not its preview
        elif marker == 0xEE and length >= 12 and data.startswith(b"Adobe", inside):
            pieces.append(b"\xff\xee\0\x0e" + data[inside : inside + 12])
        elif marker == 0xE1 and data.startswith(_EXIF_MARK, inside):
            exif = exif or data[inside + len(_EXIF_MARK) : end]
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE):  # what applications and people say is dropped
            raise BadPicture(f"the jpeg is damaged: a segment {marker:02X} has no place in it")
    return _Cleaned(b"".join(pieces), exif)


def _clean_webp(data: bytes) -> _Cleaned:
    kept, bitstreams, exif = [], [], b""
    for chunk in webp_chunks(data):
        body = bytes(chunk.body)
        if chunk.kind in (b"ANIM", b"ANMF"):
            raise _Animated
        if chunk.kind == b"EXIF":
            exif = exif or body
        elif chunk.kind == b"VP8X" and len(body) >= 10:
            kept.append((chunk.kind, bytes((body[0] & _WEBP_FLAGS, 0, 0, 0)) + body[4:10]))
        elif chunk.kind in _WEBP_KEPT:
            kept.append((chunk.kind, body))
            bitstreams += [(chunk.kind, body)] if chunk.kind in _WEBP_BITSTREAMS else []
    whole = _riff(kept)
    if len(bitstreams) != 1 or measure(_riff(bitstreams)) != measure(whole):
        raise BadPicture("the webp holds another picture than it says")
    return _Cleaned(whole, exif.removeprefix(_EXIF_MARK))


def _riff(chunks: list[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _upright(cleaned: _Cleaned, found: Measured, bytes_max: int) -> Source:
    """The picture proved by decoding it, and encoded anew only if it must be turned."""
    orientation = _orientation(cleaned.exif)
    pixels = _pixels(cleaned.data, found.format)
    if orientation == 1:
        decoder.prove(pixels, found)
        return Source(cleaned.data, *found)
    data = decoder.turn(pixels, found, orientation, bytes_max=bytes_max)
    if found.format == "png":
        colours = _png_parts(cleaned.data, {*_PNG_COLOURS, b"iCCP"})
        data = PNG + _png_parts(data, {b"IHDR"}) + colours + _png_parts(data, _PNG_PIXELS - {b"IHDR"})
    return Source(data, *measure(data))


def _orientation(exif: bytes) -> int:
    """1 to 8; 1, upright, also where the block does not say or is damaged. Layout: TIFF 6.0 §2."""
    order: Literal["little", "big"] | None = {b"II*\0": "little", b"MM\0*": "big"}.get(exif[:4])  # type: ignore[assignment]
    if order is None:
        return 1
    start = int.from_bytes(exif[4:8], order)
    count = int.from_bytes(exif[start : start + 2], order)
    for at in range(start + 2, start + 2 + 12 * count, 12):
        if int.from_bytes(exif[at : at + 2], order) == _ORIENTATION:
            size = 4 if exif[at + 2 : at + 4] == (4).to_bytes(2, order) else 2
            value = int.from_bytes(exif[at + 8 : at + 8 + size], order)
            return value if value in _TURNED else 1
    return 1


def _pixels(data: bytes, kind: str) -> bytes:
    """What is worth decoding: profiles in a PNG are compressed, and not decompressed for nothing."""
    return PNG + _png_parts(data, _PNG_PIXELS) if kind == "png" else data


def _png_parts(data: bytes, kinds: set[bytes]) -> bytes:
    return b"".join(data[chunk.start : chunk.end] for chunk in png_chunks(data) if chunk.kind in kinds)


def _insist_on_bytes(data: bytes, fewer_than: int, name: str) -> None:
    if len(data) >= fewer_than:
        raise _no(f"{name} has {len(data):,} bytes; it must have fewer than {fewer_than:,}. Make it smaller.", "too_large", name)


def _not_base64(character: int, name: str) -> Refused:
    return _no(
        f"{name} contains U+{character:04X}, which is no base64; give the picture's bytes as base64 or as a data: URL of it, "
        "not a path or another URL.",
        "bad_base64",
        name,
    )


def _no(sentence: str, code: str, name: str) -> Refused:
    return Refused(sentence, code=code, argument=name)
