"""Provenance inside the files themselves, put there without touching a pixel, and read from them again.

Everywhere XMP says where the picture comes from, in the words of the IPTC: drawn by a trained model
(trainedAlgorithmicMedia), or such a drawing made from pictures that somebody gave (compositeWith…). It also holds
the keys below, in a namespace of our own. What others say there stays, and is said once: their description, creator
tool and date are kept instead of ours.

PNG: besides, one text chunk for each key, before the pixels (readers may ignore what comes after them); tEXt where
Latin-1 holds the text, iTXt in UTF-8 otherwise. JPEG and WebP: the same keys as one JSON object in the EXIF user
comment. A JPEG holds 64 KiB of it at most: a prompt that does not fit is cut there, ends with "…", and
MCP-Prompt-Characters tells its whole length. The whole then stands in XMP, which goes on in further segments; only
characters that XML cannot hold are U+FFFD there. Files of other kinds are left as they are.

    minimal    MCP-History-UUID
    standard   + MCP-Tool, MCP-Prompt, MCP-Model, MCP-Created, MCP-Size, MCP-Quality, MCP-Format
                 dc:description (the prompt), xmp:CreatorTool, xmp:CreateDate
    full       + MCP-Parameters (JSON)

Prompts stand in the file from `standard` on, because that is what users of the old program look for; who gives
pictures away without telling how they were asked for takes `minimal`. At every level but off, what was drawn
offline carries MCP-Backend, and a copy of a picture with content credentials (C2PA) says so: they are kept as they
are but vouch for the bytes as received only, which MCP-Derived-From and xmpMM:DerivedFrom name by their digest.

EXIF or XMP that is not laid out as it should be, is compressed, or leaves no room in a JPEG is left as it is, and
what was to be written there is not.
"""

import itertools
import re
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from eventlog.values import Embedding, ImageRequest, digest
from tools import containers, exif, xmp
from tools.containers import Strange, TooLong
from tools.pictures import jpeg_segments, png_chunks, sniff, webp_chunks

PREFIX = "MCP-"
PROGRAM = "imaged"
_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_SHORT_CHARACTERS_MAX = 1000  # what is longer leaves a JPEG's packet if the packet gets too long
_KEYS_MAX = 64  # read from one file; we write eleven
_KEY_CHARACTERS_MAX = 79
_SURROGATE = re.compile("[\ud800-\udfff]")
_C2PA_APPLICATION, _C2PA_ELEMENT = b"C2PA_GIF", b"<c2pa:manifest"
_JPEG_APP11, _JUMBF_TYPE_AT = 0xEB, 16  # behind marker, length, "JP", instance, number, and the box's length
_LEGACY_KEYWORD = "openai_gpt_image_metadata"
_LEGACY = {
    "openai_gpt_image_uuid": "MCP-History-UUID",
    "tool_name": "MCP-Tool",
    "model": "MCP-Model",
    "created_at": "MCP-Created",
    "size": "MCP-Size",
    "quality": "MCP-Quality",
    "prompt": "MCP-Prompt",
}
_LEGACY_MARK = {"MCP-Legacy": "openai-gpt-image-mcp-server"}


class Provenance(NamedTuple):
    """`created` in UTC, ISO 8601; `size` as drawn, WIDTHxHEIGHT.

    `edited`: made from pictures that somebody gave. `derived_from`: the SHA-256 of the bytes as received.
    """

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
    edited: bool = False
    derived_from: str = ""


def embed(data: bytes, provenance: Provenance, level: Embedding) -> bytes:
    """The same picture with its provenance; the same input gives the same bytes.

    Raises:
        BadPicture: cut off.
    """
    kind = sniff(data)
    if level == "off" or kind not in ("png", "jpeg", "webp"):
        return data
    origin = f"sha256:{provenance.derived_from or digest(data)}" if has_credentials(data) else ""
    entries = _entries(provenance, level, origin)
    labelled = containers.with_texts(data, entries) if kind == "png" else _with_comment(data, entries)
    try:
        said = _properties(provenance, level, origin)
        return _with_xmp(labelled, said) if kind != "jpeg" else _with_long_xmp(labelled, said)
    except (Strange, TooLong):
        return labelled


def extract(data: bytes) -> dict[str, str]:
    """The MCP- keys of a file, whoever wrote them; empty where there are none. Text from outside: not to be believed.

    What the old program wrote comes under the same keys, with MCP-Legacy, and only where there is nothing newer.

    Raises:
        BadPicture: cut off.
    """
    match sniff(data):
        case "png":
            texts, history = _from_texts(data)
        case "jpeg" | "webp":
            comment, history = exif.read(containers.exif(data))
            texts = _bounded(_decoded(comment).items())
        case _:
            return {}
    return _joined(texts, _from_xmp(data)) or _bounded(_from_history(history).items())


def sidecar(provenance: Provenance, level: Embedding) -> bytes:
    """An .xmp file to stand beside a picture: what `embed` would say in it. The same input gives the same bytes."""
    return xmp.packet(_properties(provenance, level, origin="") if level != "off" else ())


