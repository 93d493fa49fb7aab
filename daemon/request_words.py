"""What was asked, as words of the log: bounded, and without the pictures that came inline, of which the digests stay."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from eventlog.values import Words, digest

ARGUMENT_BYTES_MAX = 16 * 1024  # a longer argument is kept in the log as its digest
ITEM_CHARACTERS_MAX = 1000  # of a text in a list; no path is longer
ARGUMENTS_MAX = 64  # more than any operation has; the rest of a senseless request is not kept
_INLINE = re.compile(r"[A-Za-z0-9+/_-]{120}")  # no word of a person, and no name of a file


def words_of(given: Mapping[str, Any], apart: frozenset[str] = frozenset()) -> Words:
    """What was asked, for the log. Pictures that came inline are their digests."""
    kept: dict[str, msgspec.Raw] = {}
    for name, value in list(given.items())[:ARGUMENTS_MAX]:
        if name in apart:
            continue
        value = _shortened(value, 0 if name.endswith("_base64") else ITEM_CHARACTERS_MAX)
        text = msgspec.json.encode(value)
        kept[name[:100]] = msgspec.Raw(text if len(text) <= ARGUMENT_BYTES_MAX else msgspec.json.encode(_digest(text)))
    return Words(salt="", arguments=kept)


def _shortened(value: Any, characters_max: int) -> Any:
    """Inline pictures do not belong into the log, however they came: what looks like one is kept as its digest."""
    match value:
        case str() if len(value) > characters_max or "data:" in value or _INLINE.search(value):
            return _digest(value.encode("utf-8", "surrogatepass"))
        case list():
            return [_shortened(item, characters_max) for item in value]
        case dict():
            return {key: _shortened(item, characters_max) for key, item in value.items()}
        case _:
            return value


def _digest(data: bytes) -> dict[str, str | int]:
    return {"sha256": digest(data), "size_bytes": len(data)}
