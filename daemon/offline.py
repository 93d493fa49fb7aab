"""An OpenAI stand-in that draws placeholders on this machine, for trying everything without a key.

Rule: it speaks the same wire protocol (strict about parameters, base64 in, `usage` out), so that all code
above it is the real code. It is used only where IMAGED_BACKEND=offline asks for it by name, and every
picture says "offline" on its face. Blocking; draws with Pillow.
"""

import base64
import hashlib
import io
import re
import textwrap
import time
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from xml.sax.saxutils import escape

import msgspec
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from tools import decoder, pricing
from tools.pictures import BadPicture, Measured, measure
from tools.streaming import CONTENT_TYPE

FONT = Path(__file__).with_name("offline.otf")
SIZE_WHEN_AUTO = "1024x1024"
QUALITY_WHEN_AUTO = "medium"
PROMPT_SHOWN_MAX = 600  # characters; more would not be legible on a placeholder
MARK = "Drawn offline by imaged, not by OpenAI"
GIF_FRAMES, GIF_FRAME_MS = 9, 200  # the API's defaults
COLUMNS = 26  # full-width characters in a line; Latin ones count half


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class _Order(msgspec.Struct, forbid_unknown_fields=True):
    """The documented parameters of /images/generations and, with its pictures, of /images/edits."""

    model: str
    prompt: str
    n: int = 1
    size: str = "auto"
    quality: str = "auto"
    background: str = "auto"
    output_format: str = "png"
    output_compression: int = 100
    moderation: str = "auto"
    stream: bool = False
    partial_images: Annotated[int, msgspec.Meta(ge=0, le=3)] = 0


class _Edit(_Order, forbid_unknown_fields=True):
    input_fidelity: str | None = None


class _Source(NamedTuple):
    """Not decoded in this process: what is wanted of it comes as plain pixels."""

    data: bytes
    found: Measured


class _Part(NamedTuple):
    """One piece of a multipart body; `file_name` is empty for a plain field."""

    name: str
    file_name: str
    kind: str
    data: bytes


def answer(method: str, path: str, body: bytes) -> Answer:
    """What the API would say to this request. Draws for as long as Pillow needs: 0.05-1 s by size."""
    sources: list[_Source] = []
    try:
        match method, path:
            case "POST", "/v1/images/generations":
                order = msgspec.json.decode(body, type=_Order)
            case "POST", "/v1/images/edits":
                order, sources = _edit(body)
            case _:
                return _error(404, f"Invalid URL ({method} {path})", None)
    except (msgspec.ValidationError, BadPicture, ValueError) as exc:
        return _error(400, str(exc), "invalid_value")
    if not order.prompt:
        return _error(400, "Invalid 'prompt': empty string.", "empty_string")
    try:
        return _drawn(order, sources)
    except BadPicture as exc:
        return _error(400, f"Invalid image: {exc}.", "invalid_image_file")


def _edit(body: bytes) -> tuple[_Edit, list[_Source]]:
    parts = _parts(body)
    fields = {part.name: part.data.decode() for part in parts if not part.file_name}
    order = msgspec.convert(fields, _Edit, strict=False)
    sources = []
    for part in parts:
        if part.file_name:
            if part.name not in ("image[]", "mask", "markup") or part.kind not in ("image/png", "image/jpeg", "image/webp"):
                raise ValueError(f"unsupported part {part.name} of type {part.kind}")
            source = _Source(part.data, measure(part.data))
            if part.name == "image[]":
                sources.append(source)
            elif sources and source.found[1:] != sources[0].found[1:]:
                raise ValueError(f"the {part.name} is not as large as the first image")
    if not sources:
        raise ValueError("Missing required parameter: 'image'.")
    return order, sources


def _parts(body: bytes) -> list[_Part]:
    boundary = body.partition(b"\r\n")[0]
    parts = []
    for piece in body.split(boundary + b"\r\n")[1:]:
        head, _, data = piece.partition(b"\r\n\r\n")
        words = dict(re.findall(r'(name|filename)="([^"]*)"', head.decode()))
        kind = re.search(r"(?im)^content-type: *(\S+)", head.decode())
        data = data.removesuffix(boundary + b"--\r\n").removesuffix(b"\r\n")
        parts.append(_Part(words.get("name", ""), words.get("filename", ""), kind[1] if kind else "", data))
    return parts


