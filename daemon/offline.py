"""An OpenAI stand-in that draws placeholders on this machine, for trying everything without a key.

Rule: it speaks the same wire protocol (strict about parameters, base64 in, `usage` out), so that all code
above it is the real code. It is used only where IMAGED_BACKEND=offline asks for it by name, and every
picture says "offline" on its face. Blocking; draws with Pillow.
"""

import base64
import hashlib
import io
import textwrap
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import msgspec
from PIL import Image, ImageDraw, ImageFont

from tools import pricing

FONT = Path(__file__).with_name("offline.otf")
SIZE_WHEN_AUTO = "1024x1024"
QUALITY_WHEN_AUTO = "medium"
PROMPT_SHOWN_MAX = 600  # characters; more would not be legible on a placeholder
COLUMNS = 26  # full-width characters in a line; Latin ones count half


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class _Order(msgspec.Struct, forbid_unknown_fields=True):
    """The documented parameters of /images/generations."""

    model: str
    prompt: str
    n: int = 1
    size: str = "auto"
    quality: str = "auto"
    background: str = "auto"
    output_format: str = "png"
    output_compression: int = 100
    moderation: str = "auto"


def answer(method: str, path: str, body: bytes) -> Answer:
    """What the API would say to this request. Draws for as long as Pillow needs: 0.05-1 s by size."""
    if (method, path) != ("POST", "/v1/images/generations"):
        return _error(404, f"Invalid URL ({method} {path})", None)
    try:
        order = msgspec.json.decode(body, type=_Order)
    except msgspec.ValidationError as exc:
        return _error(400, str(exc), "invalid_value")
    if not order.prompt:
        return _error(400, "Invalid 'prompt': empty string.", "empty_string")
    return _drawn(order)


def _drawn(order: _Order) -> Answer:
    size = SIZE_WHEN_AUTO if order.size == "auto" else order.size
    quality = QUALITY_WHEN_AUTO if order.quality == "auto" else order.quality
    width, height = (int(edge) for edge in size.split("x"))
    pictures = [
        base64.b64encode(_encode(_draw(order, width, height, number), order)).decode("ascii") for number in range(1, order.n + 1)
    ]
    text_tokens = 6 + len(order.prompt.encode()) // 4
    image_tokens = order.n * (pricing.output_tokens(order.model, size, quality) or 1756)
    reply = {
        "created": int(time.time()),
        "background": "transparent" if order.background == "transparent" else "opaque",
        "output_format": order.output_format,
        "quality": quality,
        "size": size,
        "data": [{"b64_json": picture} for picture in pictures],
        "usage": {
            "input_tokens": text_tokens,
            "input_tokens_details": {"text_tokens": text_tokens, "image_tokens": 0},
            "output_tokens": image_tokens,
            "output_tokens_details": {"image_tokens": image_tokens, "text_tokens": 0},
            "total_tokens": text_tokens + image_tokens,
        },
    }
    request_id = "offline-" + hashlib.sha256(msgspec.json.encode(order)).hexdigest()[:16]
    return Answer(200, {"content-type": "application/json", "x-request-id": request_id}, msgspec.json.encode(reply))


def _draw(order: _Order, width: int, height: int, number: int) -> Image.Image:
    """A quiet gradient in colours of the prompt's own, with the prompt, the size and the word offline on it."""
    shade = hashlib.sha256(f"{order.prompt}\0{number}".encode()).digest()
    upper, lower = _colour(shade[0:3], 0.35), _colour(shade[3:6], 0.18)
    column = Image.new("RGB", (1, 2))
    column.putpixel((0, 0), upper)
    column.putpixel((0, 1), lower)
    image = column.resize((width, height), Image.Resampling.BILINEAR)
    pen = ImageDraw.Draw(image)
    edge = min(width, height)
    margin = edge // 16
    font = _font(edge // 24)
    text = "\n".join(_wrapped(order.prompt[:PROMPT_SHOWN_MAX], COLUMNS * 2 * width // edge))
    pen.multiline_text((margin, margin), text, font=font, fill=(255, 255, 255), spacing=edge // 60)
    footer = f"OFFLINE · {order.model} · {width}x{height} · {order.quality} · {number}/{order.n}"
    small = _font(edge // 36)
    band = height - margin - edge // 24
    pen.rectangle((0, band - margin // 2, width, height), fill=lower)
    pen.text((margin, band), footer, font=small, fill=(255, 255, 255))
    if order.background == "transparent":
        image = image.convert("RGBA")
        image.putalpha(Image.new("L", image.size, 200))
    return image


def _encode(image: Image.Image, order: _Order) -> bytes:
    out = io.BytesIO()
    match order.output_format:
        case "jpeg":
            image.convert("RGB").save(out, "JPEG", quality=max(1, min(95, order.output_compression)), exif=_mark())
        case "webp":
            image.save(out, "WEBP", quality=order.output_compression, method=0, exif=_mark())
        case _:
            image.save(out, "PNG", compress_level=1, exif=_mark())
    return out.getvalue()


def _mark() -> Image.Exif:
    """ImageDescription, in every format: no placeholder passes for a picture, whatever metadata the user wants."""
    exif = Image.Exif()
    exif[0x010E] = "Drawn offline by imaged, not by OpenAI"
    return exif


def _colour(seed: bytes, lightness: float) -> tuple[int, int, int]:
    red, green, blue = (round(40 + byte * lightness) for byte in seed)
    return red, green, blue


@lru_cache(maxsize=16)
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONT, max(8, size_px))


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
