"""Provenance inside the files themselves, put there without touching a pixel.

PNG: one text chunk for each key, before the pixels (readers may ignore what comes after them); tEXt where
Latin-1 holds the text, iTXt in UTF-8 otherwise. JPEG and WebP: the same keys as one JSON object in the EXIF
user comment. A JPEG holds 64 KiB of it at most: a prompt that does not fit is cut there, ends with "…", and
MCP-Prompt-Characters tells its whole length. Files of other kinds are left as they are.

    minimal    MCP-History-UUID
    standard   + MCP-Tool, MCP-Prompt, MCP-Model, MCP-Created, MCP-Size, MCP-Quality, MCP-Format
    full       + MCP-Parameters (JSON)

Prompts stand in the file from `standard` on, because that is what users of the old program look for; who gives
pictures away without telling how they were asked for takes `minimal`. What was drawn offline carries MCP-Backend
at every level but off.
"""

import zlib
from typing import NamedTuple

import msgspec

from eventlog.values import Embedding, ImageRequest
from tools import exif
from tools.pictures import png_chunks, sniff

PREFIX = "MCP-"


class Provenance(NamedTuple):
    """`created` in UTC, ISO 8601; `size` as drawn, WIDTHxHEIGHT."""

    tool: str
    prompt: str
    model: str
    created: str
    size: str
    quality: str
    format: str
    history_uuid: str
    offline: bool
    parameters: ImageRequest


def embed(data: bytes, provenance: Provenance, level: Embedding) -> bytes:
    """The same picture with its provenance; the same input gives the same bytes.

    Raises:
        BadPicture: cut off.
    """
    if level == "off":
        return data
    match sniff(data):
        case "png":
            return _into_png(data, _entries(provenance, level))
        case "jpeg" | "webp":
            return _into_exif(data, _entries(provenance, level))
        case _:
            return data


def extract(data: bytes) -> dict[str, str]:
    """The MCP- keys of a file, whoever wrote them; empty where there are none. Text from outside: not to be believed.

    Raises:
        BadPicture: cut off.
    """
    match sniff(data):
        case "png":
            return _from_png(data)
        case "jpeg" | "webp":
            return _from_exif(data)
        case _:
            return {}


def _into_png(data: bytes, entries: dict[str, str]) -> bytes:
    first_pixels = next(chunk.start for chunk in png_chunks(data) if chunk.kind in (b"IDAT", b"IEND"))
    texts = b"".join(_text_chunk(key, value) for key, value in entries.items())
    return data[:first_pixels] + texts + data[first_pixels:]


def _from_png(data: bytes) -> dict[str, str]:
    found = {}
    for chunk in png_chunks(data):
        key, separator, _ = bytes(chunk.body[:80]).partition(b"\0")
        if not (separator and key.startswith(PREFIX.encode())):
            continue
        body = bytes(chunk.body[len(key) + 1 :])
        if chunk.kind == b"tEXt":
            found[key.decode("latin-1")] = body.decode("latin-1")
        elif chunk.kind == b"iTXt" and body[:2] == b"\0\0":
            *_, text = body[2:].split(b"\0", 2)
            found[key.decode("latin-1")] = text.decode("utf-8", "replace")
    return found


def _into_exif(data: bytes, entries: dict[str, str]) -> bytes:
    whole = _written(data, entries)
    if whole is not None:
        return whole
    prompt = entries.get("MCP-Prompt", "")
    best = data  # what others put there leaves no room at all: the picture is worth more than its label
    fits, too_many = -1, len(prompt)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        cut = {"MCP-Prompt": prompt[:middle] + "…", "MCP-Prompt-Characters": str(len(prompt))}
        shortened = _written(data, {**entries, **cut})
        if shortened is None:
            too_many = middle
        else:
            fits, best = middle, shortened
    return best


def _written(data: bytes, entries: dict[str, str]) -> bytes | None:
    try:
        return exif.write(data, _json(entries))
    except exif.TooLong:
        return None


def _from_exif(data: bytes) -> dict[str, str]:
    try:
        found = msgspec.json.decode(exif.read(data) or "{}", type=dict[str, str])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return {}
    return {key: value for key, value in found.items() if key.startswith(PREFIX)}


def _json(entries: dict[str, str]) -> str:
    return msgspec.json.encode({key: _without_surrogates(value) for key, value in entries.items()}).decode()


def _without_surrogates(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _entries(provenance: Provenance, level: Embedding) -> dict[str, str]:
    entries = {"History-UUID": provenance.history_uuid}
    if level in ("standard", "full"):
        entries |= {
            "Tool": provenance.tool,
            "Prompt": provenance.prompt,
            "Model": provenance.model,
            "Created": provenance.created,
            "Size": provenance.size,
            "Quality": provenance.quality,
            "Format": provenance.format,
        }
    if level == "full":
        entries["Parameters"] = msgspec.json.encode(provenance.parameters).decode()
    if provenance.offline:
        entries["Backend"] = "offline"
    return {PREFIX + key: value for key, value in entries.items()}


def _text_chunk(key: str, text: str) -> bytes:
    keyword = key.encode("ascii")
    if _is_plain_latin(text):
        return _chunk(b"tEXt", keyword + b"\0" + text.encode("latin-1"))
    # No compression, no language, no translated keyword.
    return _chunk(b"iTXt", keyword + b"\0\0\0\0\0" + text.replace("\0", "").encode("utf-8", "replace"))


def _is_plain_latin(text: str) -> bool:
    """PNG's tEXt holds Latin-1 with no control character but the newline."""
    return all(c == "\n" or " " <= c <= "~" or "\xa0" <= c <= "\xff" for c in text)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(body, zlib.crc32(kind)).to_bytes(4, "big")
