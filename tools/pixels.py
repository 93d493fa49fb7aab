"""What Pillow does for us: every place where pixels are decoded. Runs in a throw-away process only; see `tools.decoder`.

Rule: a request is words, the first names the operation, the next three are the format and the size in pixels that the
walk over the container found; a picture that says anything else of itself is refused. Nothing here opens a file.
"""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

JPEG_QUALITY = 95  # of what is turned upright: no difference to be seen
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Undecodable(Exception):
    """Says one word for why: `damaged`, `two-sizes` or `memory`."""


class Made(NamedTuple):
    """`numbers` is what the operation says besides: a size, or yes and no as 1 and 0."""

    numbers: tuple[int, ...]
    data: bytes


class _Claimed(NamedTuple):
    format: str
    width: int
    height: int


def load() -> None:
    """Does everything once, so that all is imported that Pillow imports when it first needs it: later nothing can be opened.

    Blocks, for some 40 ms.
    """
    from PIL import ImageChops, ImageSequence, MpoImagePlugin, TiffImagePlugin  # noqa: F401  # of EXIF, in JPEG and WebP

    warnings.simplefilter("ignore")  # nobody reads them, and showing one opens files
    exif = Image.Exif()
    exif[TiffImagePlugin.X_RESOLUTION] = 72.0
    for kind in ("png", "jpeg", "webp", "gif"):
        for mode in ("RGB", "L", "P"):
            out = io.BytesIO()
            more = [Image.new("L", (2, 2), 99)] if kind == "gif" else []
            drawn = Image.new("RGB" if kind in ("jpeg", "webp") else mode, (2, 2))
            drawn.save(out, kind.upper(), exif=exif, save_all=bool(more), append_images=more)
            for word in _OPERATIONS:
                make(f"{word} {kind} 2 2{_TRIED_WITH.get(word, '')}", out.getvalue())
    with contextlib.suppress(Undecodable):
        make("prove png 2 2", b"")


def make(request: str, data: bytes) -> Made:
    """Carries out one request.

    Raises:
        Undecodable
    """
    word, kind, width, height, *arguments = request.split()
    try:
        return _OPERATIONS[word](data, _Claimed(kind, int(width), int(height)), *map(int, arguments))
    except MemoryError:
        raise Undecodable("memory") from None
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        raise Undecodable("damaged") from None


def _prove(data: bytes, claimed: _Claimed) -> Made:
    """That it can be decoded; a JPEG is read as well at an eighth."""
    with _opened(data, claimed) as image:
        image.draft(None, (max(1, claimed.width // 8), max(1, claimed.height // 8)))
        image.load()
    return Made((), b"")


def _is_opaque(data: bytes, claimed: _Claimed) -> Made:
    with _opened(data, claimed) as image:
        return Made((int(image.convert("RGBA").getchannel("A").getextrema() == (255, 255)),), b"")


def _turn(data: bytes, claimed: _Claimed, orientation: int) -> Made:
    """Upright, in the same format, and the new size. `orientation` is that of EXIF, 2 to 8."""
    with _opened(data, claimed) as image:
        turned = image.transpose(_TURNS[orientation])
        profile = image.info.get("icc_profile")
    out = io.BytesIO()
    match claimed.format:
        case "jpeg":
            turned.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0, icc_profile=profile)
        case "webp":  # the quickest way: more effort makes it hardly smaller, but takes minutes
            turned.save(out, "WEBP", lossless=True, exact=True, method=0, quality=0, icc_profile=profile)
        case _:
            turned.save(out, "PNG")
    return Made(turned.size, out.getvalue())


def _preview(data: bytes, claimed: _Claimed, quality: int, room: int, *edges: int) -> Made:
    """The first of the JPEGs that fit into squares of these edges which has at most `room` bytes, or the last; and its edge."""
    with _opened(data, claimed) as opened:
        opened.draft("RGB", (edges[0], edges[0]))
        image = opened.convert("RGBA")
    out = io.BytesIO()
    for edge in edges:
        image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
        paper = Image.new("RGB", image.size, (255, 255, 255))
        paper.paste(image, mask=image.getchannel("A"))
        out = io.BytesIO()
        paper.save(out, "JPEG", quality=quality, progressive=True, optimize=True)
        if out.tell() <= room:
            break
    return Made((edge,), out.getvalue())


def _png(data: bytes, claimed: _Claimed) -> Made:
    with _opened(data, claimed) as image:
        out = io.BytesIO()
        image.save(out, "PNG")
    return Made((), out.getvalue())


def _cover(data: bytes, claimed: _Claimed, width: int, height: int) -> Made:
    """RGBA, line by line, exactly so large; what does not fit is cut off at both sides."""
    from PIL import ImageOps

    with _opened(data, claimed) as image:
        return Made((width, height), ImageOps.fit(image.convert("RGBA"), (width, height)).tobytes())


def _contain(data: bytes, claimed: _Claimed, width: int, height: int) -> Made:
    """RGBA, line by line, as large as fits into this; and its size."""
    from PIL import ImageOps

    with _opened(data, claimed) as image:
        small = ImageOps.contain(image.convert("RGBA"), (width, height))
    return Made(small.size, small.tobytes())


@contextmanager
def _opened(data: bytes, claimed: _Claimed) -> Iterator[Image.Image]:
    """Not yet decoded: what happens in the block is what costs."""
    with Image.open(io.BytesIO(data), formats=[claimed.format.upper()]) as image:
        if image.size != (claimed.width, claimed.height):
            raise Undecodable("two-sizes")
        yield image


_OPERATIONS: dict[str, Callable[..., Made]] = {
    "prove": _prove,
    "is-opaque": _is_opaque,
    "turn": _turn,
    "preview": _preview,
    "png": _png,
    "cover": _cover,
    "contain": _contain,
}
_TRIED_WITH = {"turn": " 6", "preview": " 60 1 2", "cover": " 1 1", "contain": " 1 1"}