def _drawn(order: _Order, sources: list[_Source]) -> Answer:
    size = SIZE_WHEN_AUTO if order.size == "auto" else order.size
    quality = QUALITY_WHEN_AUTO if order.quality == "auto" else order.quality
    width, height = (int(edge) for edge in size.split("x"))
    pictures = [
        base64.b64encode(_encode(_draw(order, sources, (width, height), number), order)).decode("ascii")
        for number in range(1, order.n + 1)
    ]
    text_tokens = 6 + len(order.prompt.encode()) // 4
    fidelity = order.input_fidelity if isinstance(order, _Edit) else None
    source_tokens = sum(pricing.input_tokens(order.model, *source.found[1:], fidelity) or 0 for source in sources)
    partials = order.partial_images * pricing.table().partial_image_tokens
    image_tokens = order.n * ((pricing.output_tokens(order.model, size, quality) or 1756) + partials)
    reply = {
        "created": int(time.time()),
        "background": "transparent" if order.background == "transparent" else "opaque",
        "output_format": order.output_format,
        "quality": quality,
        "size": size,
        "data": [{"b64_json": picture} for picture in pictures],
        "usage": {
            "input_tokens": text_tokens + source_tokens,
            "input_tokens_details": {"text_tokens": text_tokens, "image_tokens": source_tokens},
            "output_tokens": image_tokens,
            "output_tokens_details": {"image_tokens": image_tokens, "text_tokens": 0},
            "total_tokens": text_tokens + source_tokens + image_tokens,
        },
    }
    request_id = "offline-" + hashlib.sha256(msgspec.json.encode(order)).hexdigest()[:16]
    if order.stream:
        kind = "image_edit" if isinstance(order, _Edit) else "image_generation"
        body = _streamed(
            kind, reply, [_unfinished(order, sources, (width, height), step) for step in range(order.partial_images)]
        )
        return Answer(200, {"content-type": CONTENT_TYPE, "x-request-id": request_id}, body)
    return Answer(200, {"content-type": "application/json", "x-request-id": request_id}, msgspec.json.encode(reply))


def _unfinished(order: _Order, sources: list[_Source], size: tuple[int, int], step: int) -> str:
    """The first picture, darker the earlier it is."""
    dark = ImageEnhance.Brightness(_draw(order, sources, size, 1)).enhance((step + 1) / (order.partial_images + 1))
    return base64.b64encode(_encode(dark, order)).decode("ascii")


def _streamed(kind: str, reply: Mapping[str, Any], partials: list[str]) -> bytes:
    """As the API sends it: the partial pictures, then one event for every picture; the usage of all stands in the last."""
    same = {"created_at": reply["created"], **{name: reply[name] for name in ("background", "output_format", "quality", "size")}}
    events = [
        (f"{kind}.partial_image", {**same, "b64_json": picture, "partial_image_index": index})
        for index, picture in enumerate(partials)
    ]
    events += [(f"{kind}.completed", {**same, **picture}) for picture in reply["data"]]
    usage = {name: count for name, count in reply["usage"].items() if name != "output_tokens_details"}
    events[-1][1]["usage"] = usage
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode({"type": name, **data})) for name, data in events
    )


