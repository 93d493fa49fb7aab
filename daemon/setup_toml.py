"""Edits TOML as text, so that everything else in the file stays as its owner wrote it.

Rule: `tomllib` says what the text means; the scanner here only says where a table or a value stands. A table that is
added comes last, behind one blank line, and is taken out again with it. What the scanner cannot place - an entry
within an inline table - is refused, never guessed.
"""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from daemon.setup_json import CannotEdit, NotUnderstood

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")
_AT = re.compile(r"(?P<why>.*) \(at (?:line (?P<line>[0-9]+), column (?P<column>[0-9]+)|end of document)\)", re.DOTALL)
_VALUE_PART = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'|#[^\n]*|[\[\]{}]|\n|[^"\'#\[\]{}\n]+',
    re.DOTALL,
)
_KEY = re.compile(r"""(?:"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|[A-Za-z0-9_-]+|[ \t]*\.[ \t]*)+""")


class _Statement(NamedTuple):
    """A table's header (`value_start` is 0) or a key with its value. `end` is behind the line's end."""

    path: tuple[str, ...]
    start: int
    end: int
    value_start: int = 0
    value_end: int = 0

    @property
    def is_header(self) -> bool:
        return not self.value_start


def read(text: str) -> dict[str, Any]:
    """
    Raises:
        NotUnderstood
    """
    plain = text.removeprefix("\ufeff")
    try:
        return tomllib.loads(plain)
    except tomllib.TOMLDecodeError as exc:
        found = _AT.fullmatch(str(exc))
        if found is None or found["line"] is None:
            raise NotUnderstood(found["why"] if found else str(exc), text, len(text)) from None
        starts = [0, *(match.end() for match in re.finditer("\n", plain))]
        offset = starts[int(found["line"]) - 1] + int(found["column"]) - 1
        raise NotUnderstood(found["why"], plain, offset) from None
    except RecursionError:
        raise NotUnderstood("values stand within each other too deep", text, 0) from None


def put(text: str, path: Sequence[str], values: Mapping[str, object]) -> str:
    """The text with these values in the table at `path`, which is made if it is not there. Other values of it stay.

    What comes out may be no TOML where the table is written in an unusual way: callers read it again.

    Raises:
        NotUnderstood
        CannotEdit: the table is written in a way that cannot be edited in its place.
    """
    present = _at(read(text), path)
    if present is None:
        return _with_table(text, path, values)
    if not isinstance(present, dict):
        raise CannotEdit(f"{_dotted(path)} is not a table")
    for key, value in values.items():
        if present.get(key) != value:
            text = _with_value(text, path, key, value)
    return text


def take(text: str, path: Sequence[str]) -> str:
    """The text without the table at `path` and what is below it; comments behind it stay. As it is if it is not there.

    Raises:
        NotUnderstood, CannotEdit
    """
    if _at(read(text), path) is None:
        return text
    remaining = text
    for start, end in reversed(list(_blocks(text, tuple(path)))):
        remaining = _without(remaining, start, end)
    if _at(read(remaining), path) is not None:
        raise CannotEdit(f"{_dotted(path)} stands within an inline table")
    return remaining


def _at(document: Any, path: Sequence[str]) -> Any:
    for key in path:
        document = document.get(key) if isinstance(document, dict) else None
    return document


def _with_table(text: str, path: Sequence[str], values: Mapping[str, object]) -> str:
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = [f"[{_dotted(path)}]", *(f"{_key(key)} = {_rendered(value)}" for key, value in values.items())]
    block = newline.join(lines)
    plain = text.removeprefix("\ufeff")
    if not plain:
        return text + block + newline
    if plain.endswith("\n"):
        return text + newline + block + newline
    return text + newline + newline + block  # no line's end at the end of the file, before and after


