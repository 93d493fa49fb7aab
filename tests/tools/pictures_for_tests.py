"""Small pictures of every kind, made with Pillow."""

import io

from PIL import Image


def picture(kind: str, width: int = 48, height: int = 32, mode: str = "RGB") -> bytes:
    image = Image.effect_mandelbrot((width, height), (-2, -1.5, 1, 1.5), 30).convert(mode)
    out = io.BytesIO()
    image.save(out, kind.upper())
    return out.getvalue()


def pixels(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGBA").tobytes()
