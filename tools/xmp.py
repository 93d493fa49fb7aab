"""XMP packets: RDF in XML, in which everybody says of a picture what they know, each in a namespace of their own.

Rule: what others wrote stays as it is, byte for byte. Our properties are put in as one more rdf:Description before
the end of rdf:RDF; only what we say again is cut out of the rest, so that nothing is said twice.

    packet      := wrapper? (<x:xmpmeta> rdf </x:xmpmeta> | rdf) wrapper?       in UTF-8
    rdf         := <rdf:RDF> description* </rdf:RDF>
    description := <rdf:Description rdf:about="…" property="…" …> property* </rdf:Description>

A packet that does not hold to this, or declares a document type, is never written to. The text is XML 1.0: characters
that it cannot hold become U+FFFD. Source: Adobe XMP part 1 §7 and part 3 §1.1.3.1, IPTC Photo Metadata 2023.1.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple
from xml.parsers import expat

from tools.containers import LABEL_BYTES_MAX, Strange

OWN = "urn:imaged:provenance:1"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_XML = "http://www.w3.org/XML/1998/namespace"
_PREFIXES = {
    RDF: "rdf",
    OWN: "imaged",
    "http://iptc.org/std/Iptc4xmpExt/2008-02-29/": "Iptc4xmpExt",
    "http://purl.org/dc/elements/1.1/": "dc",
    "http://ns.adobe.com/xap/1.0/": "xmp",
    "http://ns.adobe.com/xap/1.0/mm/": "xmpMM",
    "http://ns.adobe.com/xap/1.0/sType/ResourceRef#": "stRef",
    "http://ns.adobe.com/xmp/note/": "xmpNote",
}
_URIS = {prefix: uri for uri, prefix in _PREFIXES.items()}
_META = f'<x:xmpmeta xmlns:x="adobe:ns:meta/">\n<rdf:RDF xmlns:rdf="{RDF}">\n</rdf:RDF>\n</x:xmpmeta>'.encode()
_END = b"</rdf:RDF>"
# Fixed by the standard, with a byte order mark in it; "w" allows others to write, too.
_PACKET = b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>\n' + _META + b'\n<?xpacket end="w"?>'
_START_TAG = re.compile(rb"<([^\s/>]+)((?:\s+[^\s=]+\s*=\s*(?:\"[^\"]*\"|'[^']*'))*)\s*(/?)>")
_ATTRIBUTE = re.compile(rb"\s+([^\s=]+)\s*=\s*(?:\"[^\"]*\"|'[^']*')")
_NOT_IN_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_RDF_ROOT, _DESCRIPTION = (RDF, "RDF"), (RDF, "Description")
_ESCAPED = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\r": "&#13;"})  # a bare return is read as a newline
_ESCAPED_INSIDE_TAG = _ESCAPED | str.maketrans({'"': "&quot;", "\n": "&#10;", "\t": "&#9;"})
_BETWEEN = "\x1f"  # what expat puts between URI, name and prefix; XML cannot hold it


class Property(NamedTuple):
    """`name` with one of our prefixes. `polite`: not said where somebody else has already said it."""

    name: str
    value: str
    form: Literal["text", "alternative", "reference"] = "text"
    polite: bool = False

    @property
    def key(self) -> tuple[str, str]:
        prefix, _, name = self.name.partition(":")
        return _URIS[prefix], name


class _Found(NamedTuple):
    """A property of a packet; `start` and `end` are the bounds of its element or attribute."""

    key: tuple[str, str]
    text: str
    start: int
    end: int


def packet(properties: Sequence[Property]) -> bytes:
    """A new one; the same properties give the same bytes."""
    return merged(_PACKET, properties)


def extension(old: bytes, properties: Sequence[Property]) -> bytes:
    """What goes on about the same picture as a packet does, without the wrapper that makes a packet.

    Raises:
        Strange: the packet is not laid out as it should be.
    """
    return _META.replace(_END, _description(_Walk(old).about, properties) + _END)


def unsaid(old: bytes, properties: Sequence[Property]) -> tuple[Property, ...]:
    """What is to be put into a packet: all, but for the polite ones that somebody else has said there.

    Raises:
        Strange: it is not laid out as it should be.
    """
    said = {found.key for found in _Walk(old).found}
    ours = any(uri == OWN for uri, _ in said)
    return tuple(one for one in properties if ours or not one.polite or one.key not in said)


def merged(old: bytes, properties: Sequence[Property], *, elsewhere: Sequence[Property] = ()) -> bytes:
    """The packet with these properties. Its own of the same name are cut out, and so are those that stand `elsewhere`.

    Raises:
        Strange: it is not laid out as it should be.
    """
    walk = _Walk(old)
    ours = {one.key for one in (*properties, *elsewhere)}
    edits = [(found.start, found.end, b"") for found in walk.found if found.key in ours or found.key[0] == OWN]
    if properties:
        start, end, before, after = walk.room
        edits.append((start, end, before + _description(walk.about, properties) + after))
    pieces: list[bytes] = []
    at = 0
    for start, end, text in sorted(edits):
        pieces += (old[at:start], text)
        at = end
    return b"".join(pieces) + old[at:]


def keys(old: bytes) -> dict[str, str]:
    """What is said in our namespace. Text from outside.

    Raises:
        Strange: it is not laid out as it should be.
    """
    return {name: text for (uri, name), text, _, _ in _Walk(old).found if uri == OWN}


def extension_guid(old: bytes) -> str:
    """The name of the extension that belongs to this packet, empty if there is none. Text from outside.

    Raises:
        Strange: it is not laid out as it should be.
    """
    return next((found.text for found in _Walk(old).found if found.key == pointer(b"").key), "")


def pointer(document: bytes) -> Property:
    """What ties an extension to its packet."""
    return Property("xmpNote:HasExtendedXMP", hashlib.md5(document, usedforsecurity=False).hexdigest().upper())


def sayable(text: str) -> str:
    """The text as XML can hold it."""
    return _NOT_IN_XML.sub("\ufffd", text)


class _Walk:
    """One passage through a packet.

    `room` is where our description goes: the bounds of what it replaces, and what must stand before and behind it.
    """

    def __init__(self, old: bytes) -> None:
        self.found: list[_Found] = []
        self.about = ""
        self.room = 0, 0, b"", b""
        self._old = old
        self._path: list[tuple[str, str]] = []
        self._text: list[str] = []
        self._rdf: re.Match[bytes] | None = None  # its start tag
        self._property: re.Match[bytes] | None = None  # that of the property being read
        self._parse()

    def _parse(self) -> None:
        if len(self._old) > LABEL_BYTES_MAX:
            raise Strange
        parser = expat.ParserCreate("utf-8", _BETWEEN)
        parser.namespace_prefixes = parser.ordered_attributes = parser.buffer_text = True
        parser.StartDoctypeDeclHandler = self._refuse
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text.append
        self._parser = parser
        try:
            parser.Parse(self._old.rstrip(b"\0"), True)
        except (expat.ExpatError, ValueError) as exc:
            raise Strange from exc
        if self._rdf is None:
            raise Strange

    def _refuse(self, *_: object) -> None:
        """Entities are declared in a document type only: without one, none can be expanded."""
        raise Strange

    def _depth(self) -> int:
        """0 for rdf:RDF, which is the first or second element, 1 for a description, 2 for a property, -1 outside."""
        outermost = 0 if self._path[0] == _RDF_ROOT else 1
        return len(self._path) - 1 - outermost if self._path[outermost : outermost + 1] == [_RDF_ROOT] else -1

    def _start(self, name: str, attributes: list[str]) -> None:
        self._path.append(_key(name))
        depth = self._depth()
        if depth not in (0, 1, 2):
            return
        tag = _START_TAG.match(self._old, self._parser.CurrentByteIndex)
        if tag is None or (depth == 0 and self._rdf is not None):
            raise Strange
        if depth == 0:
            self._rdf = tag
        elif depth == 1 and self._path[-1] == _DESCRIPTION:
            self._attributes(tag, attributes)
        elif depth == 2 and self._path[-2] == _DESCRIPTION:
            self._property = tag
            self._text.clear()

    def _attributes(self, tag: re.Match[bytes], attributes: list[str]) -> None:
        places = {place[1]: place.span() for place in _ATTRIBUTE.finditer(self._old, *tag.span(2))}
        for name, value in zip(attributes[::2], attributes[1::2], strict=True):
            uri, local = _key(name)
            if local == "about" and uri in ("", RDF):
                self.about = self.about or value
            elif uri not in ("", RDF, _XML):
                prefix = name.split(_BETWEEN)[2]
                self.found.append(_Found((uri, local), value, *places[f"{prefix}:{local}".encode()]))

    def _end(self, _: str) -> None:
        depth, at = self._depth(), self._parser.CurrentByteIndex
        key = self._path.pop()
        if depth == 0 and self._rdf is not None:
            self.room = at, at, b"", b""
            if self._rdf[3]:
                end = self._rdf.end()
                self.room = end - 2, end, b">\n", b"</" + self._rdf[1] + b">"
        elif depth == 2 and self._property is not None:
            end = self._property.end() if self._property[3] else self._old.index(b">", at) + 1
            self.found.append(_Found(key, "".join(self._text), self._property.start(), end))
            self._property = None


def _key(name: str) -> tuple[str, str]:
    """URI and name, from what expat makes of both."""
    uri, separator, rest = name.partition(_BETWEEN)
    return (uri, rest.partition(_BETWEEN)[0]) if separator else ("", uri)


def _description(about: str, properties: Sequence[Property]) -> bytes:
    """It declares all its prefixes, because the same ones may mean something else around it."""
    lines = [_element(one) for one in properties]
    used = [prefix for prefix in _URIS if prefix == "rdf" or any(f"<{prefix}:" in line for line in lines)]
    names = "".join(f' xmlns:{prefix}="{_URIS[prefix]}"' for prefix in used)
    start = f'<rdf:Description{names} rdf:about="{about.translate(_ESCAPED_INSIDE_TAG)}">\n'
    return f"{start}{''.join(lines)}</rdf:Description>\n".encode()


def _element(one: Property) -> str:
    text = sayable(one.value).translate(_ESCAPED)
    match one.form:
        case "alternative":
            return f'<{one.name}><rdf:Alt><rdf:li xml:lang="x-default">{text}</rdf:li></rdf:Alt></{one.name}>\n'
        case "reference":
            inner = f"<stRef:documentID>{text}</stRef:documentID>"
            return f'<{one.name} rdf:parseType="Resource">{inner}</{one.name}>\n'
        case _:
            return f"<{one.name}>{text}</{one.name}>\n"