def _draw(order: _Order, sources: list[_Source], size: tuple[int, int], number: int) -> Image.Image:
    """A quiet gradient in colours of the prompt's own, or the first source, with the prompt and the word offline on it."""
    width, height = size
    shade = hashlib.sha256(f"{order.prompt}\0{number}".encode()).digest()
    upper, lower = _colour(shade[0:3], 0.35), _colour(shade[3:6], 0.18)
    column = Image.new("RGB", (1, 2))
    column.putpixel((0, 0), upper)
    column.putpixel((0, 1), lower)
    image = column.resize(size, Image.Resampling.BILINEAR)
    edge = min(width, height)
    margin = edge // 16
    for place, source in enumerate(sources):
        if place == 0:
            first = _fitted(source, size, cut=True)
            image.paste(first, mask=first.getchannel("A").point(lambda alpha: alpha * 3 // 4))
        else:
            small = _fitted(source, (edge // 8, edge // 8), cut=False)
            image.paste(small, (margin + (place - 1) * (edge // 8 + 8), height // 2), mask=small)
    pen = ImageDraw.Draw(image)
    text = "\n".join(_wrapped(order.prompt[:PROMPT_SHOWN_MAX], COLUMNS * 2 * width // edge))
    font = _font(edge // 24)
    pen.multiline_text(
        (margin, margin),
        text,
        font=font,
        fill=(255, 255, 255),
        spacing=edge // 60,
        stroke_width=2 if sources else 0,
        stroke_fill=(0, 0, 0),
    )
    footer = f"OFFLINE · {order.model} · {width}x{height} · {order.quality} · {number}/{order.n}"
    band = height - margin - edge // 24
    pen.rectangle((0, band - margin // 2, width, height), fill=lower)
    pen.text((margin, band), footer, font=_font(edge // 36), fill=(255, 255, 255))
    if order.background == "transparent":
        image = image.convert("RGBA")
        image.putalpha(Image.new("L", image.size, 200))
    return image


def _fitted(source: _Source, size: tuple[int, int], *, cut: bool) -> Image.Image:
    (width, height), pixels = decoder.fitted(source.data, *size, cut=cut)
    return Image.frombytes("RGBA", (width, height), pixels)


def _encode(image: Image.Image, order: _Order) -> bytes:
    out = io.BytesIO()
    match order.output_format:
        case "jpeg":
            image.convert("RGB").save(out, "JPEG", quality=max(1, min(95, order.output_compression)), exif=_mark())
        case "webp":
            image.save(out, "WEBP", quality=order.output_compression, method=0, exif=_mark())
        case "gif":
            frames = [ImageEnhance.Brightness(image.convert("RGB")).enhance(1 - 0.05 * frame) for frame in range(GIF_FRAMES)]
            image.convert("RGB").save(out, "GIF", save_all=True, append_images=frames[1:], duration=GIF_FRAME_MS, comment=MARK)
        case "svg":
            return _svg(order, image)
        case _:
            image.save(out, "PNG", compress_level=1, exif=_mark())
    return out.getvalue()


def _svg(order: _Order, image: Image.Image) -> bytes:
    width, height = image.size
    corners = image.convert("RGB").crop((0, 0, 1, height)).tobytes()
    upper, lower = "#" + corners[:3].hex(), "#" + corners[-3:].hex()
    lines = "".join(
        f'<tspan x="{width // 16}" dy="{height // 20}">{escape(line)}</tspan>'
        for line in _wrapped(order.prompt[:PROMPT_SHOWN_MAX], COLUMNS * 2)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
        f"<desc>{MARK}</desc>"
        f'<linearGradient id="sky" x2="0" y2="1"><stop stop-color="{upper}"/><stop offset="1" stop-color="{lower}"/>'
        f'</linearGradient><rect width="{width}" height="{height}" fill="url(#sky)"/>'
        f'<text y="{height // 16}" font-size="{height // 24}" fill="#fff">{lines}</text>'
        f'<text x="{width // 16}" y="{height - height // 16}" font-size="{height // 36}" fill="#fff">OFFLINE</text></svg>\n'
    ).encode()


def _mark() -> Image.Exif:
    """ImageDescription, in every format: no placeholder passes for a picture, whatever metadata the user wants."""
    exif = Image.Exif()
    exif[0x010E] = MARK
    return exif


def _colour(seed: bytes, lightness: float) -> tuple[int, int, int]:
    red, green, blue = (round(40 + byte * lightness) for byte in seed)
    return red, green, blue


@lru_cache(maxsize=16)
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(io.BytesIO(_font_file()), max(8, size_px))


@cache
def _font_file() -> bytes:
    return FONT.read_bytes()


def load() -> None:
    """Reads what is read once, and what Pillow imports when it first writes a format. Blocking."""
    from PIL import ImageChops, ImageSequence  # noqa: F401

    Image.init()
    _font_file()


def _wrapped(text: str, columns: int) -> list[str]:
    """Lines of at most `columns` half-width cells; Japanese needs no spaces to break at."""
    lines: list[str] = []
    for paragraph in text.splitlines() or [""]:
        wide = sum(ord(character) > 0x2E7F for character in paragraph) * 2 > len(paragraph)
        lines += textwrap.wrap(paragraph, max(4, columns // 2 if wide else columns)) or [""]
    return lines


def _error(status: int, message: str, code: str | None) -> Answer:
    error = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
    return Answer(status, {"content-type": "application/json"}, msgspec.json.encode(error))
