"""Edits JSON as text, so that everything else in the file stays as its owner wrote it.

Rule: read leniently, write carefully. Comments and trailing commas are read wherever the file has them, and none is
added where there was none. What `put` adds, `take` removes again to the byte, except that it cannot know whether
a member that holds nothing any more was there before.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

DEPTH_MAX = 100
INDENT = "  "  # where the file shows none of its own

_SPACE = re.compile(r"[ \t\r\n]+")
_LINE_COMMENT = re.compile(r"//[^\r\n]*")
_STRING = re.compile(r'"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*)*"')
_WORD = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null")


class NotUnderstood(Exception):
    """The text is not what it should be, at a line and column that count from 1."""

    def __init__(self, why: str, text: str, offset: int) -> None:
        line_start = max(text.rfind("\n", 0, offset), text.rfind("\r", 0, offset)) + 1
        self.line = text.count("\n", 0, offset) + 1
        self.column = offset - line_start + 1
        super().__init__(f"line {self.line}, column {self.column}: {why}")


class CannotEdit(Exception):
    """The text is sound, but the place for the change is taken by something else."""


class Member(NamedTuple):
    """`start` is the key's first character; `comma` is the offset of the comma behind the value, or None."""

    key: str
    start: int
    node: "Node"
    comma: int | None


class Node(NamedTuple):
    """One value and where it stands. `members` is None for what is not an object.

    `settled` is where the last member, comma or comment within the object ends: what follows is space.
    """

    start: int
    end: int
    value: Any
    members: tuple[Member, ...] | None = None
    settled: int = 0


def read(text: str) -> Any:
    """The value; None for a text that holds none.

    Raises:
        NotUnderstood
    """
    root = _Reader(text).root()
    return None if root is None else root.value


def put(text: str, path: Sequence[str], value: object) -> str:
    """The text with `value` at `path`; objects on the way are made. Members keep their places, new ones come last.

    Raises:
        NotUnderstood
        CannotEdit: something on the way is not an object, or is there twice.
    """
    root = _Reader(text).root()
    newline = _newline(text)
    if root is None:
        before = text + newline if text.strip(" \t\r\n\ufeff") and not text.endswith("\n") else text
        return before + _rendered(_nested(path, value), "", INDENT, newline) + newline
    unit = _unit(text, root)
    node = root
    for depth, key in enumerate(path):
        member = _member(node, key, path[:depth])
        if member is None:
            return _with_member(text, node, key, _nested(path[depth + 1 :], value), unit)
        node = member.node
    if node.value == value:
        return text
    return text[: node.start] + _rendered(value, _indent_at(text, node.start), unit, newline) + text[node.end :]


def take(text: str, path: Sequence[str]) -> str:
    """The text without what is at `path`, with its comma and the space before it. As it is if nothing is there.

    Raises:
        NotUnderstood, CannotEdit
    """
    node = _Reader(text).root()
    if node is None:
        return text
    for depth, key in enumerate(path[:-1]):
        member = _member(node, key, path[:depth])
        if member is None:
            return text
        node = member.node
    found = _member(node, path[-1], path[:-1])
    return text if found is None else _without(text, node, found)


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 1 if text.startswith("\ufeff") else 0
        self._settled = self._at  # where the last thing that is not space ended

    def root(self) -> Node | None:
        self._skip()
        if self._at == len(self._text):
            return None
        node = self._value(0)
        self._skip()
        if self._at < len(self._text):
            raise self._fault("something follows after the end of the value")
        return node

    def _fault(self, why: str) -> NotUnderstood:
        return NotUnderstood(why, self._text, self._at)

    def _skip(self) -> None:
        """Space and comments."""
        while True:
            if space := _SPACE.match(self._text, self._at):
                self._at = space.end()
            elif comment := _LINE_COMMENT.match(self._text, self._at):
                self._at = self._settled = comment.end()
            elif self._text.startswith("/*", self._at):
                end = self._text.find("*/", self._at + 2)
                if end < 0:
                    raise self._fault("this comment has no end")
                self._at = self._settled = end + 2
            else:
                return

    def _takes(self, character: str) -> bool:
        if not self._text.startswith(character, self._at):
            return False
        self._at += 1
        self._settled = self._at
        return True

    def _value(self, depth: int) -> Node:
        start = self._at
        if depth > DEPTH_MAX:
            raise self._fault(f"values stand within each other more than {DEPTH_MAX} deep")
        if self._takes("{"):
            return self._object(start, depth)
        if self._takes("["):
            return self._array(start, depth)
        if self._text.startswith('"', self._at):
            return Node(start, self._at, self._string()[0])._replace(end=self._at)
        word = _WORD.match(self._text, self._at)
        if word is None:
            raise self._fault("a value is expected here")
        try:
            value = json.loads(word[0])
        except ValueError:  # Python reads no number of more than 4300 digits
            raise self._fault("this number is too long to be read") from None
        self._at = self._settled = word.end()
        return Node(start, word.end(), value)

    def _string(self) -> tuple[str, int]:
        start = self._at
        found = _STRING.match(self._text, start)
        if found is None:
            raise self._fault("this string has no end, or holds what must be escaped")
        self._at = self._settled = found.end()
        text: str = json.loads(found[0])
        return text, start

    def _object(self, start: int, depth: int) -> Node:
        members: list[Member] = []
        value: dict[str, Any] = {}
        while True:
            self._skip()
            settled = self._settled
            if self._takes("}"):
                return Node(start, self._at, value, tuple(members), settled)
            if members and members[-1].comma is None:
                raise self._fault("a comma or } is expected here")
            if not self._text.startswith('"', self._at):
                raise self._fault("a name in double quotes or } is expected here")
            key, key_start = self._string()
            self._skip()
            if not self._takes(":"):
                raise self._fault("a colon is expected here")
            self._skip()
            node = self._value(depth + 1)
            self._skip()
            members.append(Member(key, key_start, node, self._at - 1 if self._takes(",") else None))
            value[key] = node.value

    def _array(self, start: int, depth: int) -> Node:
        items: list[Any] = []
        comma = True
        while True:
            self._skip()
            if self._takes("]"):
                return Node(start, self._at, items)
            if not comma:
                raise self._fault("a comma or ] is expected here")
            items.append(self._value(depth + 1).value)
            self._skip()
            comma = self._takes(",")