def has_credentials(data: bytes) -> bool:
    """Whether content credentials (C2PA) are there; not whether they are worth anything, which takes decoding.

    Raises:
        BadPicture: cut off.
    """
    match sniff(data):
        case "png":
            return any(chunk.kind == b"caBX" for chunk in png_chunks(data))
        case "jpeg":
            boxes = (data[start:end] for marker, start, end in jpeg_segments(data) if marker == _JPEG_APP11)
            return any(box.startswith(b"jumb", _JUMBF_TYPE_AT) and b"c2pa" in box for box in boxes)
        case "webp":
            return any(chunk.kind == b"C2PA" for chunk in webp_chunks(data))
        case "gif":
            return any(name.startswith(_C2PA_APPLICATION) for name in containers.gif_applications(data))
        case "svg":
            return _C2PA_ELEMENT in data
        case _:
            return False


def _entries(provenance: Provenance, level: Embedding, origin: str) -> dict[str, str]:
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
    if origin:
        entries["Derived-From"] = origin
    return {PREFIX + key: _SURROGATE.sub("\ufffd", value) for key, value in entries.items()}


def _properties(provenance: Provenance, level: Embedding, origin: str) -> list[xmp.Property]:
    source_type = "compositeWithTrainedAlgorithmicMedia" if provenance.edited else "trainedAlgorithmicMedia"
    said = [xmp.Property("Iptc4xmpExt:DigitalSourceType", _SOURCE_TYPES + source_type)]
    if origin:
        said.append(xmp.Property("xmpMM:DerivedFrom", origin, "reference"))
    if level in ("standard", "full"):
        said += [
            xmp.Property("dc:description", provenance.prompt, "alternative", polite=True),
            xmp.Property("xmp:CreatorTool", f"{PROGRAM} {provenance.model}", polite=True),
            xmp.Property("xmp:CreateDate", provenance.created, polite=True),
        ]
    return said + [xmp.Property(f"imaged:{key}", text) for key, text in _entries(provenance, level, origin).items()]


def _with_comment(data: bytes, entries: dict[str, str]) -> bytes:
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
    """None: it does not fit."""
    try:
        return containers.with_exif(data, exif.write(containers.exif(data), msgspec.json.encode(entries).decode()))
    except TooLong:
        return None
    except Strange:
        return data


def _with_xmp(data: bytes, said: list[xmp.Property]) -> bytes:
    old = containers.xmp(data)
    return containers.with_xmp(data, xmp.packet(said) if old is None else xmp.merged(old, xmp.unsaid(old, said)))


def _with_long_xmp(data: bytes, said: list[xmp.Property]) -> bytes:
    """A JPEG's: in one segment if it fits there. If not, what is long goes into the extension, others' as well as ours."""
    try:
        return _with_xmp(data, said)
    except TooLong:
        old = containers.xmp(data) or xmp.packet(())
    unsaid = xmp.unsaid(old, said)
    long = [one for one in unsaid if len(one.value) > _SHORT_CHARACTERS_MAX]
    short = [one for one in unsaid if one not in long]
    guid = xmp.extension_guid(old)
    before = containers.extension(data, guid)
    extension = xmp.merged(before, long) if before else xmp.extension(old, long)
    pointer = xmp.pointer(extension)
    packet = xmp.merged(old, [*short, pointer], elsewhere=long)
    if before:
        data = containers.without_extension(data, guid)
    return containers.with_extension(containers.with_xmp(data, packet), pointer.value, extension)


def _from_texts(data: bytes) -> tuple[dict[str, str], str]:
    """The keys in the text chunks of a PNG, and what the old program wrote."""
    found: dict[str, str] = {}
    history, left = "", containers.LABEL_BYTES_MAX
    for key, text in containers.texts(data):
        if (key.startswith(PREFIX) or key == _LEGACY_KEYWORD) and len(text) <= left:
            left -= len(text)
            if key == _LEGACY_KEYWORD:
                history = text
            else:
                found[key] = text
    return _bounded(found.items()), history


def _from_xmp(data: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    try:
        packet = containers.xmp(data) or xmp.packet(())
        found = xmp.keys(packet)
        guid = xmp.extension_guid(packet) if sniff(data) == "jpeg" else ""
        extension = containers.extension(data, guid)
        found = xmp.keys(extension) | found if extension else found
    except Strange:
        pass  # what was read before it is as good as without it
    return _bounded(found.items())


def _joined(texts: dict[str, str], said: dict[str, str]) -> dict[str, str]:
    """The chunks and the comment are exact, XMP is whole: of a prompt that had to be cut, XMP's is taken."""
    found = said | texts
    whole, kept = said.get("MCP-Prompt", ""), found.get("MCP-Prompt", "").removesuffix("…")
    if found.get("MCP-Prompt-Characters") == str(len(whole)) and whole.startswith(xmp.sayable(kept)):
        found["MCP-Prompt"] = whole
        del found["MCP-Prompt-Characters"]
    return found


def _from_history(text: str) -> dict[str, str]:
    """Of the old program's JSON, what is text."""
    old = _decoded(text)
    if "openai_gpt_image_uuid" not in old:
        return {}
    return {new: old[key] for key, new in _LEGACY.items() if key in old} | _LEGACY_MARK


def _decoded(text: str) -> dict[str, str]:
    """What is text in a JSON object; empty if it is none."""
    try:
        found = msgspec.json.decode(text or "{}", type=dict[str, object])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str)}


def _bounded(found: Iterable[tuple[str, str]]) -> dict[str, str]:
    ours = ((key, text) for key, text in found if key.startswith(PREFIX) and len(key) <= _KEY_CHARACTERS_MAX)
    return dict(itertools.islice(ours, _KEYS_MAX))
