"""Provenance inside the files themselves, put there without touching a pixel.

PNG: one text chunk for each key, before the pixels (readers may ignore what comes after them); tEXt where
Latin-1 holds the text, iTXt in UTF-8 otherwise. Files of other kinds are left as they are.

    minimal    MCP-History-UUID
    standard   + MCP-Tool, MCP-Prompt, MCP-Model, MCP-Created, MCP-Size, MCP-Quality, MCP-Format
    full       + MCP-Parameters (JSON)

What was drawn offline carries MCP-Backend at every level but off.
"""

import zlib
from typing import NamedTuple

import msgspec

from eventlog.values import Embedding, ImageRequest
from tools.pictures import PNG, png_chunks, sniff

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
        BadPicture: a PNG that is cut off.
    """
    if level == "off" or sniff(data) != "png":
        return data
    first_pixels = next(chunk.start for chunk in png_chunks(data) if chunk.kind in (b"IDAT", b"IEND"))
    texts = b"".join(_text_chunk(key, value) for key, value in _entries(provenance, level).items())
    return data[:first_pixels] + texts + data[first_pixels:]


def extract(data: bytes) -> dict[str, str]:
    """The MCP- keys of a PNG, whoever wrote them; empty for other files. Text from outside: not to be believed.

    Raises:
        BadPicture: a PNG that is cut off.
    """
    if not data.startswith(PNG):
        return {}
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