def _member(node: Node, key: str, above: Sequence[str]) -> Member | None:
    place = ".".join(above) or "the whole file"
    if node.members is None:
        raise CannotEdit(f"{place} is not an object in braces")
    found = [member for member in node.members if member.key == key]
    if len(found) > 1:
        raise CannotEdit(f"{json.dumps(key, ensure_ascii=False)} stands twice in {place}")
    return found[0] if found else None


def _with_member(text: str, node: Node, key: str, value: object, unit: str) -> str:
    assert node.members is not None
    newline = _newline(text)
    closing = _indent_at(text, node.start)
    name = json.dumps(key, ensure_ascii=False) + ": "
    if not node.members:
        # With a line's end on both sides, whatever space there was: so it can be told apart again when it is taken out.
        indent = closing + unit
        member = f"{newline}{indent}{name}{_rendered(value, indent, unit, newline)}{newline}{closing}"
        return text[: node.settled] + member + text[node.settled :]
    last = node.members[-1]
    comma = "" if last.comma is not None else ","
    if "\n" in text[node.start : node.end]:
        indent = _member_indent(text, node.members, closing + unit)
        member = f"{newline}{indent}{name}{_rendered(value, indent, unit, newline)}"
    else:
        member = f" {name}{json.dumps(value, ensure_ascii=False)}"
    before = text[: last.node.end] + comma + text[last.node.end : node.settled]
    return before + member + ("" if comma else ",") + text[node.settled :]


def _without(text: str, node: Node, found: Member) -> str:
    assert node.members is not None
    index = node.members.index(found)
    start = _settled_before(text, node.members[index - 1] if index else None, node, found)
    end = found.node.end if found.comma is None else found.comma + 1
    before, after = text[:start], text[end:]
    if index and found.comma is None:
        comma = node.members[index - 1].comma
        assert comma is not None
        before = before[:comma] + before[comma + 1 :]
    if len(node.members) == 1:
        ours = _newline(text) + _indent_at(text, node.start)
        after = after.removeprefix(ours)
    return before + after


def _settled_before(text: str, previous: Member | None, node: Node, found: Member) -> int:
    """Where the comma, brace or comment before a member ends."""
    at = node.start + 1
    if previous is not None:
        assert previous.comma is not None
        at = previous.comma + 1
    reader = _Reader(text)
    reader._at = reader._settled = at
    reader._skip()
    assert reader._at == found.start
    return reader._settled


def _nested(path: Sequence[str], value: object) -> object:
    for key in reversed(path):
        value = {key: value}
    return value


def _rendered(value: object, indent: str, unit: str, newline: str) -> str:
    """Objects over several lines, everything else on one."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False)
    inner = indent + unit
    members = (f"{inner}{json.dumps(k, ensure_ascii=False)}: {_rendered(v, inner, unit, newline)}" for k, v in value.items())
    return "{" + newline + f",{newline}".join(members) + newline + indent + "}"


def _newline(text: str) -> str:
    first = text.find("\n")
    return "\r\n" if first > 0 and text[first - 1] == "\r" else "\n"


def _indent_at(text: str, offset: int) -> str:
    """The space that begins the line of this character."""
    start = text.rfind("\n", 0, offset) + 1
    line = text[start:offset].removeprefix("\ufeff")
    return line[: len(line) - len(line.lstrip(" \t"))]


def _member_indent(text: str, members: Sequence[Member], otherwise: str) -> str:
    for member in reversed(members):
        line = text[text.rfind("\n", 0, member.start) + 1 : member.start]
        if not line.strip(" \t"):
            return line
    return otherwise


def _unit(text: str, root: Node) -> str:
    """By how much the file indents: as its first member does."""
    indent = _member_indent(text, (root.members or ())[:1], INDENT)
    return indent or INDENT