def _with_value(text: str, path: Sequence[str], key: str, value: object) -> str:
    statements = list(_statements(text))
    whole = (*path, key)
    for found in statements:
        if found.path == whole and not found.is_header:
            return text[: found.value_start] + _rendered(value) + text[found.value_end :]
        if found.path == whole and isinstance(value, dict):
            present = _at(read(text), whole)
            for name, one in value.items():
                if present.get(name) != one:
                    text = _with_value(text, whole, name, one)
            return text
    newline = "\r\n" if "\r\n" in text else "\n"
    for found in statements:
        if found.path == tuple(path) and found.is_header:
            before = text[: found.end]
            gap = "" if before.endswith("\n") else newline
            return f"{before}{gap}{_key(key)} = {_rendered(value)}{newline}{text[found.end :]}"
    raise CannotEdit(f"{_dotted(path)} has no [{_dotted(path)}] of its own")


def _blocks(text: str, path: tuple[str, ...]) -> Iterator[tuple[int, int]]:
    """From each header or lone key of the table to the last statement that belongs to it."""
    block: tuple[int, int] | None = None
    for found in _statements(text):
        if found.path[: len(path)] != path:
            if block:
                yield block
            block = None
        elif found.is_header or block is None:
            if block:
                yield block
            block = found.start, found.end
        else:
            block = block[0], found.end
    if block:
        yield block


def _without(text: str, start: int, end: int) -> str:
    """Also without one blank line before it and, where the file ended without a line's end, without the one before that."""
    blank = _line_end_before(text, start)
    if blank and _line_end_before(text, start - blank):
        start -= blank
        if end == len(text) and not text.endswith("\n"):
            start -= _line_end_before(text, start)
    return text[:start] + text[end:]


def _line_end_before(text: str, offset: int) -> int:
    """Its length: 0, 1 or 2."""
    if text[max(0, offset - 1) : offset] != "\n":
        return 0
    return 2 if text[max(0, offset - 2) : offset] == "\r\n" else 1


def _statements(text: str) -> Iterator[_Statement]:
    """Of a text that `tomllib` has understood."""
    table: tuple[str, ...] = ()
    at = 1 if text.startswith("\ufeff") else 0
    while at < len(text):
        if text[at] in " \t\r\n":
            at += 1
        elif text[at] == "#":
            at = _line_end(text, at)
        elif text[at] == "[":
            double = text.startswith("[[", at)
            key = _key_at(text, _after_space(text, at + 1 + double))
            end = _line_end(text, key[1])
            table = (*key[0], "[]") if double else key[0]  # what stands in an array of tables is nobody's path
            yield _Statement(table, at, end)
            at = end
        else:
            path, behind = _key_at(text, at)
            value_start = _after_space(text, text.index("=", behind) + 1)
            value_end = _value_end(text, value_start)
            end = _line_end(text, value_end)
            yield _Statement((*table, *path), at, end, value_start, value_end)
            at = end


def _key_at(text: str, offset: int) -> tuple[tuple[str, ...], int]:
    found = _KEY.match(text, offset)
    assert found is not None
    path: list[str] = []
    at: Any = tomllib.loads(f"{found[0]} = 0")
    while isinstance(at, dict):
        ((key, at),) = at.items()
        path.append(key)
    return tuple(path), found.end()


def _value_end(text: str, offset: int) -> int:
    """Where a value ends that may go on over several lines within brackets and strings."""
    depth, end = 0, offset
    for part in _VALUE_PART.finditer(text, offset):
        if part[0] == "\n" and depth == 0:
            return end
        if part[0] in "[{":
            depth += 1
        elif part[0] in "]}":
            depth -= 1
        if not part[0].startswith("#") and part[0].strip():
            end = part.start() + len(part[0].rstrip())
    return end


def _line_end(text: str, offset: int) -> int:
    found = text.find("\n", offset)
    return len(text) if found < 0 else found + 1


def _after_space(text: str, offset: int) -> int:
    while text[offset : offset + 1] in (" ", "\t"):
        offset += 1
    return offset


def _dotted(path: Sequence[str]) -> str:
    return ".".join(_key(key) for key in path)


def _key(key: str) -> str:
    return key if _PLAIN_KEY.fullmatch(key) else _rendered(key)


def _rendered(value: object) -> str:
    """On one line. JSON's strings are TOML's basic strings, but for DEL."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(str(name))} = {_rendered(one)}" for name, one in value.items()) + " }" if value else "{}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_rendered(one) for one in value) + "]"
    if not isinstance(value, str | int | float):
        raise CannotEdit(f"a value is a {type(value).__name__}, which is nothing for an environment")
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
